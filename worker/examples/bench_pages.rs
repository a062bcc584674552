//! How fast KV pages go from one GPU's pool to another's, between two processes as workers are, next to a plain
//! copy between the two devices.
//!
//! ```text
//! cargo run --release -p millrace-worker --features cuda --example bench_pages
//! ```
//!
//! This process has a pool on the last GPU and is the target; a child process of the same program has one on the
//! first and writes 64 pages of DeepSeek-V3's size a lease. A time runs from the first `write` to the
//! acknowledgement of the announcement. Every round has fresh random bytes, which are compared with what has
//! arrived, and a few leases one after another. Both devices are idle while bytes are made and compared, so the
//! first lease of a round, told apart, finds everything asleep. Printed are medians; of the plain copy, which is
//! made again and again, the best of ten.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_engine::pages::PagePool;
use millrace_kernels::{Backend, KvDtype, PageLayout, PageMemory, cuda::CudaBackend};
use millrace_telemetry::logs::LogFormat;
use millrace_transfer::{
    Grant, Initiator, InitiatorConfig, Layout, LeaseEvent, MemoryRegion, PageInitiator, PageTarget,
    Target, TargetConfig, Transport,
};
use millrace_worker::transfer_region;

const PAGES: usize = 64;
const ROUNDS: usize = 11;
/// In a round.
const LEASES: usize = 5;
const LAYOUT: PageLayout = PageLayout {
    layers: 61,
    row_values: 576,
    latent: 512,
    dtype: KvDtype::Bf16,
};

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    millrace_telemetry::logs::init(LogFormat::Human)?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => report(),
        ["writer", way] => writer(way == "devices"),
        _ => Err("usage: bench_pages (no arguments)".into()),
    }
}

fn report() -> Result<(), Failure> {
    let first = CudaBackend::new(0)?;
    let other = CudaBackend::new(1).ok();
    let (last, ordinal) = other.as_ref().map_or((&first, 0), |other| (other, 1));
    let bytes = PAGES * LAYOUT.page_bytes();
    println!(
        "{PAGES} pages of {} bytes from cuda:0 to cuda:{ordinal}, medians of {ROUNDS} rounds of {LEASES} leases",
        LAYOUT.page_bytes()
    );
    let show = |what: &str, seconds: f64, copy: f64| {
        println!(
            "{what:<26} {:>8.3} ms {:>7.1} GB/s {:>6.1} % of the copy",
            seconds * 1e3,
            bytes as f64 / seconds * 1e-9,
            copy / seconds * 100.0
        );
    };
    let copy = CudaBackend::time_peer_copy(&first, last, bytes);
    show("copy between devices", copy, copy);
    for (name, way) in [("by devices", "devices"), ("by the host", "host")] {
        let [first, others] = transfer(last, way)?;
        show(&format!("pages {name}, first"), first, copy);
        show(&format!("pages {name}, others"), others, copy);
    }
    Ok(())
}

/// A pool, and the region that workers make of it.
fn pool(backend: &CudaBackend) -> Result<(Arc<PageMemory>, MemoryRegion), Failure> {
    let memory = backend.pages(LAYOUT, PAGES)?;
    let region = transfer_region(&PagePool::new(memory.clone()))?;
    Ok((memory, region))
}

/// Runs the writer and hands it its grants. Returns the median seconds of leases that were the first of their
/// round, and of the others.
fn transfer(backend: &CudaBackend, way: &str) -> Result<[f64; 2], Failure> {
    let (memory, region) = pool(backend)?;
    let layout = Layout::new(LAYOUT.page_bytes());
    let config = TargetConfig {
        checksums: false,
        ..TargetConfig::default()
    };
    let target = Target::bind("127.0.0.1:0".parse()?, region, layout, config)?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["writer", way])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().ok_or("no stdin")?;
    let mut output = BufReader::new(child.stdout.take().ok_or("no stdout")?);
    // Pages land elsewhere than where they are from.
    let numbers: Vec<u32> = (0..PAGES as u32).rev().collect();
    let mut seconds = [Vec::new(), Vec::new()];
    let mut arrived = vec![0; LAYOUT.page_bytes()];
    for round in 0..ROUNDS {
        for number in 0..LEASES {
            let (lease, grant) = target.grant(&numbers, None)?;
            let grant: String = grant
                .to_bytes()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            writeln!(input, "{round} {number} {grant}")?;
            let mut line = String::new();
            output.read_line(&mut line)?;
            match lease.wait(Duration::from_secs(60)) {
                Some(LeaseEvent::Announced { .. }) => drop(lease.complete()?.into_pages()),
                other => return Err(format!("the transfer failed: {other:?} {line}").into()),
            }
            seconds[number.min(1)].push(line.trim().parse()?);
        }
        let (_, copier) = memory.device().ok_or("not a device's pool")?;
        for (index, page) in numbers.iter().enumerate() {
            let from = memory.page_ptr(*page as usize);
            // SAFETY: a whole page of the pool, whose lease has ended.
            unsafe { copier.read(from, &mut arrived) };
            if arrived != random(round, index) {
                return Err(format!("page {page} of round {round} has other bytes").into());
            }
        }
    }
    drop(input);
    child.wait()?;
    Ok(seconds.map(|mut seconds: Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    }))
}

/// The child: a round, the number of a lease in it and its grant a line in, seconds a line out.
fn writer(by_devices: bool) -> Result<(), Failure> {
    let backend = CudaBackend::new(0)?;
    let (memory, region) = pool(&backend)?;
    let config = InitiatorConfig {
        transport: Transport::Shm,
        checksums: false,
        ..InitiatorConfig::default()
    };
    let initiator = Initiator::new(Layout::new(LAYOUT.page_bytes()), config)?;
    if by_devices {
        initiator.register(&region)?;
    }
    for line in std::io::stdin().lines() {
        let line = line?;
        let [round, number, grant] = line.split(' ').collect::<Vec<_>>()[..] else {
            return Err("not a round, a number and a grant".into());
        };
        let bytes: Result<Vec<u8>, _> = (0..grant.len() / 2)
            .map(|at| u8::from_str_radix(&grant[2 * at..2 * at + 2], 16))
            .collect();
        let grant = Grant::from_bytes(&bytes?)?;
        let (_, copier) = memory.device().ok_or("not a device's pool")?;
        for index in (0..PAGES).filter(|_| number == "0") {
            let page = random(round.parse()?, index);
            // SAFETY: a whole page of the pool, which nobody is sending now.
            unsafe { copier.write(&page, memory.page_ptr(index)) };
        }
        let mut writer = initiator.open(&grant)?;
        let began = Instant::now();
        for index in 0..PAGES {
            writer.write(index, region.source(index as u32, ())?)?;
        }
        writer.finish(Vec::new())?;
        println!("{}", began.elapsed().as_secs_f64());
    }
    Ok(())
}

/// What page `index` holds in that round.
fn random(round: usize, index: usize) -> Vec<u8> {
    let mut state = ((round * PAGES + index) as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(LAYOUT.page_bytes());
    while bytes.len() < LAYOUT.page_bytes() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}
