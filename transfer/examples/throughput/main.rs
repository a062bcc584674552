//! How fast pages move between two processes of this machine, next to a plain memory copy.
//!
//! ```text
//! cargo run --release -p millrace-transfer --example throughput
//! ```
//!
//! This process is the target; a child process of the same program writes 64 MiB into its pages,
//! once to warm up and then several times, through shared memory and through TCP on loopback. A
//! time runs from the first `write` to the acknowledgement of the announcement. Printed are the
//! median and the best, in GB/s (10^9 bytes) and as ratios to a copy of as many bytes, page by page,
//! by one thread between two buffers that both have been touched before.
//!
//! With `--features nixl` (and NIXL where it is found, docs/rdma.md) also by NIXL, over whatever UCX
//! takes on one machine, next to NIXL alone: one request of as many descriptors as there are pages,
//! straight into the target's pages, posted and polled, as NIXL's own benchmark does. That moves bytes
//! and nothing else: no leases, no acknowledgement by the target, no protection of pages in use.

#[cfg(feature = "nixl")]
mod nixl_alone;

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use millrace_transfer::{
    Grant, Initiator, InitiatorConfig, Layout, LeaseEvent, MemoryRegion, NixlConfig, PageInitiator,
    PageTarget, Target, TargetConfig, Transport,
};

const TOTAL: usize = 64 << 20;
const ROUNDS: usize = 15;
/// A V3 page (64 tokens, 61 layers, bf16) has 4.5 MB.
const PAGE_BYTES: [usize; 5] = [16 << 10, 128 << 10, 1 << 20, 64 * 70_272, TOTAL];

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        [] => report(),
        ["writer", transport, page_bytes, checksums] => {
            writer(transport, page_bytes.parse()?, checksums.parse()?)
        }
        #[cfg(feature = "nixl")]
        ["nixl-alone", page_bytes] => nixl_alone::writer(page_bytes.parse()?),
        _ => Err("usage: throughput (no arguments)".into()),
    }
}

fn report() -> Result<(), Failure> {
    let cores = std::thread::available_parallelism()?;
    println!("{TOTAL} bytes a transfer, {ROUNDS} transfers, {cores} cores; GB/s: median (best)");
    print!(
        "{:>10} {:>6} {:>15} {:>15} {:>6} {:>15} {:>6}",
        "page", "pages", "memcpy", "shm", "ratio", "tcp", "ratio"
    );
    if cfg!(feature = "nixl") {
        let (nixl, alone) = ("nixl", "NIXL alone");
        print!(
            " {nixl:>15} {:>6} {alone:>15} {:>10}",
            "ratio", "nixl/alone"
        );
    }
    println!();
    for checksums in [false, true] {
        if checksums {
            println!("with a checksum of every page:");
        }
        for page_bytes in PAGE_BYTES {
            let pages = TOTAL / page_bytes;
            let copied = memcpy(page_bytes, pages);
            let shm = transfer("shm", page_bytes, pages, checksums)?;
            let tcp = transfer("tcp", page_bytes, pages, checksums)?;
            let show = |speed: &Speed| format!("{:.2} ({:.2})", speed.median, speed.best);
            let ratio = |speed: &Speed| speed.median / copied.median;
            print!(
                "{page_bytes:>10} {pages:>6} {:>15} {:>15} {:>6.2} {:>15} {:>6.2}",
                show(&copied),
                show(&shm),
                ratio(&shm),
                show(&tcp),
                ratio(&tcp)
            );
            #[cfg(feature = "nixl")]
            {
                let nixl = transfer("nixl", page_bytes, pages, checksums)?;
                let alone = nixl_alone::target(page_bytes, pages)?;
                print!(
                    " {:>15} {:>6.2} {:>15} {:>10.2}",
                    show(&nixl),
                    ratio(&nixl),
                    show(&alone),
                    nixl.median / alone.median
                );
            }
            println!();
        }
    }
    Ok(())
}

/// GB/s over the rounds.
struct Speed {
    median: f64,
    best: f64,
}

impl Speed {
    fn of(bytes: usize, mut seconds: Vec<f64>) -> Speed {
        seconds.sort_by(f64::total_cmp);
        let speed = |seconds: f64| bytes as f64 / seconds * 1e-9;
        Speed {
            median: speed(seconds[seconds.len() / 2]),
            best: speed(seconds[0]),
        }
    }
}

fn memcpy(page_bytes: usize, pages: usize) -> Speed {
    let from = vec![7u8; page_bytes * pages];
    let mut to = vec![1u8; page_bytes * pages];
    let seconds = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            for (to, from) in to.chunks_mut(page_bytes).zip(from.chunks(page_bytes)) {
                std::hint::black_box(to).copy_from_slice(from);
            }
            began.elapsed().as_secs_f64()
        })
        .collect();
    Speed::of(page_bytes * pages, seconds)
}

/// Memory of `pages` pages, touched.
fn pool(page_bytes: usize, pages: usize, fill: u8) -> Result<MemoryRegion, Failure> {
    let mut memory = vec![fill; page_bytes * pages];
    let base = memory.as_mut_ptr();
    // SAFETY: the vector is kept by the region and never touched again but through it; its heap
    // block stays where it is when the vector moves.
    Ok(unsafe { MemoryRegion::new(base, page_bytes, pages, memory)? })
}

/// Runs the writer and hands it a grant a round.
fn transfer(
    transport: &str,
    page_bytes: usize,
    pages: usize,
    checksums: bool,
) -> Result<Speed, Failure> {
    let region = pool(page_bytes, pages, 1)?;
    let config = TargetConfig {
        checksums,
        nixl: (transport == "nixl").then(NixlConfig::default),
        ..TargetConfig::default()
    };
    let target = Target::bind(
        "127.0.0.1:0".parse()?,
        region,
        Layout::new(page_bytes),
        config,
    )?;
    let mut child = Command::new(std::env::current_exe()?)
        .args([
            "writer",
            transport,
            &page_bytes.to_string(),
            &checksums.to_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().ok_or("no stdin")?;
    let mut output = BufReader::new(child.stdout.take().ok_or("no stdout")?);
    let numbers: Vec<u32> = (0..pages as u32).collect();
    let mut seconds = Vec::new();
    for round in 0..=ROUNDS {
        let (lease, grant) = target.grant(&numbers, None)?;
        let bytes: String = grant
            .to_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        writeln!(input, "{bytes}")?;
        let mut line = String::new();
        output.read_line(&mut line)?;
        match lease.wait(std::time::Duration::from_secs(60)) {
            Some(LeaseEvent::Announced { .. }) => drop(lease.complete()?.into_pages()),
            other => return Err(format!("transfer failed: {other:?} {line}").into()),
        }
        if round > 0 {
            seconds.push(line.trim().parse()?);
        }
    }
    drop(input);
    child.wait()?;
    Ok(Speed::of(page_bytes * pages, seconds))
}

/// The child: a grant a line in, seconds a line out.
fn writer(transport: &str, page_bytes: usize, checksums: bool) -> Result<(), Failure> {
    let transport = match transport {
        "shm" => Transport::Shm,
        "nixl" => Transport::Nixl,
        _ => Transport::Tcp,
    };
    let region = pool(page_bytes, TOTAL / page_bytes, 7)?;
    let config = InitiatorConfig {
        transport,
        checksums,
        queue_pages: 8192,
        ..InitiatorConfig::default()
    };
    let initiator = Initiator::new(Layout::new(page_bytes), config)?;
    initiator.register(&region)?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let bytes: Result<Vec<u8>, _> = (0..line.len() / 2)
            .map(|at| u8::from_str_radix(&line[2 * at..2 * at + 2], 16))
            .collect();
        let grant = Grant::from_bytes(&bytes?)?;
        let mut writer = initiator.open(&grant)?;
        let began = Instant::now();
        for index in 0..grant.pages().len() {
            writer.write(index, region.source(index as u32, ())?)?;
        }
        writer.finish(Vec::new())?;
        println!("{}", began.elapsed().as_secs_f64());
    }
    Ok(())
}
