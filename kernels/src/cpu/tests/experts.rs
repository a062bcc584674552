//! Gates and experts.

use millrace_model::config::{GateConfig, Scoring, TopkMethod};
use proptest::prelude::*;
use rand::Rng as _;

use std::sync::Arc;

use super::*;
use crate::cpu::{Expert, Routing};
use crate::{GateParams, KernelError, Pace, Work};

/// The three gates of DeepSeek-V2-Lite, V2 and V3, and V3's over softmax.
fn gates() -> [GateConfig; 4] {
    let v2_lite = GateConfig {
        scoring: Scoring::Softmax,
        topk_method: TopkMethod::Greedy,
        n_group: 1,
        topk_group: 1,
        norm_topk_prob: false,
        routed_scaling_factor: 1.0,
    };
    let v2 = GateConfig {
        topk_method: TopkMethod::GroupLimitedGreedy,
        n_group: 8,
        topk_group: 3,
        routed_scaling_factor: 16.0,
        ..v2_lite
    };
    let v3 = GateConfig {
        scoring: Scoring::Sigmoid,
        topk_method: TopkMethod::NoauxTc,
        n_group: 8,
        topk_group: 4,
        norm_topk_prob: true,
        routed_scaling_factor: 2.5,
    };
    [
        v2_lite,
        v2,
        v3,
        GateConfig {
            scoring: Scoring::Softmax,
            ..v3
        },
    ]
}

fn sorted_by_score(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order
}

/// Expert and weight by definition.
fn reference(
    logits: &[f32],
    gate: &GateConfig,
    bias: Option<&[f32]>,
    k: usize,
) -> Vec<(usize, f64)> {
    let scores: Vec<f64> = match gate.scoring {
        Scoring::Softmax => {
            let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
            logits.iter().map(|l| f64::from(*l).exp() / sum).collect()
        }
        Scoring::Sigmoid => logits
            .iter()
            .map(|l| 1.0 / (1.0 + (-f64::from(*l)).exp()))
            .collect(),
    };
    let mut choice: Vec<f64> = scores
        .iter()
        .enumerate()
        .map(|(i, s)| s + bias.map_or(0.0, |bias| f64::from(bias[i])))
        .collect();
    if gate.topk_method != TopkMethod::Greedy {
        let size = logits.len() / gate.n_group;
        let groups: Vec<f64> = choice
            .chunks(size)
            .map(|group| {
                let order = sorted_by_score(group);
                let kept = if gate.topk_method == TopkMethod::NoauxTc {
                    2
                } else {
                    1
                };
                order.iter().take(kept).map(|i| group[*i]).sum()
            })
            .collect();
        for group in &sorted_by_score(&groups)[gate.topk_group..] {
            choice[group * size..][..size].fill(f64::NEG_INFINITY);
        }
    }
    let chosen = &sorted_by_score(&choice)[..k];
    let sum: f64 = if gate.norm_topk_prob {
        chosen.iter().map(|e| scores[*e]).sum::<f64>() + 1e-20
    } else {
        1.0
    };
    chosen
        .iter()
        .map(|e| (*e, scores[*e] / sum * f64::from(gate.routed_scaling_factor)))
        .collect()
}

fn route(
    backend: &CpuBackend,
    logits: &[f32],
    experts: usize,
    gate: GateConfig,
    bias: Option<&[f32]>,
    k: usize,
) -> Routing {
    let bias = bias.map(|bias| backend.vector(bias));
    let logits = tensor(backend, logits, experts);
    let mut routing = backend.routing(logits.rows().max(1), k);
    backend.route(
        &logits,
        &GateParams {
            config: gate,
            experts_per_token: k,
            bias,
        },
        &mut routing,
    );
    routing
}

#[test]
fn gates_choose_and_weigh_right() {
    let mut rng = rng(30);
    for gate in gates() {
        for (experts, k) in [(64, 6), (32, 4), (160, 6), (256, 8)] {
            let rows = 50;
            let logits: Vec<f32> = values(&mut rng, rows * experts)
                .iter()
                .map(|v| v * 4.0)
                .collect();
            let bias = (gate.topk_method == TopkMethod::NoauxTc).then(|| values(&mut rng, experts));
            for backend in backends(1) {
                let routing = route(&backend, &logits, experts, gate, bias.as_deref(), k);
                let mut got = Vec::new();
                backend.read_routing(&routing, &mut got);
                for (row, got) in logits.chunks(experts).zip(got.chunks(k)) {
                    let want = reference(row, &gate, bias.as_deref(), k);
                    assert_eq!(
                        got.iter().map(|g| g.0 as usize).collect::<Vec<_>>(),
                        want.iter().map(|w| w.0).collect::<Vec<_>>(),
                        "{gate:?}"
                    );
                    for (got, want) in got.iter().zip(&want) {
                        assert!(
                            (f64::from(got.1) - want.1).abs() <= 2e-6 * want.1,
                            "{got:?} {want:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn ties_go_to_the_lower_index() {
    let backend = CpuBackend::new(1);
    for gate in gates() {
        let routing = route(&backend, &[0.5; 64], 64, gate, None, 6);
        let chosen: Vec<u32> = routing.choices().map(|choice| choice.0).collect();
        assert_eq!(chosen, [0, 1, 2, 3, 4, 5], "{gate:?}");
    }
}

#[test]
fn a_gate_bears_nan() {
    let backend = CpuBackend::new(1);
    for gate in gates() {
        let routing = route(&backend, &[f32::NAN; 64], 64, gate, None, 6);
        assert!(
            routing
                .choices()
                .all(|(expert, weight)| expert < 64 && weight.is_nan()),
            "{gate:?}"
        );
    }
}

struct Layer {
    gate_up: Vec<[Stored; 2]>,
    down: Vec<Stored>,
}

impl Layer {
    fn random(
        rng: &mut SmallRng,
        kind: Kind,
        experts: usize,
        hidden: usize,
        inter: usize,
    ) -> Layer {
        Layer {
            gate_up: (0..experts)
                .map(|_| [(); 2].map(|()| Stored::random(rng, kind, inter, hidden)))
                .collect(),
            down: (0..experts)
                .map(|_| Stored::random(rng, kind, hidden, inter))
                .collect(),
        }
    }

    fn expert(&self, backend: &CpuBackend, expert: usize) -> Arc<Expert> {
        let [gate, up] = self.gate_up[expert].each_ref().map(Stored::matrix);
        let down = self.down[expert].matrix();
        Arc::new(backend.expert(gate, up, down, Pace::Full).unwrap())
    }

    fn pack(&self, backend: &CpuBackend) -> crate::cpu::Experts {
        let experts = (0..self.down.len()).map(|expert| self.expert(backend, expert));
        backend.experts(experts.collect())
    }

    /// `weight * expert(x)` summed over `choices`, and the sum of absolute terms.
    fn reference(&self, x: &[f32], choices: &[(u32, f32)]) -> Vec<(f64, f64)> {
        let hidden = x.len();
        let mut out = vec![(0.0, 0.0); hidden];
        for (expert, weight) in choices {
            let expert = *expert as usize;
            let [gate, up] = &self.gate_up[expert];
            let (g, u) = (
                gate.product(0..gate.rows, &doubles(x)),
                up.product(0..up.rows, &doubles(x)),
            );
            let inner: Vec<f64> = g
                .iter()
                .zip(&u)
                .map(|(g, u)| g.0 / (1.0 + (-g.0).exp()) * u.0)
                .collect();
            for (out, (sum, size)) in out
                .iter_mut()
                .zip(self.down[expert].product(0..hidden, &inner))
            {
                out.0 += f64::from(*weight) * sum;
                out.1 += f64::from(weight.abs()) * size;
            }
        }
        out
    }
}

/// `rows` choices of `k` among the first `used` of the experts.
fn choose(
    backend: &CpuBackend,
    seed: u64,
    rows: usize,
    experts: usize,
    used: usize,
    k: usize,
) -> Routing {
    let mut rng = rng(seed);
    let mut logits = values(&mut rng, rows * experts);
    for row in logits.chunks_mut(experts) {
        row[used..].fill(-50.0);
    }
    route(backend, &logits, experts, gates()[0], None, k)
}

#[test]
fn experts_are_right() {
    let mut rng = rng(31);
    for (rows, experts, used, k, hidden, inter) in [
        (1, 8, 8, 2, 64, 32),
        (1, 4, 4, 1, 50, 17),
        (7, 16, 3, 3, 96, 48),
        (60, 8, 8, 4, 130, 40),
        (90, 5, 2, 2, 32, 100),
    ] {
        for kind in [Kind::F32, Kind::Bf16, FP8] {
            let layer = Layer::random(&mut rng, kind, experts, hidden, inter);
            let x: Vec<f32> = values(&mut rng, rows * hidden)
                .iter()
                .map(|v| v * 0.1)
                .collect();
            for backend in backends(2) {
                let packed = layer.pack(&backend);
                let routing = choose(&backend, 7, rows, experts, used, k);
                let mut out = backend.tensor(rows, hidden);
                backend.moe(&tensor(&backend, &x, hidden), &routing, &packed, &mut out);
                let choices: Vec<_> = routing.choices().collect();
                let want: Vec<_> = x
                    .chunks(hidden)
                    .zip(choices.chunks(k))
                    .flat_map(|(x, c)| layer.reference(x, c))
                    .collect();
                let sums: Vec<f64> = want.iter().map(|w| w.0).collect();
                let what = format!("{:?} {kind:?} {rows} rows", backend.isa());
                assert_close(&what, out.values(), &sums, |i| 2e-5 * want[i].1 + 1e-9);
            }
        }
    }
}

#[test]
fn no_rows_are_no_work() {
    let mut rng = rng(32);
    let (hidden, experts) = (40, 4);
    let layer = Layer::random(&mut rng, FP8, experts, hidden, 24);
    for backend in backends(2) {
        let packed = layer.pack(&backend);
        let routing = route(&backend, &[], experts, gates()[0], None, 2);
        let x = tensor(&backend, &[], hidden);
        let mut out = tensor(&backend, &[1.0; 40], hidden);
        backend.moe(&x, &routing, &packed, &mut out);
        assert_eq!(out.rows(), 0);
        let mut products = tensor(&backend, &[1.0; 40], hidden);
        backend.expert_rows(&x, &[], &packed, &mut products);
        assert_eq!(products.rows(), 0);
        backend.combine(&products, &[], &routing, &mut out);
        assert_eq!(out.rows(), 0);
        backend.write(&[], &mut out);
        assert_eq!(out.rows(), 0);
        let mut wide = tensor(&backend, &[1.0; 24], 24);
        let linear = backend
            .linear(&[layer.gate_up[0][0].matrix()], None)
            .unwrap();
        backend.apply(&linear, &x, 0, &mut wide);
        assert_eq!(wide.rows(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_row_of_experts_does_not_know_its_batch(
        rows in 1..80usize, experts in 1..12usize, k in 1..5usize, hidden in 1..150usize, inter in 1..80usize,
        fp8: bool, threads in 1..4usize, seed: u64,
    ) {
        let mut rng = rng(seed);
        let kind = if fp8 { FP8 } else { Kind::Bf16 };
        let k = k.min(experts);
        let layer = Layer::random(&mut rng, kind, experts, hidden, inter);
        let x = values(&mut rng, rows * hidden);
        let logits = values(&mut rng, rows * experts);
        let run = |isa, threads, rows: std::ops::Range<usize>| {
            let backend = CpuBackend::with_isa(threads, isa);
            let logits = &logits[rows.start * experts..rows.end * experts];
            let routing = route(&backend, logits, experts, gates()[0], None, k);
            let mut out = backend.tensor(rows.len(), hidden);
            let x = tensor(&backend, &x[rows.start * hidden..rows.end * hidden], hidden);
            backend.moe(&x, &routing, &layer.pack(&backend), &mut out);
            out.values().to_vec()
        };
        for isa in isas() {
            let together = run(isa, threads, 0..rows);
            for row in (0..rows).step_by(1 + rows / 8) {
                assert_same_bits("a row", &run(isa, 1, row..row + 1), &together[row * hidden..][..hidden]);
            }
        }
    }
}

/// What a group does with a layer: rows go to slots of several ranks, two replicas of some experts
/// among them, in an order that is nobody's, and come back to be summed.
fn in_a_group(
    backend: &CpuBackend,
    layer: &Layer,
    x: &Tensor,
    routing: &Routing,
    ranks: usize,
    rng: &mut SmallRng,
) -> Vec<f32> {
    let experts = layer.down.len();
    let per_token = routing.choices().len() / x.rows().max(1);
    // Every rank holds every expert here, each in slots of an order of its own.
    let slots: Vec<Vec<u32>> = (0..ranks)
        .map(|rank| {
            (0..experts as u32)
                .map(|slot| (slot + rank as u32) % experts as u32)
                .collect()
        })
        .collect();
    let mut work = vec![Vec::new(); ranks];
    let mut taken = Vec::new();
    let mut order: Vec<(usize, u32)> = routing
        .choices()
        .map(|choice| choice.0)
        .enumerate()
        .collect();
    for i in (1..order.len()).rev() {
        order.swap(i, rng.random_range(0..=i));
    }
    for (i, expert) in order {
        let rank = rng.random_range(0..ranks);
        let slot = slots[rank].iter().position(|e| *e == expert).unwrap() as u32;
        taken.push((i, rank, work[rank].len()));
        work[rank].push(Work {
            row: (i / per_token) as u32,
            slot,
        });
    }
    let mut returned = Vec::new();
    let mut firsts = Vec::new();
    for (slots, work) in slots.iter().zip(&work) {
        let held = slots.iter().map(|e| layer.expert(backend, *e as usize));
        let held = backend.experts(held.collect());
        let mut out = backend.tensor(work.len().max(1), x.cols());
        backend.expert_rows(x, work, &held, &mut out);
        firsts.push(returned.len() / x.cols());
        returned.extend_from_slice(out.values());
    }
    let mut places = vec![0; taken.len()];
    for (i, rank, index) in taken {
        places[i] = (firsts[rank] + index) as u32;
    }
    let returned = tensor(backend, &returned, x.cols());
    let mut out = backend.tensor(x.rows().max(1), x.cols());
    backend.combine(&returned, &places, routing, &mut out);
    out.values().to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn a_row_does_not_know_where_its_experts_are(
        rows in 1..40usize, experts in 1..8usize, k in 1..5usize, hidden in 1..150usize, inter in 1..80usize,
        fp8: bool, threads in 1..3usize, ranks in 1..4usize, seed: u64,
    ) {
        let mut rng = rng(seed);
        let kind = if fp8 { FP8 } else { Kind::Bf16 };
        let layer = Layer::random(&mut rng, kind, experts, hidden, inter);
        let x = values(&mut rng, rows * hidden);
        for isa in isas() {
            let backend = CpuBackend::with_isa(threads, isa);
            let routing = choose(&backend, seed, rows, experts, experts, k.min(experts));
            let x = tensor(&backend, &x, hidden);
            let mut alone = backend.tensor(rows, hidden);
            backend.moe(&x, &routing, &layer.pack(&backend), &mut alone);
            let found = in_a_group(&backend, &layer, &x, &routing, ranks, &mut rng);
            assert_same_bits("a row", &found, alone.values());
        }
    }

    /// Other lengths, sizes, formats and packings are refused; other weights are weights.
    #[test]
    fn damaged_bytes_of_an_expert_do_no_harm(
        kind in prop::sample::select(vec![Kind::F32, Kind::F16, Kind::Bf16, FP8]),
        hidden in 1..80usize, inter in 1..40usize, seed: u64,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        header: bool, cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let backend = CpuBackend::new(1);
        let layer = Layer::random(&mut rng(seed), kind, 1, hidden, inter);
        let mut bytes = backend.expert_bytes(&layer.expert(&backend, 0));
        for (at, value) in flips {
            let len = if header { 32 } else { bytes.len() };
            bytes[at.index(len)] ^= value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        if let Ok(expert) = backend.expert_from_bytes(&bytes, hidden, inter) {
            let experts = backend.experts(vec![Arc::new(expert)]);
            let x = tensor(&backend, &vec![0.5; hidden], hidden);
            let mut out = backend.tensor(1, hidden);
            backend.expert_rows(&x, &[Work { row: 0, slot: 0 }], &experts, &mut out);
        }
    }
}

#[test]
fn an_expert_that_travelled_is_the_same() {
    let mut rng = rng(33);
    let odd_blocks = Kind::Fp8 {
        rows: 16,
        cols: 24,
        ue8m0: true,
    };
    for kind in [Kind::F32, Kind::F16, Kind::Bf16, FP8, odd_blocks] {
        let (hidden, inter) = (130, 37);
        let layer = Layer::random(&mut rng, kind, 1, hidden, inter);
        let x = values(&mut rng, 3 * hidden);
        let work = [0, 2, 1].map(|row| Work { row, slot: 0 });
        for backend in backends(2) {
            let sent = layer.expert(&backend, 0);
            let bytes = backend.expert_bytes(&sent);
            let come = backend.expert_from_bytes(&bytes, hidden, inter).unwrap();
            assert_eq!(backend.expert_bytes(&come), bytes);
            let x = tensor(&backend, &x, hidden);
            let [sent, come] = [sent, Arc::new(come)].map(|expert| {
                let mut out = backend.tensor(3, hidden);
                backend.expert_rows(&x, &work, &backend.experts(vec![expert]), &mut out);
                out.values().to_vec()
            });
            assert_same_bits("a travelled expert", &come, &sent);
        }
    }
}

#[test]
fn an_expert_of_another_kind_is_refused_by_name() {
    let backend = CpuBackend::new(1);
    let layer = Layer::random(&mut rng(34), Kind::Bf16, 1, 48, 20);
    let bytes = backend.expert_bytes(&layer.expert(&backend, 0));
    let refusal = |bytes: &[u8], hidden, inter| {
        let refused = backend.expert_from_bytes(bytes, hidden, inter);
        refused.err().expect("it is refused")
    };
    assert!(matches!(
        refusal(&bytes, 48, 24),
        KernelError::ExpertSizes {
            found: [48, 20],
            expected: [48, 24]
        }
    ));
    assert!(matches!(
        refusal(&bytes[..bytes.len() - 1], 48, 20),
        KernelError::ExpertLength { .. }
    ));
    assert!(matches!(
        refusal(&[], 48, 20),
        KernelError::ExpertLength { .. }
    ));
    let mut other = bytes.clone();
    other[..3].copy_from_slice(b"gpu");
    assert!(matches!(
        refusal(&other, 48, 20),
        KernelError::ExpertPacking { .. }
    ));
    let mut other = bytes;
    other[16] = 9;
    assert!(matches!(
        refusal(&other, 48, 20),
        KernelError::ExpertFormat { code: 9, .. }
    ));
}
