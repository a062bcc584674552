//! A real prefill worker and a real decode worker with tiny-r1: split or not, the same tokens.

mod common;

use common::*;
use millrace_engine::SamplingParams;
use millrace_kernels::KvDtype;
use millrace_prefill::Transport;
use millrace_proto::worker::v1 as wire;

#[tokio::test]
async fn split_requests_give_the_tokens_of_whole_ones() {
    let prefill = Running::prefill(prefill_config()).await;
    let decode = Running::decode(decode_config()).await;
    let alone = Running::decode(decode_config()).await;
    let (mut split_client, mut whole_client) = (decode.client().await, alone.client().await);

    let seeded = SamplingParams {
        temperature: 0.8,
        top_p: 0.9,
        seed: 7,
        ..sampling(20)
    };
    for (seed, length) in [17, 63, 64, 65, 300, 1000].into_iter().enumerate() {
        for sampling in [&sampling(20), &seeded] {
            let whole = request(prompt(length, seed as u32), sampling);
            let split = split(&whole, prefill.addresses.grpc);
            let expected = generate(&mut whole_client, whole).await.unwrap();
            let updates = generate(&mut split_client, split).await.unwrap();
            assert_eq!(tokens(&updates), tokens(&expected), "{length} tokens");
            assert_eq!(tokens(&updates).len(), 20);
            let last = updates.last().unwrap();
            assert_eq!(last.finish(), wire::FinishReason::Length);
            assert!(!first_timing(&expected).remote_prefill);
            // The second request of a prompt finds most of it here.
            let cached = updates[0].cached_tokens.unwrap();
            let left = length as u32 - cached;
            assert_eq!(first_timing(&updates).remote_prefill, left > 16, "{length}");
        }
    }
    assert!(decode.metric("remote_prefills_total", "").await >= 6.0);
    assert!(
        decode
            .metric("transfer_bytes_total", transport_label())
            .await
            > 0.0
    );
    decode.until_idle().await;
    prefill.until_idle().await;
}

#[tokio::test]
async fn pages_also_come_over_tcp() {
    let mut config = prefill_config();
    config.transport = Transport::Tcp;
    let prefill = Running::prefill(config).await;
    let mut config = decode_config();
    config.transport = Transport::Auto;
    config.worker.advertise_host = Some("localhost".to_string());
    let decode = Running::decode(config).await;
    let mut client = decode.client().await;
    let mut whole = request(prompt(500, 1), &sampling(20));
    let updates = generate(&mut client, split(&whole, prefill.addresses.grpc))
        .await
        .unwrap();
    assert!(first_timing(&updates).remote_prefill);
    let (tcp, shm) = ("transport=\"tcp\"", "transport=\"shm\"");
    // 8 pages of 64 tokens and 5 layers, 576 bf16 values each: 1152 bytes a token and layer.
    let bytes = f64::from(8 * 64 * 5 * 1152);
    assert_eq!(decode.metric("transfer_bytes_total", tcp).await, bytes);
    assert_eq!(prefill.metric("transfer_bytes_total", tcp).await, bytes);
    assert_eq!(decode.metric("transfer_bytes_total", shm).await, 0.0);
    whole.cache_salt = "nothing is cached for this one".to_string();
    let expected = generate(&mut client, whole).await.unwrap();
    assert_eq!(tokens(&updates), tokens(&expected));
}

#[tokio::test]
async fn eight_bit_pages_are_smaller_on_the_wire_and_give_the_tokens_of_whole_requests() {
    let mut config = prefill_config();
    config.worker.engine.kv_dtype = KvDtype::Fp8;
    let prefill = Running::prefill(config).await;
    let mut config = decode_config();
    config.worker.engine.kv_dtype = KvDtype::Fp8;
    let decode = Running::decode(config).await;
    let mut client = decode.client().await;
    let mut whole = request(prompt(500, 1), &sampling(20));
    let updates = generate(&mut client, split(&whole, prefill.addresses.grpc))
        .await
        .unwrap();
    assert!(first_timing(&updates).remote_prefill);
    // 8 pages of 64 tokens and 5 layers: 512 values in 8 bits, 4 scales, 64 values in bf16.
    let bytes = f64::from(8 * 64 * 5 * 656);
    let moved = decode.metric("transfer_bytes_total", transport_label());
    assert_eq!(moved.await, bytes);
    whole.cache_salt = "nothing is cached for this one".to_string();
    let expected = generate(&mut client, whole).await.unwrap();
    assert_eq!(tokens(&updates), tokens(&expected));
}

#[tokio::test]
async fn a_replayed_request_goes_on_where_it_stopped() {
    let prefill = Running::prefill(prefill_config()).await;
    let decode = Running::decode(decode_config()).await;
    let mut client = decode.client().await;
    let whole = split(
        &request(prompt(200, 3), &sampling(24)),
        prefill.addresses.grpc,
    );
    let expected = tokens(&generate(&mut client, whole.clone()).await.unwrap());
    let delivered: Vec<u32> = expected[..9].iter().map(|token| token.id).collect();
    let replay = wire::GenerateRequest {
        output_token_ids: delivered,
        cache_salt: "nothing is cached for this one".to_string(),
        ..whole
    };
    let rest = tokens(&generate(&mut client, replay).await.unwrap());
    assert_eq!(rest, expected[9..]);
}

#[tokio::test]
async fn many_at_once_share_workers_and_give_all_pages_back() {
    let prefill = Running::prefill(prefill_config()).await;
    let decode = Running::decode(decode_config()).await;
    let client = decode.client().await;
    let requests: Vec<_> = (0..12)
        .map(|i| {
            let whole = request(prompt(40 + 37 * i, 100 + i as u32), &sampling(16));
            // Every third is prefilled by the decode worker.
            match i % 3 {
                0 => whole,
                _ => split(&whole, prefill.addresses.grpc),
            }
        })
        .collect();
    let running: Vec<_> = requests
        .iter()
        .map(|request| {
            let (mut client, request) = (client.clone(), request.clone());
            tokio::spawn(async move { generate(&mut client, request).await })
        })
        .collect();
    let mut together = Vec::new();
    for request in running {
        together.push(tokens(&request.await.unwrap().unwrap()));
    }
    decode.until_idle().await;
    prefill.until_idle().await;
    // One after the other, they say the same.
    let mut client = client;
    for (request, together) in requests.into_iter().zip(together) {
        let alone = generate(&mut client, request).await.unwrap();
        assert_eq!(tokens(&alone), together);
    }
}

#[tokio::test]
async fn bad_requests_are_refused_by_field() {
    let decode = Running::decode(decode_config()).await;
    let mut client = decode.client().await;
    let good = request(prompt(20, 1), &sampling(4));
    type Change = fn(&mut wire::GenerateRequest);
    let cases: [(&str, Change); 6] = [
        ("prompt_token_ids", |r| r.prompt_token_ids.clear()),
        ("prompt_token_ids", |r| r.prompt_token_ids[3] = 2048),
        ("prompt_token_ids", |r| r.prompt_token_ids = prompt(4096, 1)),
        ("output_token_ids", |r| r.output_token_ids = vec![5; 4]),
        ("sampling", |r| r.sampling = None),
        ("sampling.temperature", |r| {
            r.sampling.as_mut().unwrap().temperature = f32::NAN;
        }),
    ];
    for (field, change) in cases {
        let mut bad = good.clone();
        change(&mut bad);
        let status = generate(&mut client, bad).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
        assert!(status.message().starts_with(field), "{status:?}");
    }
    decode.until_idle().await;
    generate(&mut client, good).await.unwrap();
}
