//! The stream from one router, for as long as its pod is there.

use std::time::Duration;

use futures::StreamExt as _;
use millrace_proto::worker::v1::{FleetView, WatchFleet, fleet_client::FleetClient};
use tonic::transport::Endpoint;

/// Where routers listen for workers, and for the operator.
pub const PORT: u16 = 9001;
/// A router says something every five seconds. One that is silent for so long hangs, or its node is
/// gone.
const SILENT: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Hands on every view; `None` when the router cannot be heard any more. Never returns.
pub async fn listen(ip: &str, mut hear: impl FnMut(Option<FleetView>)) {
    let mut pause = FIRST_PAUSE;
    loop {
        let (heard, error) = once(ip, &mut hear).await;
        hear(None);
        if heard {
            pause = FIRST_PAUSE;
        }
        tracing::debug!(router = ip, %error, "no fleet from this router; connecting again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn once(ip: &str, hear: &mut impl FnMut(Option<FleetView>)) -> (bool, tonic::Status) {
    let mut heard = false;
    let error = match watch(ip, hear, &mut heard).await {
        Ok(()) => tonic::Status::unavailable("the router ended the stream"),
        Err(error) => error,
    };
    (heard, error)
}

async fn watch(
    ip: &str,
    hear: &mut impl FnMut(Option<FleetView>),
    heard: &mut bool,
) -> Result<(), tonic::Status> {
    let host = match ip.contains(':') {
        true => format!("[{ip}]"),
        false => ip.to_owned(),
    };
    let unreachable =
        |error: tonic::transport::Error| tonic::Status::unavailable(error.to_string());
    let channel = Endpoint::from_shared(format!("http://{host}:{PORT}"))
        .map_err(unreachable)?
        .connect_timeout(CONNECT)
        .connect()
        .await
        .map_err(unreachable)?;
    let silent = |_| tonic::Status::deadline_exceeded("the router is silent");
    // A fleet of ten thousand workers is larger than tonic's default of 4 MiB.
    let mut client = FleetClient::new(channel).max_decoding_message_size(64 << 20);
    let mut views = tokio::time::timeout(SILENT, client.watch(WatchFleet {}))
        .await
        .map_err(silent)??
        .into_inner();
    while let Some(view) = tokio::time::timeout(SILENT, views.next())
        .await
        .map_err(silent)?
    {
        hear(Some(view?));
        *heard = true;
    }
    Ok(())
}
