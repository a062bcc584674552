//! What ops of DeepSeek-V3's sizes take on a GPU, next to what its memory and its matrix units allow.
//!
//! ```text
//! cargo run --release -p millrace-kernels --features cuda --example bench_cuda
//! ```
//!
//! Times are of the ops as a forward pass calls them, with all that belongs to them (inputs are quantised, work is cut
//! into items), many calls one after another on one stream. An op's floor is the larger of two times: its bytes at the
//! speed of a copy on this card, measured first (read and write counted), and its operations at PEAK below. Weights and
//! pages are larger than the cache, or there are several of them in turn.

use std::time::Instant;

use half::bf16;
use millrace_kernels::cuda::{CudaBackend, Tensor};
use millrace_kernels::{Backend, Batch, KvDtype, PageLayout};
use millrace_model::matrix::{BlockScales, Matrix, MatrixData, ScaleValues};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// TFLOP/s that cuBLAS reached on an H200 for large products in bf16 and, with block scales, in FP8.
const PEAK_BF16: f64 = 784.0;
const PEAK_FP8: f64 = 1223.0;
const BLOCK: usize = 128;
/// Bytes that no cache holds.
const MUCH: usize = 256 << 20;

struct Bench {
    backend: CudaBackend,
    rng: SmallRng,
    /// GB/s.
    copy: f64,
}

fn main() {
    let mut bench = Bench {
        backend: CudaBackend::new(0).expect("a GPU"),
        rng: SmallRng::seed_from_u64(1),
        copy: 0.0,
    };
    bench.copy = bench.measure_copy();
    println!(
        "copy: {:.0} GB/s (read + write); peaks: {PEAK_BF16} TFLOP/s bf16, {PEAK_FP8} FP8",
        bench.copy
    );
    println!("\nlatent attention, 128 heads, bf16 pages");
    for (batch, context, queries) in [
        (64, 4096, 1),
        (128, 4096, 1),
        (256, 4096, 1),
        (128, 16384, 1),
        (128, 4096, 2),
    ] {
        bench.attention(batch, context, queries);
    }
    println!("\nFP8 products, inputs quantised on the way");
    for (outputs, inputs) in [
        (2112, 7168),
        (24576, 1536),
        (7168, 16384),
        (36864, 7168),
        (7168, 2048),
    ] {
        for rows in [16, 64, 128, 256, 4096] {
            bench.product(outputs, inputs, rows);
        }
    }
    println!("\nexperts of 7168 x 2048, FP8: rows over slots");
    for (slots, each) in [(9, 16), (9, 114), (9, 512), (2, 500), (9, 1000)] {
        bench.experts(slots, each);
    }
}

impl Bench {
    /// Seconds a call, once warm.
    fn time(&self, mut call: impl FnMut(usize)) -> f64 {
        (0..5).for_each(&mut call);
        self.backend.wait();
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let calls = 30;
            let began = Instant::now();
            (0..calls).for_each(&mut call);
            self.backend.wait();
            best = best.min(began.elapsed().as_secs_f64() / f64::from(calls as u32));
        }
        best
    }

    fn show(&self, what: String, seconds: f64, flops: f64, bytes: f64, peak: f64) {
        let floor = (bytes / self.copy / 1e9).max(flops / peak / 1e12);
        println!(
            "{what:<34} {:>8.1} us {:>7.0} TFLOP/s {:>6.0} GB/s {:>5.0} % of its floor",
            seconds * 1e6,
            flops / seconds / 1e12,
            bytes / seconds / 1e9,
            100.0 * floor / seconds
        );
    }

    fn measure_copy(&mut self) -> f64 {
        let (rows, cols) = (1 << 15, 1 << 15);
        let x = self.backend.tensor(rows, cols);
        let mut out = self.backend.tensor(rows, cols);
        let mut seconds = f64::INFINITY;
        for _ in 0..5 {
            seconds = seconds.min(self.backend.time_copy(&x, &mut out));
        }
        2.0 * (2 * rows * cols) as f64 / seconds / 1e9
    }

    fn rows(&mut self, rows: usize, cols: usize) -> Tensor {
        let mut x = self.backend.tensor(rows, cols);
        let values: Vec<f32> = (0..rows * cols)
            .map(|_| bf16::from_f32(self.rng.random_range(-1.0..1.0)).to_f32())
            .collect();
        self.backend.write(&values, &mut x);
        x
    }

    fn attention(&mut self, sequences: usize, context: usize, queries: usize) {
        let (heads, latent, width) = (128, 512, 576);
        let each = context / 64;
        let layout = PageLayout {
            layers: 1,
            row_values: width,
            latent,
            dtype: KvDtype::Bf16,
        };
        let pages = self
            .backend
            .pages(layout, sequences * each)
            .expect("memory");
        let (_, copier) = pages.device().expect("a device's");
        let values: Vec<u8> = (0..layout.page_bytes() / 2)
            .flat_map(|_| bf16::from_f32(self.rng.random_range(-1.0..1.0)).to_le_bytes())
            .collect();
        for page in 0..pages.pages() {
            // SAFETY: a whole page, which nobody else touches.
            unsafe { copier.write(&values, pages.page_ptr(page)) };
        }
        let mut batch = Batch::default();
        for sequence in 0..sequences {
            let table = (sequence * each) as u32..((sequence + 1) * each) as u32;
            batch.push(&vec![1; queries], context - queries, table);
        }
        let mut placed = self.backend.placed();
        self.backend.place(&batch, &mut placed);
        let rows = sequences * queries;
        let q = self.rows(rows, heads * width);
        let mut out = self.backend.tensor(rows, heads * latent);
        let seconds = self.time(|_| {
            let scale = 0.04;
            self.backend
                .latent_attention(&q, heads, latent, scale, &placed, &pages, 0, &mut out)
        });
        let flops = 2.0 * (rows * heads * context * (width + latent)) as f64;
        let bytes = (sequences * context * 2 * width) as f64;
        let what = format!("{sequences} x {context}, {queries} queries");
        self.show(what, seconds, flops, bytes, PEAK_BF16);
    }

    fn weights(&mut self, rows: usize, cols: usize) -> (Vec<u8>, Vec<u8>) {
        let codes = (0..rows * cols)
            .map(|_| self.rng.random_range(0u8..0x78) | (self.rng.random::<u8>() & 0x80))
            .collect();
        let blocks = rows.div_ceil(BLOCK) * (cols / BLOCK);
        (
            codes,
            [1e-3f32; 1]
                .repeat(blocks)
                .iter()
                .flat_map(|s| s.to_le_bytes())
                .collect(),
        )
    }

    fn product(&mut self, outputs: usize, inputs: usize, rows: usize) {
        let (codes, scales) = self.weights(outputs, inputs);
        let copies = MUCH.div_ceil(codes.len());
        let weights: Vec<_> = (0..copies)
            .map(|_| {
                self.backend
                    .linear(&[matrix(&codes, &scales, outputs, inputs)], None)
                    .expect("memory")
            })
            .collect();
        let x = self.rows(rows, inputs);
        let mut out = self.backend.tensor(rows, outputs);
        let seconds =
            self.time(|call| self.backend.apply(&weights[call % copies], &x, 0, &mut out));
        let flops = 2.0 * (rows * outputs * inputs) as f64;
        let bytes = (outputs * inputs + rows * inputs * 2 + rows * outputs * 2) as f64;
        self.show(
            format!("{outputs} x {inputs}, {rows} rows"),
            seconds,
            flops,
            bytes,
            PEAK_FP8,
        );
    }

    fn experts(&mut self, slots: usize, each: usize) {
        let (hidden, inter) = (7168, 2048);
        let (wide, wide_scales) = self.weights(inter, hidden);
        let (narrow, narrow_scales) = self.weights(hidden, inter);
        let copies = MUCH.div_ceil(3 * slots * wide.len());
        let layers: Vec<_> = (0..copies)
            .map(|_| {
                let expert = || {
                    let gate = matrix(&wide, &wide_scales, inter, hidden);
                    let down = matrix(&narrow, &narrow_scales, hidden, inter);
                    let expert =
                        self.backend
                            .expert(gate, gate, down, millrace_kernels::Pace::Full);
                    std::sync::Arc::new(expert.expect("memory"))
                };
                self.backend.experts((0..slots).map(|_| expert()).collect())
            })
            .collect();
        let work: Vec<_> = (0..slots * each)
            .map(|piece| millrace_kernels::Work {
                row: piece as u32,
                slot: (piece % slots) as u32,
            })
            .collect();
        let x = self.rows(work.len(), hidden);
        let mut out = self.backend.tensor(work.len(), hidden);
        let seconds = self.time(|call| {
            self.backend
                .expert_rows(&x, &work, &layers[call % copies], &mut out)
        });
        let flops = 2.0 * (work.len() * 3 * hidden * inter) as f64;
        let bytes = (slots * 3 * hidden * inter + work.len() * 4 * hidden) as f64;
        self.show(
            format!("{slots} slots, {each} rows each"),
            seconds,
            flops,
            bytes,
            PEAK_FP8,
        );
    }
}

fn matrix<'a>(codes: &'a [u8], scales: &'a [u8], rows: usize, cols: usize) -> Matrix<'a> {
    Matrix {
        rows,
        cols,
        data: MatrixData::Fp8 {
            bytes: codes,
            scales: BlockScales {
                values: ScaleValues::F32(scales),
                block_rows: BLOCK,
                block_cols: BLOCK,
            },
        },
    }
}
