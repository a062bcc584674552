//! Choice of experts, and what they compute.

use std::sync::Arc;

use millrace_kernels::{GateParams, Pace, Work};
use millrace_model::config::{GateConfig, Scoring, TopkMethod};

use super::*;

pub struct Layer {
    pub cpu: cpu::Experts,
    pub cuda: cuda::Experts,
}

impl Pair {
    fn layer(&mut self, slots: usize, hidden: usize, inter: usize) -> Layer {
        let mut experts = (Vec::new(), Vec::new());
        for _ in 0..slots {
            let bytes = [(); 3].map(|()| self.bf16_bytes(hidden * inter));
            let (gate, up) = (
                matrix(&bytes[0], inter, hidden),
                matrix(&bytes[1], inter, hidden),
            );
            let down = matrix(&bytes[2], hidden, inter);
            experts.0.push(Arc::new(
                self.cpu.expert(gate, up, down, Pace::Full).unwrap(),
            ));
            // As another rank would get it.
            let sent = self
                .cuda
                .expert_bytes(&self.cuda.expert(gate, up, down, Pace::Full).unwrap());
            let got = self.cuda.expert_from_bytes(&sent, hidden, inter).unwrap();
            assert!(
                self.cuda
                    .expert_from_bytes(&sent, inter + 1, hidden)
                    .is_err()
            );
            assert!(
                self.cuda
                    .expert_from_bytes(&sent[..sent.len() - 1], hidden, inter)
                    .is_err()
            );
            experts.1.push(Arc::new(got));
        }
        Layer {
            cpu: self.cpu.experts(experts.0),
            cuda: self.cuda.experts(experts.1),
        }
    }
}

#[test]
#[ignore = "needs an H100 or H200"]
fn choice() {
    let mut pair = Pair::new();
    let mut worst = Worst::new("weights of chosen experts", 1e-5);
    let methods = [
        (TopkMethod::Greedy, Scoring::Softmax),
        (TopkMethod::GroupLimitedGreedy, Scoring::Softmax),
        (TopkMethod::NoauxTc, Scoring::Sigmoid),
    ];
    for (topk_method, scoring) in methods {
        for (experts, per_token, n_group, topk_group) in [
            (256, 8, 8, 4),
            (12, 3, 3, 2),
            (6, 2, 1, 1),
            (160, 6, 8, 3),
            (32, 4, 4, 2),
        ] {
            for norm_topk_prob in [true, false] {
                let rows = 200;
                // Differences that float32 of either form resolves.
                let logits = pair.rows_f32(rows, experts);
                let bias = pair.values(experts);
                let config = GateConfig {
                    scoring,
                    topk_method,
                    n_group,
                    topk_group,
                    norm_topk_prob,
                    routed_scaling_factor: 2.5,
                };
                let biased = topk_method == TopkMethod::NoauxTc;
                let gate = GateParams {
                    config,
                    experts_per_token: per_token,
                    bias: biased.then(|| pair.cpu.vector(&bias)),
                };
                let mut routing = pair.cpu.routing(rows, per_token);
                pair.cpu.route(&logits.cpu, &gate, &mut routing);
                let gate = GateParams {
                    config,
                    experts_per_token: per_token,
                    bias: biased.then(|| pair.cuda.vector(&bias)),
                };
                let mut on_cuda = pair.cuda.routing(rows, per_token);
                pair.cuda.route(&logits.cuda, &gate, &mut on_cuda);
                let (mut want, mut got) = (Vec::new(), Vec::new());
                pair.cpu.read_routing(&routing, &mut want);
                pair.cuda.read_routing(&on_cuda, &mut got);
                // Scores that round alike may change places.
                let same = want.iter().zip(&got).filter(|(a, b)| a.0 == b.0).count();
                assert!(
                    same * 1000 >= want.len() * 995,
                    "{same} of {} chosen alike",
                    want.len()
                );
                let weights =
                    |choices: &[(u32, f32)]| -> Vec<f32> { choices.iter().map(|c| c.1).collect() };
                worst.see(
                    relative(&weights(&got), &weights(&want)),
                    (topk_method, experts),
                );

                let mut tally = pair.cuda.tally(3, experts);
                pair.cuda.count(&on_cuda, 2, &mut tally);
                pair.cuda.count(&on_cuda, 2, &mut tally);
                pair.cuda.close_tally(&mut tally);
                let mut sums = vec![1u64; 3 * experts];
                pair.cuda.take_tally(&mut tally, &mut sums);
                let mut expected = vec![1u64; 3 * experts];
                got.iter()
                    .for_each(|(expert, _)| expected[2 * experts + *expert as usize] += 2);
                assert_eq!(sums, expected);
                pair.cuda.count(&on_cuda, 1, &mut tally);
                pair.cuda.take_tally(&mut tally, &mut sums);
                assert_eq!(sums, expected, "the pass was not closed yet");
                pair.cuda.close_tally(&mut tally);
                pair.cuda.take_tally(&mut tally, &mut sums);
                got.iter()
                    .for_each(|(expert, _)| expected[experts + *expert as usize] += 1);
                assert_eq!(sums, expected, "it goes on from there");
            }
        }
    }
}

#[test]
#[ignore = "needs an H100 or H200"]
fn mixture() {
    let mut pair = Pair::new();
    let mut worst = Worst::new("mixture of experts", BF16);
    let mut rows_worst = Worst::new("rows of experts", BF16);
    for (experts, per_token, hidden, inter) in [
        (8, 2, 64, 32),
        (12, 3, 96, 20),
        (6, 2, 136, 132),
        (32, 4, 256, 128),
        (256, 8, 128, 64),
    ] {
        let layer = pair.layer(experts, hidden, inter);
        for rows in [1, 3, 40, 700] {
            let logits = pair.rows_f32(rows, experts);
            let config = GateConfig {
                scoring: Scoring::Sigmoid,
                topk_method: TopkMethod::Greedy,
                n_group: 1,
                topk_group: 1,
                norm_topk_prob: true,
                routed_scaling_factor: 1.0,
            };
            let mut on_cuda = pair.cuda.routing(rows, per_token);
            let gate = GateParams {
                config,
                experts_per_token: per_token,
                bias: None,
            };
            pair.cuda.route(&logits.cuda, &gate, &mut on_cuda);
            let mut on_cpu = pair.cpu.routing(rows, per_token);
            let gate = GateParams {
                config,
                experts_per_token: per_token,
                bias: None,
            };
            pair.cpu.route(&logits.cpu, &gate, &mut on_cpu);
            let mut choices = (Vec::new(), Vec::new());
            pair.cpu.read_routing(&on_cpu, &mut choices.0);
            pair.cuda.read_routing(&on_cuda, &mut choices.1);
            let chosen =
                |choices: &[(u32, f32)]| -> Vec<u32> { choices.iter().map(|c| c.0).collect() };
            let same = chosen(&choices.0) == chosen(&choices.1);

            let x = pair.rows(rows, hidden);
            let mut out = pair.empty(rows, hidden);
            pair.cpu.moe(&x.cpu, &on_cpu, &layer.cpu, &mut out.cpu);
            pair.cuda.moe(&x.cuda, &on_cuda, &layer.cuda, &mut out.cuda);
            // Where two scores round alike the forms may choose differently, and are right.
            if same {
                worst.see(pair.error(&out), (experts, hidden, rows));
            }

            // The same through a list of work out of order, summed by `combine`, gives the same bits.
            let chosen = &choices.1;
            let mut order: Vec<u32> = (0..chosen.len() as u32).collect();
            for i in (1..order.len()).rev() {
                order.swap(i, pair.rng.random_range(0..=i));
            }
            let work: Vec<Work> = order
                .iter()
                .map(|&piece| Work {
                    row: piece / per_token as u32,
                    slot: chosen[piece as usize].0,
                })
                .collect();
            let mut places = vec![0u32; order.len()];
            order
                .iter()
                .enumerate()
                .for_each(|(place, piece)| places[*piece as usize] = place as u32);
            let mut products = pair.empty(work.len(), hidden);
            pair.cpu
                .expert_rows(&x.cpu, &work, &layer.cpu, &mut products.cpu);
            pair.cuda
                .expert_rows(&x.cuda, &work, &layer.cuda, &mut products.cuda);
            rows_worst.see(pair.error(&products), (experts, hidden, rows));
            let mut sum = pair.empty(rows, hidden);
            pair.cuda
                .combine(&products.cuda, &places, &on_cuda, &mut sum.cuda);
            assert_eq!(pair.cuda_rows(&sum.cuda), pair.cuda_rows(&out.cuda));
        }
    }
}

/// Inputs of both products are quantised, which is most of the difference.
#[test]
#[ignore = "needs an H100 or H200"]
fn mixture_in_8_bits() {
    let mut pair = Pair::new();
    let mut worst = Worst::new("mixture of fp8 experts", 6e-2);
    for (experts, per_token, hidden, inter) in
        [(4, 2, 256, 128), (32, 4, 256, 128), (9, 3, 1024, 256)]
    {
        let mut loaded = (Vec::new(), Vec::new());
        for _ in 0..experts {
            let [gate, up] = [(); 2].map(|()| Narrow::random(&mut pair.rng, inter, hidden));
            let down = Narrow::random(&mut pair.rng, hidden, inter);
            let (gate, up, down) = (gate.matrix(), up.matrix(), down.matrix());
            loaded.0.push(Arc::new(
                pair.cpu.expert(gate, up, down, Pace::Full).unwrap(),
            ));
            let expert = pair.cuda.expert(gate, up, down, Pace::Full).unwrap();
            let bytes = pair.cuda.expert_bytes(&expert);
            loaded.1.push(Arc::new(
                pair.cuda.expert_from_bytes(&bytes, hidden, inter).unwrap(),
            ));
        }
        let layer = Layer {
            cpu: pair.cpu.experts(loaded.0),
            cuda: pair.cuda.experts(loaded.1),
        };
        for rows in [1, 5, 64, 900] {
            let work: Vec<Work> = (0..rows * per_token)
                .map(|piece| Work {
                    row: (piece / per_token) as u32,
                    // Some slots get none.
                    slot: pair.rng.random_range(0..experts as u32 - 1),
                })
                .collect();
            let x = pair.rows(rows, hidden);
            let mut out = pair.empty(work.len(), hidden);
            pair.cpu
                .expert_rows(&x.cpu, &work, &layer.cpu, &mut out.cpu);
            pair.cuda
                .expert_rows(&x.cuda, &work, &layer.cuda, &mut out.cuda);
            worst.see(pair.error(&out), (experts, hidden, rows));
            // A row alone gives the same.
            let alone = [work[work.len() - 1]];
            let mut one = pair.cuda.tensor(1, hidden);
            pair.cuda
                .expert_rows(&x.cuda, &alone, &layer.cuda, &mut one);
            let all = pair.cuda_rows(&out.cuda);
            assert_eq!(pair.cuda_rows(&one), all[all.len() - hidden..]);
        }
    }
}
