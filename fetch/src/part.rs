//! A file on its way: what has come so far, under a name of our own until it is whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    checksum::{Checksum, Hasher},
    folder::Lock,
    stamps::Stamp,
};

/// Blocking throughout: belongs on threads for that.
pub(crate) struct Part {
    path: PathBuf,
    file: File,
    hasher: Hasher,
    len: u64,
    /// Nobody else gets the folder while this could still be written to.
    _lock: Arc<Lock>,
}

impl Part {
    /// Goes on with what an earlier run left, if it left something.
    pub fn open(path: PathBuf, lock: Arc<Lock>) -> io::Result<Part> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        let (hasher, len) = hash(&mut file)?;
        Ok(Part {
            path,
            file,
            hasher,
            len,
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn checksum(&self) -> Checksum {
        self.hasher.checksum()
    }

    /// Forgets all that has come.
    pub fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hasher = Hasher::default();
        self.len = 0;
        Ok(())
    }

    /// Takes the space for `total` bytes now, so that a full disk is found out before the download and
    /// not after it. The length stays what was written: it is where a later run goes on.
    pub fn reserve(&self, total: u64) -> io::Result<()> {
        let (Ok(from), Ok(more)) = (
            libc::off_t::try_from(self.len),
            libc::off_t::try_from(total.saturating_sub(self.len)),
        ) else {
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        if more == 0 {
            return Ok(());
        }
        // SAFETY: the descriptor is open for as long as `self.file` is.
        let failed = unsafe {
            libc::fallocate(self.file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, from, more)
        } != 0;
        if failed {
            let error = io::Error::last_os_error();
            // File systems that cannot do it say so; there the disk is found full when it is.
            if !matches!(
                error.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)
            ) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Writes what comes until the other end is dropped.
    pub fn receive(&mut self, mut chunks: mpsc::Receiver<Bytes>) -> io::Result<()> {
        while let Some(chunk) = chunks.blocking_recv() {
            self.file.write_all(&chunk)?;
            self.hasher.update(&chunk);
            self.len += chunk.len() as u64;
        }
        Ok(())
    }

    /// Gives the file its name. It is on disk before it has it, so that no crash leaves a file of the
    /// right name with the wrong bytes.
    pub fn finish(self, target: &Path) -> io::Result<Stamp> {
        self.file.sync_all()?;
        let folder = target.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        fs::rename(&self.path, target)?;
        File::open(folder)?.sync_all()?;
        Ok(Stamp::of(&self.file.metadata()?, self.checksum()))
    }
}

/// The checksum and the stamp of a file that is there, None if it is not.
pub(crate) fn stamp(path: &Path) -> io::Result<Option<Stamp>> {
    let mut file = match File::open(path) {
        Ok(file) if file.metadata()?.is_file() => file,
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let before = file.metadata()?;
    let (hasher, _) = hash(&mut file)?;
    Ok(Some(Stamp::of(&before, hasher.checksum())))
}

fn hash(file: &mut File) -> io::Result<(Hasher, u64)> {
    let (mut hasher, mut len) = (Hasher::default(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((hasher, len)),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                len += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
