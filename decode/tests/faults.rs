//! Peers and clients that vanish, hang or do not fit: every request ends, every page comes back.

mod common;

use std::{net::SocketAddr, time::Duration};

use common::*;
use millrace_decode::{DOMAIN, PREFILL_FAILED};
use millrace_kernels::KvDtype;
use millrace_proto::worker::v1::{
    PrefillRequest, PrefillResponse,
    prefill_server::{Prefill, PrefillServer},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

const LEASED: &str = "state=\"leased\"";

fn assert_prefill_failed(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let details = status.get_error_details();
    let info = details.error_info().expect("a reason for programs");
    assert_eq!(
        (info.reason.as_str(), info.domain.as_str()),
        (PREFILL_FAILED, DOMAIN)
    );
    assert_eq!(info.metadata["worker_id"], "prefill-under-test");
}

#[tokio::test]
async fn a_prefill_worker_that_dies_costs_its_requests_and_no_page() {
    let mut prefill = Running::prefill(slow_prefill_config()).await;
    let decode = Running::decode(decode_config()).await;
    let mut client = decode.client().await;
    let whole = request(prompt(4000, 1), &sampling(4));
    let split = split(&whole, prefill.addresses.grpc);

    let mut stream = client.generate(split.clone()).await.unwrap().into_inner();
    decode.until("kv_pages", LEASED, |pages| pages > 0.0).await;
    prefill
        .until("transfer_pages_total", transport_label(), |pages| {
            pages > 0.0
        })
        .await;
    prefill.kill();
    assert_prefill_failed(&stream.message().await.unwrap_err());
    decode.until_idle().await;

    // It stays dead: the next one fails at once.
    assert_prefill_failed(&generate(&mut client, split).await.unwrap_err());
    decode.until_idle().await;
    assert_eq!(
        decode.metric("leases_total", "state=\"dropped\"").await,
        0.0
    );

    // And the decode worker is as good as new.
    let replacement = Running::prefill(prefill_config()).await;
    let again = common::split(&whole, replacement.addresses.grpc);
    let updates = generate(&mut client, again).await.unwrap();
    assert!(first_timing(&updates).remote_prefill);
    assert_eq!(tokens(&updates).len(), 4);
}

#[tokio::test]
async fn a_client_that_goes_takes_its_request_along() {
    let prefill = Running::prefill(slow_prefill_config()).await;
    let decode = Running::decode(decode_config()).await;
    let mut client = decode.client().await;

    // While it decodes.
    let long = request(prompt(100, 1), &sampling(3000));
    let mut stream = client.generate(long).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    drop(stream);
    decode.until_idle().await;

    // While a peer prefills: the prefill ends as well.
    let whole = request(prompt(4000, 2), &sampling(4));
    let split = split(&whole, prefill.addresses.grpc);
    let stream = client.generate(split).await.unwrap().into_inner();
    decode.until("kv_pages", LEASED, |pages| pages > 0.0).await;
    prefill.until("num_requests_running", "", |n| n > 0.0).await;
    drop(stream);
    decode.until_idle().await;
    prefill.until_idle().await;
    assert_eq!(decode.metric("leases_active", "").await, 0.0);
    assert_eq!(
        decode.metric("leases_total", "state=\"dropped\"").await,
        0.0
    );
}

/// A prefill worker whose engine hangs.
struct Silent;

#[tonic::async_trait]
impl Prefill for Silent {
    async fn prefill(
        &self,
        _request: Request<PrefillRequest>,
    ) -> Result<Response<PrefillResponse>, Status> {
        std::future::pending().await
    }
}

async fn silent() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder()
        .add_service(PrefillServer::new(Silent))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    address
}

#[tokio::test]
async fn a_prefill_worker_that_never_answers_is_given_up() {
    let mut config = decode_config();
    config.prefill_timeout = Duration::from_millis(300);
    let decode = Running::decode(config).await;
    let mut client = decode.client().await;
    let whole = request(prompt(500, 1), &sampling(4));
    let split = split(&whole, silent().await);

    let status = generate(&mut client, split).await.unwrap_err();
    assert_prefill_failed(&status);
    assert!(status.message().contains("no answer"), "{status:?}");
    decode.until_idle().await;
}

#[tokio::test]
async fn a_callers_deadline_ends_its_request_wherever_it_is() {
    let decode = Running::decode(decode_config()).await;
    let mut client = decode.client().await;
    let whole = request(prompt(500, 1), &sampling(3000));
    let mut waiting = Request::new(split(&whole, silent().await));
    waiting.set_timeout(Duration::from_millis(500));
    let mut decoding = Request::new(whole);
    decoding.set_timeout(Duration::from_millis(500));
    for request in [waiting, decoding] {
        let stream = client.generate(request).await.unwrap().into_inner();
        let status = collect(stream).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        decode.until_idle().await;
    }
}

#[tokio::test]
async fn workers_that_do_not_fit_say_which_field_differs() {
    let mut config = prefill_config();
    config.worker.engine.kv_dtype = KvDtype::F32;
    let prefill = Running::prefill(config).await;
    let decode = Running::decode(decode_config()).await;
    let mut client = decode.client().await;
    let split = split(
        &request(prompt(100, 1), &sampling(4)),
        prefill.addresses.grpc,
    );
    let status = generate(&mut client, split).await.unwrap_err();
    assert_prefill_failed(&status);
    let says = status.message();
    assert!(
        says.contains("kv_dtype is f32 here and bf16 at the peer"),
        "{says}"
    );
    decode.until_idle().await;
    prefill.until_idle().await;
}

#[tokio::test]
async fn shutting_down_finishes_what_runs_and_ends_what_hangs() {
    let mut decode = Running::decode(decode_config()).await;
    let mut client = decode.client().await;
    let long = request(prompt(100, 1), &sampling(600));
    let mut stream = client.generate(long).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    decode.shut_down();
    let updates = collect(stream).await.unwrap();
    assert!(tokens(&updates).len() > 500, "it ran to its end");
    decode.ended().await.unwrap();

    let mut config = decode_config();
    config.worker.drain = Duration::from_millis(100);
    let mut decode = Running::decode(config).await;
    let mut client = decode.client().await;
    let whole = request(prompt(500, 1), &sampling(4));
    let stuck = split(&whole, silent().await);
    let stream = client.generate(stuck).await.unwrap().into_inner();
    decode.until("kv_pages", LEASED, |pages| pages > 0.0).await;
    decode.shut_down();
    let status = collect(stream).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("shutting down"), "{status:?}");
    decode.ended().await.unwrap();
}
