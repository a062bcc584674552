//! The folder that is filled: who may write to it, what it has, and whether it is whole.

use std::{
    collections::{HashMap, HashSet},
    ffi::CString,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    checksum::Checksum,
    error::FetchError,
    part,
    stamps::{Stamp, Stamps},
    sums::{self, Entry, OURS},
};

#[derive(Debug, Clone)]
pub(crate) struct Folder {
    dir: PathBuf,
}

/// As long as it lives, no other process writes to the folder.
#[derive(Debug)]
pub(crate) struct Lock {
    /// Closed last: that is what unlocks it.
    _file: File,
}

impl Folder {
    pub fn new(dir: PathBuf) -> Folder {
        Folder { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn ours(&self, name: &str) -> PathBuf {
        self.dir.join(OURS).join(name)
    }

    /// How many files the folder has, if it has all that the list with this checksum names and they look
    /// as they did when they were checked. Reads only, and no file's bytes but the list's.
    pub fn whole(&self, list: Checksum) -> Option<usize> {
        let marker = fs::read_to_string(self.ours("complete")).ok()?;
        if marker.trim_end() != list.to_string() {
            return None;
        }
        let entries = sums::parse(&self.list(list)?).ok()?;
        let stamps = Stamps::read(&self.ours("stamps")).ok()?;
        let fits = |entry: &Entry| {
            stamps.get(&entry.name).is_some_and(|stamp| {
                stamp.checksum == entry.checksum && stamp.fits(&self.path(&entry.name))
            })
        };
        entries.iter().all(fits).then_some(entries.len())
    }

    /// The list of files, if it is here already.
    pub fn list(&self, checksum: Checksum) -> Option<Vec<u8>> {
        let text = fs::read(self.path(sums::NAME)).ok()?;
        (Checksum::of(&text) == checksum).then_some(text)
    }

    /// The right to write to the folder, None if another process has it.
    pub fn try_lock(&self) -> Result<Option<Arc<Lock>>, FetchError> {
        let path = self.ours("lock");
        fs::create_dir_all(self.dir.join(OURS))
            .and_then(|()| OpenOptions::new().create(true).append(true).open(&path))
            .and_then(|file| match file.try_lock() {
                Ok(()) => Ok(Some(Arc::new(Lock { _file: file }))),
                Err(TryLockError::WouldBlock) => Ok(None),
                Err(TryLockError::Error(error)) => Err(error),
            })
            .map_err(|error| self.error("lock", &path, "its own files", None, error))
    }

    /// Blocks until no other process has it.
    pub fn lock(&self) -> Result<Arc<Lock>, FetchError> {
        let path = self.ours("lock");
        let open = OpenOptions::new().create(true).append(true).open(&path);
        open.and_then(|file| file.lock().map(|()| Arc::new(Lock { _file: file })))
            .map_err(|error| self.error("lock", &path, "its own files", None, error))
    }

    /// Makes the folder ready for these files: it is not whole until `complete`, and what earlier runs
    /// fetched for another list goes. Files that were never fetched are left alone.
    pub fn begin(&self, entries: &[Entry]) -> Result<Stamps, FetchError> {
        let at = |doing: &'static str, path: PathBuf| {
            move |error| self.error(doing, &path, "its own files", None, error)
        };
        remove(&self.ours("complete")).map_err(at("remove", self.ours("complete")))?;
        let path = self.ours("stamps");
        let mut stamps = Stamps::open(&path).map_err(at("open", path.clone()))?;
        let listed: HashSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        for name in stamps
            .known()
            .keys()
            .filter(|name| !listed.contains(name.as_str()))
        {
            let path = self.path(name);
            remove(&path).map_err(at("remove", path.clone()))?;
            // Its folders too, up to the first that holds anything.
            let folders = path
                .ancestors()
                .skip(1)
                .take_while(|folder| *folder != self.dir);
            for folder in folders {
                if fs::remove_dir(folder).is_err() {
                    break;
                }
            }
        }
        stamps
            .retain(|name| listed.contains(name))
            .map_err(at("write", path))?;

        let parts: HashSet<PathBuf> = self.parts(entries).into_iter().collect();
        let ours = self.dir.join(OURS);
        for file in fs::read_dir(&ours)
            .map_err(at("read", ours.clone()))?
            .flatten()
        {
            let path = file.path();
            if path.extension().is_some_and(|it| it == "part") && !parts.contains(&path) {
                remove(&path).map_err(at("remove", path.clone()))?;
            }
        }
        Ok(stamps)
    }

    /// Where each file lies until it is whole. Named by its bytes, so that what was left of an older list
    /// is never taken for a part of a newer one; numbered, since two files may have the same bytes.
    pub fn parts(&self, entries: &[Entry]) -> Vec<PathBuf> {
        let mut same: HashMap<Checksum, usize> = HashMap::new();
        let part = |entry: &Entry| {
            let number = same.entry(entry.checksum).or_default();
            *number += 1;
            self.ours(&format!("{}-{number}.part", entry.checksum.hex()))
        };
        entries.iter().map(part).collect()
    }

    /// Whether the file is there and right. Reads its bytes unless its stamp tells.
    pub fn check(&self, entry: &Entry, known: Option<Stamp>) -> Result<Option<Stamp>, FetchError> {
        let path = self.path(&entry.name);
        if let Some(stamp) = known.filter(|it| it.checksum == entry.checksum && it.fits(&path)) {
            return Ok(Some(stamp));
        }
        let found = part::stamp(&path)
            .map_err(|error| self.error("read", &path, &entry.name, None, error))?;
        Ok(found.filter(|stamp| stamp.checksum == entry.checksum))
    }

    /// Remembers that the file was found right.
    pub fn stamp(&self, stamps: &mut Stamps, name: &str, stamp: Stamp) -> Result<(), FetchError> {
        let path = self.ours("stamps");
        stamps
            .add(name, stamp)
            .map_err(|error| self.error("write", &path, "its own files", None, error))
    }

    /// Keeps the list and marks the folder as whole.
    pub fn complete(&self, list: &[u8]) -> Result<(), FetchError> {
        let checksum = Checksum::of(list).to_string();
        for (path, bytes) in [
            (self.path(sums::NAME), list),
            (self.ours("complete"), checksum.as_bytes()),
        ] {
            self.replace(&path, bytes)
                .map_err(|error| self.error("write", &path, sums::NAME, None, error))?;
        }
        Ok(())
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let staged = self.ours("staged");
        fs::write(&staged, bytes)?;
        File::open(&staged)?.sync_all()?;
        fs::rename(&staged, path)
    }

    /// A full disk is what users meet most, and has an answer of its own.
    pub fn error(
        &self,
        doing: &'static str,
        path: &Path,
        name: &str,
        needed: Option<u64>,
        source: io::Error,
    ) -> FetchError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FetchError::DiskFull {
                dir: self.dir.clone(),
                name: name.to_owned(),
                needed,
                free: self.free(),
            },
            _ => FetchError::Io {
                doing,
                path: path.to_owned(),
                source,
            },
        }
    }

    fn free(&self) -> u64 {
        let Ok(path) = CString::new(self.dir.as_os_str().as_bytes()) else {
            return 0;
        };
        let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: the path ends in NUL, and `stat` has room for what is written.
        if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
            return 0;
        }
        // SAFETY: statvfs succeeded, so it filled it.
        let stat = unsafe { stat.assume_init() };
        stat.f_bavail * stat.f_frsize
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
