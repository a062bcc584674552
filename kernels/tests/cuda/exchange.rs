//! Rows that go to other ranks and back give the bits that a lone rank computes.

use std::sync::Arc;
use std::time::Duration;

use millrace_kernels::{ExchangeShape, GateParams, Pace, ReplicaTable};
use millrace_model::config::{GateConfig, Scoring, TopkMethod};

use super::*;

/// How the experts of one layer are spread: expert `e` is in slot `e / ranks` of rank `e % ranks`, and every third
/// also in the same slot of the next rank.
fn table(layers: usize, experts: usize, ranks: usize) -> ReplicaTable {
    let mut table = ReplicaTable::default();
    for layer in 0..layers {
        for expert in 0..experts {
            let first = table.replicas.len() as u32;
            let (rank, slot) = ((expert % ranks) as u32, (expert / ranks) as u32);
            if expert % 3 == 0 && ranks > 1 {
                table.replicas.push([rank, slot, u32::MAX / 3]);
                table
                    .replicas
                    .push([(rank + 1) % ranks as u32, slot, u32::MAX]);
            } else {
                table.replicas.push([rank, slot, u32::MAX]);
            }
            let count = table.replicas.len() as u32 - first;
            let offset = (layer * 977 + expert * 7919) as u32 * 65_537;
            table.entries.push([first, count, offset]);
        }
    }
    table
}

fn gate(per_token: usize) -> GateParams<cuda::Vector> {
    GateParams {
        config: GateConfig {
            scoring: Scoring::Sigmoid,
            topk_method: TopkMethod::Greedy,
            n_group: 1,
            topk_group: 1,
            norm_topk_prob: true,
            routed_scaling_factor: 2.5,
        },
        experts_per_token: per_token,
        bias: None,
    }
}

/// One expert a slot, in 8 bits or in bf16.
fn experts(
    rng: &mut SmallRng,
    backend: &CudaBackend,
    slots: usize,
    hidden: usize,
    inter: usize,
    narrow: bool,
) -> Vec<Arc<cuda::Expert>> {
    (0..slots)
        .map(|_| {
            let [gate, up] = [(); 2].map(|()| Narrow::random(rng, inter, hidden));
            let down = Narrow::random(rng, hidden, inter);
            let expert = if narrow {
                backend.expert(gate.matrix(), up.matrix(), down.matrix(), Pace::Full)
            } else {
                let wide = |narrow: &Narrow| -> Vec<u8> {
                    let values = narrow.matrix().to_f32();
                    values
                        .iter()
                        .flat_map(|value| bf16::from_f32(*value).to_le_bytes())
                        .collect()
                };
                let (gate, up, down) = (wide(&gate), wide(&up), wide(&down));
                backend.expert(
                    matrix(&gate, inter, hidden),
                    matrix(&up, inter, hidden),
                    matrix(&down, hidden, inter),
                    Pace::Full,
                )
            };
            Arc::new(expert.unwrap())
        })
        .collect()
}

#[test]
#[ignore = "needs an H100 or H200"]
fn a_mirrored_rank_computes_what_a_lone_one_does() {
    let mut pair = Pair::new();
    for (ranks, slots, per_token, hidden, inter, narrow) in [
        (4, 3, 2, 256, 128, true),
        (4, 3, 2, 264, 72, false),
        (32, 9, 8, 1024, 256, true),
        (144, 2, 8, 512, 128, true),
        (1, 8, 3, 128, 128, false),
    ] {
        let most = 300;
        let shape = ExchangeShape {
            layers: 2,
            experts: ranks * slots,
            ranks,
            slots,
            rows: most,
            per_token,
            hidden,
        };
        let table = table(shape.layers, shape.experts, ranks);
        let mut exchange = pair.cuda.exchange(shape, &table).unwrap().unwrap();
        let slots = experts(&mut pair.rng, &pair.cuda, slots, hidden, inter, narrow);
        let here = pair.cuda.experts(slots.clone());
        let all = (0..shape.experts).map(|expert| slots[expert / ranks].clone());
        let alone = pair.cuda.experts(all.collect());
        let mut pieces = vec![0u64; shape.layers];
        for (turn, rows) in [1, 0, 7, most, 64, 0, 128].into_iter().enumerate() {
            let logits = pair.rows_f32(rows, shape.experts);
            let mut routing = pair.cuda.routing(most, per_token);
            pair.cuda
                .route(&logits.cuda, &gate(per_token), &mut routing);
            let x = pair.rows(rows, hidden);
            let (mut want, mut got) = (
                pair.cuda.tensor(most, hidden),
                pair.cuda.tensor(most, hidden),
            );
            pair.cuda.moe(&x.cuda, &routing, &alone, &mut want);
            let layer = turn % shape.layers;
            pair.cuda.exchange_begin(turn as u32 * 1000, &mut exchange);
            pair.cuda
                .exchange_dispatch(layer, &x.cuda, &routing, &here, &mut exchange);
            pair.cuda.exchange_serve(&here, &mut exchange);
            pair.cuda
                .exchange_combine(&routing, &mut exchange, None, &mut got);
            assert!(pair.cuda.exchange_finish(&exchange, &|| false));
            assert!(
                pair.cuda_rows(&got) == pair.cuda_rows(&want),
                "{rows} rows, {ranks} ranks"
            );
            pieces[layer] += (rows * per_token) as u64;
        }
        let (mut sent, mut computed) = (vec![0; shape.layers * ranks], vec![0; shape.layers]);
        pair.cuda.exchange_close(&mut exchange);
        pair.cuda
            .exchange_counts(&mut exchange, &mut sent, &mut computed);
        assert_eq!(computed, pieces);
        let sums: Vec<u64> = sent.chunks(ranks).map(|ranks| ranks.iter().sum()).collect();
        assert_eq!(sums, pieces);
        println!("{ranks} ranks, {hidden} x {inter}, narrow {narrow}: same bits");
    }
}

#[test]
#[ignore = "needs two H100s or H200s"]
fn two_ranks_compute_what_a_lone_one_does_and_miss_each_other() {
    let Ok(second) = CudaBackend::new(1) else {
        println!("skipped: there is one device");
        return;
    };
    let mut pair = Pair::new();
    let (ranks, per_token, hidden, inter, most) = (2, 4, 1024, 256, 200);
    for narrow in [true, false] {
        let shape = ExchangeShape {
            layers: 1,
            experts: 16,
            ranks,
            slots: 8,
            rows: most,
            per_token,
            hidden,
        };
        let table = table(1, shape.experts, ranks);
        let devices = [&pair.cuda, &second];
        let timeout = Duration::from_secs(2);
        let exchanges =
            CudaBackend::group(&devices, shape, &[table.clone(), table], timeout).unwrap();
        let seed: u64 = pair.rng.random();
        // The same in every slot of the same number.
        let weights = |backend: &CudaBackend| {
            experts(
                &mut SmallRng::seed_from_u64(seed),
                backend,
                8,
                hidden,
                inter,
                narrow,
            )
        };
        let steps = [1, 0, 130, most, 3];
        // Nobody's window goes before all are done with it.
        let end = std::sync::Barrier::new(ranks);
        std::thread::scope(|scope| {
            for (rank, (backend, mut exchange)) in devices.into_iter().zip(exchanges).enumerate() {
                let (weights, end) = (&weights, &end);
                scope.spawn(move || {
                    let slots = weights(backend);
                    let here = backend.experts(slots.clone());
                    let all = (0..shape.experts).map(|expert| slots[expert / ranks].clone());
                    let alone = backend.experts(all.collect());
                    let mut rng = SmallRng::seed_from_u64(seed + 1 + rank as u64);
                    let mut values = |count| -> Vec<f32> {
                        (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
                    };
                    let (mut x, mut logits) = (
                        backend.tensor(most, hidden),
                        backend.tensor_f32(most, shape.experts),
                    );
                    let (mut want, mut got) =
                        (backend.tensor(most, hidden), backend.tensor(most, hidden));
                    let mut more = backend.tensor(most, hidden);
                    let mut routing = backend.routing(most, per_token);
                    let mut turn = |rows: usize, exchange: &mut cuda::Exchange| {
                        backend.write(&values(rows * hidden), &mut x);
                        backend.write(&values(rows * hidden), &mut more);
                        backend.write(&values(rows * shape.experts), &mut logits);
                        backend.route(&logits, &gate(per_token), &mut routing);
                        backend.exchange_dispatch(0, &x, &routing, &here, exchange);
                        backend.exchange_serve(&here, exchange);
                        backend.exchange_combine(&routing, exchange, Some(&more), &mut got);
                        backend.moe(&x, &routing, &alone, &mut want);
                        backend.add(&mut want, &more);
                        let (mut a, mut b) = (Vec::new(), Vec::new());
                        backend.read(&got, &mut a);
                        backend.read(&want, &mut b);
                        a == b
                    };
                    backend.exchange_begin(rank as u32 * 77, &mut exchange);
                    for round in 0..20 {
                        // Ranks have other numbers of rows, and one of them often none.
                        let rows = steps[(round + 2 * rank) % steps.len()];
                        assert!(
                            turn(rows, &mut exchange),
                            "rank {rank}, round {round}, {rows} rows"
                        );
                    }
                    assert!(backend.exchange_finish(&exchange, &|| false));
                    if rank == 0 {
                        // The other one is not there any more.
                        let began = std::time::Instant::now();
                        turn(5, &mut exchange);
                        assert!(!backend.exchange_finish(&exchange, &|| false));
                        println!("missed after {:.1} s", began.elapsed().as_secs_f64());
                    }
                    end.wait();
                });
            }
        });
        println!("narrow {narrow}: same bits on both");
    }
}
