//! Asks the router's /ready.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const BETWEEN: Duration = Duration::from_millis(50);

/// Returns when `http` answers 200 to /ready. Never fails: a router that does not come up is seen by
/// its supervisor.
pub async fn wait(http: SocketAddr) {
    while !matches!(ask(http).await, Ok(true)) {
        tokio::time::sleep(BETWEEN).await;
    }
}

/// One request over a new connection; a whole HTTP client would be a large dependency for one line.
async fn ask(http: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect(http).await?;
    let request = format!("GET /ready HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200 "))
}
