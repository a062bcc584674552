//! Groups of meshes in one process, and an exchange whose outcome is known bit for bit.
#![allow(dead_code)] // Each test program uses its part.

pub mod raw;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use millrace_engine::exchange::{ExpertExchange, Parcel, StepDropped, Work};
use millrace_exchange::{FrameLimits, Mesh, MeshConfig, StepExchange};
use millrace_experts::{Member, RankId};
use millrace_kernels::{Backend, cpu::CpuBackend};

pub const LIMITS: FrameLimits = FrameLimits {
    hidden: 24,
    rows: 64,
    work: 256,
    slots: 8,
};
/// Until something that must happen is taken for never happening.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn life(rank: usize, incarnation: u64) -> RankId {
    RankId { rank, incarnation }
}

pub fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub fn config(id: RankId, limits: FrameLimits) -> MeshConfig {
    let mut config = MeshConfig::new(anywhere(), id, "group", limits).with("model revision", "abc");
    // Long, so that a machine busy with other things loses no link that a test wants to keep.
    config.silence = Duration::from_secs(20);
    config
}

pub fn mesh(id: RankId, limits: FrameLimits) -> Mesh {
    Mesh::bind(config(id, limits), Arc::new(|| {})).unwrap()
}

/// One that loses silent links after `silence`.
pub fn impatient(id: RankId, limits: FrameLimits, silence: Duration) -> Mesh {
    let mut config = config(id, limits);
    config.heartbeat = silence / 10;
    config.silence = silence;
    Mesh::bind(config, Arc::new(|| {})).unwrap()
}

pub fn member(id: RankId, address: SocketAddr) -> Member {
    Member {
        id,
        exchange: address.to_string(),
        grpc: String::new(),
    }
}

pub fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "still not: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Ranks 0.. with incarnation 1, all linked.
pub struct Group {
    pub meshes: Vec<Mesh>,
    pub ids: Vec<RankId>,
    pub members: Vec<Member>,
}

impl Group {
    pub fn new(ranks: usize, limits: FrameLimits) -> Group {
        Group::of(ranks, |id| mesh(id, limits))
    }

    pub fn of(ranks: usize, mesh: impl Fn(RankId) -> Mesh) -> Group {
        let ids: Vec<RankId> = (0..ranks).map(|rank| life(rank, 1)).collect();
        let meshes: Vec<Mesh> = ids.iter().map(|id| mesh(*id)).collect();
        let addresses = ids.iter().zip(&meshes);
        let members: Vec<Member> = addresses
            .map(|(id, mesh)| member(*id, mesh.address()))
            .collect();
        let group = Group {
            meshes,
            ids,
            members,
        };
        for mesh in &group.meshes {
            mesh.set_peers(&group.members);
        }
        group.until_linked();
        group
    }

    pub fn until_linked(&self) {
        for mesh in &self.meshes {
            until("linked with all", || {
                mesh.linked().len() == self.ids.len() - 1
            });
        }
    }
}

/// What one rank sends in one layer: for each rank its rows, and the work by (row, slot).
#[derive(Debug, Clone, Default)]
pub struct Load {
    pub parcels: Vec<Parcel>,
    pub values: Vec<f32>,
}

impl Load {
    /// `rows[to]` rows to each, every row worked on in `each` slots.
    pub fn even(rows: &[usize], each: usize, limits: &FrameLimits, salt: u32) -> Load {
        let parcels: Vec<Parcel> = rows
            .iter()
            .map(|&rows| Parcel {
                rows,
                work: (0..rows * each)
                    .map(|at| Work {
                        row: (at / each) as u32,
                        slot: (at % limits.slots) as u32,
                    })
                    .collect(),
            })
            .collect();
        let count: usize = rows.iter().sum::<usize>() * limits.hidden;
        let values = (0..count as u32).map(|at| noise(at, salt)).collect();
        Load { parcels, values }
    }
}

/// Any bits at all, also those of no number.
pub fn noise(at: u32, salt: u32) -> f32 {
    f32::from_bits((at ^ salt.rotate_left(16)).wrapping_mul(0x9e37_79b9) ^ salt)
}

/// What the "expert" in `slot` of `rank` does to a value: it cannot be confused with another's.
pub fn expert(value: f32, rank: usize, slot: u32) -> u32 {
    value.to_bits()
        ^ (rank as u32 + 1).wrapping_mul(0x85eb_ca6b)
        ^ (slot + 1).wrapping_mul(0xc2b2_ae35)
}

/// Takes one rank through one layer. The results, as bits.
pub fn layer(
    exchange: &mut dyn ExpertExchange<CpuBackend>,
    rank: usize,
    index: usize,
    load: &Load,
    limits: &FrameLimits,
) -> Result<Vec<u32>, StepDropped> {
    let cpu = backend();
    let ranks = load.parcels.len();
    let hidden = limits.hidden;
    let tensor = |rows: usize| cpu.tensor(rows.max(1), hidden);
    let mut sent = tensor(load.values.len() / hidden);
    cpu.write(&load.values, &mut sent);
    exchange.dispatch(cpu, index, &load.parcels, &sent)?;

    let mut parcels = vec![Parcel::default(); ranks];
    let mut received = tensor(ranks * limits.rows);
    exchange.collect(cpu, index, &mut parcels, &mut received)?;
    let mut values = Vec::new();
    cpu.read(&received, &mut values);

    let mut results = Vec::new();
    let mut first = 0;
    for parcel in &parcels {
        for work in &parcel.work {
            let row = &values[(first + work.row as usize) * hidden..][..hidden];
            let result = row.iter().map(|value| expert(*value, rank, work.slot));
            results.extend(result.map(f32::from_bits));
        }
        first += parcel.rows;
    }
    assert_eq!(values.len(), first * hidden);
    let mut computed = tensor(results.len() / hidden);
    cpu.write(&results, &mut computed);
    exchange.respond(cpu, index, &parcels, &computed)?;

    let mut returned = tensor(ranks * limits.work);
    exchange.combine(cpu, index, &load.parcels, &mut returned)?;
    cpu.read(&returned, &mut values);
    Ok(values.iter().map(|value| value.to_bits()).collect())
}

/// What [`layer`] must return.
pub fn expected(load: &Load, limits: &FrameLimits) -> Vec<u32> {
    let hidden = limits.hidden;
    let mut first = 0;
    let mut results = Vec::new();
    for (rank, parcel) in load.parcels.iter().enumerate() {
        for work in &parcel.work {
            let row = &load.values[(first + work.row as usize) * hidden..][..hidden];
            results.extend(row.iter().map(|value| expert(*value, rank, work.slot)));
        }
        first += parcel.rows;
    }
    results
}

pub fn backend() -> &'static CpuBackend {
    static CPU: std::sync::LazyLock<CpuBackend> = std::sync::LazyLock::new(|| CpuBackend::new(1));
    &CPU
}

/// One rank's step of as many layers as there are loads, every result checked.
pub fn step(
    mesh: &Mesh,
    (epoch, number): (u64, u64),
    me: RankId,
    members: &[RankId],
    loads: &[Load],
    limits: &FrameLimits,
) -> Result<(), StepDropped> {
    let ranks = loads[0].parcels.len();
    let mut exchange = mesh.exchange(epoch, number, members, ranks);
    for (index, load) in loads.iter().enumerate() {
        let results = layer(&mut exchange, me.rank, index, load, limits)?;
        assert!(
            results == expected(load, limits),
            "rank {} layer {index}",
            me.rank
        );
    }
    Ok(())
}

/// What all members tell each other; of any backend, since no device is asked.
pub fn share(
    exchange: &mut StepExchange<'_>,
    round: usize,
    mine: &[u8],
) -> Result<Vec<Option<Vec<u8>>>, StepDropped> {
    ExpertExchange::<CpuBackend>::share(exchange, round, mine)
}

pub fn is_over(exchange: &StepExchange<'_>) -> bool {
    ExpertExchange::<CpuBackend>::is_over(exchange)
}
