//! Whether some router has admitted this worker, and a rank its group: what its readiness means.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::IntGauge;

use millrace_telemetry::Readiness;

use crate::notice::{Notice, Observer};

/// Shared by the links to all routers. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    state: Arc<Mutex<State>>,
    readiness: Readiness,
    observer: Observer,
    /// How many routers have admitted it.
    routers: IntGauge,
}

#[derive(Default)]
struct State {
    admitted: usize,
    /// A rank that is no member of its group's epoch.
    outside: bool,
    draining: bool,
    /// What was shown last.
    ready: bool,
}

impl Admission {
    /// `outside`: see [`Admission::set_outside`]. `routers` shows how many have admitted it.
    pub fn new(
        readiness: Readiness,
        observer: Observer,
        outside: bool,
        routers: IntGauge,
    ) -> Admission {
        readiness.set_waiting_for("a router to admit this worker");
        let state = State {
            outside,
            ..State::default()
        };
        Admission {
            state: Arc::new(Mutex::new(state)),
            readiness,
            observer,
            routers,
        }
    }

    /// One more router knows this worker, until the value is dropped.
    pub fn admit(&self) -> Admitted {
        self.change(|state| state.admitted += 1);
        Admitted(self.clone())
    }

    /// Whether this is a rank that its group computes without.
    pub fn set_outside(&self, outside: bool) {
        self.change(|state| state.outside = outside);
    }

    /// Not ready for the rest of its life.
    pub fn drain(&self) {
        self.change(|state| state.draining = true);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        self.routers.set(state.admitted as i64);
        let waits_for = if state.draining {
            Some("its last requests: it is shutting down")
        } else if state.admitted == 0 {
            Some("a router to admit this worker")
        } else if state.outside {
            Some("its expert-parallel group to let this rank in")
        } else {
            None
        };
        match waits_for {
            Some(what) => self.readiness.set_waiting_for(what),
            None if !state.ready => {
                self.readiness.set_ready();
                (self.observer)(Notice::Ready);
            }
            None => {}
        }
        state.ready = waits_for.is_none();
    }
}

/// Membership with one router.
pub struct Admitted(Admission);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.change(|state| state.admitted -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_is_ready_once_a_router_and_its_group_have_it() {
        let readiness = Readiness::waiting_for("loading");
        let notices = Arc::new(Mutex::new(0));
        let seen = notices.clone();
        let observer: Observer = Arc::new(move |_| *seen.lock() += 1);
        let routers = IntGauge::new("attached_routers", "Routers").unwrap();
        let admission = Admission::new(readiness.clone(), observer, true, routers.clone());
        let ready = || readiness.subscribe().borrow().is_none();
        let admitted = admission.admit();
        assert!(!ready());
        admission.set_outside(false);
        let also = admission.admit();
        assert!(ready());
        assert_eq!(routers.get(), 2);
        assert_eq!(*notices.lock(), 1);

        admission.set_outside(true);
        assert!(!ready());
        admission.set_outside(false);
        assert_eq!(*notices.lock(), 2);
        drop(admitted);
        assert!(ready());
        drop(also);
        assert!(!ready());
        assert_eq!(routers.get(), 0);
        let _again = admission.admit();
        admission.drain();
        assert!(!ready());
    }
}
