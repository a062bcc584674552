//! A layer's turn: rows out, those that came computed and sent back, and their sum.

use std::sync::Arc;

use super::super::device::{Device, Shape};
use super::super::expert::Experts;
use super::super::memory::Scratch;
use super::super::moe::{Pieces, Sorted, stride};
use super::super::profile::experts_cost;
use super::super::rows::wide_rows;
use super::super::tensor::{Kind, Tensor};
use super::super::weights::Form;
use super::super::{CudaBackend, Routing, fp8, params};
use super::{Exchange, TOTAL};

/// Pieces that are computed at a time in 8 bits, at least: more than a step of decoding has, so that nearly always one
/// wave is all there is, and few enough that their rows fit beside all else. Of larger steps twice what is to be
/// expected.
const WAVE: usize = 32 << 10;

impl Exchange {
    pub(in crate::cuda) fn dispatch(
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
            sums: self.counts.sent.address(layer * shape.ranks),
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
    pub(in crate::cuda) fn serve(&mut self, backend: &CudaBackend, experts: &Experts) {
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
            sum: self.counts.computed.address(self.layer),
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
    pub(in crate::cuda) fn combine(
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
