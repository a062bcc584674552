//! Every CUDA op against its CPU form, on fresh random input. They need an H100 or H200:
//!
//! ```text
//! cargo test --release -p millrace-kernels --features cuda --test cuda -- --ignored --nocapture --test-threads 1
//! ```
//!
//! Inputs are rounded to bf16 before either form sees them, so what is left is the rounding of outputs and of what
//! an op keeps in between: relative errors (of norms) near 2^-9 where outputs are bf16, and near 2^-24 times the
//! length of a sum where they are float32. Each test prints the largest that it saw.
#![cfg(feature = "cuda")]

mod attention;
mod choice;
mod copies;
mod dense;
mod draw;
mod exchange;
mod experts;
mod uploads;

use half::bf16;
use millrace_kernels::Backend;
use millrace_kernels::cpu::{self, CpuBackend};
use millrace_kernels::cuda::{self, CudaBackend};
use millrace_model::fp8::{E4M3, E4M3_MAX};
use millrace_model::matrix::{BlockScales, Matrix, MatrixData, ScaleValues};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Rounding to bf16, with room for a few of them one after another.
const BF16: f64 = 6e-3;
/// Sums in float32 of products that are exact.
const F32: f64 = 2e-5;

/// Both forms, and a source of input that is another in every run.
struct Pair {
    cpu: CpuBackend,
    cuda: CudaBackend,
    rng: SmallRng,
}

/// The same rows on both.
struct Both {
    cpu: cpu::Tensor,
    cuda: cuda::Tensor,
}

impl Pair {
    fn new() -> Pair {
        let seed = rand::rng().random();
        println!("seed {seed}");
        Pair {
            cpu: CpuBackend::new(std::thread::available_parallelism().map_or(1, |n| n.get())),
            cuda: CudaBackend::new(0).expect("a device"),
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// About normal, as bf16 has them.
    fn values(&mut self, count: usize) -> Vec<f32> {
        let mut one = || -> f32 { (0..4).map(|_| self.rng.random_range(-1.0f32..1.0)).sum() };
        (0..count)
            .map(|_| bf16::from_f32(one() * 0.8).to_f32())
            .collect()
    }

    fn bf16_bytes(&mut self, count: usize) -> Vec<u8> {
        let scale = 0.3;
        self.values(count)
            .into_iter()
            .flat_map(|value| bf16::from_f32(value * scale).to_le_bytes())
            .collect()
    }

    /// Random rows.
    fn rows(&mut self, rows: usize, cols: usize) -> Both {
        let values = self.values(rows * cols);
        let mut both = self.empty(rows, cols);
        self.cpu.write(&values, &mut both.cpu);
        self.cuda.write(&values, &mut both.cuda);
        both
    }

    fn rows_f32(&mut self, rows: usize, cols: usize) -> Both {
        let values = self.values(rows * cols);
        let mut both = self.empty_f32(rows, cols);
        self.cpu.write(&values, &mut both.cpu);
        self.cuda.write(&values, &mut both.cuda);
        both
    }

    /// For an output: filled with what nobody would compute.
    fn empty(&mut self, rows: usize, cols: usize) -> Both {
        let mut both = Both {
            cpu: self.cpu.tensor(rows, cols),
            cuda: self.cuda.tensor(rows, cols),
        };
        self.cuda
            .write(&vec![f32::NAN; rows * cols], &mut both.cuda);
        both
    }

    fn empty_f32(&mut self, rows: usize, cols: usize) -> Both {
        let mut both = Both {
            cpu: self.cpu.tensor_f32(rows, cols),
            cuda: self.cuda.tensor_f32(rows, cols),
        };
        self.cuda
            .write(&vec![f32::NAN; rows * cols], &mut both.cuda);
        both
    }

    fn vectors(&mut self, len: usize) -> (cpu::Vector, cuda::Vector) {
        let values = self.values(len);
        (self.cpu.vector(&values), self.cuda.vector(&values))
    }

    fn cuda_rows(&self, x: &cuda::Tensor) -> Vec<f32> {
        let mut values = Vec::new();
        self.cuda.read(x, &mut values);
        values
    }

    /// Relative error of the device's rows.
    fn error(&self, both: &Both) -> f64 {
        relative(&self.cuda_rows(&both.cuda), both.cpu.values())
    }
}

fn matrix(bytes: &[u8], rows: usize, cols: usize) -> Matrix<'_> {
    Matrix {
        rows,
        cols,
        data: MatrixData::Bf16(bytes),
    }
}

/// A matrix in 8 bits, as a checkpoint stores it.
struct Narrow {
    rows: usize,
    cols: usize,
    codes: Vec<u8>,
    scales: Vec<u8>,
}

const BLOCK: usize = 128;

impl Narrow {
    fn random(rng: &mut SmallRng, rows: usize, cols: usize) -> Narrow {
        let blocks = rows.div_ceil(BLOCK) * cols.div_ceil(BLOCK);
        let scale = |rng: &mut SmallRng| rng.random_range(1e-3f32..3e-3).to_le_bytes();
        Narrow {
            rows,
            cols,
            // No NaN, and neither sign more often.
            codes: (0..rows * cols)
                .map(|_| rng.random_range(0u8..0x78) | (rng.random::<u8>() & 0x80))
                .collect(),
            scales: (0..blocks).flat_map(|_| scale(rng)).collect(),
        }
    }

    fn matrix(&self) -> Matrix<'_> {
        Matrix {
            rows: self.rows,
            cols: self.cols,
            data: MatrixData::Fp8 {
                bytes: &self.codes,
                scales: BlockScales {
                    values: ScaleValues::F32(&self.scales),
                    block_rows: BLOCK,
                    block_cols: BLOCK,
                },
            },
        }
    }
}

/// What is left of rows of `cols` values in 8 bits with a scale for every 128, as the device rounds.
fn quantised(values: &[f32], cols: usize) -> Vec<f32> {
    let numbers: Vec<f32> = (0..0x7f).map(|code: usize| E4M3[code]).collect();
    let nearest = |value: f32| {
        let above = numbers
            .partition_point(|number| *number < value.abs())
            .min(0x7e);
        let below = above.saturating_sub(1);
        let (low, high) = (value.abs() - numbers[below], numbers[above] - value.abs());
        // Ties go to the even one.
        let up = high < low || (high == low && above % 2 == 0);
        numbers[if up { above } else { below }].copysign(value)
    };
    let blocks = values.chunks(cols).flat_map(|row| row.chunks(BLOCK));
    blocks
        .flat_map(|block| {
            let most = block
                .iter()
                .fold(0.0f32, |most, value| most.max(value.abs()));
            let scale = if most > 1e-30 { most / E4M3_MAX } else { 1.0 };
            block
                .iter()
                .map(move |value| (value * (1.0 / scale), scale))
                .collect::<Vec<_>>()
        })
        .map(|(value, scale)| nearest(value) * scale)
        .collect()
}

/// ‖got − want‖ / ‖want‖; NaN and missing rows never pass.
fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = square(&mut got.iter().zip(want).map(|(a, b)| f64::from(a - b)));
    let norm = square(&mut want.iter().map(|v| f64::from(*v)));
    if error == 0.0 {
        0.0
    } else {
        (error / norm).sqrt()
    }
}

/// The largest error of a test, told when it ends.
struct Worst {
    what: &'static str,
    bar: f64,
    worst: f64,
    count: usize,
}

impl Worst {
    fn new(what: &'static str, bar: f64) -> Worst {
        Worst {
            what,
            bar,
            worst: 0.0,
            count: 0,
        }
    }

    #[track_caller]
    fn see(&mut self, error: f64, case: impl std::fmt::Debug) {
        assert!(
            error <= self.bar,
            "{}: {case:?}: error {error:.2e}, bar {:.0e}",
            self.what,
            self.bar
        );
        self.worst = self.worst.max(error);
        self.count += 1;
    }
}

impl Drop for Worst {
    fn drop(&mut self) {
        println!(
            "{:<28} {:>4} cases, largest error {:.1e} (bar {:.0e})",
            self.what, self.count, self.worst, self.bar
        );
    }
}
