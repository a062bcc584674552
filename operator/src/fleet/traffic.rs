//! What routers counted, router by router: sums since each of them started.

use std::sync::Arc;
use std::time::Duration;

use millrace_proto::worker::v1 as wire;

/// All that the routers of a ModelDeployment say now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Traffic {
    pub counted: Vec<Counted>,
    /// Routers that clients may reach, and that are not heard: a gap.
    pub unheard: Vec<Arc<str>>,
}

/// What one router said last.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    /// The name of its pod.
    pub router: Arc<str>,
    /// Since it came.
    pub age: Duration,
    /// Sequences that wait for a turn there.
    pub waiting: u64,
    pub traffic: wire::Traffic,
}

/// Something came in while nobody is there to serve it: worth a look at once.
pub fn wakes(before: Option<&wire::FleetView>, now: Option<&wire::FleetView>) -> bool {
    let arrived = |view: &wire::FleetView| {
        let traffic = view.traffic.as_ref()?;
        Some((traffic.incarnation, traffic.arrived))
    };
    let Some(now) = now.filter(|view| !serves(view)) else {
        return false;
    };
    match (before.and_then(arrived), arrived(now)) {
        (_, Some((_, 0)) | None) => false,
        (before, now) => before != now,
    }
}

fn serves(view: &wire::FleetView) -> bool {
    let mut workers = view.workers.iter();
    workers.any(|worker| worker.available && worker.role() == wire::Role::Decode)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(arrived: u64, serves: bool) -> wire::FleetView {
        wire::FleetView {
            workers: vec![wire::FleetWorker {
                role: wire::Role::Decode.into(),
                available: serves,
                ..wire::FleetWorker::default()
            }],
            traffic: Some(wire::Traffic {
                arrived,
                ..wire::Traffic::default()
            }),
            ..wire::FleetView::default()
        }
    }

    #[test]
    fn a_request_that_nobody_serves_wakes() {
        let (idle, asked) = (view(0, false), view(1, false));
        assert!(wakes(Some(&idle), Some(&asked)));
        assert!(wakes(None, Some(&asked)), "it came before the operator");
        assert!(!wakes(Some(&asked), Some(&asked)), "it is told once");
        assert!(!wakes(None, Some(&idle)) && !wakes(Some(&asked), None));
        assert!(!wakes(Some(&idle), Some(&view(1, true))), "it is served");
        // A router that does not count yet is none to wait for.
        let old = wire::FleetView::default();
        assert!(!wakes(Some(&old), Some(&old)));
    }
}
