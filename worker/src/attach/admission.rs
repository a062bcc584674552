//! Whether some router has admitted this worker: what its readiness means.

use std::sync::Arc;

use parking_lot::Mutex;

use millrace_telemetry::Readiness;

use crate::notice::{Notice, Observer};

/// Shared by the links to all routers. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    state: Arc<Mutex<State>>,
    readiness: Readiness,
    observer: Observer,
}

#[derive(Default)]
struct State {
    admitted: usize,
    draining: bool,
}

impl Admission {
    pub fn new(readiness: Readiness, observer: Observer) -> Admission {
        readiness.set_waiting_for("a router to admit this worker");
        Admission {
            state: Arc::default(),
            readiness,
            observer,
        }
    }

    /// One more router knows this worker, until the value is dropped.
    pub fn admit(&self) -> Admitted {
        let mut state = self.state.lock();
        state.admitted += 1;
        if state.admitted == 1 && !state.draining {
            self.readiness.set_ready();
            (self.observer)(Notice::Ready);
        }
        Admitted(self.clone())
    }

    /// Not ready for the rest of its life.
    pub fn drain(&self) {
        self.state.lock().draining = true;
        self.readiness
            .set_waiting_for("its last requests: it is shutting down");
    }
}

/// Membership with one router.
pub struct Admitted(Admission);

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.admitted -= 1;
        if state.admitted == 0 && !state.draining {
            let waiting_for = "a router to admit this worker; the last one is gone";
            self.0.readiness.set_waiting_for(waiting_for);
        }
    }
}
