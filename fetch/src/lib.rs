//! Downloads a checkpoint's folder from an HTTP server or an S3 bucket and checks every byte of it.
//!
//! The source is a folder with a file `SHA256SUMS`, as `sha256sum` writes it; the checksum of that file,
//! which the caller has, pins all others. A file has its name only once its bytes were checked and are on
//! disk; what was cut off is kept under another name and gone on with. Several processes may be told to
//! fill the same folder: one does, the others wait for it.

mod address;
mod attempts;
mod checksum;
mod download;
mod error;
mod folder;
mod part;
mod s3;
mod secrets;
mod source;
mod stamps;
mod sums;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;

pub use checksum::{Checksum, ChecksumError};
pub use error::FetchError;
pub use sums::SumsError;

use download::{Downloads, blocking};
use folder::Folder;
use source::Source;
use sums::Entry;

/// How often `Event::Progress` comes.
const PROGRESS: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct FetchConfig {
    pub source: SourceConfig,
    /// Of `SHA256SUMS`.
    pub checksum: Checksum,
    /// The folder to fill; made if it is not there.
    pub to: PathBuf,
    /// Files that are downloaded at once.
    pub concurrency: usize,
    /// Read every file that is there, also those that look as they did when they were checked.
    pub verify: bool,
    pub retry: RetryPolicy,
}

#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// A folder: `http://`, `https://` or `s3://bucket/prefix`.
    pub url: String,
    /// Holds a bearer token. Not for S3, whose credentials are in the environment.
    pub token_file: Option<PathBuf>,
    /// PEM certificates of authorities to trust beside the system's.
    pub ca: Option<PathBuf>,
    /// Where S3 is, if it is not Amazon's: `https://host`.
    pub s3_endpoint: Option<String>,
    pub s3_region: Option<String>,
    /// How long a connection may be silent.
    pub stall: Duration,
}

#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Attempts in a row that may bring a file no further.
    pub attempts: u32,
    /// Between the first and the second; doubled from then on.
    pub first_delay: Duration,
    pub most_delay: Duration,
}

impl Default for RetryPolicy {
    /// Gives up after about two minutes in which nothing came.
    fn default() -> RetryPolicy {
        RetryPolicy {
            attempts: 9,
            first_delay: Duration::from_secs(1),
            most_delay: Duration::from_secs(30),
        }
    }
}

/// What happens meanwhile.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// Another process fills the folder.
    Waiting,
    Listed {
        files: usize,
    },
    Retrying {
        url: &'a str,
        why: &'a str,
        delay: Duration,
    },
    Fetched {
        name: &'a str,
        bytes: u64,
    },
    /// `bytes` came over the network so far, and `rate` a second since the last time.
    Progress {
        done: usize,
        files: usize,
        bytes: u64,
        rate: f64,
    },
}

pub type Observer<'a> = &'a (dyn Fn(Event<'_>) + Send + Sync);

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    pub files: usize,
    /// How many of them were there already.
    pub kept: usize,
    /// What came over the network.
    pub bytes: u64,
}

/// Fills the folder. Dropping the future stops it; what came so far is kept for the next run.
///
/// # Errors
/// See [`FetchError`]. The folder is not marked as whole then, and no file in it has bytes that
/// `SHA256SUMS` does not say.
pub async fn fetch(config: &FetchConfig, observer: Observer<'_>) -> Result<Summary, FetchError> {
    let source = Source::new(&config.source)?;
    let folder = Folder::new(config.to.clone());
    // First without the lock: a whole folder may be in a volume that cannot be written.
    if let Some(summary) = whole(config, &folder) {
        return Ok(summary);
    }
    let lock = match folder.try_lock()? {
        Some(lock) => lock,
        None => {
            observer(Event::Waiting);
            let folder = folder.clone();
            blocking(move || folder.lock()).await?
        }
    };
    // Who was waited for may have had the same list.
    if let Some(summary) = whole(config, &folder) {
        return Ok(summary);
    }
    let received = AtomicU64::new(0);
    let downloads = Downloads {
        source: &source,
        folder: &folder,
        lock,
        retry: config.retry,
        observer,
        received: &received,
    };
    fill(config, &downloads).await
}

fn whole(config: &FetchConfig, folder: &Folder) -> Option<Summary> {
    let files = folder.whole(config.checksum).filter(|_| !config.verify)?;
    Some(Summary {
        files,
        kept: files,
        bytes: 0,
    })
}

async fn fill(config: &FetchConfig, downloads: &Downloads<'_>) -> Result<Summary, FetchError> {
    let (folder, observer) = (downloads.folder, downloads.observer);
    let list = match folder.list(config.checksum) {
        Some(list) => list,
        None => downloads.list(config.checksum).await?,
    };
    let entries = sums::parse(&list)?;
    observer(Event::Listed {
        files: entries.len(),
    });
    let stamps = Mutex::new(folder.begin(&entries)?);
    let (done, kept) = (AtomicUsize::new(0), AtomicUsize::new(0));

    let one = async |entry: &Entry, part: PathBuf| {
        let known = stamps
            .lock()
            .known()
            .get(&entry.name)
            .copied()
            .filter(|_| !config.verify);
        let there = {
            let (folder, entry) = (folder.clone(), entry.clone());
            blocking(move || folder.check(&entry, known)).await?
        };
        let stamp = match there {
            Some(stamp) => {
                kept.fetch_add(1, Ordering::Relaxed);
                stamp
            }
            None => {
                let stamp = downloads.file(entry, part).await?;
                observer(Event::Fetched {
                    name: &entry.name,
                    bytes: stamp.size(),
                });
                stamp
            }
        };
        if known != Some(stamp) {
            folder.stamp(&mut stamps.lock(), &entry.name, stamp)?;
        }
        done.fetch_add(1, Ordering::Relaxed);
        Ok::<(), FetchError>(())
    };
    let all = stream::iter(entries.iter().zip(folder.parts(&entries)))
        .map(|(entry, part)| one(entry, part))
        .buffer_unordered(config.concurrency.max(1))
        .try_collect::<()>();
    let progress = async {
        let mut last = (Instant::now(), 0);
        loop {
            tokio::time::sleep(PROGRESS).await;
            let (now, bytes) = (Instant::now(), downloads.received.load(Ordering::Relaxed));
            let rate = (bytes - last.1) as f64 / (now - last.0).as_secs_f64();
            last = (now, bytes);
            let done = done.load(Ordering::Relaxed);
            observer(Event::Progress {
                done,
                files: entries.len(),
                bytes,
                rate,
            });
        }
    };
    tokio::select! {
        ended = all => ended?,
        () = progress => {}
    }
    folder.complete(&list)?;
    Ok(Summary {
        files: entries.len(),
        kept: kept.into_inner(),
        bytes: downloads.received.load(Ordering::Relaxed),
    })
}
