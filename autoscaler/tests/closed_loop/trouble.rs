//! Routers that fall silent or restart, replicas that start or drain for long, rollouts.

use millrace_autoscaler::decision::{Cause, Frozen, Status};
use millrace_autoscaler::policy::ScaleToZero;
use millrace_autoscaler::{ByRole, Decision, Observation};

use crate::run::*;

/// Keeps all decisions.
struct Watched {
    ours: Ours,
    decisions: Vec<(f64, Decision)>,
}

impl Watched {
    fn new() -> Watched {
        Watched {
            ours: Ours::new(policy()),
            decisions: Vec::new(),
        }
    }

    fn between(&self, from: f64, to: f64) -> impl Iterator<Item = &Decision> {
        let within = self
            .decisions
            .iter()
            .filter(move |(at, _)| (from..to).contains(at));
        within.map(|(_, decision)| decision)
    }
}

impl Scaler for Watched {
    fn look(&mut self, observation: &Observation) -> ByRole<u32> {
        let desired = self.ours.look(observation);
        let decision = self.ours.last.clone().expect("looked");
        self.decisions.push((observation.now, decision));
        desired
    }
}

const GAP: f64 = 4.0 * HOUR;
const GAP_ENDS: f64 = GAP + 1200.0;

/// Load doubles when nobody sees it.
fn gap(hide: fn(&mut Observation, &Observation)) {
    let load = |now| if now < GAP { 4.0 } else { 12.0 };
    let mut fleet = fleet(19, both(2, 1), 12.0, load);
    let mut watched = Watched::new();
    let mut before = None;
    let report = run_with(&mut fleet, 8.0 * HOUR, &mut watched, |fleet, seen| {
        let mut told = seen.clone();
        if (GAP..GAP_ENDS).contains(&fleet.now) {
            hide(&mut told, before.as_ref().unwrap_or(&seen));
        } else {
            before = Some(seen);
        }
        Some(told)
    });
    // A router that stands still is found out a little later.
    for decision in watched.between(GAP + 30.0, GAP_ENDS) {
        assert_eq!(decision.status, Status::Frozen(Frozen::MetricsGap));
        assert!(!decision.changes());
        assert!(
            decision.message().contains("Frozen"),
            "{}",
            decision.message()
        );
    }
    for decision in watched.between(GAP_ENDS, GAP_ENDS + 25.0) {
        assert_eq!(decision.status, Status::Frozen(Frozen::Warming));
        assert!(!decision.changes());
    }
    let changes = report.after(GAP_ENDS);
    assert!(!changes.is_empty(), "it goes on");
    assert!(report.worst_half_hour(GAP_ENDS + HOUR) >= 0.93);
}

#[test]
fn nothing_is_decided_while_a_router_is_missing() {
    gap(|told, _| told.routers.clear());
}

#[test]
fn nothing_is_decided_while_a_router_stands_still() {
    gap(|told, before| told.routers.clone_from(&before.routers));
}

#[test]
fn nothing_is_decided_on_half_of_the_routers() {
    gap(|told, _| told.routers_expected = 2);
}

#[test]
fn routers_that_restart_change_nothing() {
    let mut fleet = fleet(23, both(2, 2), 6.1, |_| 6.1);
    let mut ours = Ours::new(policy());
    let report = run_with(&mut fleet, 16.0 * HOUR, &mut ours, |fleet, seen| {
        if seen.now % 600.0 < LOOK {
            fleet.restart_router();
        }
        Some(seen)
    });
    let later = report.after(2.0 * HOUR);
    assert!(later.len() <= 1, "{later:?}");
    assert_eq!(report.end, both(2, 1));
}

/// Replicas that take 20 minutes to start are waited for, however long queues get meanwhile.
#[test]
fn what_starts_is_waited_for() {
    let load = |now| if now < 2.0 * HOUR { 4.0 } else { 12.0 };
    let mut truth = truth(1.0, 1.0);
    truth.cold_start = 1200.0;
    let arrivals = crate::load::Arrivals::new(29, 12.0, 100.0 * HOUR, load);
    let mut fleet = crate::fleet::Fleet::new(truth, arrivals, both(2, 1));
    let mut watched = Watched::new();
    watched.ours.policy.cold_start_seconds = 1200.0;
    let report = run(&mut fleet, 2.33 * HOUR, &mut watched);
    let most = report.end;
    assert!(most.prefill >= 3, "{most:?}");
    // 12/s are served by 4 and 2. What piles up in 20 minutes is caught up with in a third of that, and not by
    // as many as the queue is long; then they go, sooner than a surplus does.
    assert!(
        most.prefill <= 10 && most.decode <= 5,
        "{:?}",
        report.changes
    );
    let report = run(&mut fleet, 2.6 * HOUR, &mut watched);
    let then = report.end;
    assert!(
        then.prefill <= 6 && then.decode <= 3,
        "{:?}",
        report.changes
    );
}

/// One more was told to go and is not gone: nothing else goes, nor while another revision comes in.
#[test]
fn what_drains_or_rolls_out_comes_first() {
    for rollout in [false, true] {
        let load = |now| if now < HOUR { 12.0 } else { 1.0 };
        let mut fleet = fleet(31, both(4, 2), 12.0, load);
        let mut watched = Watched::new();
        let report = run_with(&mut fleet, 3.0 * HOUR, &mut watched, |_, mut seen| {
            if seen.now >= HOUR {
                for pool in [&mut seen.pools.prefill, &mut seen.pools.decode] {
                    pool.existing = 2 * pool.wanted;
                    if rollout {
                        pool.ready = 2 * pool.wanted;
                    }
                }
                seen.rollout = rollout;
            }
            Some(seen)
        });
        assert_eq!(report.after(HOUR).len(), 0, "{:?}", report.changes);
        let cause = if rollout {
            Cause::Rollout
        } else {
            Cause::Draining
        };
        let last = watched.decisions.last().expect("looked");
        assert_eq!(last.1.pools.prefill.cause, cause);
    }
}

#[test]
fn idle_pools_go_to_zero_and_come_back() {
    let load = |now: f64| {
        if (HOUR..4.0 * HOUR).contains(&now) {
            0.0
        } else {
            2.0
        }
    };
    let mut fleet = fleet(37, both(1, 1), 2.0, load);
    let mut ours = Ours::new(policy());
    ours.policy.scale_to_zero = Some(ScaleToZero {
        idle_seconds: 1800.0,
    });
    let report = run(&mut fleet, 6.0 * HOUR, &mut ours);
    let mut later = report.after(HOUR).into_iter();
    let asleep = later.next().expect("goes to 0");
    assert_eq!(asleep.to, both(0, 0));
    assert!(asleep.at >= HOUR + 1800.0);
    let awake = later.next().expect("comes back");
    assert_eq!(awake.to, both(1, 1));
    assert!(
        (4.0 * HOUR..4.0 * HOUR + 60.0).contains(&awake.at),
        "{awake:?}"
    );
    assert!(report.worst_half_hour(5.0 * HOUR) >= 0.95);
}
