//! What the exchange of experts' rows takes between two GPUs of one host that reach each other's memory.
//!
//! ```text
//! cargo run --release -p millrace-kernels --features cuda --example bench_exchange
//! ```
//!
//! Both ranks take turns as in DeepSeek-V3's MoE layers (7168 values a row, 8 of 256 experts a token), with experts so
//! small that their products cost next to nothing. Times are medians of the parts of a turn on either device, waiting
//! for the other one included. What crosses the link is told next to its copy engines' own speed.

use std::time::Instant;
use std::{sync::Barrier, thread, time::Duration};

use half::bf16;
use millrace_kernels::cuda::{CudaBackend, Exchange};
use millrace_kernels::{Backend, ExchangeShape, GateParams, Pace, ReplicaTable};
use millrace_model::config::{GateConfig, Scoring, TopkMethod};
use millrace_model::matrix::{BlockScales, Matrix, MatrixData, ScaleValues};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::sync::Arc;

const HIDDEN: usize = 7168;
const INTER: usize = 128;
const EXPERTS: usize = 256;
const PER_TOKEN: usize = 8;
const RANKS: usize = 2;
const TURNS: usize = 50;

fn main() {
    let devices = [0, 1].map(|ordinal| CudaBackend::new(ordinal).expect("two GPUs"));
    for (rows, mib) in [(1, 1), (64, 1), (128, 16), (256, 288)] {
        let copy = CudaBackend::time_peer_copy(&devices[0], &devices[1], mib << 20);
        println!(
            "peer copy of {mib} MiB: {:.1} us, {:.0} GB/s",
            copy * 1e6,
            (mib << 20) as f64 / copy / 1e9
        );
        turns(&devices, rows);
    }
}

fn turns(devices: &[CudaBackend; RANKS], rows: usize) {
    let shape = ExchangeShape {
        layers: 1,
        experts: EXPERTS,
        ranks: RANKS,
        slots: EXPERTS / RANKS,
        rows,
        per_token: PER_TOKEN,
        hidden: HIDDEN,
    };
    let mut table = ReplicaTable::default();
    for expert in 0..EXPERTS as u32 {
        let (rank, slot) = (expert % RANKS as u32, expert / RANKS as u32);
        table.entries.push([expert, 1, 0]);
        table.replicas.push([rank, slot, u32::MAX]);
    }
    let backends = [&devices[0], &devices[1]];
    let tables = [table.clone(), table];
    let timeout = Duration::from_secs(5);
    let exchanges = CudaBackend::group(&backends, shape, &tables, timeout).expect("peers");
    let together = Barrier::new(RANKS);
    let reports = thread::scope(|scope| {
        let ranks = backends.into_iter().zip(exchanges).enumerate();
        let ranks: Vec<_> = ranks
            .map(|(rank, (backend, exchange))| {
                let together = &together;
                scope.spawn(move || one(backend, exchange, shape, rank as u64, together))
            })
            .collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().expect("no rank fails"))
            .collect::<Vec<_>>()
    });
    println!("{rows} rows a rank: {}", reports[0]);
}

fn one(
    backend: &CudaBackend,
    mut exchange: Exchange,
    shape: ExchangeShape,
    seed: u64,
    together: &Barrier,
) -> String {
    let mut rng = SmallRng::seed_from_u64(seed);
    let codes = vec![0x30u8; INTER * HIDDEN];
    let scales: Vec<u8> = (0..HIDDEN / 128)
        .flat_map(|_| 0.01f32.to_le_bytes())
        .collect();
    let matrix = |rows, cols| Matrix {
        rows,
        cols,
        data: MatrixData::Fp8 {
            bytes: &codes,
            scales: BlockScales {
                values: ScaleValues::F32(&scales),
                block_rows: 128,
                block_cols: 128,
            },
        },
    };
    let (wide, tall) = (matrix(INTER, HIDDEN), matrix(HIDDEN, INTER));
    let expert = Arc::new(backend.expert(wide, wide, tall, Pace::Full).expect("room"));
    let experts = backend.experts((0..shape.slots).map(|_| expert.clone()).collect());
    let mut values = |count: usize| -> Vec<f32> {
        let mut one = || bf16::from_f32(rng.random_range(-1.0..1.0)).to_f32();
        (0..count).map(|_| one()).collect()
    };
    let (mut x, mut logits) = (
        backend.tensor(shape.rows, HIDDEN),
        backend.tensor_f32(shape.rows, EXPERTS),
    );
    backend.write(&values(shape.rows * HIDDEN), &mut x);
    backend.write(&values(shape.rows * EXPERTS), &mut logits);
    let gate = GateParams {
        config: GateConfig {
            scoring: Scoring::Sigmoid,
            topk_method: TopkMethod::Greedy,
            n_group: 1,
            topk_group: 1,
            norm_topk_prob: true,
            routed_scaling_factor: 1.0,
        },
        experts_per_token: PER_TOKEN,
        bias: None,
    };
    let mut routing = backend.routing(shape.rows, PER_TOKEN);
    backend.route(&logits, &gate, &mut routing);
    let mut out = backend.tensor(shape.rows, HIDDEN);
    backend.exchange_begin(0, &mut exchange);
    let mut turn = || {
        backend.exchange_dispatch(0, &x, &routing, &experts, &mut exchange);
        backend.exchange_serve(&experts, &mut exchange);
        backend.exchange_combine(&routing, &mut exchange, None, &mut out);
    };
    (0..5).for_each(|_| turn());
    backend.wait();
    together.wait();
    let began = Instant::now();
    (0..TURNS).for_each(|_| turn());
    backend.wait();
    let whole = began.elapsed().as_secs_f64() / TURNS as f64;
    together.wait();
    backend.start_profile();
    together.wait();
    (0..TURNS).for_each(|_| turn());
    let calls = backend.take_profile();
    let whole_profile = |what: &str| {
        let mut times: Vec<f64> = calls
            .iter()
            .filter(|call| call.cost.what == what)
            .map(|call| call.seconds * 1e6)
            .collect();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let parts = [
        "dispatch",
        "collected work",
        "sorted work",
        "gathered rows",
        "experts",
        "responses",
        "combine",
    ];
    let parts: Vec<String> = parts
        .iter()
        .map(|what| format!("{what} {:.1}", whole_profile(what)))
        .collect();
    format!("a turn {:.1} us; {} us", whole * 1e6, parts.join(", "))
}
