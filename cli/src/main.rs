//! The `millrace` binary: parses arguments, wires the crates together, and holds no logic of theirs.

mod access;
mod args;
mod bench;
mod chat;
mod client;
mod embedded;
mod errors;
mod experts;
#[cfg(feature = "fetch")]
mod fetch;
mod groups;
mod metrics;
mod operator;
mod probe;
mod process;
mod roles;
mod sim;
mod style;
mod terminal;
mod top;
mod up;
mod version;

use clap::{Parser, Subcommand};

// Routers and workers allocate many small short-lived buffers on several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves DeepSeek-V3-style models with prefill and decode in separate workers.
///
/// `millrace up` starts a whole deployment on this machine; `millrace chat` talks to it.
#[derive(Debug, Parser)]
#[command(
    name = "millrace",
    version = version::SHORT,
    long_version = version::LONG,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a router, prefill workers and decode workers on this machine
    Up(up::UpArgs),
    /// Talk to a running deployment in the terminal
    Chat(chat::ChatArgs),
    /// Load a running deployment and print its latencies and throughput
    Bench(bench::BenchArgs),
    /// Show where the experts of groups are, how they are loaded, and how that changed
    Experts(experts::ExpertsArgs),
    /// Show live how busy a deployment is and how long its answers take
    Top(top::TopArgs),
    /// Run the front door: gRPC, KServe v2 and OpenAI HTTP; workers attach to it
    Router(roles::RouterArgs),
    /// Run a prefill worker: computes prompts and pushes their KV pages to decode workers
    Prefill(roles::WorkerArgs),
    /// Run a decode worker: owns requests and generates their tokens
    Decode(roles::DecodeArgs),
    /// Download a checkpoint's folder from an HTTP server or S3, and check every byte of it
    #[cfg(feature = "fetch")]
    Fetch(fetch::FetchArgs),
    /// Say whether pages can move between machines by RDMA here, and what is missing if not
    Probe(probe::ProbeArgs),
    /// Simulate deployments of any size: the real decisions against modelled workers
    Sim(sim::SimArgs),
    /// Look after the ModelDeployments of a Kubernetes cluster
    Operator(operator::OperatorArgs),
    /// Print the custom resource definitions of ModelDeployment and WorkerPool
    Crds,
    /// Print what docs/metrics.md says: every metric of every process
    #[command(hide = true)]
    Metrics,
}

fn main() -> std::process::ExitCode {
    millrace_telemetry::build::set_revision(version::REVISION);
    let result = match Cli::parse().command {
        Command::Up(args) => up::main(args),
        Command::Chat(args) => chat::main(args),
        Command::Bench(args) => bench::main(args),
        Command::Experts(args) => experts::main(args),
        Command::Top(args) => top::main(args),
        Command::Router(args) => roles::router(args),
        Command::Prefill(args) => roles::prefill(args),
        Command::Decode(args) => roles::decode(args),
        #[cfg(feature = "fetch")]
        Command::Fetch(args) => fetch::main(args),
        Command::Probe(args) => probe::main(args),
        Command::Sim(args) => sim::main(args),
        Command::Operator(args) => operator::main(args),
        Command::Crds => operator::crds(),
        Command::Metrics => metrics::main(),
    };
    errors::exit_code(result)
}
