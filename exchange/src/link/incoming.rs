//! The reading end of a connection, from the handshake on.

use std::io::{self, BufReader, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::wire::{HEADER, Header, Kind, MAX_GREETING};
use crate::{FrameError, FrameLimits, LinkError};

/// A small parcel and its header come in one call; larger bodies are read where they belong.
const BUFFER: usize = 32 << 10;

/// The handshake reads with a deadline, the link without one: its keeper minds the silence.
pub(crate) struct Incoming {
    bytes: BufReader<Heard>,
}

struct Heard {
    stream: TcpStream,
    bytes: Arc<AtomicU64>,
    deadline: Option<Instant>,
}

impl Incoming {
    pub(crate) fn new(stream: TcpStream, patience: Duration) -> Incoming {
        let heard = Heard {
            stream,
            bytes: Arc::default(),
            deadline: Some(Instant::now() + patience),
        };
        Incoming {
            bytes: BufReader::with_capacity(BUFFER, heard),
        }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.bytes.get_ref().stream
    }

    pub(crate) fn heard(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.bytes.get_ref().bytes)
    }

    /// The handshake is done: from now on reading waits as long as it takes.
    pub(crate) fn without_deadline(&mut self) -> io::Result<()> {
        let heard = self.bytes.get_mut();
        heard.deadline = None;
        heard.stream.set_read_timeout(None)
    }

    pub(crate) fn header(&mut self, limits: &FrameLimits) -> Result<Header, LinkError> {
        let mut bytes = [0; HEADER];
        self.exact(&mut bytes)?;
        Ok(Header::decode(&bytes, limits)?)
    }

    /// The body of a `Hello` or a `Refused`.
    pub(crate) fn greeting(&mut self, header: &Header) -> Result<Vec<u8>, LinkError> {
        if !matches!(header.kind, Kind::Hello | Kind::Refused)
            || header.length as usize > MAX_GREETING
        {
            return Err(FrameError::Unexpected {
                kind: header.kind.name(),
            }
            .into());
        }
        let mut body = vec![0; header.length as usize];
        self.exact(&mut body)?;
        Ok(body)
    }

    pub(crate) fn exact(&mut self, to: &mut [u8]) -> Result<(), LinkError> {
        self.bytes
            .read_exact(to)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => LinkError::Ended,
                kind => LinkError::Io(kind),
            })
    }
}

impl Read for Heard {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
        }
        let count = self.stream.read(to)?;
        self.bytes.fetch_add(count as u64, Relaxed);
        Ok(count)
    }
}
