//! Products in bf16: which form of `sm90a_bf16_gemm.cu`, and over what.

use super::device::{Device, Function, Kernels, Shape};
use super::map::{Map3, NO_MAP};
use super::params::{Address, Bf16Gemm};
use super::tensor::{Kind, Tensor};
use super::weights::{HeadLinear, Vector, Weights};

const THREADS: usize = 384;
/// Of a block, in all; and what of it comes before the stages.
const SHARED: usize = 232_448;
const BEFORE: usize = 2048;
/// Bytes of a row of a box.
const BOX_ROW: usize = 128;
const BOX_COLS: u32 = 64;
const MOST_STAGES: usize = 16;

/// `y = x W^T`, one product a head: inputs of a head begin `x_step` columns after those of the one before, outputs
/// `y_step`.
struct Product {
    x: Address,
    x_stride: usize,
    x_step: usize,
    w: Address,
    w_stride: usize,
    bias: Address,
    y: Address,
    y_stride: usize,
    y_step: usize,
    kind: Kind,
    rows: usize,
    outputs: usize,
    inputs: usize,
    heads: usize,
}

/// How CTAs share the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Single,
    /// Two neighbouring tiles of outputs read their rows once.
    Pair,
    /// Inputs are cut into segments, one a CTA: few rows.
    Split,
    /// The same segments, half of them a CTA: many rows.
    Halves,
}

/// A form, and its tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    form: Form,
    outputs: usize,
    tokens: usize,
}

impl Form {
    fn cluster(self) -> usize {
        match self {
            Form::Single => 1,
            Form::Pair | Form::Halves => 2,
            Form::Split => 8,
        }
    }

    /// Clusters that the device holds at once: those of eight do not fill it.
    fn clusters(self, multiprocessors: usize) -> usize {
        match self {
            Form::Split => (multiprocessors / 8).saturating_sub(1).max(1),
            _ => multiprocessors / self.cluster(),
        }
    }

    fn kernel(self, kernels: &Kernels, kind: Kind) -> &Function<Bf16Gemm> {
        match (self, kind) {
            (Form::Single, Kind::Bf16) => &kernels.bf16_gemm_bf16,
            (Form::Single, Kind::F32) => &kernels.bf16_gemm_f32,
            (Form::Pair, Kind::Bf16) => &kernels.bf16_gemm_pair_bf16,
            (Form::Pair, Kind::F32) => &kernels.bf16_gemm_pair_f32,
            (Form::Split, Kind::Bf16) => &kernels.bf16_gemm_split_bf16,
            (Form::Split, Kind::F32) => &kernels.bf16_gemm_split_f32,
            (Form::Halves, Kind::Bf16) => &kernels.bf16_gemm_halves_bf16,
            (Form::Halves, Kind::F32) => &kernels.bf16_gemm_halves_f32,
        }
    }
}

/// The least power of two from 16 on that holds `rows`, or `most`.
fn fit(rows: usize, most: usize) -> usize {
    rows.next_power_of_two().clamp(16, most)
}

impl Plan {
    /// By what was measured on an H200. Whether inputs are cut is decided by the shape of the weights alone: the sums
    /// differ.
    fn of(rows: usize, outputs: usize, inputs: usize, heads: usize) -> Plan {
        let tiles =
            |plan: &Plan| heads * outputs.div_ceil(plan.outputs) * rows.div_ceil(plan.tokens);
        let plan = |form, outputs, tokens| Plan {
            form,
            outputs,
            tokens,
        };
        if heads * outputs.div_ceil(64) <= 16 && inputs >= 2048 {
            let few = [
                plan(Form::Split, 64, fit(rows, 64)),
                plan(Form::Split, 128, fit(rows, 64)),
                plan(Form::Split, 64, fit(rows, 128)),
                plan(Form::Split, 128, fit(rows, 128)),
            ];
            let found = few.into_iter().find(|plan| tiles(plan) <= 15);
            return found.unwrap_or_else(|| {
                let many = plan(Form::Halves, 64, fit(rows, 128));
                match tiles(&many) <= 66 {
                    true => many,
                    false => plan(Form::Halves, 128, fit(rows, 128)),
                }
            });
        }
        let paired = heads == 1 || rows <= 256;
        let mut best = (f64::INFINITY, plan(Form::Single, 128, 16));
        for side in [128, 64] {
            for tokens in [fit(rows, 256), fit(rows, 128)] {
                let form = match paired && outputs > side {
                    true => Form::Pair,
                    false => Form::Single,
                };
                let (width, slots) = match form {
                    Form::Pair => (2 * side, 66),
                    _ => (side, 132),
                };
                let items = heads * outputs.div_ceil(width) * rows.div_ceil(tokens);
                // What a tile of each size takes, next to the largest.
                let each = match (side, tokens) {
                    (128, 256) => 1.0,
                    (128, _) => 0.555,
                    (_, 256) => 0.58,
                    _ => 0.36,
                };
                let cost = items.div_ceil(slots) as f64 * each;
                if cost < best.0 {
                    best = (cost, plan(form, side, tokens));
                }
            }
        }
        best.1
    }

    fn is_cut(&self) -> bool {
        matches!(self.form, Form::Split | Form::Halves)
    }

    /// Tokens of a warpgroup.
    fn each(&self) -> usize {
        match self.outputs {
            64 => self.tokens / 2,
            _ => self.tokens,
        }
    }

    /// Tokens that the copy engine stores at once; 0: it stores none.
    fn store_tokens(&self, outputs: usize, inputs: usize, kind: Kind) -> usize {
        let each = self.each();
        // It writes whole pieces of 16 bytes.
        let fits = outputs.is_multiple_of(8) && each >= 16;
        match kind == Kind::Bf16 && !self.is_cut() && fits {
            false => 0,
            true if each == 256 && inputs > 256 => 128,
            true => each,
        }
    }

    /// Stages, and bytes of shared memory.
    fn room(&self, store_tokens: usize) -> (usize, usize) {
        let after = match self.is_cut() {
            true => {
                let ways = self.form.cluster();
                ways * (self.each() / 8).div_ceil(ways) * 4096
            }
            false => 2 * store_tokens * BOX_ROW,
        };
        let stage = (self.outputs + self.tokens) * BOX_ROW;
        let stages = ((SHARED - BEFORE - after) / stage).min(MOST_STAGES);
        (stages, BEFORE + stages * stage + after)
    }
}

fn multiply(device: &Device, product: &Product) {
    let &Product {
        rows,
        outputs,
        inputs,
        heads,
        ..
    } = product;
    assert!(
        product.x.is_multiple_of(16)
            && product.x_stride.is_multiple_of(8)
            && product.x_step.is_multiple_of(8)
            && product.y_step.is_multiple_of(4),
        "this device reads inputs in pieces of 16 bytes: head sizes and ranks of the model have to be multiples of 8"
    );
    if rows == 0 || outputs == 0 {
        return;
    }
    let plan = Plan::of(rows, outputs, inputs, heads);
    let store_tokens = match product.y_step.is_multiple_of(8) {
        true => plan.store_tokens(outputs, inputs, product.kind),
        false => 0,
    };
    let (stages, shared) = plan.room(store_tokens);
    let pair = if plan.form == Form::Pair { 2 } else { 1 };
    // A lone head's step is never taken, but must be a whole piece.
    let step = |step: usize| if heads > 1 { 2 * step } else { 16 };
    let map = |data, cols, strides, count, box_rows: usize| {
        let map = Map3 {
            data,
            sizes: [cols, heads, count],
            strides,
            box_sizes: [BOX_COLS, 1, box_rows as u32],
        };
        map.encode(device)
    };
    let x_strides = [step(product.x_step), 2 * product.x_stride];
    let w_strides = [2 * outputs * product.w_stride, 2 * product.w_stride];
    let y_strides = [step(product.y_step), 2 * product.y_stride];
    let gemm = Bf16Gemm {
        x_map: map(
            product.x,
            inputs,
            x_strides,
            rows,
            (plan.tokens / pair).min(64),
        ),
        w_map: map(product.w, inputs, w_strides, outputs, plan.outputs),
        y_map: match store_tokens {
            0 => NO_MAP,
            tokens => map(product.y, outputs, y_strides, rows, tokens),
        },
        bias: product.bias,
        y: product.y,
        ldy: product.y_stride as u64,
        y_step: product.y_step as u64,
        rows: rows as u32,
        n: outputs as u32,
        k: inputs as u32,
        heads: heads as u32,
        outputs: plan.outputs as u32,
        tokens: plan.tokens as u32,
        stages: stages as u32,
        store_tokens: store_tokens as u32,
    };
    let items = heads * outputs.div_ceil(plan.outputs * pair) * rows.div_ceil(plan.tokens);
    let clusters = items.min(plan.form.clusters(device.multiprocessors()));
    let shape = Shape {
        grid: [clusters * plan.form.cluster(), 1, 1],
        threads: THREADS,
        shared,
    };
    let kernel = plan.form.kernel(&device.kernels, product.kind);
    // SAFETY: the callers below pass matrices of these sizes.
    unsafe { device.launch(kernel, shape, &gemm) };
}

/// `out = x[:, first_col ..] W^T (+ bias)`; sizes were checked.
pub fn linear(
    device: &Device,
    w: &Weights,
    bias: Option<&Vector>,
    x: &Tensor,
    first_col: usize,
    out: &Tensor,
) {
    assert_eq!(x.kind(), Kind::Bf16, "products are of bf16");
    let weights = w.matrix();
    let product = Product {
        x: x.address() + 2 * first_col as u64,
        x_stride: x.stride(),
        x_step: 0,
        w: weights.data,
        w_stride: weights.stride as usize,
        bias: bias.map_or(0, |bias| bias.memory.address()),
        y: out.address(),
        y_stride: out.stride(),
        y_step: 0,
        kind: out.kind(),
        rows: x.rows(),
        outputs: w.outputs,
        inputs: w.inputs,
        heads: 1,
    };
    multiply(device, &product);
}

/// Head by head: inputs of a head begin `from` columns after those of the one before, outputs `to`.
pub fn heads(device: &Device, w: &HeadLinear, x: &Tensor, from: usize, out: &Tensor, to: usize) {
    assert_eq!((x.kind(), out.kind()), (Kind::Bf16, Kind::Bf16));
    let weights = w.weights.matrix();
    let product = Product {
        x: x.address(),
        x_stride: x.stride(),
        x_step: from,
        w: weights.data,
        w_stride: weights.stride as usize,
        bias: 0,
        y: out.address(),
        y_stride: out.stride(),
        y_step: to,
        kind: Kind::Bf16,
        rows: x.rows(),
        outputs: w.outputs(),
        inputs: w.weights.inputs,
        heads: w.heads,
    };
    multiply(device, &product);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plan_fits_a_block_and_cuts_by_the_weights_alone() {
        for (outputs, inputs, heads) in [
            (512, 128, 128),
            (128, 512, 128),
            (129_280, 7168, 1),
            (256, 7168, 1),
            (64, 4096, 3),
            (20, 24, 1),
            (7168, 14_336, 1),
        ] {
            let cut = Plan::of(1, outputs, inputs, heads).is_cut();
            for rows in [1, 2, 16, 17, 64, 100, 128, 256, 300, 4096] {
                let plan = Plan::of(rows, outputs, inputs, heads);
                assert_eq!(plan.is_cut(), cut, "{plan:?}");
                for kind in [Kind::Bf16, Kind::F32] {
                    let (stages, shared) = plan.room(plan.store_tokens(outputs, inputs, kind));
                    assert!(stages >= 2 && shared <= SHARED, "{plan:?}");
                }
            }
        }
    }
}
