//! Asks the router's /ready.

use std::{net::SocketAddr, time::Duration};

use crate::client;

const BETWEEN: Duration = Duration::from_millis(50);

/// Returns when `router` answers 200 to /ready. Never fails: a router that does not come up is seen by
/// its supervisor.
pub async fn wait(router: SocketAddr) {
    while !matches!(client::get_plain(router, "/ready").await, Ok(answer) if answer.status == 200) {
        tokio::time::sleep(BETWEEN).await;
    }
}
