//! Pages that a prefill worker may write, from the grant to the end of its writes.
//!
//! ```text
//! reserved by the engine ── grant ──▶ PagesAtPeer ── complete ──▶ pages of the sequence
//!                                          │  └─ not everything landed ─┐
//!                                          └──────── dropped ───────────┴─▶ revoked, pages free
//! ```
//!
//! There is no third way out. A `PagesAtPeer` may be dropped anywhere (the client vanished, the
//! prefill worker died or hangs, a deadline passed, this worker shuts down, the engine's event
//! found nobody to take it) and the pages come back, but never before the transfer layer has said
//! that no more writes can land. Revoking waits for no peer, so doing it in `drop` holds nobody up.

use millrace_engine::{LeasedPages, PageRef, pages::release};
use millrace_transfer::{GrantError, Lease, PageTarget};

#[derive(Debug)]
pub struct PagesAtPeer {
    /// Absent only once they are back.
    lent: Option<Lent>,
    /// What the peer needs to write them.
    grant: Vec<u8>,
    first_page: usize,
}

#[derive(Debug)]
struct Lent {
    pages: LeasedPages,
    lease: Lease,
}

/// The peer said that it was done, and it was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it answered with {landed} of {pages} pages written")]
pub struct Incomplete {
    pub landed: usize,
    pub pages: usize,
}

impl PagesAtPeer {
    /// Lets a peer write `pages`, which are those of the sequence from `first_page` on.
    ///
    /// An error means that the transfer layer knows these pages as leased already, or that the
    /// system gives no random keys; without a lease there is no proof to free them by, so they are
    /// lost, which [`LeasedPages`] logs.
    pub fn grant(
        target: &dyn PageTarget,
        pages: LeasedPages,
        first_page: usize,
    ) -> Result<PagesAtPeer, GrantError> {
        let (lease, grant) = target.grant(&pages.indexes(), None)?;
        Ok(PagesAtPeer {
            lent: Some(Lent { pages, lease }),
            grant: grant.to_bytes(),
            first_page,
        })
    }

    /// For the prefill request.
    pub fn descriptor(&self) -> &[u8] {
        &self.grant
    }

    pub fn first_page(&self) -> usize {
        self.first_page
    }

    /// Ends the lease after the peer has announced all pages, and gives them back filled.
    pub fn complete(mut self) -> Result<Vec<PageRef>, Incomplete> {
        let Lent { pages, lease } = self.lent.take().expect("taken only by value");
        match lease.complete() {
            Ok(ended) => Ok(pages.settle(ended)),
            Err(not_complete) => {
                let incomplete = Incomplete {
                    landed: not_complete.landed,
                    pages: not_complete.pages,
                };
                let lease = not_complete.lease;
                revoke(Lent { pages, lease });
                Err(incomplete)
            }
        }
    }
}

impl Drop for PagesAtPeer {
    fn drop(&mut self) {
        if let Some(lent) = self.lent.take() {
            revoke(lent);
        }
    }
}

fn revoke(Lent { pages, lease }: Lent) {
    tracing::debug!(
        lease = lease.id(),
        landed = lease.landed(),
        "pages taken back"
    );
    let writes_ended = lease.revoke();
    release(pages.settle(writes_ended));
}

#[cfg(test)]
mod tests;
