//! Loads a running deployment over gRPC and prints what clients would see.
//!
//! Prompts are random token ids, so that no prefix cache helps unless `--shared-tokens` says so;
//! outputs have a fixed length, so that runs compare.

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use clap::Args;
use millrace_proto::inference::v1::{
    GenerateRequest, SamplingParams, TokenIds, generate_request::Prompt,
    inference_client::InferenceClient,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};

use super::report;
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
    /// Tokens of each prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub prompt_tokens: usize,
    /// Of those, how many at the start are the same in all prompts
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    pub shared_tokens: usize,
    /// Tokens of each answer
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    pub output_tokens: u32,
    /// The same seed draws the same prompts
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// When the tokens of one request came, from its start.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Timeline {
    /// One entry a received message: time, tokens in it.
    pub arrivals: Vec<(Duration, usize)>,
}

pub fn main(args: LoadArgs) -> anyhow::Result<Outcome> {
    if args.requests == 0
        || args.concurrency == 0
        || args.prompt_tokens == 0
        || args.output_tokens == 0
    {
        bail!("--requests, --concurrency, --prompt-tokens and --output-tokens must be at least 1");
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
    for prompt in prompts(&args) {
        // Its start is when a turn is free: queueing in this client is not the server's latency.
        let turn = turns.clone().acquire_owned().await?;
        let (client, args) = (InferenceClient::new(channel.clone()), args.clone());
        requests.spawn(async move {
            let timeline = request(client, &args, prompt).await;
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
    Ok(Outcome::Done)
}

fn prompts(args: &LoadArgs) -> Vec<Vec<u32>> {
    let mut rng = SmallRng::seed_from_u64(args.seed);
    let shared = args.shared_tokens.min(args.prompt_tokens);
    let mut draw = |n: usize| (0..n).map(|_| rng.random_range(IDS)).collect::<Vec<u32>>();
    let prefix = draw(shared);
    (0..args.requests)
        .map(|_| [prefix.clone(), draw(args.prompt_tokens - shared)].concat())
        .collect()
}

async fn request(
    mut client: InferenceClient<Authorized>,
    args: &LoadArgs,
    prompt: Vec<u32>,
) -> Result<Timeline, GrpcError> {
    let start = Instant::now();
    let request = GenerateRequest {
        model: args.model.clone(),
        prompt: Some(Prompt::Tokens(TokenIds { ids: prompt })),
        sampling: Some(SamplingParams {
            temperature: Some(0.0),
            max_tokens: Some(args.output_tokens),
            ignore_eos: true,
            ..SamplingParams::default()
        }),
        ..GenerateRequest::default()
    };
    let failed = |status| client::explain(&args.grpc, status);
    let mut stream = client.generate(request).await.map_err(failed)?.into_inner();
    let mut timeline = Timeline::default();
    while let Some(response) = stream.message().await.map_err(failed)? {
        if !response.token_ids.is_empty() {
            timeline
                .arrivals
                .push((start.elapsed(), response.token_ids.len()));
        }
    }
    Ok(timeline)
}
