//! One client's bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// So many bytes tell HTTP/2 from HTTP/1: its preface. No request of HTTP/1.1 is shorter.
const PREFACE: usize = 24;

/// A connection that ends if its client does not begin to speak in time. HTTP servers bound the time
/// for a request's head only once they know which HTTP it is.
pub struct Connection {
    io: Io,
    /// Until [`PREFACE`] bytes have come.
    opening: Option<Opening>,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

struct Opening {
    deadline: Pin<Box<Sleep>>,
    missing: usize,
}

impl Connection {
    pub(super) fn plain(stream: TcpStream, patience: Duration) -> Connection {
        Connection::new(Io::Plain(stream), patience)
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>, patience: Duration) -> Connection {
        Connection::new(Io::Tls(Box::new(stream)), patience)
    }

    fn new(io: Io, patience: Duration) -> Connection {
        // A patience of centuries has no deadline.
        let deadline = Instant::now().checked_add(patience);
        let opening = deadline.map(|deadline| Opening {
            deadline: Box::pin(tokio::time::sleep_until(deadline)),
            missing: PREFACE,
        });
        Connection { io, opening }
    }

    fn io(&mut self) -> Pin<&mut (dyn Both + '_)> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream),
            Io::Tls(stream) => Pin::new(stream.as_mut()),
        }
    }
}

trait Both: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Both for T {}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = self.io().poll_read(cx, buf);
        let Some(opening) = &mut self.opening else {
            return polled;
        };
        if polled.is_pending() {
            ready!(opening.deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let read = buf.filled().len() - before;
        opening.missing = opening.missing.saturating_sub(read);
        if opening.missing == 0 {
            self.opening = None;
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        match &self.io {
            Io::Plain(stream) => stream.connect_info(),
            Io::Tls(stream) => stream.get_ref().0.connect_info(),
        }
    }
}
