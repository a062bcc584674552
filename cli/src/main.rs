//! The `millrace` binary: parses arguments, wires the crates together, and holds no logic of theirs.

mod args;
mod bench;
mod chat;
mod embedded;
mod errors;
mod process;
mod roles;
mod style;
mod up;

use clap::{Parser, Subcommand};

// Routers and workers allocate many small short-lived buffers on several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves DeepSeek-V3-style models with prefill and decode in separate workers.
///
/// `millrace up` starts a whole deployment on this machine; `millrace chat` talks to it.
#[derive(Debug, Parser)]
#[command(name = "millrace", version, max_term_width = 100)]
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
    /// Run the front door: gRPC, KServe v2 and OpenAI HTTP; workers attach to it
    Router(roles::RouterArgs),
    /// Run a prefill worker: computes prompts and pushes their KV pages to decode workers
    Prefill(roles::WorkerArgs),
    /// Run a decode worker: owns requests and generates their tokens
    Decode(roles::DecodeArgs),
}

fn main() -> std::process::ExitCode {
    let result = match Cli::parse().command {
        Command::Up(args) => up::main(args),
        Command::Chat(args) => chat::main(args),
        Command::Bench(args) => bench::main(args),
        Command::Router(args) => roles::router(args),
        Command::Prefill(args) => roles::prefill(args),
        Command::Decode(args) => roles::decode(args),
    };
    errors::exit_code(result)
}
