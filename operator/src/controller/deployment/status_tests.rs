use super::*;
use crate::api::GroupStatus;
use crate::build::{self, Defaults};
use crate::controller::deployment::news::between;
use crate::controller::deployment::there::RouterFacts;
use crate::controller::deployment::{conditions::find, targets};
use crate::rollout::{self, Pool};

fn deployment(spec: serde_json::Value) -> ModelDeployment {
    let json = serde_json::json!({
        "apiVersion": "serving.millrace.dev/v1alpha1", "kind": "ModelDeployment",
        "metadata": {"name": "m", "namespace": "n", "uid": "u", "generation": 1},
        "spec": spec,
    });
    serde_json::from_value(json).unwrap()
}

fn spec(replicas: i32) -> serde_json::Value {
    serde_json::json!({
        "model": {"source": {"builtin": "tiny-r1"}},
        "prefill": {"replicas": replicas}, "decode": {"replicas": replicas},
    })
}

/// A world of one ModelDeployment, and what was last said of it.
struct World {
    deployment: ModelDeployment,
    resolved: Resolved,
    there: There,
    said: DeploymentStatus,
}

impl World {
    fn new(spec: serde_json::Value) -> World {
        let deployment = deployment(spec);
        let defaults = Defaults {
            image: "i".to_owned(),
            etcd: vec!["etcd:2379".to_owned()],
            operator_namespace: "o".to_owned(),
        };
        let resolved = build::resolve(&deployment, &defaults).unwrap();
        World {
            deployment,
            resolved,
            there: There::default(),
            said: DeploymentStatus::default(),
        }
    }

    fn revision(&self) -> String {
        self.resolved.revision.clone()
    }

    fn pools(&mut self, revision: &str, replicas: u32, ready: u32) {
        self.there.pools.retain(|pool| pool.revision != revision);
        for role in Role::ALL {
            self.there.pools.push(PoolFacts {
                revision: revision.to_owned(),
                role,
                pool: Pool {
                    replicas,
                    groups: replicas,
                    ready,
                    ..Pool::default()
                },
                fresh: false,
                running: 0,
                groups: BTreeMap::new(),
                waits: None,
            });
        }
    }

    fn routers(&mut self, done: bool) {
        self.there.router = RouterFacts {
            ready: 1,
            done,
            waits: None,
        };
    }

    /// Says it, and returns what is new.
    fn say(&mut self, second: i64) -> Vec<&'static str> {
        let wanted = targets::wanted(
            &self.resolved,
            &self.there,
            &self.said,
            rollout::Groups::default(),
        );
        let strategy = targets::strategy(&self.resolved, &wanted);
        let done = self.there.router.done;
        let revisions = self.there.revisions(|_| true);
        let plan = rollout::plan(&wanted, strategy, done, &revisions);
        let seen = Seen {
            deployment: &self.deployment,
            resolved: &self.resolved,
            there: &self.there,
            wanted: &wanted,
            plan: &plan,
            trouble: None,
        };
        let now = Timestamp::from_second(second).unwrap();
        let next = status(&self.said, &seen, now);
        let news = between(&self.said, &next);
        self.said = next;
        news.into_iter().map(|news| news.reason).collect()
    }

    fn condition(&self, kind: &str) -> (&str, &str, &str) {
        let found = find(&self.said, kind).unwrap();
        (&found.status, &found.reason, &found.message)
    }

    fn phase(&self) -> Phase {
        self.said.phase.unwrap()
    }
}

#[test]
fn it_starts_and_is_available_once_everything_is_there() {
    let mut world = World::new(spec(2));
    assert_eq!(world.say(0), ["Starting"]);
    assert_eq!(world.phase(), Phase::Starting);
    let revision = world.revision();
    world.pools(&revision, 2, 1);
    world.there.pools[1].waits =
        Some("m-x-decode-1-0 waits for container worker: ImagePullBackOff: no".to_owned());
    world.say(1);
    assert_eq!(world.phase(), Phase::Starting);
    let (status, reason, message) = world.condition("Progressing");
    assert_eq!((status, reason), ("True", "WaitingForGroups"));
    assert!(message.contains("1 decode group of revision"), "{message}");
    assert!(message.contains("ImagePullBackOff"), "{message}");
    assert_eq!(world.said.decode.summary, "1/2");
    world.routers(true);
    world.pools(&revision, 2, 2);
    assert_eq!(world.say(2), ["RolloutComplete", "Available"]);
    assert_eq!(world.phase(), Phase::Available);
    assert_eq!(world.condition("Available").0, "True");
    assert_eq!(world.condition("Progressing").1, "Complete");
    assert_eq!(world.said.router.http, "m.n.svc:8000");
    assert!(world.say(3).is_empty());
}

#[test]
fn nothing_is_called_available_while_an_older_revision_serves() {
    let mut world = World::new(spec(2));
    world.routers(true);
    let revision = world.revision();
    world.pools("old", 1, 1);
    world.pools(&revision, 1, 1);
    world.said.revision = "old".to_owned();
    world.said.phase = Some(Phase::Available);
    assert_eq!(world.say(0), ["RolloutStarted", "Progressing"]);
    let (status, reason, message) = world.condition("Available");
    assert_eq!((status, reason), ("False", "OlderServes"));
    assert!(message.contains("1 with old"), "{message}");
    // What is told in all is what serves in all.
    assert_eq!(world.said.decode.summary, "2/2");
    // It drains still: nothing of it serves, but it is not over.
    world.pools("old", 0, 0);
    world.there.pools[3].pool.groups = 1;
    world.pools(&revision, 2, 2);
    world.there.pools[1].pool.groups = 1;
    world.say(1);
    assert_eq!(world.phase(), Phase::Progressing);
}

#[test]
fn routers_that_are_not_new_yet_are_not_available() {
    let mut world = World::new(spec(1));
    let revision = world.revision();
    world.pools(&revision, 1, 1);
    world.routers(false);
    world.say(0);
    assert_eq!(world.condition("Available").1, "RouterRollout");
    assert_eq!(world.condition("Progressing").1, "WaitingForRouter");
    assert_eq!(world.phase(), Phase::Progressing);
}

#[test]
fn a_deadline_counts_from_the_last_progress() {
    let mut world = World::new(spec(2));
    world.routers(true);
    let revision = world.revision();
    world.pools(&revision, 2, 0);
    world.say(0);
    world.say(599);
    assert_eq!(world.condition("Progressing").0, "True");
    world.pools(&revision, 2, 1);
    world.say(599);
    world.say(1198);
    assert_eq!(world.condition("Progressing").0, "True");
    assert_eq!(world.say(1199), ["ProgressDeadlineExceeded", "Degraded"]);
    let (status, reason, message) = world.condition("Progressing");
    assert_eq!((status, reason), ("False", "ProgressDeadlineExceeded"));
    assert!(message.contains("600 s"), "{message}");
    assert!(world.say(5000).is_empty(), "it is said once");
    world.pools(&revision, 2, 2);
    world.say(5001);
    assert_eq!(world.phase(), Phase::Available);
}

#[test]
fn what_is_lost_is_degraded_and_then_unavailable() {
    let mut world = World::new(spec(2));
    world.routers(true);
    let revision = world.revision();
    world.pools(&revision, 2, 2);
    world.say(0);
    world.pools(&revision, 2, 1);
    assert_eq!(world.say(1), ["Degraded"]);
    assert_eq!(world.condition("Available").1, "GroupsMissing");
    world.pools(&revision, 2, 0);
    assert_eq!(world.say(2), ["Unavailable"]);
    world.pools(&revision, 2, 1);
    assert_eq!(world.say(3), ["Degraded"]);
    world.there.router = RouterFacts::default();
    assert_eq!(world.say(4), ["Unavailable"]);
    assert_eq!(world.condition("RouterAvailable").0, "False");
}

#[test]
fn a_group_that_lacks_a_rank_serves_but_is_degraded() {
    let mut world = World::new(spec(1));
    world.routers(true);
    let revision = world.revision();
    world.pools(&revision, 1, 1);
    let group = GroupStatus {
        ready_ranks: 1,
        ranks: 2,
        state: "Degraded".to_owned(),
        epoch: Some(3),
        ..GroupStatus::default()
    };
    let groups = &mut world.there.pools[1].groups;
    groups.insert("m-x-decode-0".to_owned(), group);
    world.say(0);
    assert_eq!(world.phase(), Phase::Degraded);
    assert_eq!(world.condition("Available").0, "True");
    assert_eq!(world.condition("Progressing").1, "Recovering");
    assert!(world.condition("Available").2.contains("1 of 2 ranks"));
    assert_eq!(world.said.groups["m-x-decode-0"].epoch, Some(3));
}

#[test]
fn an_invalid_spec_changes_nothing_and_says_which_field() {
    let mut world = World::new(spec(1));
    world.routers(true);
    let revision = world.revision();
    world.pools(&revision, 1, 1);
    world.say(0);
    world.deployment.metadata.generation = Some(2);
    let wrong = Invalid {
        field: "spec.decode.ranks".to_owned(),
        message: "write 1".to_owned(),
    };
    let now = Timestamp::from_second(1).unwrap();
    let next = invalid(&world.deployment, &world.said, &[wrong], &world.there, now);
    let news = between(&world.said, &next);
    assert_eq!(news.len(), 1);
    assert_eq!(news[0].note, "spec.decode.ranks: write 1");
    assert_eq!(next.phase, Some(Phase::Invalid));
    assert_eq!(
        (next.revision.as_str(), next.decode.ready),
        (revision.as_str(), 1)
    );
    assert_eq!(next.observed_generation, Some(2));
    let available = find(&next, "Available").unwrap();
    assert_eq!(
        (available.status.as_str(), available.reason.as_str()),
        ("False", "InvalidSpec")
    );
    assert!(available.message.contains("goes on as it is"));
    assert!(between(&next, &next).is_empty());
}

#[test]
fn what_has_served_is_remembered() {
    let mut world = World::new(spec(1));
    world.routers(true);
    let revision = world.revision();
    world.pools(&revision, 1, 0);
    world.say(0);
    assert!(!world.said.revisions[&revision].served);
    world.pools(&revision, 1, 1);
    world.say(1);
    world.pools(&revision, 1, 0);
    world.say(2);
    assert!(world.said.revisions[&revision].served);
}
