//! How long one MoE layer's exchange takes between ranks on this machine, next to bare TCP.
//!
//! ```text
//! cargo run --release -p millrace-exchange --example latency
//! ```
//!
//! Every rank has 16 rows, dealt evenly to all ranks, one piece of work a row, and takes part in one
//! exchange after the other: dispatch, collect, (no experts), respond, combine. The yardstick sends
//! as many bytes over as many bare TCP connections, with as many threads and no headers, no inboxes,
//! no readers: to each other rank one write, then one read from each, twice. Between two ranks that
//! is a ping-pong in both directions at once. Printed are the medians and the 99th percentiles in
//! microseconds, and the ratio of the medians. Ranks are threads of one process; where there are
//! fewer cores than ranks, both columns mostly tell how the scheduler takes turns.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use millrace_engine::exchange::{ExpertExchange, Parcel, Work};
use millrace_exchange::{FrameLimits, Mesh, MeshConfig};
use millrace_experts::{Member, RankId};
use millrace_kernels::{Backend, cpu::CpuBackend};

const ROWS: usize = 16;
const ROUNDS: usize = 3000;
const WARM_UP: usize = 300;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let cores = thread::available_parallelism()?;
    println!(
        "{ROWS} rows a rank, one layer, {ROUNDS} rounds, {cores} cores; microseconds: median (p99)"
    );
    println!(
        "{:>6} {:>7} {:>10} {:>18} {:>18} {:>6}",
        "ranks", "hidden", "bytes/peer", "bare TCP", "exchange", "ratio"
    );
    for ranks in [2, 4] {
        for hidden in [256, 7168] {
            let bytes = ROWS / ranks * hidden * 4;
            let bare = Times::of(bare(ranks, bytes)?);
            let exchange = Times::of(exchange(ranks, hidden)?);
            println!(
                "{ranks:>6} {hidden:>7} {bytes:>10} {:>18} {:>18} {:>6.2}",
                bare.to_string(),
                exchange.to_string(),
                exchange.median / bare.median
            );
        }
    }
    Ok(())
}

/// In microseconds.
struct Times {
    median: f64,
    p99: f64,
}

impl Times {
    fn of(mut seconds: Vec<f64>) -> Times {
        seconds.sort_by(f64::total_cmp);
        Times {
            median: seconds[seconds.len() / 2] * 1e6,
            p99: seconds[seconds.len() * 99 / 100] * 1e6,
        }
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0} ({:.0})", self.median, self.p99)
    }
}

/// Times `round` on every rank's own thread; those of rank 0 count.
fn rounds<F>(rounders: Vec<F>) -> Result<Vec<f64>, Failure>
where
    F: FnMut(usize) -> Result<(), Failure> + Send,
{
    let together = Barrier::new(rounders.len());
    let time = |mut round: F| -> Result<Vec<f64>, Failure> {
        together.wait();
        let mut seconds = Vec::with_capacity(ROUNDS);
        for number in 0..WARM_UP + ROUNDS {
            let began = Instant::now();
            round(number)?;
            if number >= WARM_UP {
                seconds.push(began.elapsed().as_secs_f64());
            }
        }
        Ok(seconds)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = rounders
            .into_iter()
            .map(|round| scope.spawn(|| time(round)))
            .collect();
        let mut all = Vec::new();
        for thread in threads {
            all.push(thread.join().expect("a rank panicked")?);
        }
        Ok(all.swap_remove(0))
    })
}

fn bare(ranks: usize, bytes: usize) -> Result<Vec<f64>, Failure> {
    let mut ends: Vec<Vec<TcpStream>> = (0..ranks).map(|_| Vec::new()).collect();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    for one in 0..ranks {
        for other in 0..one {
            let dialled = TcpStream::connect(listener.local_addr()?)?;
            let accepted = listener.accept()?.0;
            dialled.set_nodelay(true)?;
            accepted.set_nodelay(true)?;
            ends[one].push(dialled);
            ends[other].push(accepted);
        }
    }
    let rounders = ends.into_iter().map(|mut peers| {
        let mut buffer = vec![1u8; bytes];
        move |_| {
            for _phase in 0..2 {
                for peer in &mut peers {
                    peer.write_all(&buffer)?;
                }
                for peer in &mut peers {
                    peer.read_exact(&mut buffer)?;
                }
            }
            Ok(())
        }
    });
    rounds(rounders.collect())
}

fn exchange(ranks: usize, hidden: usize) -> Result<Vec<f64>, Failure> {
    let limits = FrameLimits {
        hidden,
        rows: ROWS,
        work: ROWS,
        slots: 1,
    };
    let id = |rank| RankId {
        rank,
        incarnation: 1,
    };
    let mut meshes = Vec::new();
    for rank in 0..ranks {
        let config = MeshConfig::new("127.0.0.1:0".parse()?, id(rank), "latency", limits);
        meshes.push(Mesh::bind(config, Arc::new(|| {}))?);
    }
    let members: Vec<Member> = meshes
        .iter()
        .enumerate()
        .map(|(rank, mesh)| Member {
            id: id(rank),
            exchange: mesh.address().to_string(),
            grpc: String::new(),
        })
        .collect();
    let ids: Vec<RankId> = members.iter().map(|member| member.id).collect();
    for mesh in &meshes {
        mesh.set_peers(&members);
    }
    while meshes.iter().any(|mesh| mesh.linked().len() < ranks - 1) {
        thread::yield_now();
    }
    let cpu = CpuBackend::new(1);
    let (cpu, ids) = (&cpu, &ids);
    let rounders = meshes.iter().map(|mesh| {
        let parcel = Parcel {
            rows: ROWS / ranks,
            work: (0..(ROWS / ranks) as u32)
                .map(|row| Work { row, slot: 0 })
                .collect(),
        };
        let parcels = vec![parcel; ranks];
        let mut collected = vec![Parcel::default(); ranks];
        let [mut sent, mut received, mut returned] = [(); 3].map(|()| cpu.tensor(ROWS, hidden));
        cpu.write(&vec![1.0; ROWS * hidden], &mut sent);
        move |number| {
            let mut exchange = mesh.exchange(1, number as u64, ids, ranks);
            exchange.dispatch(cpu, 0, &parcels, &sent)?;
            exchange.collect(cpu, 0, &mut collected, &mut received)?;
            exchange.respond(cpu, 0, &collected, &received)?;
            exchange.combine(cpu, 0, &parcels, &mut returned)?;
            Ok(())
        }
    });
    rounds(rounders.collect())
}
