//! Experts shared with other GPUs that reach each other's memory: rows go to their ranks and back without the host.

use std::sync::Arc;
use std::time::Duration;

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
use super::{CudaBackend, Routing};
use crate::{ExchangeShape, KernelError, ReplicaTable};

/// Pieces that are computed at a time in 8 bits, at least: more than a step of decoding has, so that nearly always one
/// wave is all there is, and few enough that their rows fit beside all else. Of larger steps twice what is to be
/// expected.
const WAVE: usize = 32 << 10;

/// Words of `State` in `sm90_bf16_exchange.cu`, by place.
const FAILED: usize = 3;
const FIRST_ROW: usize = 4;
const TOTAL: usize = 5;
const STATE_WORDS: usize = 6;

/// A rank's window, and its peers'.
pub struct Exchange {
    shape: ExchangeShape,
    layout: Layout,
    window: Memory,
    peers: Memory,
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
            arrived: part(4 * ranks),
            returned: part(4 * ranks),
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

impl Exchange {
    /// A rank that reaches nobody yet.
    fn new(
        device: &Arc<Device>,
        shape: ExchangeShape,
        table: &ReplicaTable,
        timeout: Duration,
    ) -> Result<Exchange, KernelError> {
        // As in `sm90_bf16_exchange.cu`.
        assert!(shape.ranks <= 256 && shape.per_token <= 32 && shape.hidden.is_multiple_of(8));
        let layout = Layout::of(&shape);
        let memory = |bytes| Memory::new(device, bytes, "the exchange of experts' rows");
        Ok(Exchange {
            window: memory(layout.bytes)?,
            peers: memory(size_of::<params::Peer>() * shape.ranks)?,
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
            timeout,
            likely: 0,
            layer: 0,
            layout,
            shape,
        })
    }

    fn set_peers(&mut self, peers: &[params::Peer]) {
        assert_eq!(peers.len(), self.shape.ranks);
        self.peers.upload(0, peers);
    }

    fn params(&self) -> params::Exchange {
        let (shape, layout) = (&self.shape, &self.layout);
        params::Exchange {
            peers: self.peers.address(),
            window: self.window.address(),
            state: self.state.address(),
            sent: self.sent.address(),
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

    /// Whether every turn so far was completed. Waits for the device.
    pub(super) fn is_whole(&self) -> bool {
        let mut failed = [0u32];
        self.state.download(4 * FAILED, &mut failed);
        failed == [0]
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
    /// A group of one GPU that stands for all ranks: whatever it sends to a rank comes back to it as if that rank had
    /// sent it. So it computes what one rank of a balanced group computes, with rows and work spread as its own are.
    pub fn mirror(
        &self,
        shape: ExchangeShape,
        table: &ReplicaTable,
    ) -> Result<Exchange, KernelError> {
        let mut exchange = Exchange::new(&self.device, shape, table, Duration::from_secs(10))?;
        let window = exchange.window.address();
        let peers: Vec<params::Peer> = (0..shape.ranks).map(|rank| peer(window, rank)).collect();
        exchange.set_peers(&peers);
        Ok(exchange)
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
        let one = |(backend, table): (&&CudaBackend, &ReplicaTable)| {
            Exchange::new(&backend.device, shape, table, timeout)
        };
        let mut exchanges = ranks
            .iter()
            .zip(tables)
            .map(one)
            .collect::<Result<Vec<_>, _>>()?;
        let windows: Vec<Address> = exchanges.iter().map(|e| e.window.address()).collect();
        for (rank, exchange) in exchanges.iter_mut().enumerate() {
            let peers: Vec<params::Peer> =
                windows.iter().map(|&window| peer(window, rank)).collect();
            exchange.set_peers(&peers);
        }
        // Whoever starts first writes into windows that must be zeroed by then.
        ranks.iter().for_each(|backend| backend.device.wait());
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
