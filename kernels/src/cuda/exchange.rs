//! Experts shared with other GPUs that reach each other's memory: rows go to their ranks and back without the host.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cudarc::driver::{result, sys};

use super::device::{Device, Shape};
use super::expert::Experts;
use super::fp8;
use super::memory::{Memory, Scratch};
use super::moe::{Pieces, Sorted, stride};
use super::params::{self, Address};
use super::profile::experts_cost;
use super::rows::wide_rows;
use super::tensor::{Kind, Tensor};
use super::weights::Form;
use super::window::{Offer, Opened, ProcessId, Window};
use super::{CudaBackend, Routing};
use crate::{ExchangeShape, KernelError, ReplicaTable};

/// Pieces that are computed at a time in 8 bits, at least: more than a step of decoding has, so that nearly always one
/// wave is all there is, and few enough that their rows fit beside all else. Of larger steps twice what is to be
/// expected.
const WAVE: usize = 32 << 10;

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
    sums: Sums,
    slots: Scratch,
    rows: Scratch,
    homes: Scratch,
    timeout: Duration,
    /// Pieces that are likely to come in the turn at hand.
    likely: usize,
    layer: usize,
}

/// A word in the host's memory that devices see: not zero once a step is given up, by whichever side.
struct Stop {
    device: Arc<Device>,
    word: *mut c_void,
}

// SAFETY: memory that is this one's own, read and written as an atomic.
unsafe impl Send for Stop {}

/// Where the parts of a window are; all ranks' are alike.
#[derive(Debug, Clone, Copy)]
struct Layout {
    counts: usize,
    arrived: usize,
    returned: usize,
    work: usize,
    rows: usize,
    results: usize,
    bytes: usize,
    row_bytes: usize,
}

/// Which replica of an expert each row takes.
struct Table {
    entries: Memory,
    replicas: Memory,
}

/// Counts since they were taken last.
struct Sums {
    /// `[layers][ranks]`.
    sent: Memory,
    /// `[layers]`.
    computed: Memory,
}

impl Layout {
    fn of(shape: &ExchangeShape) -> Layout {
        let mut at = 0;
        let mut part = |bytes: usize| {
            let begin = at;
            at += bytes.next_multiple_of(256);
            begin
        };
        let (ranks, pieces) = (shape.ranks, shape.rows * shape.per_token);
        // Wide enough for either form; what is in 8 bits has its scales behind it.
        let row_bytes = (2 * shape.hidden).next_multiple_of(16);
        Layout {
            counts: part(8 * ranks),
            arrived: part(8 * ranks),
            returned: part(8 * ranks),
            work: part(12 * ranks * pieces),
            rows: part(row_bytes * ranks * shape.rows),
            results: part(2 * shape.hidden * pieces),
            row_bytes,
            bytes: at,
        }
    }
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

impl Stop {
    fn new(device: &Arc<Device>) -> Result<Stop, KernelError> {
        device.bind();
        let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: a plain allocation.
        let word = unsafe { result::malloc_host(size_of::<AtomicU32>(), flags) };
        let stop = Stop {
            device: device.clone(),
            word: word.map_err(|error| KernelError::Device(error.to_string()))?,
        };
        stop.word().store(0, Ordering::Relaxed);
        Ok(stop)
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: of this size and alignment, alive for as long as this.
        unsafe { &*self.word.cast::<AtomicU32>() }
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        if self.device.context().bind_to_thread().is_ok() {
            self.device.wait();
            // SAFETY: allocated once, freed once, and no kernel reads it any more.
            let _: Result<_, _> = unsafe { result::free_host(self.word) };
        }
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
            sums: Sums {
                sent: memory(8 * shape.layers * shape.ranks)?,
                computed: memory(8 * shape.layers)?,
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

    /// What the other ranks need to reach this one. `fresh`: by a window that nobody knows yet.
    pub(super) fn offer(
        &mut self,
        device: &Arc<Device>,
        fresh: bool,
    ) -> Result<Vec<u8>, KernelError> {
        // Nothing of a step before is still to be computed here.
        device.wait();
        self.retired.retain(Window::is_shared);
        if fresh {
            let fresh = Window::new(device, self.layout.bytes)?;
            self.retired
                .push(std::mem::replace(&mut self.window, fresh));
        }
        let mut turn = [0u64];
        self.state.download(0, &mut turn);
        let offer = self.window.offer(self.process, self.gpu, turn[0]);
        Ok(bytemuck::bytes_of(&offer).to_vec())
    }

    /// Connects this rank, `me`, with those whose offers these are, by rank; `None`: no member.
    pub(super) fn connect(
        &mut self,
        device: &Arc<Device>,
        me: usize,
        offers: &[Option<&[u8]>],
        table: &ReplicaTable,
        apart: bool,
    ) -> Result<(), KernelError> {
        assert_eq!(offers.len(), self.shape.ranks);
        let read = |offer: &[u8]| {
            bytemuck::try_pod_read_unaligned::<Offer>(offer)
                .map_err(|_| KernelError::Sharing("a rank tells of its memory otherwise".into()))
        };
        let offers = offers
            .iter()
            .map(|offer| offer.map(read).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        let members: Vec<&Offer> = offers.iter().flatten().collect();
        if let Err(why) = self.check(&members, apart) {
            // All ranks see it in the same words, and so nobody opens anything now.
            self.opened.clear();
            self.window.admit(&[], &self.process)?;
            return Err(why);
        }
        let guests: Vec<ProcessId> = members.iter().map(|offer| offer.process).collect();
        self.window.admit(&guests, &self.process)?;
        let mut before = std::mem::take(&mut self.opened);
        before.resize_with(offers.len(), || None);
        let mut peers = vec![params::Peer::default(); offers.len()];
        for (rank, offer) in offers.iter().enumerate() {
            let before = before[rank].take();
            let Some(offer) = offer else {
                self.opened.push(None);
                continue;
            };
            let address = if rank == me {
                self.opened.push(None);
                self.window.address()
            } else {
                let kept = before.filter(|opened| opened.is(offer));
                let opened = match kept {
                    Some(opened) => opened,
                    None => Opened::new(device, offer, &self.process, self.layout.bytes)?,
                };
                let address = opened.address();
                self.opened.push(Some(opened));
                address
            };
            peers[rank] = peer(address, me);
        }
        // One that all agree on, and that no flag in any window has reached.
        let turn = offers.iter().flatten().map(|offer| offer.turn).max();
        self.peers.upload(0, &peers);
        self.state.clear();
        self.state.upload(0, &[turn.unwrap_or(0)]);
        self.sent.clear();
        self.table = Table::new(device, table)?;
        self.stop.word().store(0, Ordering::Relaxed);
        device.wait();
        Ok(())
    }

    /// What can be known without opening anything.
    fn check(&self, members: &[&Offer], apart: bool) -> Result<(), KernelError> {
        let refused = |why: &str| Err(KernelError::Sharing(why.into()));
        if !members
            .iter()
            .all(|offer| self.process.sees(&offer.process))
        {
            return refused("a rank is on another machine, or in another PID namespace");
        }
        let mut gpus: Vec<[u8; 16]> = members.iter().map(|offer| offer.gpu).collect();
        gpus.sort_unstable();
        gpus.dedup();
        if apart && gpus.len() < members.len() {
            return refused("two ranks share a GPU, and would wait for each other's turns there");
        }
        Ok(())
    }

    /// All members have connected, and so let go of windows from before.
    pub(super) fn met(&mut self) {
        let members = self.window.guests();
        for window in &mut self.retired {
            window.dismiss(&members);
        }
        self.retired.retain(Window::is_shared);
    }

    fn params(&self) -> params::Exchange {
        let (shape, layout) = (&self.shape, &self.layout);
        params::Exchange {
            peers: self.peers.address(),
            window: self.window.address(),
            state: self.state.address(),
            sent: self.sent.address(),
            stop: self.stop.word as Address,
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
                self.stop.word().store(1, Ordering::Relaxed);
            }
            std::thread::yield_now();
        }
        self.stop.word().load(Ordering::Acquire) == 0
    }

    /// Adds what was counted to `sent`, `[layers][ranks]`, and `computed`, `[layers]`, and starts again from zero.
    pub(super) fn take_counts(&mut self, sent: &mut [u64], computed: &mut [u64]) {
        for (memory, sums) in [
            (&mut self.sums.sent, sent),
            (&mut self.sums.computed, computed),
        ] {
            let mut counts = vec![0u64; sums.len()];
            memory.download(0, &mut counts);
            memory.clear();
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += count;
            }
        }
    }

    pub(super) fn dispatch(
        &mut self,
        device: &Arc<Device>,
        layer: usize,
        x: &Tensor,
        routing: &Routing,
        experts: &Experts,
    ) {
        let shape = &self.shape;
        assert_eq!((x.kind(), x.cols()), (Kind::Bf16, shape.hidden));
        assert_eq!(
            (routing.rows, routing.per_token),
            (x.rows(), shape.per_token)
        );
        assert!(x.rows() <= shape.rows && layer < shape.layers);
        assert_eq!(experts.slots(), shape.slots);
        let mut params = params::ExchangeDispatch {
            exchange: self.params(),
            entries: self.table.entries.address() + (12 * layer * shape.experts) as u64,
            replicas: self.table.replicas.address(),
            chosen: routing.experts.address(),
            rows: x.rows() as u32,
            scale_count: 0,
            scale_stride: 0,
            codes: x.address(),
            code_stride: 2 * x.stride() as u64,
            code_bytes: 2 * x.stride() as u64,
            scales: 0,
            sums: self.sums.sent.address() + (8 * layer * shape.ranks) as u64,
        };
        if let [Form::Fp8(_), _] = experts.forms() {
            let rows = x.narrow(device, 0, x.cols());
            params = params::ExchangeDispatch {
                scale_count: (rows.cols / fp8::BLOCK) as u32,
                scale_stride: rows.scale_stride as u32,
                codes: rows.codes,
                code_stride: rows.cols as u64,
                code_bytes: rows.cols as u64,
                scales: rows.scales,
                ..params
            };
        }
        let shape = Shape {
            grid: [x.rows().max(1), 1, 1],
            threads: 256,
            shared: 0,
        };
        // SAFETY: rows, choices and tables are of these sizes, and windows have room for as many rows of every rank.
        unsafe { device.launch(&device.kernels.exchange_dispatch, shape, &params) };
        // Others' tokens are spread as this rank's are.
        self.likely = routing.choices();
        self.layer = layer;
    }

    /// Computes what came for this rank, and sends it back.
    pub(super) fn serve(&mut self, backend: &CudaBackend, experts: &Experts) {
        let (device, shape, likely) = (&backend.device, self.shape, self.likely);
        let mut space = backend.space();
        let space = &mut space.moe;
        let most = shape.ranks * shape.rows * shape.per_token.min(shape.slots);
        let row = 2 * shape.hidden;
        let pieces = backend.moved("collected work", 28 * likely, || self.collect(device, most));
        let narrow = matches!(experts.forms(), [Form::Fp8(_), _]);
        let wave = match narrow {
            true => WAVE.max(2 * shape.rows * shape.per_token).min(most),
            false => most,
        };
        let sorted = backend.moved("sorted work", 16 * likely, || {
            space.sort(device, &pieces, shape.slots, wave)
        });
        for wave in 0..sorted.waves {
            let first = wave * sorted.wave;
            // Nearly always the first wave has all there is.
            let likely = if wave == 0 { likely } else { 0 };
            let cost = || experts_cost(experts, likely);
            let products = if narrow {
                let rows = backend.moved("gathered rows", row * likely, || {
                    self.gather(device, &sorted, first, &mut space.fp8)
                });
                backend.measured(cost, || {
                    space.narrow_products(device, rows, &sorted, wave, experts)
                })
            } else {
                let x = params::Matrix {
                    data: self.window.address() + self.layout.rows as u64,
                    stride: (self.layout.row_bytes / 2) as u64,
                };
                backend.measured(cost, || space.wide_products(device, x, &sorted, experts))
            };
            let params = params::ExchangeRespond {
                exchange: self.params(),
                products,
                stride: stride(shape.hidden) as u64,
                place: sorted.place,
                homes: self.homes.address(),
                first: first as u32,
                count: sorted.wave as u32,
                last: u32::from(wave + 1 == sorted.waves),
            };
            let shape = per_piece(device, self.likely, 256);
            backend.moved("responses", 2 * row * likely, || {
                // SAFETY: places are of pieces, and homes were held against the window's size.
                unsafe { device.launch(&device.kernels.exchange_respond, shape, &params) }
            });
        }
    }

    fn collect(&mut self, device: &Arc<Device>, most: usize) -> Pieces {
        let address =
            |scratch: &mut Scratch, bytes: usize| scratch.at_least(device, bytes).address();
        let params = params::ExchangeCollect {
            exchange: self.params(),
            slots: address(&mut self.slots, 4 * most),
            rows: address(&mut self.rows, 4 * most),
            homes: address(&mut self.homes, 8 * most),
            sum: self.sums.computed.address() + 8 * self.layer as u64,
        };
        let shape = Shape {
            grid: [1, 1, 1],
            threads: 1024,
            shared: 0,
        };
        // SAFETY: there is room for all that all ranks can send.
        unsafe { device.launch(&device.kernels.exchange_collect, shape, &params) };
        Pieces {
            count: most,
            counted: self.state.address() + 4 * TOTAL as u64,
            likely: self.likely,
            step: 1,
            slots: params.slots,
            rows: params.rows,
            per_row: 1,
        }
    }

    fn gather(
        &self,
        device: &Arc<Device>,
        sorted: &Sorted,
        first: usize,
        space: &mut fp8::Space,
    ) -> fp8::Quantised {
        let cols = self.shape.hidden;
        let likely = self.likely.clamp(1, sorted.wave.max(1));
        let room = space.room(device, sorted.wave, likely, cols);
        let params = params::ExchangeGather {
            exchange: self.params(),
            rows: sorted.rows,
            first: first as u32,
            count: sorted.wave as u32,
            code_bytes: cols as u32,
            scale_count: (cols / fp8::BLOCK) as u32,
            codes: room.codes,
            scales: room.scales,
            scale_stride: room.scale_stride as u64,
        };
        let shape = per_piece(device, likely, 128);
        // SAFETY: sorted rows are rows of the window, and there is room for a wave.
        unsafe { device.launch(&device.kernels.exchange_gather, shape, &params) };
        room
    }

    /// Waits for this rank's own rows and sums them into `out`; then adds `more`.
    pub(super) fn combine(
        &self,
        device: &Device,
        routing: &Routing,
        more: Option<&Tensor>,
        out: &mut Tensor,
    ) {
        assert_eq!(out.kind(), Kind::Bf16);
        let size = (routing.rows, self.shape.hidden, Kind::Bf16);
        assert!(more.is_none_or(|more| (more.rows(), more.cols(), more.kind()) == size));
        out.resize(routing.rows, self.shape.hidden);
        let params = params::ExchangeCombine {
            exchange: self.params(),
            weights: routing.weights.address(),
            rows: routing.rows as u32,
            out: out.address(),
            out_stride: out.stride() as u64,
            more: more.map_or(params::Matrix::default(), Tensor::matrix),
        };
        let shape = wide_rows(routing.rows.max(1), self.shape.hidden);
        // SAFETY: both sides have so many rows of these widths.
        unsafe { device.launch(&device.kernels.exchange_combine, shape, &params) };
    }
}

/// Blocks that go on to further pieces if there are more than is likely.
fn per_piece(device: &Device, likely: usize, threads: usize) -> Shape {
    let most = device.multiprocessors() * 2048 / threads;
    Shape {
        grid: [likely.clamp(1, most), 1, 1],
        threads,
        shared: 0,
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
