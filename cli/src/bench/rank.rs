//! `millrace bench rank`: one rank's true share of a model at full width, on one GPU.
//!
//! Weights are random and of the sizes that the configuration says; the rank has all of attention and its own slots of
//! experts. It stands for its peers, too: what it sends to a rank comes back to it as if that rank had sent it, so its
//! experts compute as many rows as those of a balanced group, spread as a router spreads them, and the exchange's own
//! work is in the times. What is not: links between GPUs.

use std::{fmt::Write, path::PathBuf, time::Instant};

use anyhow::{Context, bail};
use clap::Args;
use millrace_engine::rank_bench::{RankBench, RankShape};
use millrace_kernels::{
    Backend,
    cuda::{CudaBackend, Measured, Peak},
};
use millrace_model::checkpoint::Checkpoint;
use millrace_worker::DeviceId;

use crate::errors::Outcome;

const DEEPSEEK_V3: &str = include_str!("../../../models/configs/deepseek-v3.json");

#[derive(Debug, Clone, Args)]
pub struct RankArgs {
    /// deepseek-v3, or a config.json
    #[arg(long, value_name = "NAME|FILE", default_value = "deepseek-v3")]
    config: String,
    /// Which GPU
    #[arg(long, value_name = "cuda:N", default_value = "cuda")]
    device: DeviceId,
    /// Ranks that the experts are spread over
    #[arg(long, value_name = "RANKS", default_value_t = 32)]
    ep: usize,
    /// Replicas of experts a layer, besides one of each
    #[arg(long, value_name = "N", default_value_t = 32)]
    redundant: usize,
    /// Sequences of a step; several are measured one after another
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "128"
    )]
    batch: Vec<usize>,
    /// Tokens that each of them has
    #[arg(long, value_name = "TOKENS", default_value_t = 4096)]
    context: usize,
    /// Tokens of a chunk of prefill; 0: no prefill
    #[arg(long, value_name = "TOKENS", default_value_t = 4096)]
    chunk: usize,
    /// Draft with the MTP layer: two rows a sequence, and the layer's own pass
    #[arg(long)]
    mtp: bool,
    /// Passes that are timed
    #[arg(long, value_name = "N", default_value_t = 10)]
    passes: usize,
    /// TFLOP/s that matrix units reach in bf16 (default: cuBLAS on an H200, 8192^3)
    #[arg(long, value_name = "TFLOPS", default_value_t = 784.0)]
    peak_bf16: f64,
    /// TFLOP/s that they reach in 8 bits with block scales (default: cuBLASLt on an H200, 8192^3)
    #[arg(long, value_name = "TFLOPS", default_value_t = 1223.0)]
    peak_fp8: f64,
}

pub fn main(args: RankArgs) -> anyhow::Result<Outcome> {
    let DeviceId::Cuda(ordinal) = args.device else {
        bail!("bench rank measures a GPU: --device cuda or cuda:N");
    };
    let ordinal = ordinal.unwrap_or(0);
    if [args.ep, args.context, args.passes].contains(&0) || args.batch.contains(&0) {
        bail!("--ep, --batch, --context and --passes must be at least 1");
    }
    let config = match args.config.as_str() {
        "deepseek-v3" => DEEPSEEK_V3.to_owned(),
        path => std::fs::read_to_string(PathBuf::from(path)).with_context(|| {
            format!("--config {path}: neither deepseek-v3 nor a file that can be read")
        })?,
    };
    let checkpoint = Checkpoint::random(config.as_bytes())?;
    let floors = Floors {
        copy: copy_speed(&CudaBackend::new(ordinal)?),
        bf16: args.peak_bf16 * 1e12,
        fp8: args.peak_fp8 * 1e12,
    };
    println!(
        "copy {:.0} GB/s (read + write), products {} TFLOP/s in bf16 and {} in 8 bits",
        floors.copy / 1e9,
        args.peak_bf16,
        args.peak_fp8
    );
    for &batch in &args.batch {
        measure(&args, batch, ordinal, &checkpoint, &floors)?;
    }
    Ok(Outcome::Done)
}

fn measure(
    args: &RankArgs,
    batch: usize,
    ordinal: usize,
    checkpoint: &Checkpoint,
    floors: &Floors,
) -> anyhow::Result<()> {
    let shape = RankShape {
        ranks: args.ep,
        redundant: args.redundant,
        batch,
        context: args.context,
        chunk: args.chunk,
        mtp: args.mtp,
    };
    let began = Instant::now();
    let mut bench = RankBench::load(CudaBackend::new(ordinal)?, checkpoint, shape, &mut |_| {})?;
    println!("\nloaded in {:.1} s", began.elapsed().as_secs_f64());
    if let Some(memory) = bench.device_memory() {
        println!("memory: {memory}");
    }
    let title = format!(
        "decode, rank of {}, {batch} sequences of {} tokens{}",
        args.ep,
        args.context,
        if args.mtp { ", two rows each" } else { "" }
    );
    report(args, &title, batch, &mut bench, RankBench::decode, floors)?;
    if args.chunk > 0 {
        let title = format!(
            "prefill, rank of {}, a chunk of {} tokens",
            args.ep, args.chunk
        );
        report(
            args,
            &title,
            args.chunk,
            &mut bench,
            RankBench::prefill,
            floors,
        )?;
    }
    Ok(())
}

/// What the device allows, in bytes and operations a second.
struct Floors {
    copy: f64,
    bf16: f64,
    fp8: f64,
}

impl Floors {
    fn of(&self, call: &Measured) -> f64 {
        let peak = match call.cost.peak {
            Peak::Bf16 => self.bf16,
            Peak::Fp8 => self.fp8,
        };
        (call.cost.bytes / self.copy).max(call.cost.flops / peak)
    }
}

fn report(
    args: &RankArgs,
    title: &str,
    tokens: usize,
    bench: &mut RankBench<CudaBackend>,
    pass: fn(&mut RankBench<CudaBackend>),
    floors: &Floors,
) -> anyhow::Result<()> {
    // The first ones find room for what they compute.
    (0..3).for_each(|_| pass(bench));
    bench.computed();
    let mut seconds: Vec<f64> = (0..args.passes)
        .map(|_| {
            let began = Instant::now();
            pass(bench);
            began.elapsed().as_secs_f64()
        })
        .collect();
    let Some(computed) = bench.computed() else {
        bail!("the rank waited in vain for itself");
    };
    seconds.sort_by(f64::total_cmp);
    let step = seconds[seconds.len() / 2];
    bench.backend().start_profile();
    pass(bench);
    let calls = bench.backend().take_profile();
    let floor: f64 = calls.iter().map(|call| floors.of(call)).sum();
    println!("{title}");
    println!(
        "  {:.3} ms a pass (fastest {:.3}, slowest {:.3}): {:.0} tokens/s; floor {:.3} ms, {:.1} % of the roofline",
        step * 1e3,
        seconds[0] * 1e3,
        seconds[seconds.len() - 1] * 1e3,
        tokens as f64 / step,
        floor * 1e3,
        100.0 * floor / step
    );
    let pieces: u64 = computed.iter().sum();
    println!(
        "  rows of experts' work a layer and pass: {:.0}",
        pieces as f64 / (computed.len().max(1) * args.passes) as f64
    );
    print!("{}", table(&calls, step, floors));
    Ok(())
}

/// Ops by name, those that take longest first.
fn table(calls: &[Measured], step: f64, floors: &Floors) -> String {
    struct Row<'a> {
        what: &'a str,
        calls: usize,
        seconds: f64,
        floor: f64,
    }
    let mut rows: Vec<Row<'_>> = Vec::new();
    for call in calls {
        let what = call.cost.what.as_str();
        let at = rows
            .iter()
            .position(|row| row.what == what)
            .unwrap_or_else(|| {
                rows.push(Row {
                    what,
                    calls: 0,
                    seconds: 0.0,
                    floor: 0.0,
                });
                rows.len() - 1
            });
        let row = &mut rows[at];
        row.calls += 1;
        row.seconds += call.seconds;
        row.floor += floors.of(call);
    }
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let mut text = format!(
        "  {:<28} {:>5} {:>10} {:>10} {:>8} {:>8}\n",
        "op", "calls", "us a call", "ms a pass", "floor", "of pass"
    );
    for row in &rows {
        let _ = writeln!(
            text,
            "  {:<28} {:>5} {:>10.1} {:>10.3} {:>6.0} % {:>6.1} %",
            row.what,
            row.calls,
            row.seconds / row.calls as f64 * 1e6,
            row.seconds * 1e3,
            100.0 * row.floor / row.seconds,
            100.0 * row.seconds / step
        );
    }
    let sum: f64 = rows.iter().map(|row| row.seconds).sum();
    let _ = writeln!(
        text,
        "  all ops {:.3} ms, {:.1} % of a pass that is not measured op by op",
        sum * 1e3,
        100.0 * sum / step
    );
    text
}

/// Bytes a second, read and written, of the device's own copy.
fn copy_speed(backend: &CudaBackend) -> f64 {
    let (rows, cols) = (1 << 15, 1 << 15);
    let (x, mut out) = (backend.tensor(rows, cols), backend.tensor(rows, cols));
    let seconds = (0..5).map(|_| backend.time_copy(&x, &mut out));
    2.0 * (2 * rows * cols) as f64 / seconds.fold(f64::INFINITY, f64::min)
}
