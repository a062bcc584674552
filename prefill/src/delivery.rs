//! Pages on their way to one decode worker.

use std::{sync::Arc, time::Duration};

use tokio::{sync::oneshot, task::spawn_blocking};

use millrace_engine::PageRef;
use millrace_transfer::{
    Grant, Initiator, MemoryRegion, PageInitiator as _, PageWriter, TryWriteError, Written,
};

use crate::failure::Failure;

/// How long a full queue is left to empty before the next try. A page takes about as long.
const FULL: Duration = Duration::from_millis(1);

/// This worker's end of all transfers.
#[derive(Clone)]
pub struct Outgoing {
    pub initiator: Arc<Initiator>,
    /// The page pool.
    pub region: MemoryRegion,
}

/// One grant being written. Dropped before [`finish`](Self::finish), it tells the receiver that
/// no more pages come; pages in flight are held until they have left.
pub struct Delivery {
    writer: Box<dyn PageWriter>,
    region: MemoryRegion,
}

impl Outgoing {
    /// Readies the way to the grant's owner: a connection that is there, or a new one.
    pub async fn open(&self, grant: Grant) -> Result<Delivery, Failure> {
        let initiator = self.initiator.clone();
        // It may connect, and waits for that.
        let writer = spawn_blocking(move || initiator.open(&grant))
            .await
            .map_err(|_| Failure::TransferGone)??;
        Ok(Delivery {
            writer,
            region: self.region.clone(),
        })
    }
}

impl Delivery {
    /// Sends `page` to page `index` of the grant. Returns when it is queued.
    pub async fn write(&mut self, index: usize, page: PageRef) -> Result<(), Failure> {
        // The page is finished (the engine said so) and stays as it is while `page` is held.
        let mut source = self.region.source(page.index(), page)?;
        loop {
            match self.writer.try_write(index, source) {
                Ok(()) => return Ok(()),
                Err(TryWriteError::Full(back)) => source = back,
                Err(TryWriteError::Failed(error)) => return Err(error.into()),
            }
            tokio::time::sleep(FULL).await;
        }
    }

    /// Announces that these were all pages. Returns when the receiver has acknowledged them.
    pub async fn finish(self) -> Result<Written, Failure> {
        let (done, result) = oneshot::channel();
        let on_finished = Box::new(move |result| {
            // Nobody waits any more if the caller has gone.
            let _ = done.send(result);
        });
        self.writer.finish_with(Vec::new(), on_finished);
        Ok(result.await.map_err(|_| Failure::TransferGone)??)
    }
}
