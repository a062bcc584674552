//! Loads a running deployment over gRPC and prints what clients would see.
//!
//! Prompts are random token ids, so that no prefix cache helps unless `--shared-tokens` says so;
//! outputs have a fixed length, so that runs compare.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use millrace_proto::inference::v1::{
    GenerateRequest, SamplingParams, TokenIds, generate_request::Prompt,
    inference_client::InferenceClient,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{report, span::Span};
use crate::{
    client::{self, Authorized, ClientArgs, GrpcError},
    errors::Outcome,
};

/// Token ids drawn for prompts: below every supported model's special tokens.
const IDS: std::ops::Range<u32> = 10..2000;

#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// Where the router's gRPC API listens
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:9000",
        env = "MILLRACE_GRPC"
    )]
    pub grpc: String,
    #[command(flatten)]
    pub client: ClientArgs,
    /// Which model [default: the only one served]
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub model: String,
    /// Requests in all
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub requests: usize,
    /// Requests at a time
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub concurrency: usize,
    /// Requests a second, begun at random times whether earlier ones are answered or not, as by many clients
    #[arg(long, value_name = "R", conflicts_with = "concurrency")]
    pub rate: Option<f64>,
    /// Tokens of each prompt: a number, or A-B for any from A to B
    #[arg(long, value_name = "TOKENS", default_value_t = Span::of(512))]
    pub prompt_tokens: Span,
    /// Of those, how many at the start are the same in all prompts
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    pub shared_tokens: usize,
    /// Tokens of each answer: a number, or A-B for any from A to B
    #[arg(long, value_name = "TOKENS", default_value_t = Span::of(64))]
    pub output_tokens: Span,
    /// The same seed draws the same prompts, lengths and times
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write a line of JSON for each request: when it began (seconds), its tokens, and its times (seconds)
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
}

/// A request to be sent.
struct Planned {
    /// After the first, with a rate.
    at: Duration,
    prompt: Vec<u32>,
    output: u32,
}

/// When the tokens of one request came, from its start.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Timeline {
    /// From the first request's.
    pub began: Duration,
    pub prompt_tokens: usize,
    /// One entry a received message: time, tokens in it.
    pub arrivals: Vec<(Duration, usize)>,
}

pub fn main(args: LoadArgs) -> anyhow::Result<Outcome> {
    if args.requests == 0 || args.concurrency == 0 {
        bail!("--requests and --concurrency must be at least 1");
    }
    if args
        .rate
        .is_some_and(|rate| !(rate > 0.0 && rate.is_finite()))
    {
        bail!("--rate must be more than 0");
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(run(args))
}

async fn run(args: LoadArgs) -> anyhow::Result<Outcome> {
    let channel = client::connect(&args.grpc, &args.client).await?;
    let turns = Arc::new(Semaphore::new(args.concurrency));
    let mut requests = JoinSet::new();
    let start = Instant::now();
    for planned in plan(&args) {
        // Its start is when a turn is free or, with a rate, when it is due: queueing in this client is not the
        // server's latency, but lateness of the server is.
        let turn: Option<OwnedSemaphorePermit> = match args.rate {
            None => Some(turns.clone().acquire_owned().await?),
            Some(_) => {
                sleep_until(start + planned.at).await;
                None
            }
        };
        let (client, args) = (InferenceClient::new(channel.clone()), args.clone());
        requests.spawn(async move {
            let timeline = request(client, &args, planned, start).await;
            drop(turn);
            timeline
        });
    }
    let timelines = requests
        .join_all()
        .await
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    print!("{}", report::text(&args, &timelines, start.elapsed()));
    if let Some(file) = &args.record {
        record(file, &timelines).with_context(|| format!("--record {}", file.display()))?;
    }
    Ok(Outcome::Done)
}

fn plan(args: &LoadArgs) -> Vec<Planned> {
    let mut rng = SmallRng::seed_from_u64(args.seed);
    let shared = args.shared_tokens.min(args.prompt_tokens.least);
    let prefix: Vec<u32> = (0..shared).map(|_| rng.random_range(IDS)).collect();
    let mut at = Duration::ZERO;
    let mut planned = Vec::with_capacity(args.requests);
    for _ in 0..args.requests {
        let (prompt, output) = (
            args.prompt_tokens.draw(&mut rng),
            args.output_tokens.draw(&mut rng),
        );
        let own = (shared..prompt).map(|_| rng.random_range(IDS));
        planned.push(Planned {
            at,
            prompt: prefix.iter().copied().chain(own).collect(),
            output: output as u32,
        });
        if let Some(rate) = args.rate {
            // Gaps of a Poisson process.
            at += Duration::from_secs_f64(-rng.random::<f64>().max(f64::MIN_POSITIVE).ln() / rate);
        }
    }
    planned
}

fn record(file: &Path, timelines: &[Timeline]) -> std::io::Result<()> {
    let mut out = BufWriter::new(File::create(file)?);
    for timeline in timelines {
        writeln!(out, "{}", timeline.to_json())?;
    }
    out.flush()
}

async fn request(
    mut client: InferenceClient<Authorized>,
    args: &LoadArgs,
    planned: Planned,
    first: Instant,
) -> Result<Timeline, GrpcError> {
    let start = match args.rate {
        Some(_) => first + planned.at,
        None => Instant::now(),
    };
    let mut timeline = Timeline {
        began: start - first,
        prompt_tokens: planned.prompt.len(),
        ..Timeline::default()
    };
    let request = GenerateRequest {
        model: args.model.clone(),
        prompt: Some(Prompt::Tokens(TokenIds {
            ids: planned.prompt,
        })),
        sampling: Some(SamplingParams {
            temperature: Some(0.0),
            max_tokens: Some(planned.output),
            ignore_eos: true,
            ..SamplingParams::default()
        }),
        ..GenerateRequest::default()
    };
    let failed = |status| client::explain(&args.grpc, status);
    let mut stream = client.generate(request).await.map_err(failed)?.into_inner();
    while let Some(response) = stream.message().await.map_err(failed)? {
        if !response.token_ids.is_empty() {
            timeline
                .arrivals
                .push((start.elapsed(), response.token_ids.len()));
        }
    }
    Ok(timeline)
}
