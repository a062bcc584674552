//! Whether a process may be sent work, and if not, why.

use tokio::sync::watch;

/// A shared flag behind `/ready`. Cheap to clone; all clones are the same flag.
#[derive(Clone)]
pub struct Readiness {
    /// `None`: ready. Otherwise what is being waited for.
    waiting_for: watch::Sender<Option<String>>,
}

impl Readiness {
    /// Not ready yet, waiting for `what`.
    pub fn waiting_for(what: &str) -> Readiness {
        Readiness {
            waiting_for: watch::Sender::new(Some(what.to_string())),
        }
    }

    pub fn set_ready(&self) {
        self.waiting_for.send_replace(None);
    }

    /// Not ready (any more), waiting for `what`; shown to whoever asks `/ready`.
    pub fn set_waiting_for(&self, what: impl Into<String>) {
        self.waiting_for.send_replace(Some(what.into()));
    }

    /// What is being waited for, unless it is ready.
    pub fn reason(&self) -> Option<String> {
        self.waiting_for.borrow().clone()
    }

    pub fn is_ready(&self) -> bool {
        self.waiting_for.borrow().is_none()
    }

    /// Follows the flag: `None` is ready.
    pub fn subscribe(&self) -> watch::Receiver<Option<String>> {
        self.waiting_for.subscribe()
    }

    /// Returns when it is ready.
    pub async fn ready(&self) {
        // `self` holds the sender, so the channel cannot close while this waits.
        let _ = self
            .waiting_for
            .subscribe()
            .wait_for(|reason| reason.is_none())
            .await;
    }
}
