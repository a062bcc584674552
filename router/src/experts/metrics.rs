//! What a router counts of groups. Layers and ranks are bounded by the model and the group; experts
//! are never labels, so that a model of 256 of them in 58 layers adds no 14,848 series.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use millrace_experts::group::coordinator::Void;
use millrace_telemetry::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGaugeVec, Opts};

use super::groups::Groups;
use super::history::Cause;
use super::view::{GroupState, GroupView};

type Made<T> = Result<T, prometheus::Error>;

/// What an epoch is for; the first is never planned.
const CAUSES: [&str; 5] = ["form", "evict", "join", "relink", "balance"];
const VOIDS: [&str; 6] = [
    "deadline",
    "staging",
    "gone",
    "unlinked",
    "superseded",
    "invalid",
];

/// What this router did itself: sums over routers are what was done in all.
#[derive(Debug)]
pub struct Counters {
    plans: IntCounterVec,
    commits: IntCounterVec,
    withdrawals: IntCounterVec,
    moved: IntCounter,
}

impl Counters {
    /// # Errors
    /// `registry` has them already.
    pub fn new(registry: &Registry, model_name: &str) -> Made<Counters> {
        let counters = |name, help, reasons: &[&str]| {
            let counters = IntCounterVec::new(opts(model_name, name, help), &["reason"])?;
            for reason in reasons {
                counters.with_label_values(&[reason]);
            }
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let moved = IntCounter::with_opts(opts(
            model_name,
            "moved_total",
            "Experts that ranks loaded because an epoch of this router moved them",
        ))?;
        registry.register(Box::new(moved.clone()))?;
        Ok(Counters {
            plans: counters(
                "plans_total",
                "Plans published by this router, by what they are for",
                &CAUSES[1..],
            )?,
            commits: counters(
                "commits_total",
                "Epochs committed by this router, by what they are for",
                &CAUSES,
            )?,
            withdrawals: counters(
                "withdrawals_total",
                "Plans given up by this router, by why",
                &VOIDS,
            )?,
            moved,
        })
    }

    pub(super) fn planned(&self, cause: Cause) {
        self.plans.with_label_values(&[cause.as_str()]).inc();
    }

    pub(super) fn committed(&self, cause: Cause, moved: usize) {
        self.moved.inc_by(moved as u64);
        self.commits.with_label_values(&[cause.as_str()]).inc();
    }

    pub(super) fn withdrawn(&self, why: &Void) {
        let reason = match why {
            Void::Deadline(_) => "deadline",
            Void::Staging { .. } => "staging",
            Void::Gone(_) => "gone",
            Void::Unlinked => "unlinked",
            Void::Superseded | Void::Base { .. } => "superseded",
            Void::Record(_) | Void::Shape { .. } | Void::LeavesOut(_) | Void::Reset { .. } => {
                "invalid"
            }
        };
        self.withdrawals.with_label_values(&[reason]).inc();
    }
}

/// Gauges of groups, made from what `/experts` shows at each scrape: a group that is gone leaves no
/// series behind.
pub struct Gauges {
    model_name: String,
    groups: Weak<Groups>,
    desc: Vec<Desc>,
}

impl Gauges {
    /// # Errors
    /// `registry` has them already.
    pub fn register(registry: &Registry, model_name: &str, groups: &Arc<Groups>) -> Made<()> {
        let families = Families::new(model_name)?;
        let desc = families
            .all()
            .iter()
            .flat_map(|family| family.desc())
            .cloned()
            .collect();
        registry.register(Box::new(Gauges {
            model_name: model_name.to_owned(),
            groups: Arc::downgrade(groups),
            desc,
        }))
    }
}

impl Collector for Gauges {
    fn desc(&self) -> Vec<&Desc> {
        self.desc.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(groups) = self.groups.upgrade() else {
            return Vec::new();
        };
        let families = match Families::new(&self.model_name) {
            Ok(families) => families,
            Err(error) => {
                tracing::error!(%error, "gauges of groups could not be made");
                return Vec::new();
            }
        };
        let view = groups.view();
        let store = |gauge: &IntGaugeVec, value| gauge.with_label_values::<&str>(&[]).set(value);
        store(&families.leader, view.store.leading.into());
        store(&families.store_up, view.store.up.into());
        for group in &view.groups {
            families.set(group);
        }
        families.all().iter().flat_map(|f| f.collect()).collect()
    }
}

struct Families {
    balancedness: GaugeVec,
    overall: GaugeVec,
    hottest: GaugeVec,
    replicas: IntGaugeVec,
    epoch: IntGaugeVec,
    members: IntGaugeVec,
    state: IntGaugeVec,
    leader: IntGaugeVec,
    store_up: IntGaugeVec,
}

impl Families {
    fn new(model_name: &str) -> Made<Families> {
        let float =
            |name, help, labels: &[&str]| GaugeVec::new(opts(model_name, name, help), labels);
        let int =
            |name, help, labels: &[&str]| IntGaugeVec::new(opts(model_name, name, help), labels);
        Ok(Families {
            balancedness: float(
                "balancedness",
                "Mean over highest of what ranks computed in the last window",
                &["group", "layer"],
            )?,
            overall: float(
                "balancedness_overall",
                "Sum of the layers' means over the sum of their highest, in the last window",
                &["group"],
            )?,
            hottest: float(
                "hottest_share",
                "The largest shares of a layer's choices that single experts have, in the last window",
                &["group", "place"],
            )?,
            replicas: int(
                "replicas",
                "Logical experts, over all layers, with so many live replicas",
                &["group", "replicas"],
            )?,
            epoch: int("epoch", "Number of the latest committed epoch", &["group"])?,
            members: int("members", "Ranks in the latest committed epoch", &["group"])?,
            state: int(
                "state",
                "1 for the state that the group is in",
                &["group", "state"],
            )?,
            leader: int("leader", "1 while this router decides on epochs", &[])?,
            store_up: int("store_up", "1 while the epoch store can be reached", &[])?,
        })
    }

    fn all(&self) -> [&dyn Collector; 9] {
        [
            &self.balancedness,
            &self.overall,
            &self.hottest,
            &self.replicas,
            &self.epoch,
            &self.members,
            &self.state,
            &self.leader,
            &self.store_up,
        ]
    }

    fn set(&self, view: &GroupView) {
        let group = view.group.as_str();
        for state in GroupState::ALL {
            let gauge = self.state.with_label_values(&[group, state.as_str()]);
            gauge.set((state == view.state).into());
        }
        if let Some(epoch) = &view.epoch {
            let number = i64::try_from(epoch.number).unwrap_or(i64::MAX);
            self.epoch.with_label_values(&[group]).set(number);
            let members = epoch.members.len() as i64;
            self.members.with_label_values(&[group]).set(members);
            for (count, replicas) in view.replicas.iter().zip(["1", "2", "3", "4+"]) {
                let gauge = self.replicas.with_label_values(&[group, replicas]);
                gauge.set(*count as i64);
            }
        }
        if let Some(load) = &view.load {
            for (layer, &balancedness) in load.balancedness.iter().enumerate() {
                let layer = layer.to_string();
                let gauge = self.balancedness.with_label_values(&[group, &layer]);
                gauge.set(balancedness);
            }
            self.overall.with_label_values(&[group]).set(load.overall);
            for (place, hot) in load.hottest.iter().enumerate() {
                let place = (place + 1).to_string();
                self.hottest
                    .with_label_values(&[group, &place])
                    .set(hot.share);
            }
        }
    }
}

fn opts(model_name: &str, name: &str, help: &str) -> Opts {
    let labels = HashMap::from([("model_name".to_owned(), model_name.to_owned())]);
    Opts::new(name, help)
        .namespace("millrace")
        .subsystem("experts")
        .const_labels(labels)
}
