//! The fleet as an operator watches it.

use std::time::{Duration, Instant};

use millrace_proto::worker::v1 as proto;
use proto::fleet_client::FleetClient;
use tonic::Streaming;

use super::Router;

const PATIENCE: Duration = Duration::from_secs(60);

/// The views of one stream.
pub struct Watch(Streaming<proto::FleetView>);

impl Watch {
    pub async fn open(router: &Router) -> Watch {
        let uri = format!("http://{}", router.address);
        let mut client = FleetClient::connect(uri).await.unwrap();
        let views = client.watch(proto::WatchFleet {}).await.unwrap();
        Watch(views.into_inner())
    }

    pub async fn next(&mut self) -> proto::FleetView {
        let view = tokio::time::timeout(PATIENCE, self.0.message()).await;
        view.expect("views come")
            .unwrap()
            .expect("there is no last")
    }

    /// The first view that is as it must become.
    pub async fn until(&mut self, is: impl Fn(&proto::FleetView) -> bool) -> proto::FleetView {
        let given_up = Instant::now() + PATIENCE;
        loop {
            let view = self.next().await;
            if is(&view) {
                return view;
            }
            assert!(Instant::now() < given_up, "it never came to be: {view:#?}");
        }
    }

    /// Waits until exactly these get requests.
    pub async fn until_available(&mut self, ids: &[&str]) -> proto::FleetView {
        self.until(|view| {
            let available = view.workers.iter().filter(|worker| worker.available);
            let mut all: Vec<&str> = available.map(|worker| worker.worker_id.as_str()).collect();
            all.sort_unstable();
            all == ids
        })
        .await
    }
}

/// Why a worker gets no requests.
pub fn reason<'a>(view: &'a proto::FleetView, id: &str) -> &'a str {
    let worker = view.workers.iter().find(|worker| worker.worker_id == id);
    &worker.expect("it is attached").unavailable_reason
}
