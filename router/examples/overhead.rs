//! What the router itself costs: `cargo run --release -p millrace-router --example overhead`.
//!
//! The router runs as a process of its own, so that its CPU time and memory can be read apart.
//! Clients (HTTP, streamed completions of a text prompt) and two decode workers that compute nothing,
//! and so send one token after the other without a pause, run in this process on the same cores:
//! throughput and latency are those of all three together, CPU time and memory the router's alone.

#[path = "../tests/common/mod.rs"]
mod common;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::worker::Worker;
use millrace_router::config::{AccessConfig, ExpertsConfig, Limits};
use millrace_router::{BoundAddresses, RouterConfig, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const OUTPUT_TOKENS: usize = 16;
const PROMPT_TOKENS: usize = 370;
/// `/proc` counts CPU time in these on Linux.
const TICK: Duration = Duration::from_millis(10);

type Failed = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failed> {
    let runtime = tokio::runtime::Runtime::new()?;
    match std::env::args().nth(1).as_deref() {
        Some("router") => runtime.block_on(router()),
        _ => runtime.block_on(measure()),
    }
}

async fn router() -> Result<(), Failed> {
    let any: SocketAddr = "127.0.0.1:0".parse()?;
    let config = RouterConfig {
        http_addr: any,
        grpc_addr: any,
        worker_addr: any,
        model_dir: Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-r1"),
        served_model_names: Vec::new(),
        max_model_len: None,
        limits: Limits::default(),
        experts: ExpertsConfig::default(),
        drain_timeout: Duration::from_secs(1),
        access: AccessConfig::default(),
    };
    let on_bound = |bound: BoundAddresses| println!("{} {}", bound.http, bound.worker);
    run(config, on_bound, std::future::pending()).await?;
    Ok(())
}

/// The router's process, ended with this one.
struct Router {
    child: Child,
    http: SocketAddr,
    workers: String,
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Router {
    fn start() -> Result<Router, Failed> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("router")
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or("no stdout")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let (http, workers) = line
            .trim()
            .split_once(' ')
            .ok_or("the router did not start")?;
        Ok(Router {
            http: http.parse()?,
            workers: workers.to_owned(),
            child,
        })
    }

    /// User and system time so far.
    fn cpu(&self) -> Result<Duration, Failed> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // Fields 14 and 15, counted from after the name, which may hold spaces.
        let fields = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        let ticks: u32 = fields
            .skip(11)
            .take(2)
            .filter_map(|f| f.parse::<u32>().ok())
            .sum();
        Ok(TICK * ticks)
    }

    fn resident_mib(&self) -> Result<u64, Failed> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .ok_or("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024)
    }
}

async fn measure() -> Result<(), Failed> {
    let router = Router::start()?;
    let _workers = [
        Worker::decode(&router.workers, "d0").await,
        Worker::decode(&router.workers, "d1").await,
    ];
    let prompt = prompt()?;
    println!(
        "{PROMPT_TOKENS}-token text prompts, {OUTPUT_TOKENS} streamed tokens, HTTP; {} cores shared with clients and workers",
        std::thread::available_parallelism()?
    );
    println!("clients  req/s  p50 ms  p99 ms  router CPU us/token  router MiB");
    for (clients, requests) in [(1, 500), (16, 4000), (64, 8000)] {
        load(&router, &prompt, clients, clients * 2).await?; // warm up
        let (begun, cpu) = (Instant::now(), router.cpu()?);
        let times = load(&router, &prompt, clients, requests).await?;
        let (took, cpu) = (begun.elapsed(), router.cpu()? - cpu);
        let tokens = (requests * OUTPUT_TOKENS) as f64;
        println!(
            "{clients:7} {:6.0} {:7.2} {:7.2} {:20.1} {:11}",
            requests as f64 / took.as_secs_f64(),
            quantile(&times, 0.5),
            quantile(&times, 0.99),
            cpu.as_secs_f64() * 1e6 / tokens,
            router.resident_mib()?,
        );
    }
    Ok(())
}

/// Text of exactly as many tokens as are wanted, bos included.
fn prompt() -> Result<String, Failed> {
    let tokenizer = &common::model().tokenizer;
    let text = "The quick brown fox jumps over the lazy dog near the river bank. ".repeat(40);
    let tokens = tokenizer.encode(&text, false)?;
    Ok(tokenizer.decode(&tokens[..PROMPT_TOKENS - 1], true))
}

async fn load(
    router: &Router,
    prompt: &str,
    clients: usize,
    requests: usize,
) -> Result<Vec<Duration>, Failed> {
    let body = serde_json::json!({
        "model": "tiny-r1", "prompt": prompt, "max_tokens": OUTPUT_TOKENS, "stream": true, "temperature": 0,
    });
    let body = body.to_string();
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (http, body) = (router.http, body.clone());
        tasks.spawn(async move {
            let mut stream = TcpStream::connect(http).await?;
            stream.set_nodelay(true)?;
            let mut times = Vec::new();
            for _ in 0..requests / clients {
                times.push(exchange(&mut stream, &body).await?);
            }
            Ok::<_, Failed>(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    Ok(times)
}

/// One streamed completion over a connection that is kept.
async fn exchange(stream: &mut TcpStream, body: &str) -> Result<Duration, Failed> {
    let begun = Instant::now();
    let length = body.len();
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // The chunk of length zero that ends the body.
    while !answer.ends_with(b"\r\n0\r\n\r\n") {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(String::from_utf8_lossy(&answer).into());
        }
    }
    if !answer.starts_with(b"HTTP/1.1 200") {
        return Err(String::from_utf8_lossy(&answer).into());
    }
    Ok(begun.elapsed())
}

fn quantile(times: &[Duration], q: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort();
    let at = ((sorted.len() - 1) as f64 * q).round() as usize;
    sorted[at].as_secs_f64() * 1e3
}
