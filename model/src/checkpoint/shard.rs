//! One safetensors file, mapped into memory.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::{Advice, Mmap};

use super::error::CheckpointError;
use super::header::{self, Header, HeaderError};

#[derive(Debug)]
pub(super) struct Shard {
    pub header: Header,
    map: Mmap,
}

impl Shard {
    /// Maps the file and checks its header.
    pub fn open(path: &Path) -> Result<Shard, CheckpointError> {
        let read = |source| CheckpointError::Read {
            path: path.to_path_buf(),
            source,
        };
        let file = File::open(path).map_err(read)?;
        if !file.metadata().map_err(read)?.is_file() {
            return Err(read(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            )));
        }
        // SAFETY: the map is only read. Should someone change the file meanwhile, values change
        // (every bit pattern is a valid byte); should they shorten it, the process gets SIGBUS:
        // `Checkpoint`'s documentation tells operators to replace files, not to write into them.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        let header = header::parse(&map).map_err(|e| match e {
            HeaderError::Header(reason) => CheckpointError::Header {
                path: path.to_path_buf(),
                reason,
            },
            HeaderError::Tensor { tensor, reason } => CheckpointError::Layout {
                path: path.to_path_buf(),
                tensor,
                reason,
            },
        })?;
        Ok(Shard { header, map })
    }

    /// Runs `read` over the whole file without readahead: a few scattered pages of a file that is
    /// not in memory are then read a thousand times faster.
    pub fn scattered<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T {
        // Advice only: where it is not taken, reading is slow but right.
        let _ = self.map.advise(Advice::Random);
        let result = read(&self.map);
        let _ = self.map.advise(Advice::Normal);
        result
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}
