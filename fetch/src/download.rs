//! One file: attempt after attempt, each from where the last one ended, until its bytes are the right ones.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::mpsc;

use crate::{
    Observer, RetryPolicy,
    attempts::Attempts,
    checksum::Checksum,
    error::{Failure, FetchError, Passing},
    folder::{Folder, Lock},
    part::Part,
    source::{Reply, Source},
    stamps::Stamp,
    sums::{self, Entry},
};

/// Chunks between the network and the disk.
const QUEUE: usize = 32;

/// What all downloads of a run share.
pub(crate) struct Downloads<'a> {
    pub source: &'a Source,
    pub folder: &'a Folder,
    pub lock: Arc<Lock>,
    pub retry: RetryPolicy,
    pub observer: Observer<'a>,
    /// Bytes that came over the network.
    pub received: &'a AtomicU64,
}

impl Downloads<'_> {
    /// Fetches the list of files, which has to have this checksum.
    pub async fn list(&self, checksum: Checksum) -> Result<Vec<u8>, FetchError> {
        let url = self.source.url(sums::NAME);
        let mut attempts = Attempts::new(self.retry, self.observer, url.clone());
        loop {
            match self.whole_list(&url).await {
                Ok(text) => {
                    let found = Checksum::of(&text);
                    return match found == checksum {
                        true => Ok(text),
                        false => Err(FetchError::OtherSums {
                            url,
                            expected: checksum,
                            found,
                        }),
                    };
                }
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::Passing(why)) => attempts.pause(0, why).await?,
            }
        }
    }

    async fn whole_list(&self, url: &str) -> Result<Vec<u8>, Failure> {
        let Reply::Body { mut response, .. } = self.source.get(sums::NAME, 0).await? else {
            return Ok(Vec::new());
        };
        let mut text = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => text.extend_from_slice(&chunk),
                Ok(None) => return Ok(text),
                Err(error) => return Err(self.source.cut(sums::NAME, error)),
            }
            if text.len() > sums::MAX_BYTES {
                let (url, most) = (url.to_owned(), sums::MAX_BYTES);
                return Err(Failure::Fatal(FetchError::HugeSums { url, most }));
            }
        }
    }

    /// Fetches a file by way of `part` and gives it its name.
    pub async fn file(&self, entry: &Entry, part: PathBuf) -> Result<Stamp, FetchError> {
        let lock = self.lock.clone();
        let opened = {
            let part = part.clone();
            blocking(move || Part::open(part, lock)).await
        };
        let mut part = opened.map_err(|error| self.failed("open", &part, entry, None, error))?;
        let mut attempts = Attempts::new(self.retry, self.observer, self.source.url(&entry.name));
        // Whether these bytes all came in one piece: only then does a wrong checksum speak of the source.
        let mut pieced = part.len() > 0;
        while part.checksum() != entry.checksum {
            pieced |= part.len() > 0;
            let (back, ended) = self.attempt(entry, part).await;
            part = back;
            match ended {
                Ok(()) if part.checksum() == entry.checksum => break,
                Ok(()) if pieced => {
                    self.restart(&mut part, entry)?;
                    pieced = false;
                    attempts =
                        Attempts::new(self.retry, self.observer, self.source.url(&entry.name));
                }
                Ok(()) => return Err(self.wrong(part, entry)),
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::Passing(why)) => attempts.pause(part.len(), why).await?,
            }
        }
        let (path, target) = (part.path().to_owned(), self.folder.path(&entry.name));
        blocking(move || part.finish(&target))
            .await
            .map_err(|error| self.failed("finish", &path, entry, None, error))
    }

    /// Ok once the server has sent all it has.
    async fn attempt(&self, entry: &Entry, mut part: Part) -> (Part, Result<(), Failure>) {
        let reply = match self.source.get(&entry.name, part.len()).await {
            Ok(reply) => reply,
            Err(failure) => return (part, Err(failure)),
        };
        let Reply::Body {
            start,
            total,
            mut response,
        } = reply
        else {
            // It is longer than the file: its checksum is wrong, which the caller sees.
            return (part, Ok(()));
        };
        if start != part.len()
            && let Err(error) = self.restart(&mut part, entry)
        {
            return (part, Err(error.into()));
        }
        let missing = total.map(|total| total.saturating_sub(part.len()));
        if let Some(total) = total
            && let Err(error) = part.reserve(total)
        {
            let error = self.failed("reserve space in", part.path(), entry, missing, error);
            return (part, Err(error.into()));
        }

        let (chunks, queue) = mpsc::channel(QUEUE);
        let writer = blocking(move || {
            let written = part.receive(queue);
            (part, written)
        });
        let reader = async move {
            loop {
                match response.chunk().await {
                    Ok(Some(chunk)) => {
                        self.received
                            .fetch_add(chunk.len() as u64, Ordering::Relaxed);
                        if chunks.send(chunk).await.is_err() {
                            return Ok(()); // the writer failed and says why
                        }
                    }
                    Ok(None) => return Ok(()),
                    Err(error) => return Err(self.source.cut(&entry.name, error)),
                }
            }
        };
        let ((part, written), read) = tokio::join!(writer, reader);
        if let Err(error) = written {
            let error = self.failed("write", part.path(), entry, missing, error);
            return (part, Err(error.into()));
        }
        let ended = match total {
            Some(total) if read.is_ok() && part.len() < total => {
                Err(Failure::Passing(Passing::Cut {
                    at: part.len(),
                    total,
                }))
            }
            _ => read,
        };
        (part, ended)
    }

    fn restart(&self, part: &mut Part, entry: &Entry) -> Result<(), FetchError> {
        part.restart()
            .map_err(|error| self.failed("write", part.path(), entry, None, error))
    }

    fn wrong(&self, mut part: Part, entry: &Entry) -> FetchError {
        let error = FetchError::WrongChecksum {
            url: self.source.url(&entry.name),
            bytes: part.len(),
            expected: entry.checksum,
            found: part.checksum(),
        };
        // Nothing of it is of use to a later run. If that fails, a later run finds out by itself.
        let _ = part.restart();
        error
    }

    fn failed(
        &self,
        doing: &'static str,
        path: &Path,
        entry: &Entry,
        needed: Option<u64>,
        error: std::io::Error,
    ) -> FetchError {
        self.folder.error(doing, path, &entry.name, needed, error)
    }
}

/// Disks block, and hashing takes a core.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going: nobody waits for this either.
            Err(_) => std::future::pending().await,
        },
    }
}
