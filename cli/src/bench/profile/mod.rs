//! `millrace bench profile`: how long a worker's steps take, as a PoolAutoscaler and `millrace sim` want to
//! know it.
//!
//! ```text
//! measure (one engine, step by step) ─▶ fit (no negative coefficients) ─▶ YAML
//! ```

mod fit;
mod measure;

use clap::{Args, ValueEnum};
use millrace_engine::EngineConfig;
use millrace_worker::{Device, Loaded, WorkerConfig, WorkerError, on_device};

use crate::{
    args::{EngineArgs, ModelArgs},
    errors::Outcome,
    roles,
};
use fit::{Point, fit, worst};
use measure::{Batch, Chunk, Measure};

#[derive(Debug, Clone, Args)]
pub struct ProfileArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// As the workers will be started: a profile holds for one size of steps
    #[command(flatten)]
    engine: EngineArgs,
    /// Tokens of the longest sequences that are measured [default: half of what the model allows, at most 8192]
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// Whose profile to print
    #[arg(long, value_enum, default_value_t = For::Autoscaler)]
    r#for: For,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum For {
    /// `spec.profile` of a PoolAutoscaler
    Autoscaler,
    /// `profile` of a scenario of `millrace sim`
    Sim,
}

/// Points for each of the two.
struct Measured {
    chunks: Vec<Chunk>,
    batches: Vec<Batch>,
    max_running: usize,
    chunk_tokens: usize,
    kv_tokens: usize,
}

pub fn main(args: ProfileArgs) -> anyhow::Result<Outcome> {
    let (model_dir, names) = args.model.resolve()?;
    let config = WorkerConfig {
        model_dir,
        engine: EngineConfig {
            // A prompt that is found computes nothing.
            prefix_cache: false,
            ..roles::engine_config(&args.engine, args.model.max_model_len)
        },
        threads: args.engine.threads,
        device: args.engine.device.unwrap_or_default(),
        ..WorkerConfig::default()
    };
    eprintln!("loading {} on {}", names[0], config.device);
    let measured = load(&config, args.context)?;
    let title = format!(
        "{} on {}, by `millrace bench profile`",
        names[0], config.device
    );
    match args.r#for {
        For::Autoscaler => print!("{}", autoscaler(&title, &measured)),
        For::Sim => print!("{}", simulation(&title, &measured)),
    }
    Ok(Outcome::Done)
}

fn load(config: &WorkerConfig, context: Option<usize>) -> anyhow::Result<Measured> {
    async fn on<B: Device>(
        config: &WorkerConfig,
        context: Option<usize>,
    ) -> Result<anyhow::Result<Measured>, WorkerError> {
        let engine = Loaded::<B>::load(config, &mut |_| {})?.into_engine();
        Ok(measure(Measure::new(engine), context))
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async { on_device!(config.device, on(config, context)) })?
}

fn measure<B: Device>(mut measure: Measure<B>, context: Option<usize>) -> anyhow::Result<Measured> {
    let engine = measure.engine();
    let chunk_tokens = engine.config().max_batch_tokens;
    let max_running = engine.config().max_running;
    let kv_tokens = engine.pool().total() * 64;
    let longest = context
        .unwrap_or(8192.min(engine.max_model_len() / 2))
        .clamp(1, engine.max_model_len() - 1);
    let mut chunks = Vec::new();
    // Whole chunks one after another, and last ones that are not full.
    for tokens in halves(longest) {
        measure.prefill(tokens)?;
        chunks.extend(measure.prefill(tokens)?);
    }
    eprintln!("{} chunks of prefill", chunks.len());
    let mut batches = Vec::new();
    for sequences in halves(max_running) {
        for context in halves(longest).into_iter().step_by(2) {
            if measure.fits(sequences, context) {
                batches.push(measure.decode(sequences, context)?);
            }
        }
        eprintln!("decoded {sequences} together");
    }
    Ok(Measured {
        chunks,
        batches,
        max_running,
        chunk_tokens,
        kv_tokens,
    })
}

/// `most`, half of it, and so on down to a sixty-fourth.
fn halves(most: usize) -> Vec<usize> {
    let halves = (0..7).map(|times| most >> times);
    halves.take_while(|n| *n > 0).collect()
}

fn autoscaler(title: &str, measured: &Measured) -> String {
    let chunks: Vec<Point<3>> = measured
        .chunks
        .iter()
        .map(|chunk| Point {
            did: [
                1.0,
                chunk.tokens as f64,
                (chunk.tokens * chunk.context) as f64,
            ],
            seconds: chunk.seconds,
        })
        .collect();
    let batches: Vec<Point<3>> = measured
        .batches
        .iter()
        .map(|batch| Point {
            did: [
                1.0,
                batch.sequences as f64,
                batch.sequences as f64 * batch.context,
            ],
            seconds: batch.seconds,
        })
        .collect();
    let (prefill, mut decode) = (fit(&chunks), fit(&batches));
    // A resource whose steps take no time is refused.
    decode[0] = decode[0].max(1e-6);
    format!(
        "# {title}; off by {:.0} % at most in prefill and {:.0} % in decode.
profile:
  prefill:
    chunkTokens: {}
    baseSeconds: {:.4e}
    secondsPerToken: {:.4e}
    secondsPerTokenContext: {:.4e}
  decode:
    baseSeconds: {:.4e}
    secondsPerSequence: {:.4e}
    secondsPerContextToken: {:.4e}
  maxRunning: {}
  kvTokens: {}
",
        100.0 * worst(&chunks, &prefill),
        100.0 * worst(&batches, &decode),
        measured.chunk_tokens,
        prefill[0],
        prefill[1],
        prefill[2],
        decode[0],
        decode[1],
        decode[2],
        measured.max_running,
        measured.kv_tokens,
    )
}

/// One formula for steps of either kind, as a worker that does both has them.
fn simulation(title: &str, measured: &Measured) -> String {
    let chunks = measured.chunks.iter().map(|chunk| {
        // Each token looks back at those before its chunk, and at those of it that come before.
        let looks =
            chunk.tokens * chunk.context + chunk.tokens * chunk.tokens.saturating_sub(1) / 2;
        Point {
            did: [1.0, 0.0, 0.0, chunk.tokens as f64, looks as f64],
            seconds: chunk.seconds,
        }
    });
    let batches = measured.batches.iter().map(|batch| {
        let sequences = batch.sequences as f64;
        Point {
            did: [1.0, sequences, sequences * batch.context, 0.0, 0.0],
            seconds: batch.seconds,
        }
    });
    let points: Vec<Point<5>> = chunks.chain(batches).collect();
    let step = fit(&points);
    format!(
        "# {title}; off by {:.0} % at most.
step:
  base: {:.4e}
  sequence: {:.4e}
  context: {:.4e}
  token: {:.4e}
  token_context: {:.4e}
",
        100.0 * worst(&points, &step),
        step[0],
        step[1],
        step[2],
        step[3],
        step[4],
    )
}
