//! Ops that look at a row at a time: embedding, norms, SwiGLU, copies, rotation; and the plain attention.

use super::device::Shape;
use super::params;
use super::profile::bytes_of;
use super::{CudaBackend, Embedding, Kind, Placed, Routing, Tensor, Vector};

impl CudaBackend {
    pub(super) fn norm_heads(
        &self,
        x: &mut Tensor,
        first: usize,
        heads: usize,
        width: usize,
        weight: &Vector,
        eps: f32,
    ) {
        assert_eq!((x.kind(), weight.len), (Kind::Bf16, width));
        assert!(first + heads * width <= x.cols());
        x.changed();
        let wide = heads == 1 && is_wide(width) && first.is_multiple_of(8);
        let narrow = match wide {
            true => x.narrow_fill(&self.device, first, width),
            false => params::Narrow::default(),
        };
        let params = params::HeadNorm {
            x: x.matrix(),
            weight: weight.memory.address(),
            first: first as u32,
            width: width as u32,
            eps,
            narrow,
        };
        let kernels = &self.device.kernels;
        let (kernel, shape) = match wide {
            true => (&kernels.head_rms_norm_wide, wide_rows(x.rows(), width)),
            false => {
                let shape = Shape {
                    grid: [x.rows(), heads, 1],
                    ..Shape::rows(x.rows(), width)
                };
                (&kernels.head_rms_norm, shape)
            }
        };
        self.moved("norm of heads", 2 * 2 * x.rows() * heads * width, || {
            // SAFETY: see above.
            unsafe { self.device.launch(kernel, shape, &params) }
        });
    }

    pub(super) fn silu_rows(&self, x: &Tensor, out: &mut Tensor) {
        let width = x.cols() / 2;
        assert_eq!((x.kind(), out.kind()), (Kind::Bf16, Kind::Bf16));
        out.resize(x.rows(), width);
        let wide = width.is_multiple_of(8);
        let params = params::Silu {
            x: x.matrix(),
            out: out.matrix(),
            width: width as u32,
            narrow: match wide {
                true => out.narrow_fill(&self.device, 0, width),
                false => params::Narrow::default(),
            },
        };
        let kernels = &self.device.kernels;
        let (kernel, shape) = match wide {
            true => {
                let shape = Shape {
                    grid: [x.rows(), width.div_ceil(8 * 256), 1],
                    threads: 256,
                    shared: 0,
                };
                (&kernels.silu_mul_wide, shape)
            }
            false => (&kernels.silu_mul, Shape::rows(x.rows(), width)),
        };
        self.moved("silu and product", bytes_of(x) + bytes_of(out), || {
            // SAFETY: see above.
            unsafe { self.device.launch(kernel, shape, &params) }
        });
    }

    pub(super) fn add_rows(&self, out: &mut Tensor, delta: &Tensor) {
        assert_eq!(
            (out.rows(), out.cols(), Kind::Bf16),
            (delta.rows(), delta.cols(), delta.kind())
        );
        out.changed();
        let params = params::Add {
            out: out.matrix(),
            delta: delta.matrix(),
            cols: out.cols() as u32,
        };
        let kernel = match out.kind() {
            Kind::F32 => &self.device.kernels.add_f32,
            Kind::Bf16 => &self.device.kernels.add_bf16,
        };
        self.moved("add", 2 * bytes_of(out) + bytes_of(delta), || {
            // SAFETY: see above.
            unsafe {
                self.device
                    .launch(kernel, Shape::rows(out.rows(), out.cols()), &params)
            }
        });
    }

    pub(super) fn embed_rows(&self, table: &Embedding, batch: &Placed, out: &mut Tensor) {
        out.resize(batch.rows(), table.0.inputs);
        let weights = table.0.matrix();
        let params = params::Embed {
            table: weights.data,
            table_stride: weights.stride,
            rows: batch.params(),
            out: out.matrix(),
            cols: out.cols() as u32,
        };
        let kernel = match out.kind() {
            Kind::F32 => &self.device.kernels.embed_f32,
            Kind::Bf16 => &self.device.kernels.embed_bf16,
        };
        self.moved("embedding", 2 * bytes_of(out), || {
            // SAFETY: see above; tokens are of the vocabulary, which the engine checks.
            unsafe {
                self.device
                    .launch(kernel, Shape::rows(out.rows(), out.cols()), &params)
            }
        });
    }

    pub(super) fn norm(
        &self,
        x: &Tensor,
        delta: Option<&Tensor>,
        weight: &Vector,
        eps: f32,
        out: &mut Tensor,
    ) {
        assert_eq!(x.cols(), weight.len);
        out.resize(x.rows(), x.cols());
        let wide = is_wide(x.cols());
        let params = params::Norm {
            x: x.matrix(),
            delta: delta.map_or(params::Matrix::default(), Tensor::matrix),
            weight: weight.memory.address(),
            out: out.matrix(),
            cols: x.cols() as u32,
            eps,
            narrow: match wide {
                true => out.narrow_fill(&self.device, 0, x.cols()),
                false => params::Narrow::default(),
            },
        };
        let kernels = &self.device.kernels;
        let kernel = match (x.kind(), out.kind(), wide) {
            (Kind::F32, Kind::F32, false) => &kernels.rms_norm_f32_f32,
            (Kind::F32, Kind::Bf16, false) => &kernels.rms_norm_f32_bf16,
            (Kind::Bf16, Kind::F32, false) => &kernels.rms_norm_bf16_f32,
            (Kind::Bf16, Kind::Bf16, false) => &kernels.rms_norm_bf16_bf16,
            (Kind::F32, Kind::F32, true) => &kernels.rms_norm_f32_f32_wide,
            (Kind::F32, Kind::Bf16, true) => &kernels.rms_norm_f32_bf16_wide,
            (Kind::Bf16, Kind::F32, true) => &kernels.rms_norm_bf16_f32_wide,
            (Kind::Bf16, Kind::Bf16, true) => &kernels.rms_norm_bf16_bf16_wide,
        };
        let shape = match wide {
            true => wide_rows(x.rows(), x.cols()),
            false => Shape::rows(x.rows(), x.cols()),
        };
        self.moved(
            "norm",
            bytes_of(x) * (1 + usize::from(delta.is_some()))
                + delta.map_or(0, bytes_of)
                + bytes_of(out),
            || {
                // SAFETY: see above.
                unsafe { self.device.launch(kernel, shape, &params) }
            },
        );
    }

    /// Whole rows of `x`, or those at `index`, into columns `first ..` of `out`.
    pub(super) fn copy(
        &self,
        x: &Tensor,
        out: &Tensor,
        first: usize,
        rows: usize,
        index: params::Address,
    ) {
        assert_eq!(x.kind(), out.kind(), "a copy converts nothing");
        let units = x.kind().bytes() / 2;
        let params = params::CopyRows {
            from: x.address(),
            from_stride: (x.stride() * units) as u64,
            to: out.address() + (first * x.kind().bytes()) as u64,
            to_stride: (out.stride() * units) as u64,
            count: (x.cols() * units) as u32,
            index,
        };
        self.copy_rows(&params, rows);
    }

    pub(super) fn copy_rows(&self, params: &params::CopyRows, rows: usize) {
        let shape = Shape::rows(rows, params.count as usize);
        self.moved("copy of rows", 4 * rows * params.count as usize, || {
            // SAFETY: callers have sized both sides.
            unsafe {
                self.device
                    .launch(&self.device.kernels.copy_rows, shape, params)
            }
        });
    }

    pub(super) fn rotate(&self, params: params::Rotate, batch: &Placed) {
        let places = [
            params.from_first,
            params.from_width,
            params.to_first,
            params.to_width,
        ];
        let even = places.iter().all(|place| place.is_multiple_of(2));
        let params = params::Rotate {
            neighbours: (even && params.rope.interleaved != 0).into(),
            ..params
        };
        let pairs = params.heads as usize * params.rope.dim as usize / 2;
        self.moved("rotation", 2 * 2 * 2 * batch.rows() * pairs, || {
            // SAFETY: callers have sized both sides.
            unsafe {
                let shape = Shape::rows(batch.rows(), pairs);
                self.device
                    .launch(&self.device.kernels.rotate, shape, &params)
            }
        });
    }

    /// `width`: values of a position that a key head needs.
    pub(super) fn attend(
        &self,
        params: &params::Attention,
        kv_heads: usize,
        width: usize,
        batch: &Placed,
    ) {
        // As in `sm90_bf16_attention.cu`.
        const HEADS: usize = 8;
        const PIECE: usize = 32;
        const MAX_VALUES: u32 = 512;
        assert!(
            params.value_dim <= MAX_VALUES,
            "values of more than {MAX_VALUES} columns"
        );
        let words = HEADS * params.key_dim as usize + PIECE * (width | 1) + HEADS * PIECE;
        let shape = Shape {
            grid: [
                batch.rows(),
                kv_heads,
                (params.share as usize).div_ceil(HEADS),
            ],
            threads: 32 * HEADS,
            shared: 4 * words,
        };
        // SAFETY: see above; the batch's sequences hold their pages for reading.
        unsafe {
            self.device
                .launch(&self.device.kernels.attention, shape, params)
        };
    }

    pub(super) fn sum_products(
        &self,
        products: params::Address,
        stride: usize,
        place: params::Address,
        routing: &Routing,
        out: &Tensor,
    ) {
        assert_eq!(out.kind(), Kind::Bf16);
        let params = params::Combine {
            products,
            products_stride: stride as u64,
            place,
            weights: routing.weights.address(),
            per_token: routing.per_token as u32,
            cols: out.cols() as u32,
            out: out.address(),
            out_stride: out.stride() as u64,
        };
        // SAFETY: callers have sized both sides.
        unsafe {
            let shape = Shape::rows(out.rows(), out.cols());
            self.device
                .launch(&self.device.kernels.combine, shape, &params)
        };
    }
}

/// Whether rows of so many values are read by eights, and kept by the threads that read them (`rms_norm_wide`).
fn is_wide(cols: usize) -> bool {
    cols.is_multiple_of(8) && cols <= 16384
}

pub(super) fn wide_rows(rows: usize, cols: usize) -> Shape {
    Shape {
        grid: [rows, 1, 1],
        threads: (cols / 8).next_multiple_of(32).min(1024),
        shared: 0,
    }
}
