//! Speed of the CPU backend's heavy ops, next to what the machine could do at most.
//!
//! `cargo run --release -p millrace-kernels --example bench_gemm [WHAT [THREADS [ISA]]]`
//! where WHAT is part of a benchmark's name (ceiling, pack, linear, latent, grouped, moe, small) and ISA is
//! avx512, avx2 or portable.
//!
//! Every figure is the best of several repetitions: other work on the machine can only slow one
//! down. With one thread the time is that of the thread (its processor may be taken away in
//! between), with more it is the clock's. GFLOP/s counts two operations a multiply-add. At one row the figure of interest is GB/s of
//! weights, to be read against the memory-read ceiling: "cold" rotates over copies of the weights
//! that no cache holds, as a large model's decode step does; "hot" uses one copy.

use std::sync::Arc;
use std::time::{Duration, Instant};

use half::bf16;
use millrace_kernels::cpu::{CpuBackend, Isa, Tensor};
use millrace_kernels::{Backend, Batch, GateParams, KvDtype, PAGE_TOKENS, Pace, PageLayout};
use millrace_model::config::{GateConfig, Scoring, TopkMethod};
use millrace_model::matrix::{BlockScales, Matrix, MatrixData, ScaleValues};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Longer than any cache here.
const COLD_BYTES: usize = 128 << 20;
const BUDGET: Duration = Duration::from_millis(40);

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let only = std::env::args()
        .nth(2)
        .map(|threads| threads.parse().expect("a number of threads"));
    let isa = match std::env::args().nth(3).as_deref() {
        None => Isa::detect(),
        Some("avx512") => Isa::Avx512,
        Some("avx2") => Isa::Avx2,
        Some("portable") => Isa::Portable,
        Some(other) => panic!("{other}: avx512, avx2 or portable"),
    };
    println!("instruction set: {isa:?}");
    for threads in only.map_or(vec![1, 2], |threads| vec![threads]) {
        println!("\n== {threads} thread(s)");
        if "ceiling".contains(&filter) {
            ceilings(threads);
        }
        let backend = CpuBackend::with_isa(threads, isa);
        for (what, bench) in [
            ("pack", pack as fn(&CpuBackend)),
            ("linear", linear),
            ("latent", latent),
            ("grouped", grouped),
            ("moe", moe),
            ("small", small),
        ] {
            if what.contains(&filter) {
                bench(&backend);
            }
        }
    }
}

/// The time of the thread or of the clock.
fn now(threads: usize) -> Duration {
    let clock = if threads == 1 {
        libc::CLOCK_THREAD_CPUTIME_ID
    } else {
        libc::CLOCK_MONOTONIC
    };
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the given structure; both clocks exist.
    unsafe { libc::clock_gettime(clock, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The shortest of the calls that fit the time budget (at least three).
fn best(threads: usize, mut f: impl FnMut()) -> Duration {
    let mut best = Duration::MAX;
    let start = Instant::now();
    let mut calls = 0;
    while calls < 3 || start.elapsed() < BUDGET {
        let call = now(threads);
        f();
        best = best.min(now(threads) - call);
        calls += 1;
    }
    best
}

/// Plain reads of memory, in huge pages as weights are.
fn ceilings(threads: usize) {
    let mut values: Vec<u64> = Vec::with_capacity((256 << 20) / 8);
    let huge_page = 2 << 20;
    let first = values.as_mut_ptr().cast::<u8>();
    // SAFETY: whole huge pages inside the allocation, not yet touched; a refusal costs speed only.
    unsafe {
        let base = first.add(first.addr().next_multiple_of(huge_page) - first.addr());
        libc::madvise(base.cast(), (256 << 20) - huge_page, libc::MADV_HUGEPAGE);
    }
    values.resize((256 << 20) / 8, 1);
    let time = best(2, || {
        std::thread::scope(|scope| {
            for part in values.chunks(values.len() / threads) {
                scope.spawn(move || {
                    let mut sums = [0u64; 32];
                    for line in part.chunks_exact(32) {
                        sums.iter_mut()
                            .zip(line)
                            .for_each(|(sum, value)| *sum += value);
                    }
                    std::hint::black_box(sums);
                });
            }
        });
    });
    println!(
        "memory read ceiling: {:.1} GB/s",
        (256 << 20) as f64 / time.as_secs_f64() / 1e9
    );
}

fn random(rng: &mut SmallRng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn tensor(backend: &CpuBackend, rng: &mut SmallRng, rows: usize, cols: usize) -> Tensor {
    let values = random(rng, rows * cols);
    let mut out = backend.tensor(rows, cols);
    backend.write(&values, &mut out);
    out
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    F32,
    Bf16,
    Fp8,
}

struct Weights {
    rows: usize,
    cols: usize,
    kind: Kind,
    bytes: Vec<u8>,
    scales: Vec<u8>,
}

impl Weights {
    fn random(rng: &mut SmallRng, kind: Kind, rows: usize, cols: usize) -> Weights {
        let bytes = match kind {
            Kind::F32 => random(rng, rows * cols)
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect(),
            Kind::Bf16 => random(rng, rows * cols)
                .iter()
                .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
                .collect(),
            Kind::Fp8 => (0..rows * cols)
                .map(|_| rng.random_range(0..0x7f_u8))
                .collect(),
        };
        let blocks = rows.div_ceil(128) * cols.div_ceil(128);
        let scales = (0..blocks).flat_map(|_| 0.01f32.to_le_bytes()).collect();
        Weights {
            rows,
            cols,
            kind,
            bytes,
            scales,
        }
    }

    fn matrix(&self) -> Matrix<'_> {
        let bytes = &self.bytes[..];
        let data = match self.kind {
            Kind::F32 => MatrixData::F32(bytes),
            Kind::Bf16 => MatrixData::Bf16(bytes),
            Kind::Fp8 => {
                let values = ScaleValues::F32(&self.scales);
                MatrixData::Fp8 {
                    bytes,
                    scales: BlockScales {
                        values,
                        block_rows: 128,
                        block_cols: 128,
                    },
                }
            }
        };
        Matrix {
            rows: self.rows,
            cols: self.cols,
            data,
        }
    }
}

/// Loading: checkpoint's order to panels.
fn pack(backend: &CpuBackend) {
    let mut rng = SmallRng::seed_from_u64(6);
    for kind in [Kind::F32, Kind::Bf16, Kind::Fp8] {
        let weights = Weights::random(&mut rng, kind, 2048, 2048);
        let time = best(backend.threads(), || {
            backend.linear(&[weights.matrix()], None).expect("finite");
        });
        println!(
            "packing {kind:?}: {:.2} GB/s",
            weights.bytes.len() as f64 / time.as_secs_f64() / 1e9
        );
    }
}

fn linear(backend: &CpuBackend) {
    println!(
        "{:34} {:>5} {:>10} {:>9} {:>8}",
        "projection", "rows", "us", "GFLOP/s", "GB/s"
    );
    let mut rng = SmallRng::seed_from_u64(1);
    for (name, outputs, inputs, kind) in [
        ("tiny-r1 kv_a+q_a 704x256", 704, 256, Kind::Fp8),
        ("tiny-r1 o 256x1024", 256, 1024, Kind::Fp8),
        ("30M q 1536x512", 1536, 512, Kind::Bf16),
        ("30M o 512x1024", 512, 1024, Kind::Bf16),
        ("30M kv_a 576x512", 576, 512, Kind::Bf16),
        ("30M gate_up 2816x512", 2816, 512, Kind::Bf16),
        ("30M lm_head 16000x512", 16000, 512, Kind::Bf16),
        ("router 64x512", 64, 512, Kind::F32),
        ("V3 q_a+kv_a 2112x7168", 2112, 7168, Kind::Fp8),
        ("V3 q_a+kv_a 2112x7168", 2112, 7168, Kind::Bf16),
        ("V3 down 7168x2048", 7168, 2048, Kind::Fp8),
        ("V3 down 7168x2048", 7168, 2048, Kind::F32),
    ] {
        let weights = Weights::random(&mut rng, kind, outputs, inputs);
        let bytes = weights.bytes.len();
        let name = format!("{name} {kind:?}");
        let row = |label: &str, rows: usize, time: Duration| {
            let (seconds, work) = (time.as_secs_f64(), (2 * rows * outputs * inputs) as f64);
            println!(
                "{label:34} {rows:5} {:10.1} {:9.1} {:8.1}",
                seconds * 1e6,
                work / seconds / 1e9,
                bytes as f64 / seconds / 1e9
            );
        };
        let copies: Vec<_> = (0..COLD_BYTES.div_ceil(bytes).min(256))
            .map(|_| backend.linear(&[weights.matrix()], None).expect("finite"))
            .collect();
        let mut out = backend.tensor(512, outputs);
        let x = tensor(backend, &mut rng, 1, inputs);
        let all = best(backend.threads(), || {
            copies
                .iter()
                .for_each(|w| backend.apply(w, &x, 0, &mut out))
        });
        row(&format!("{name} cold"), 1, all / copies.len() as u32);
        for rows in [1, 2, 4, 8, 16, 64, 512] {
            if rows * outputs * inputs > 4 << 30 {
                continue;
            }
            let x = tensor(backend, &mut rng, rows, inputs);
            row(
                &name,
                rows,
                best(backend.threads(), || {
                    backend.apply(&copies[0], &x, 0, &mut out)
                }),
            );
        }
    }
}

/// A sequence of `context` tokens of which the last `rows` are computed.
fn sequence(context: usize, rows: usize) -> Batch {
    let mut batch = Batch::default();
    batch.push(
        &vec![0; rows],
        context - rows,
        0..context.div_ceil(PAGE_TOKENS) as u32,
    );
    batch
}

fn attention_row(name: &str, batch: &Batch, flops_a_token: usize, time: Duration) {
    let seen: usize = batch.positions.iter().map(|p| *p as usize + 1).sum();
    let seconds = time.as_secs_f64();
    println!(
        "{name:34} {:5} {:10.1} {:9.1}",
        batch.rows(),
        seconds * 1e6,
        (seen * flops_a_token) as f64 / seconds / 1e9
    );
}

fn latent(backend: &CpuBackend) {
    println!(
        "{:34} {:>5} {:>10} {:>9}",
        "latent attention", "rows", "us", "GFLOP/s"
    );
    let mut rng = SmallRng::seed_from_u64(2);
    let (latent, width) = (512, 576);
    for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Fp8] {
        for heads in [8, 16, 128] {
            let layout = PageLayout {
                layers: 1,
                row_values: width,
                latent,
                dtype,
            };
            let pages = backend.pages(layout, 64).expect("memory");
            let all = sequence(64 * PAGE_TOKENS, 64 * PAGE_TOKENS);
            backend.write_kv(
                &tensor(backend, &mut rng, all.rows(), width),
                0,
                &all,
                &pages,
                0,
            );
            for (context, rows) in [(128, 1), (512, 1), (4096, 1), (512, 512), (4096, 128)] {
                let batch = sequence(context, rows);
                let q = tensor(backend, &mut rng, rows, heads * width);
                let mut out = backend.tensor(rows, heads * latent);
                let time = best(backend.threads(), || {
                    backend.latent_attention(&q, heads, latent, 0.05, &batch, &pages, 0, &mut out);
                });
                let name = format!("{heads} heads {dtype:?} context {context}");
                attention_row(&name, &batch, 2 * heads * (width + latent), time);
            }
        }
    }
}

fn grouped(backend: &CpuBackend) {
    println!(
        "{:34} {:>5} {:>10} {:>9}",
        "grouped-query attention", "rows", "us", "GFLOP/s"
    );
    let mut rng = SmallRng::seed_from_u64(3);
    let (heads, kv_heads, dim) = (12, 2, 128);
    let width = 2 * kv_heads * dim;
    let layout = PageLayout {
        layers: 1,
        row_values: width,
        latent: 0,
        dtype: KvDtype::Bf16,
    };
    let pages = backend.pages(layout, 32).expect("memory");
    let all = sequence(32 * PAGE_TOKENS, 32 * PAGE_TOKENS);
    backend.write_kv(
        &tensor(backend, &mut rng, all.rows(), width),
        0,
        &all,
        &pages,
        0,
    );
    for (context, rows) in [(512, 1), (2048, 1), (512, 512)] {
        let batch = sequence(context, rows);
        let q = tensor(backend, &mut rng, rows, heads * dim + width);
        let mut out = backend.tensor(rows, heads * dim);
        let time = best(backend.threads(), || {
            backend.gqa_attention(&q, heads, kv_heads, dim, 0.1, &batch, &pages, 0, &mut out);
        });
        attention_row(
            &format!("12/2 heads of 128, context {context}"),
            &batch,
            4 * heads * dim,
            time,
        );
    }
}

fn moe(backend: &CpuBackend) {
    println!(
        "{:34} {:>5} {:>10} {:>9}",
        "experts", "rows", "us", "GFLOP/s"
    );
    let mut rng = SmallRng::seed_from_u64(4);
    for (name, experts, k, hidden, inter, kind) in [
        ("tiny-r1 32 x 128, 4 a token", 32, 4, 256, 128, Kind::Fp8),
        ("30M 16 x 256, 4 a token", 16, 4, 512, 256, Kind::Bf16),
        ("30M 64 x 96, 6 a token", 64, 6, 512, 96, Kind::Bf16),
    ] {
        let matrices: Vec<[Weights; 3]> = (0..experts)
            .map(|_| {
                [(inter, hidden), (inter, hidden), (hidden, inter)]
                    .map(|(rows, cols)| Weights::random(&mut rng, kind, rows, cols))
            })
            .collect();
        let packed = matrices.iter().map(|m| {
            let [gate, up, down] = m.each_ref().map(Weights::matrix);
            let expert = backend.expert(gate, up, down, Pace::Full);
            Arc::new(expert.expect("finite"))
        });
        let packed = backend.experts(packed.collect());
        let config = GateConfig {
            scoring: Scoring::Softmax,
            topk_method: TopkMethod::Greedy,
            n_group: 1,
            topk_group: 1,
            norm_topk_prob: false,
            routed_scaling_factor: 1.0,
        };
        for rows in [1, 4, 16, 64, 512] {
            let logits = tensor(backend, &mut rng, rows, experts);
            let x = tensor(backend, &mut rng, rows, hidden);
            let mut routing = backend.routing(rows, k);
            let gate = GateParams {
                config,
                experts_per_token: k,
                bias: None,
            };
            let routed = best(backend.threads(), || {
                backend.route(&logits, &gate, &mut routing)
            });
            let mut out = backend.tensor(rows, hidden);
            let time = best(backend.threads(), || {
                backend.moe(&x, &routing, &packed, &mut out)
            });
            let work = (6 * rows * k * hidden * inter) as f64 / time.as_secs_f64() / 1e9;
            println!(
                "{name:34} {rows:5} {:10.1} {work:9.1}   gate {:.1} us",
                time.as_secs_f64() * 1e6,
                routed.as_secs_f64() * 1e6
            );
        }
    }
}

/// Ops that are all overhead.
fn small(backend: &CpuBackend) {
    println!("{:34} {:>5} {:>10}", "small ops", "rows", "us");
    let mut rng = SmallRng::seed_from_u64(5);
    for rows in [1, 512] {
        let hidden = 512;
        let x = tensor(backend, &mut rng, rows, hidden);
        let (mut residual, mut out) = (backend.tensor(rows, hidden), backend.tensor(rows, hidden));
        let weight = backend.vector(&vec![1.0; hidden]);
        backend.rms_norm(&x, &weight, 1e-6, &mut residual);
        let report = |name: &str, time: Duration| {
            println!("{name:34} {rows:5} {:10.2}", time.as_secs_f64() * 1e6);
        };
        let time = best(backend.threads(), || {
            backend.add_rms_norm(&mut residual, &x, &weight, 1e-6, &mut out)
        });
        report("add_rms_norm 512", time);
        let wide = tensor(backend, &mut rng, rows, 2816);
        let mut half = backend.tensor(rows, 1408);
        report(
            "silu_mul 1408",
            best(backend.threads(), || backend.silu_mul(&wide, &mut half)),
        );
    }
}
