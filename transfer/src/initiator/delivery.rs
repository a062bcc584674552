//! How the writes under one grant are going.

use parking_lot::Mutex;

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
    }

    /// A page will not be delivered; why is said by [`Self::fail`].
    pub fn page_dropped(&self) {
        self.state.lock().pending -= 1;
    }

    /// Sets what hears of the end. If that has come, it hears of it now.
    pub fn on_finished(&self, on_finished: OnFinished) {
        let mut state = self.state.lock();
        match state.failed.clone() {
            None => state.on_finished = Some(on_finished),
            Some(error) => {
                drop(state);
                on_finished(Err(error));
            }
        }
    }

    /// The first failure counts.
    pub fn fail(&self, error: &WriteError) {
        let mut state = self.state.lock();
        if state.failed.is_some() {
            return;
        }
        state.failed = Some(error.clone());
        let on_finished = state.on_finished.take();
        drop(state);
        if let Some(on_finished) = on_finished {
            on_finished(Err(error.clone()));
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
