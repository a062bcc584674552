//! `millrace bench profile`: how long a worker's steps take, as a PoolAutoscaler and `millrace sim` want to
//! know it.
//!
//! ```text
//! measure (one engine, step by step) ─▶ fit (no negative coefficients) ─▶ model (YAML)
//! ```

mod fit;
mod measure;
mod model;

use clap::{Args, ValueEnum};
use millrace_engine::EngineConfig;
use millrace_worker::{Device, Loaded, WorkerConfig, WorkerError, on_device};

use crate::{
    args::{EngineArgs, ModelArgs},
    errors::Outcome,
    roles,
};
use measure::{Batch, Chunk, Measure};
use model::Model;

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

/// Times that every chunk is measured.
const ROUNDS: usize = 3;

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
    let model = Model::of(&measured);
    match args.r#for {
        For::Autoscaler => print!("{}", model.autoscaler(&title, &measured)),
        For::Sim => print!("{}", model.simulation(&title)),
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
    // Whole chunks one after another, and last ones of many sizes.
    let prompts = lengths(longest);
    let mut rounds = Vec::new();
    // Round by round: what disturbs the machine for a while disturbs a point once.
    for _ in 0..ROUNDS {
        let mut round = Vec::new();
        for &tokens in &prompts {
            round.extend(measure.prefill(tokens)?);
        }
        rounds.push(round);
    }
    let chunks = medians(&rounds);
    eprintln!("{} chunks of prefill", chunks.len());
    let mut batches = Vec::new();
    for sequences in lengths(max_running) {
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

/// `halves`, and three quarters of each.
fn lengths(longest: usize) -> Vec<usize> {
    let halves = halves(longest).into_iter();
    let mut lengths: Vec<usize> = halves.flat_map(|half| [half, half * 3 / 4]).collect();
    lengths.retain(|tokens| *tokens > 0);
    lengths.dedup();
    lengths
}

/// Of the same chunks in every round, each with its median time.
fn medians(rounds: &[Vec<Chunk>]) -> Vec<Chunk> {
    let of = |at: usize| {
        let mut seconds: Vec<f64> = rounds.iter().map(|round| round[at].seconds).collect();
        seconds.sort_by(f64::total_cmp);
        Chunk {
            seconds: seconds[seconds.len() / 2],
            ..rounds[0][at]
        }
    };
    (0..rounds[0].len()).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_disturbed_round_changes_nothing() {
        let round = |factor: f64| {
            let chunk = |tokens| Chunk {
                tokens,
                context: 0,
                seconds: factor * tokens as f64,
            };
            lengths(1024).into_iter().map(chunk).collect::<Vec<_>>()
        };
        let rounds = [round(1.0), round(9.0), round(1.1)];
        assert_eq!(medians(&rounds), round(1.1));
    }
}
