//! How fast KV pages go from one GPU's pool to another's, between two processes as workers are, next to a plain
//! copy between the two devices.
//!
//! ```text
//! cargo run --release -p millrace-worker --features cuda --example bench_pages
//! ```
//!
//! This process has a pool on the second GPU and is the target; a child process of the same program has one on the
//! first and writes 64 pages of DeepSeek-V3's size a lease, or one. A time runs from the first `write` to the
//! acknowledgement of the announcement. Every round has fresh random bytes, which are compared with what has
//! arrived, and a few leases one after another. Both devices are idle while bytes are made and compared, so the
//! first lease of a round, told apart, finds everything asleep. Printed are medians; of plain copies, which are
//! made again and again, the best of ten.
//!
//! Pages are sent in the order in which they lie in memory, and scattered, as in a pool that has been used for a
//! while; they land in reverse order. Before them stand their copies alone, by as many at a time as are begun
//! together: over the link into a ring, and within the target (there from pages into a ring, which takes as long as
//! back). A lease of one page tells what is around the copies.
//!
//! With one GPU both processes share it. Pages are then copied twice within its memory, and the two processes take
//! turns, so what to hold them against is twice the plain copy.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use millrace_engine::pages::PagePool;
use millrace_kernels::{Backend, CopyPart, KvDtype, PageLayout, PageMemory, cuda::CudaBackend};
use millrace_telemetry::logs::LogFormat;
use millrace_transfer::{
    Grant, Initiator, InitiatorConfig, Layout, LeaseEvent, MemoryRegion, PageInitiator, PageTarget,
    Target, TargetConfig, Transport,
};
use millrace_worker::transfer_region;

const PAGES: usize = 64;
/// Begun together: half a ring on the link, a quarter and the page that fills it from a ring into pages.
const ON_LINK: usize = 7;
const INTO_PAGES: usize = 4;
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
        [] => report(TargetConfig::default().device_ring_bytes),
        ["--ring-mib", size] => report(size.parse::<usize>()? << 20),
        ["writer", way, order] => writer(way == "devices", Order::of(order)),
        _ => Err("usage: bench_pages [--ring-mib N]".into()),
    }
}

fn report(ring: usize) -> Result<(), Failure> {
    let first = CudaBackend::new(0)?;
    let other = CudaBackend::new(1).ok();
    let (last, ordinal) = other.as_ref().map_or((&first, 0), |other| (other, 1));
    let page = LAYOUT.page_bytes();
    println!(
        "{PAGES} pages of {page} bytes from cuda:0 to cuda:{ordinal}, a ring of {} MiB, medians of {ROUNDS} rounds of {LEASES} leases",
        ring >> 20
    );
    let copy = CudaBackend::time_peer_copy(&first, last, PAGES * page);
    // On one device a page is copied into the ring and out of it by the same memory.
    let floor = if ordinal == 0 { 2.0 * copy } else { copy };
    let show = |what: &str, pages: usize, seconds: f64| {
        let (milliseconds, rate) = (seconds * 1e3, (pages * page) as f64 / seconds * 1e-9);
        let share = floor * pages as f64 / PAGES as f64 / seconds * 100.0;
        println!("{what:<40} {milliseconds:>8.3} ms {rate:>7.1} GB/s {share:>6.1} % of the mark");
    };
    show("plain copy between devices", PAGES, copy);
    show("the mark", PAGES, floor);
    let ((source, _), (target, _)) = (pool(&first)?, pool(last)?);
    let within = CudaBackend::time_peer_copy(last, last, PAGES * page);
    show("plain copy within the target", PAGES, within);
    for order in [Order::AsTheyLie, Order::Scattered] {
        for (from, what, at_once) in [
            (&source, "pages over the link", ON_LINK),
            (&target, "pages within the target", INTO_PAGES),
        ] {
            let name = format!("{what} by {at_once}, {}", order.name());
            show(&name, PAGES, copies(from, &target, order, at_once)?);
        }
    }
    drop((source, target));
    for (way, pages, order) in [
        ("devices", PAGES, Order::AsTheyLie),
        ("devices", PAGES, Order::Scattered),
        ("devices", 1, Order::AsTheyLie),
        ("host", PAGES, Order::AsTheyLie),
    ] {
        let [first, others] = transfer(last, ring, way, pages, order)?;
        let name = format!("{pages} by way of {way}, {}", order.name());
        show(&format!("{name}, first"), pages, first);
        show(&format!("{name}, others"), pages, others);
    }
    Ok(())
}

/// In which order a pool's pages are taken.
#[derive(Clone, Copy)]
enum Order {
    AsTheyLie,
    Scattered,
}

impl Order {
    fn name(self) -> &'static str {
        match self {
            Order::AsTheyLie => "as they lie",
            Order::Scattered => "scattered",
        }
    }

    fn of(name: &str) -> Order {
        match name == Order::Scattered.name() {
            true => Order::Scattered,
            false => Order::AsTheyLie,
        }
    }

    /// The `index`th page. No two neighbours of a scattered order lie side by side.
    fn page(self, index: usize) -> usize {
        match self {
            Order::AsTheyLie => index,
            Order::Scattered => index * 27 % PAGES,
        }
    }
}

/// Seconds that copies of all pages take into a ring beside the pool `to`, begun some at a time and one after
/// another: what one half of a transfer does, without the rest.
fn copies(
    from: &PageMemory,
    to: &PageMemory,
    order: Order,
    at_once: usize,
) -> Result<f64, Failure> {
    let (_, copier) = from.device().ok_or("not a device's pool")?;
    let (_, beside) = to.device().ok_or("not a device's pool")?;
    let bytes = LAYOUT.page_bytes();
    let (ring, _) = beside.make_ring(PAGES * bytes)?;
    let part = |index: usize| CopyPart {
        from: from.page_ptr(order.page(index)) as u64,
        to: ring.address + (index * bytes) as u64,
        bytes,
    };
    let parts: Vec<CopyPart> = (0..PAGES).map(part).collect();
    let mut seconds = f64::INFINITY;
    for _ in 0..10 {
        let began = Instant::now();
        let mut begun = Vec::new();
        for parts in parts.chunks(at_once) {
            // SAFETY: whole pages of the pool and parts of a ring of this function's own. Dropping waits.
            begun.push(unsafe { copier.begin_copies(parts)? });
        }
        for copies in &mut begun {
            copies.wait()?;
        }
        seconds = seconds.min(began.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// A pool, and the region that workers make of it.
fn pool(backend: &CudaBackend) -> Result<(Arc<PageMemory>, MemoryRegion), Failure> {
    let memory = backend.pages(LAYOUT, PAGES)?;
    let region = transfer_region(&PagePool::new(memory.clone()))?;
    Ok((memory, region))
}

/// Runs the writer and hands it its grants. Returns the median seconds of leases that were the first of their
/// round, and of the others.
fn transfer(
    backend: &CudaBackend,
    ring: usize,
    way: &str,
    pages: usize,
    order: Order,
) -> Result<[f64; 2], Failure> {
    let (memory, region) = pool(backend)?;
    let layout = Layout::new(LAYOUT.page_bytes());
    let config = TargetConfig {
        checksums: false,
        device_ring_bytes: ring,
        ..TargetConfig::default()
    };
    let target = Target::bind("127.0.0.1:0".parse()?, region, layout, config)?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["writer", way, order.name()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().ok_or("no stdin")?;
    let mut output = BufReader::new(child.stdout.take().ok_or("no stdout")?);
    // Pages land elsewhere than where they are from.
    let numbers: Vec<u32> = (0..pages)
        .map(|index| (PAGES - 1 - order.page(index)) as u32)
        .collect();
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
fn writer(by_devices: bool, order: Order) -> Result<(), Failure> {
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
            unsafe { copier.write(&page, memory.page_ptr(order.page(index))) };
        }
        let mut writer = initiator.open(&grant)?;
        let (done, when) = mpsc::channel();
        let began = Instant::now();
        for index in 0..grant.pages().len() {
            writer.write(index, region.source(order.page(index) as u32, ())?)?;
        }
        // Taken where the answer is heard: workers wake nobody to wait for it.
        let finished = move |written: Result<_, _>| {
            let _ = done.send(written.map(|_| began.elapsed()));
        };
        writer.finish_with(Vec::new(), Box::new(finished));
        println!("{}", when.recv()??.as_secs_f64());
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
