//! A group that is lied to, cut off or stopped: no wrong token, and it goes on when it can.

mod common;

use std::{net::SocketAddr, pin::Pin, time::Duration};

use common::{group::*, *};
use futures::Stream;
use millrace_experts::{Epoch, Placement};
use millrace_proto::worker::v1::{
    ExpertChunk, FetchExpert, GroupOrder,
    expert_weights_client::ExpertWeightsClient,
    expert_weights_server::{ExpertWeights, ExpertWeightsServer},
    router_message::Message as Answer,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, transport::Channel};

/// Gives what another rank gives, with one bit of it flipped.
struct Corrupt(ExpertWeightsClient<Channel>);

#[tonic::async_trait]
impl ExpertWeights for Corrupt {
    type FetchStream = Pin<Box<dyn Stream<Item = Result<ExpertChunk, Status>> + Send>>;

    async fn fetch(
        &self,
        request: Request<FetchExpert>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let mut chunks = self.0.clone().fetch(request).await?.into_inner();
        let mut first = chunks.message().await?.unwrap();
        first.data[1000] ^= 1;
        let mut all = vec![Ok(first)];
        while let Some(chunk) = chunks.message().await? {
            all.push(Ok(chunk));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(all))))
    }
}

async fn corrupt(honest: &Running) -> SocketAddr {
    let client = weights(honest).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder()
        .add_service(ExpertWeightsServer::new(Corrupt(client)))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    address
}

async fn weights(rank: &Running) -> ExpertWeightsClient<Channel> {
    ExpertWeightsClient::connect(format!("http://{}", rank.addresses.grpc))
        .await
        .unwrap()
}

#[tokio::test]
async fn weights_that_went_bad_on_the_way_are_never_computed_with() {
    let requests = requests(4, 24);
    let expected = alone(&requests).await;
    let (router, ranks, shape) = group(2, 0).await;
    // Rank 1's memory is looked for where it is not.
    let mut epoch = router.next_epoch(&[0, 1], Placement::initial(shape).unwrap(), true);
    epoch.members[1].grpc = corrupt(&ranks[1]).await.to_string();
    router.publish(epoch).await;
    router.until_adopted(&[0, 1], 1).await;
    router.change(1, &[0, 1], placement(shape, 1)).await;

    let reason = "reason=\"checksum\"";
    let failures = ranks[0]
        .metric("group_staging_failures_total", reason)
        .await;
    assert!(failures > 0.0);
    let from_disk = ranks[0]
        .metric("group_staged_bytes_total", CHECKPOINT)
        .await;
    assert!(from_disk > 0.0, "the checkpoint has the right ones");
    let from_peer = async |rank: usize| {
        ranks[rank]
            .metric("group_staged_bytes_total", "source=\"peer\"")
            .await
    };
    assert_eq!(from_peer(0).await, 0.0, "nothing of the bad ones counts");
    assert!(from_peer(1).await > 0.0);
    assert_all(spread(&ranks, &requests).await, &expected).await;
}

#[tokio::test]
async fn weights_are_given_for_the_same_checkpoint_alone() {
    let (router, ranks, shape) = group(2, 0).await;
    let first = Placement::initial(shape).unwrap();
    let (mine, others) = (first.slots(0, 0)[0], first.slots(0, 1)[0]);
    router.commit(&[0, 1], first.clone(), true).await;
    let model_dir = worker_config().model_dir;
    let checkpoint = millrace_model::checkpoint::Checkpoint::open(&model_dir).unwrap();
    let mut client = weights(&ranks[0]).await;
    let good = FetchExpert {
        layer: 0,
        expert: mine,
        model_revision: checkpoint.revision(),
    };
    let mut chunks = client.fetch(good.clone()).await.unwrap().into_inner();
    let head = chunks.message().await.unwrap().unwrap();
    assert_eq!(head.digest.len(), 32);
    let mut bytes = head.data.len() as u64;
    while let Some(chunk) = chunks.message().await.unwrap() {
        bytes += chunk.data.len() as u64;
    }
    assert_eq!(bytes, head.total_bytes);

    type Change = fn(&mut FetchExpert);
    let cases: [(Code, Change); 4] = [
        (Code::FailedPrecondition, |fetch| {
            fetch.model_revision.push('x')
        }),
        (Code::NotFound, |fetch| fetch.expert = u32::MAX),
        (Code::NotFound, |fetch| fetch.layer = 99),
        (Code::NotFound, |_| {}),
    ];
    for (code, change) in cases {
        let mut bad = good.clone();
        bad.expert = others;
        change(&mut bad);
        let status = client.fetch(bad).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
    }

    // What no slot wants any more leaves the memory: here the ranks have changed places.
    let swapped = |layer: usize| [first.slots(layer, 1), first.slots(layer, 0)].concat();
    let table = (0..shape.layers).flat_map(swapped).collect();
    let swapped = Placement::new(shape, table).unwrap();
    router.change(1, &[0, 1], swapped).await;
    let gone = async { while client.fetch(good.clone()).await.is_ok() {} };
    tokio::time::timeout(HANGS, gone).await.unwrap();
    let other = FetchExpert {
        expert: others,
        ..good
    };
    assert!(client.fetch(other).await.is_ok());
}

#[tokio::test]
async fn orders_that_make_no_sense_change_nothing() {
    let requests = requests(4, 60);
    let expected = alone(&requests).await;
    let (router, ranks, shape) = group(2, 4).await;
    let first = Placement::initial(shape).unwrap();
    let epoch = router.commit(&[0, 1], first.clone(), true).await;
    let answers = spread(&ranks, &requests).await;

    let order = |epoch: Vec<u8>, plan: Vec<u8>| GroupOrder {
        store: "the test's".to_string(),
        peers: Vec::new(),
        epoch,
        plan,
    };
    let next = router.next_epoch(&[0, 1], placement(shape, 5), true);
    let conflict = Epoch {
        number: 1,
        reset: 1,
        ..next.clone()
    };
    let mut outnumbered = next.clone();
    outnumbered.members.truncate(1);
    outnumbered.placement = placement(shape, 6).into();
    let mut stranger = next.clone();
    stranger.members[0].id.rank = 9;
    let smaller = millrace_experts::Shape { layers: 1, ..shape };
    let mut misshapen = next.clone();
    misshapen.placement = Placement::initial(smaller).unwrap().into();
    let nonsense = [
        order(b"{\"number\":".to_vec(), Vec::new()),
        order(conflict.to_json(), Vec::new()),
        // Experts that only the one left out holds.
        order(outnumbered.to_json(), Vec::new()),
        order(stranger.to_json(), Vec::new()),
        order(misshapen.to_json(), Vec::new()),
        order(epoch.to_json(), b"[]".to_vec()),
        GroupOrder {
            store: String::new(),
            ..order(next.to_json(), Vec::new())
        },
    ];
    for order in nonsense {
        router.send(|_| Answer::GroupOrder(order.clone())).await;
    }
    // An old epoch comes late.
    router.change(1, &[0, 1], placement(shape, 1)).await;
    let late = order(epoch.to_json(), Vec::new());
    router.send(|_| Answer::GroupOrder(late.clone())).await;
    router.change(2, &[0, 1], first).await;
    assert_all(answers, &expected).await;
    for rank in &ranks {
        assert_eq!(rank.metric("group_epoch", "").await, 3.0);
        assert_eq!(rank.metric("group_adoptions_total", "").await, 3.0);
    }
}

#[tokio::test]
async fn a_plan_that_is_given_up_is_forgotten() {
    let (router, ranks, shape) = group(2, 0).await;
    router
        .commit(&[0, 1], Placement::initial(shape).unwrap(), true)
        .await;
    let next = router.next_epoch(&[0, 1], placement(shape, 1), false);
    router.stage(1, next).await;
    router.give_up().await;
    // Another plan of the same number is another plan.
    router.change(2, &[0, 1], placement(shape, 2)).await;
    for rank in &ranks {
        assert_eq!(rank.metric("group_adoptions_total", "").await, 2.0);
    }
    let requests = requests(4, 16);
    let expected = alone(&requests).await;
    assert_all(spread(&ranks, &requests).await, &expected).await;
}

#[tokio::test]
async fn a_group_whose_routers_are_gone_serves_on_and_stops_when_told() {
    let requests = requests(4, 60);
    let expected = alone(&requests).await;
    let router = GroupRouter::start().await;
    let hasty = Duration::from_millis(100);
    let mut ranks = vec![
        rank_that_drains(&router, 0, 2, 0, hasty).await,
        rank(&router, 1, 2, 0).await,
    ];
    let attached = router.until_linked(2).await;
    let first = Placement::initial(shape(&attached[&0].hello)).unwrap();
    router.commit(&[0, 1], first, true).await;
    let answers = spread(&ranks, &requests).await;
    router.hang_up();
    assert_all(answers, &expected).await;
    assert_all(spread(&ranks, &requests).await, &expected).await;

    // One ends, nobody can let the other go on without it, and that can still be stopped.
    let mut stuck = spread(&ranks[..1], &self::requests(1, 2000)).await;
    ranks[0]
        .until("num_requests_running", "", |n| n > 0.0)
        .await;
    ranks[1].shut_down();
    ranks[1].ended().await.unwrap();
    ranks[0]
        .until("group_links", "", |links| links == 0.0)
        .await;
    ranks[0].shut_down();
    let status = stuck.pop().unwrap().await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    ranks[0].ended().await.unwrap();
}

#[tokio::test]
async fn prefill_workers_exchange_rows_as_well() {
    let router = GroupRouter::start().await;
    let mut prefill = Vec::new();
    for rank in 0..2 {
        let mut config = prefill_config();
        join(&mut config.worker, &router, rank, 2, 0);
        prefill.push(Running::prefill(config).await);
    }
    let attached = router.until_linked(2).await;
    let shape = shape(&attached[&0].hello);
    router
        .commit(&[0, 1], Placement::initial(shape).unwrap(), true)
        .await;
    let decode = Running::decode(decode_config()).await;
    let mut client = decode.client().await;
    let whole = requests(4, 8);
    let expected = alone(&whole).await;
    for (i, (whole, expected)) in whole.iter().zip(expected).enumerate() {
        let split = split(whole, prefill[i % 2].addresses.grpc);
        let updates = generate(&mut client, split).await.unwrap();
        assert!(first_timing(&updates).remote_prefill);
        assert_eq!(tokens(&updates), expected);
    }
}
