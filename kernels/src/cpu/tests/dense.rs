//! Embedding, norms, rotation, copies.

use proptest::prelude::*;

use super::*;
use crate::{Batch, RopeTable};

const EPS: f32 = 1e-6;

fn norm(x: &[f64], weight: &[f32]) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
    x.iter()
        .zip(weight)
        .map(|(x, w)| x * scale * f64::from(*w))
        .collect()
}

#[test]
fn norms_are_right() {
    let mut rng = rng(10);
    for (rows, cols) in [(1, 1), (3, 15), (2, 64), (5, 100), (40, 512), (3, 1537)] {
        let (x, delta, weight) = (
            values(&mut rng, rows * cols),
            values(&mut rng, rows * cols),
            values(&mut rng, cols),
        );
        let sum: Vec<f32> = x.iter().zip(&delta).map(|(a, b)| a + b).collect();
        for backend in backends(2) {
            let w = backend.vector(&weight);
            let mut out = backend.tensor(rows, cols);
            backend.rms_norm(&tensor(&backend, &x, cols), &w, EPS, &mut out);
            let want: Vec<f64> = x
                .chunks(cols)
                .flat_map(|x| norm(&doubles(x), &weight))
                .collect();
            assert_close("rms_norm", out.values(), &want, |i| {
                1e-6 * want[i].abs() + 1e-9
            });

            let mut residual = tensor(&backend, &x, cols);
            backend.add_rms_norm(
                &mut residual,
                &tensor(&backend, &delta, cols),
                &w,
                EPS,
                &mut out,
            );
            assert_same_bits("residual", residual.values(), &sum);
            let want: Vec<f64> = sum
                .chunks(cols)
                .flat_map(|x| norm(&doubles(x), &weight))
                .collect();
            assert_close("add_rms_norm", out.values(), &want, |i| {
                1e-6 * want[i].abs() + 1e-9
            });
        }
    }
}

#[test]
fn heads_are_normed_one_by_one_and_the_rest_left_alone() {
    let mut rng = rng(11);
    let (rows, first, heads, width, cols) = (4, 7, 3, 20, 75);
    let (x, weight) = (values(&mut rng, rows * cols), values(&mut rng, width));
    for backend in backends(1) {
        let mut out = tensor(&backend, &x, cols);
        backend.head_rms_norm(&mut out, first, heads, width, &backend.vector(&weight), EPS);
        let mut want = doubles(&x);
        for row in want.chunks_mut(cols) {
            for head in row[first..][..heads * width].chunks_mut(width) {
                let normed = norm(head, &weight);
                head.copy_from_slice(&normed);
            }
        }
        assert_close("head_rms_norm", out.values(), &want, |i| {
            1e-6 * want[i].abs() + 1e-9
        });
    }
}

#[test]
fn silu_and_copies_are_right() {
    let mut rng = rng(12);
    let (rows, cols) = (3, 37);
    let a: Vec<f32> = values(&mut rng, rows * 2 * cols)
        .iter()
        .map(|v| v * 20.0)
        .collect();
    let b = values(&mut rng, rows * 5);
    for backend in backends(2) {
        let x = tensor(&backend, &a, 2 * cols);
        let mut out = backend.tensor(rows, cols);
        backend.silu_mul(&x, &mut out);
        let want: Vec<f64> = a
            .chunks(2 * cols)
            .flat_map(|row| {
                let (gate, up) = row.split_at(cols);
                gate.iter()
                    .zip(up)
                    .map(|(g, u)| (f64::from(*g), f64::from(*u)))
                    .collect::<Vec<_>>()
            })
            .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
            .collect();
        assert_close("silu_mul", out.values(), &want, |i| {
            1e-6 * want[i].abs() + 1e-12
        });

        let mut both = backend.tensor(rows, 2 * cols + 5);
        backend.concat(&x, &tensor(&backend, &b, 5), &mut both);
        assert_eq!(both.row(2)[..2 * cols], a[4 * cols..]);
        assert_eq!(both.row(2)[2 * cols..], b[10..]);

        let mut some = backend.tensor(4, 5);
        backend.gather(&tensor(&backend, &b, 5), &[2, 0, 0], &mut some);
        let want: Vec<f32> = [&b[10..], &b[..5], &b[..5]].concat();
        let mut read = vec![7.0];
        backend.read(&some, &mut read);
        assert_eq!(read, want);

        let mut sum = tensor(&backend, &b, 5);
        backend.add(&mut sum, &tensor(&backend, &b, 5));
        assert_eq!(sum.values(), b.iter().map(|b| b + b).collect::<Vec<_>>());
    }
}

#[test]
fn embeddings_are_rows() {
    let backend = CpuBackend::new(1);
    for kind in [Kind::F32, Kind::F16, Kind::Bf16, FP8] {
        let table = Stored::random(&mut rng(13), kind, 9, 33);
        let embedding = backend.embedding(table.matrix()).unwrap();
        let mut out = backend.tensor(3, 33);
        let batch = Batch {
            tokens: vec![8, 0, 8],
            ..Batch::default()
        };
        backend.embed(&embedding, &batch, &mut out);
        for (row, token) in [8, 0, 8].into_iter().enumerate() {
            let want: Vec<f64> = (0..33).map(|col| table.at(token, col)).collect();
            assert_close("embed", out.row(row), &want, |i| 1e-7 * want[i].abs());
        }
    }
}

#[test]
fn rotation_turns_the_right_pairs() {
    let mut rng = rng(14);
    let (dim, width, heads, positions) = (6, 8, 2, 5);
    let angles: Vec<f64> = doubles(&values(&mut rng, positions * dim / 2));
    let table = |interleaved| RopeTable {
        cos: angles.iter().map(|a| a.cos() as f32).collect(),
        sin: angles.iter().map(|a| a.sin() as f32).collect(),
        dim,
        interleaved,
    };
    let x = values(&mut rng, 2 * 20);
    let mut batch = Batch::default();
    batch.push(&[0], 4, [0]);
    batch.push(&[0], 1, [1]);
    for interleaved in [false, true] {
        let backend = CpuBackend::new(1);
        let mut out = tensor(&backend, &x, 20);
        backend.rope(&mut out, 3, heads, width, &table(interleaved), &batch);
        let mut want = doubles(&x);
        for (row, position) in [4, 1].into_iter().enumerate() {
            for head in 0..heads {
                for pair in 0..dim / 2 {
                    let first = row * 20 + 3 + head * width;
                    let (i, j) = if interleaved {
                        (2 * pair, 2 * pair + 1)
                    } else {
                        (pair, pair + dim / 2)
                    };
                    let (sin, cos) = angles[position * dim / 2 + pair].sin_cos();
                    let (a, b) = (want[first + i], want[first + j]);
                    (want[first + i], want[first + j]) = (a * cos - b * sin, b * cos + a * sin);
                }
            }
        }
        assert_close("rope", out.values(), &want, |_| 1e-6);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_row_does_not_know_its_batch(rows in 1..60usize, half in 1..700usize, threads in 1..4usize, seed: u64) {
        let mut rng = rng(seed);
        let cols = 2 * half;
        let (x, delta, weight) =
            (values(&mut rng, rows * cols), values(&mut rng, rows * cols), values(&mut rng, cols));
        let run = |isa, threads, rows: std::ops::Range<usize>| {
            let backend = CpuBackend::with_isa(threads, isa);
            let part = |values: &[f32]| tensor(&backend, &values[rows.start * cols..rows.end * cols], cols);
            let (mut residual, mut normed) = (part(&x), backend.tensor(rows.len(), cols));
            backend.add_rms_norm(&mut residual, &part(&delta), &backend.vector(&weight), EPS, &mut normed);
            let mut silu = backend.tensor(rows.len(), half);
            backend.silu_mul(&normed, &mut silu);
            (normed.values().to_vec(), silu.values().to_vec())
        };
        for isa in isas() {
            let together = run(isa, threads, 0..rows);
            for row in 0..rows {
                let alone = run(isa, 1, row..row + 1);
                assert_same_bits("normed", &alone.0, &together.0[row * cols..][..cols]);
                assert_same_bits("silu", &alone.1, &together.1[row * half..][..half]);
            }
        }
    }
}
