//! One GET over a new connection; a whole HTTP client would be a large dependency for two short lines.

use std::io;

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, ToSocketAddrs},
};
use tokio_rustls::TlsConnector;

use super::{Address, ClientArgs, HINT, TlsError, tls};

/// More than any answer we ask for: the placement of V3 on 320 ranks is about 200 KB.
const MOST: u64 = 64 << 20;

pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("no Millrace answers at {address}; {HINT}: {source}")]
    Unreachable { address: String, source: io::Error },
    #[error("`{0}` is not an address: pass --http HOST:PORT, or --http https://HOST:PORT")]
    Address(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Asks the router at `address`, as users write it, as `args` say.
///
/// # Errors
/// Nobody listens, the connection broke, nobody vouches for the certificate, or what came is not HTTP.
pub async fn get(address: &str, path: &str, args: &ClientArgs) -> Result<Answer, HttpError> {
    let to = Address::of(address);
    let key = args.api_key.as_deref();
    let unreachable = |source| HttpError::Unreachable {
        address: address.to_owned(),
        source,
    };
    let stream = TcpStream::connect(to.authority)
        .await
        .map_err(unreachable)?;
    let exchanged = if to.tls {
        let name = ServerName::try_from(to.host().to_owned())
            .map_err(|_| HttpError::Address(address.to_owned()))?;
        let connector = TlsConnector::from(tls::client(args.ca.as_deref())?);
        let stream = connector.connect(name, stream).await.map_err(unreachable)?;
        exchange(stream, to.authority, path, key).await
    } else {
        exchange(stream, to.authority, path, key).await
    };
    exchanged.map_err(unreachable)
}

/// Over TCP and without a key.
///
/// # Errors
/// As [`get`].
pub async fn get_plain(address: impl ToSocketAddrs, path: &str) -> io::Result<Answer> {
    let stream = TcpStream::connect(address).await?;
    let host = stream.peer_addr()?.to_string();
    exchange(stream, &host, path, None).await
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    host: &str,
    path: &str,
    key: Option<&str>,
) -> io::Result<Answer> {
    let authorization = match key {
        None => String::new(),
        // It must not end the line it is on.
        Some(key) if key.bytes().all(|it| it.is_ascii_graphic()) => {
            format!("Authorization: Bearer {key}\r\n")
        }
        Some(_) => return Err(invalid("an API key has no spaces and only ASCII")),
    };
    // 1.0: the body ends with the connection, and is not sent in chunks.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n{authorization}\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut bytes = Vec::new();
    stream.take(MOST).read_to_end(&mut bytes).await?;
    parse(&bytes).ok_or_else(|| invalid("the answer is not HTTP; is it TLS?"))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let (version, rest) = head.split_once(' ')?;
    let status = rest.get(..3)?.parse().ok()?;
    version.starts_with("HTTP/1.").then(|| Answer {
        status,
        body: bytes[end + 4..].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_are_told_apart() {
        let answer = parse(b"HTTP/1.0 404 Not Found\r\ncontent-length: 2\r\n\r\nno").unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (404, &b"no"[..]));
        for nonsense in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "SSH-2.0 200\r\n\r\n",
            "HTTP/1.1 2\r\n\r\n",
        ] {
            assert!(parse(nonsense.as_bytes()).is_none(), "{nonsense}");
        }
    }
}
