//! How the writes under one grant are going.

use parking_lot::{Mutex, MutexGuard};

use crate::api::{OnFinished, Written};
use crate::error::WriteError;
use crate::grant::Grant;

/// Shared by a writer and the connection's thread.
pub(super) struct Delivery {
    pub lease: u64,
    pub key: u128,
    pub page_bytes: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pending: usize,
    written: u64,
    failed: Option<WriteError>,
    on_finished: Option<OnFinished>,
}

impl Delivery {
    pub fn new(grant: &Grant) -> Delivery {
        let Grant {
            lease,
            key,
            page_bytes,
            ..
        } = *grant;
        Delivery {
            lease,
            key,
            page_bytes,
            state: Mutex::default(),
        }
    }

    pub fn failure(&self) -> Option<WriteError> {
        self.state.lock().failed.clone()
    }

    pub fn pending(&self) -> usize {
        self.state.lock().pending
    }

    pub fn page_queued(&self) {
        self.state.lock().pending += 1;
    }

    pub fn page_written(&self) {
        let mut state = self.state.lock();
        state.pending -= 1;
        state.written += 1;
        Self::settle(state);
    }

    /// A page has been let go undelivered.
    pub fn page_dropped(&self, why: &WriteError) {
        let mut state = self.state.lock();
        state.pending -= 1;
        state.failed.get_or_insert_with(|| why.clone());
        Self::settle(state);
    }

    /// Nothing more will be delivered. The first failure counts.
    pub fn fail(&self, error: &WriteError) {
        let mut state = self.state.lock();
        state.failed.get_or_insert_with(|| error.clone());
        Self::settle(state);
    }

    /// Sets what hears of the end. If that has come, it hears of it now.
    pub fn on_finished(&self, on_finished: OnFinished) {
        let mut state = self.state.lock();
        state.on_finished = Some(on_finished);
        Self::settle(state);
    }

    /// Tells of a failure once no page is held any more, so that whoever hears of it may rely on
    /// having its pages back.
    fn settle(mut state: MutexGuard<'_, State>) {
        if state.pending > 0 {
            return;
        }
        let Some(error) = state.failed.clone() else {
            return;
        };
        let on_finished = state.on_finished.take();
        drop(state);
        if let Some(on_finished) = on_finished {
            on_finished(Err(error));
        }
    }

    /// Everything has been acknowledged.
    pub fn finished(&self) {
        let mut state = self.state.lock();
        let written = Written {
            pages: state.written,
            bytes: state.written * self.page_bytes as u64,
        };
        let on_finished = state.on_finished.take();
        drop(state);
        if let Some(on_finished) = on_finished {
            on_finished(Ok(written));
        }
    }
}
