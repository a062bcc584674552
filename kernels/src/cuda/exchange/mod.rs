//! Experts shared with other GPUs that reach each other's memory: rows go to their ranks and back without the host.

mod connect;
mod layout;
mod stop;
mod turn;

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys;

use super::CudaBackend;
use super::device::Device;
use super::memory::{Memory, Scratch};
use super::params::{self, Address};
use super::sums::Sums;
use super::window::{Opened, ProcessId, Window};
use crate::{ExchangeShape, KernelError, ReplicaTable};
use layout::Layout;
use stop::Stop;

/// Words of `State` in `sm90_bf16_exchange.cu`, by place; the turn is the first two.
const FIRST_ROW: usize = 5;
const TOTAL: usize = 6;
const STATE_WORDS: usize = 8;

/// How long a turn waits for a peer, unless the host gives it up before.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A rank's window, and its peers'.
pub struct Exchange {
    shape: ExchangeShape,
    layout: Layout,
    process: ProcessId,
    gpu: [u8; 16],
    window: Window,
    /// Those before it that somebody may still write.
    retired: Vec<Window>,
    /// Of other ranks, by rank.
    opened: Vec<Option<Opened>>,
    peers: Memory,
    stop: Stop,
    state: Memory,
    sent: Memory,
    table: Table,
    counts: Counts,
    slots: Scratch,
    rows: Scratch,
    homes: Scratch,
    timeout: Duration,
    /// Pieces that are likely to come in the turn at hand.
    likely: usize,
    layer: usize,
}

/// Which replica of an expert each row takes.
struct Table {
    entries: Memory,
    replicas: Memory,
}

/// Pieces of work.
struct Counts {
    /// `[layers][ranks]`.
    sent: Sums,
    /// `[layers]`.
    computed: Sums,
}

impl Table {
    fn new(device: &Arc<Device>, table: &ReplicaTable) -> Result<Table, KernelError> {
        const WHAT: &str = "replicas of experts";
        Ok(Table {
            entries: Memory::copy_of(device, &table.entries, WHAT)?,
            replicas: Memory::copy_of(device, &table.replicas, WHAT)?,
        })
    }
}

impl Exchange {
    /// One GPU that stands for all ranks: whatever it sends to a rank comes back to it as if that rank had sent it.
    fn new(
        device: &Arc<Device>,
        shape: ExchangeShape,
        table: &ReplicaTable,
    ) -> Result<Exchange, KernelError> {
        // As in `sm90_bf16_exchange.cu`.
        assert!(shape.ranks <= 256 && shape.per_token <= 32 && shape.hidden.is_multiple_of(8));
        let layout = Layout::of(&shape);
        let memory = |bytes| Memory::new(device, bytes, "the exchange of experts' rows");
        let unknown = |what: &str, error: &dyn std::fmt::Display| {
            KernelError::Sharing(format!("{what} cannot be told ({error})"))
        };
        let gpu = device.context().uuid();
        let gpu = gpu.map_err(|error| unknown("which GPU it is", &error))?;
        let mut exchange = Exchange {
            process: ProcessId::own().map_err(|error| unknown("which process it is", &error))?,
            gpu: gpu.bytes.map(|byte| byte as u8),
            window: Window::new(device, layout.bytes)?,
            retired: Vec::new(),
            opened: Vec::new(),
            peers: memory(size_of::<params::Peer>() * shape.ranks)?,
            stop: Stop::new(device)?,
            state: memory(4 * STATE_WORDS)?,
            sent: memory(8 * shape.ranks)?,
            table: Table::new(device, table)?,
            counts: Counts {
                sent: Sums::new(device, shape.layers * shape.ranks, "pieces sent")?,
                computed: Sums::new(device, shape.layers, "pieces computed")?,
            },
            slots: Scratch::default(),
            rows: Scratch::default(),
            homes: Scratch::default(),
            timeout: TIMEOUT,
            likely: 0,
            layer: 0,
            layout,
            shape,
        };
        let own = exchange.window.address();
        let peers: Vec<params::Peer> = (0..shape.ranks).map(|rank| peer(own, rank)).collect();
        exchange.peers.upload(0, &peers);
        Ok(exchange)
    }

    fn params(&self) -> params::Exchange {
        let (shape, layout) = (&self.shape, &self.layout);
        params::Exchange {
            peers: self.peers.address(),
            window: self.window.address(),
            state: self.state.address(),
            sent: self.sent.address(),
            stop: self.stop.address(),
            timeout: self.timeout.as_nanos() as u64,
            counts: layout.counts as u64,
            arrived: layout.arrived as u64,
            returned: layout.returned as u64,
            rows_at: layout.rows as u64,
            work_at: layout.work as u64,
            results_at: layout.results as u64,
            row_bytes: layout.row_bytes as u64,
            ranks: shape.ranks as u32,
            rows: shape.rows as u32,
            per_token: shape.per_token as u32,
            cols: shape.hidden as u32,
            slots: shape.slots as u32,
        }
    }

    /// Starts a step whose first row has this number.
    pub(super) fn begin(&mut self, first_row: u32) {
        self.state.upload(4 * FIRST_ROW, &[first_row]);
    }

    /// Waits until all that was asked for is done, and answers whether every turn since the ranks were connected
    /// was completed. Once `is_over` says so, no peer is waited for any more.
    pub(super) fn finish(&self, device: &Device, is_over: &dyn Fn() -> bool) -> bool {
        device.bind();
        loop {
            // SAFETY: the stream lives as long as the device.
            match unsafe { sys::cuStreamQuery(device.stream()) } {
                sys::CUresult::CUDA_ERROR_NOT_READY => {}
                done => {
                    device.expect(done.result());
                    break;
                }
            }
            if is_over() {
                self.stop.set();
            }
            std::thread::yield_now();
        }
        !self.stop.is_set()
    }

    pub(super) fn close_counts(&mut self) {
        self.counts.sent.close();
        self.counts.computed.close();
    }

    /// Adds what was counted to `sent`, `[layers][ranks]`, and `computed`, `[layers]`.
    pub(super) fn take_counts(&mut self, sent: &mut [u64], computed: &mut [u64]) {
        self.counts.sent.take(sent);
        self.counts.computed.take(computed);
    }
}

impl CudaBackend {
    pub(super) fn new_exchange(
        &self,
        shape: ExchangeShape,
        table: &ReplicaTable,
    ) -> Result<Exchange, KernelError> {
        Exchange::new(&self.device, shape, table)
    }

    /// Ranks of one process, one a backend, in order; all of their GPUs reach each other. A turn waits for a peer
    /// as long as `timeout` before the step is given up.
    pub fn group(
        ranks: &[&CudaBackend],
        shape: ExchangeShape,
        tables: &[ReplicaTable],
        timeout: Duration,
    ) -> Result<Vec<Exchange>, KernelError> {
        assert_eq!((ranks.len(), tables.len()), (shape.ranks, shape.ranks));
        for from in ranks {
            for to in ranks {
                from.device.reach(&to.device)?;
            }
        }
        let mut exchanges = Vec::new();
        let mut offers = Vec::new();
        for (backend, table) in ranks.iter().zip(tables) {
            let mut exchange = Exchange::new(&backend.device, shape, table)?;
            exchange.timeout = timeout;
            offers.push(exchange.offer(&backend.device, false)?);
            exchanges.push(exchange);
        }
        let offers: Vec<Option<&[u8]>> = offers.iter().map(|offer| Some(&offer[..])).collect();
        let ranks = ranks.iter().zip(tables).enumerate();
        for ((me, (backend, table)), exchange) in ranks.zip(&mut exchanges) {
            exchange.connect(&backend.device, me, &offers, table, false)?;
        }
        Ok(exchanges)
    }
}

fn peer(window: Address, source: usize) -> params::Peer {
    params::Peer {
        window,
        source: source as u32,
        member: 1,
    }
}
