//! Projections: dense, stacked, by head.

use proptest::prelude::*;

use super::*;
use crate::{Batch, KernelError, RopeTable};

/// Float32 sums in blocks of 128: relative to the sum of absolute products.
const TOLERANCE: f64 = 2e-6;

const KINDS: [Kind; 5] = [
    Kind::F32,
    Kind::F16,
    Kind::Bf16,
    FP8,
    Kind::Fp8 {
        rows: 32,
        cols: 48,
        ue8m0: true,
    },
];

fn apply(
    backend: &CpuBackend,
    w: &[&Stored],
    bias: Option<&[f32]>,
    x: &[f32],
    first: usize,
    width: usize,
) -> Vec<f32> {
    let parts: Vec<_> = w.iter().map(|w| w.matrix()).collect();
    let linear = backend.linear(&parts, bias).unwrap();
    let x = tensor(backend, x, width);
    let mut out = backend.tensor(x.rows().max(1), linear.outputs());
    backend.apply(&linear, &x, first, &mut out);
    out.values().to_vec()
}

#[test]
fn products_are_right() {
    let mut rng = rng(1);
    for (rows, outputs, inputs) in [
        (1, 1, 1),
        (1, 16, 2),
        (1, 64, 128),
        (1, 100, 129),
        (2, 33, 127),
        (3, 17, 300),
        (4, 576, 256),
        (5, 65, 77),
        (8, 48, 64),
        (9, 31, 65),
        (12, 32, 128),
        (13, 40, 140),
        (25, 96, 256),
        (64, 130, 200),
        (100, 70, 513),
        (250, 20, 300),
    ] {
        for kind in KINDS {
            let w = Stored::random(&mut rng, kind, outputs, inputs);
            let (first, width) = (3, inputs + 5);
            let x = values(&mut rng, rows * width);
            let bias = values(&mut rng, outputs);
            let mut want = Vec::new();
            for row in x.chunks_exact(width) {
                want.extend(w.product(0..outputs, &doubles(&row[first..][..inputs])));
            }
            for backend in backends(2) {
                for bias in [None, Some(&bias[..])] {
                    let got = apply(&backend, &[&w], bias, &x, first, width);
                    let added = |i: usize| bias.map_or(0.0, |bias| f64::from(bias[i % outputs]));
                    let sums: Vec<f64> = want
                        .iter()
                        .enumerate()
                        .map(|(i, (sum, _))| sum + added(i))
                        .collect();
                    let what = format!(
                        "{:?} {kind:?} {rows} x {inputs} -> {outputs}",
                        backend.isa()
                    );
                    assert_close(&what, &got, &sums, |i| {
                        TOLERANCE * (want[i].1 + added(i).abs())
                    });
                }
            }
        }
    }
}

#[test]
fn stacked_parts_follow_one_another() {
    let mut rng = rng(2);
    let inputs = 150;
    for kinds in [
        [Kind::Bf16; 3],
        [FP8; 3],
        [FP8, Kind::F32, Kind::F32],
        [Kind::Bf16, FP8, Kind::Bf16],
    ] {
        let parts: Vec<Stored> = kinds
            .iter()
            .zip([20, 37, 5])
            .map(|(kind, rows)| Stored::random(&mut rng, *kind, rows, inputs))
            .collect();
        let x = values(&mut rng, 10 * inputs);
        for backend in backends(1) {
            let all = apply(
                &backend,
                &parts.iter().collect::<Vec<_>>(),
                None,
                &x,
                0,
                inputs,
            );
            let mut first = 0;
            for part in &parts {
                let alone = apply(&backend, &[part], None, &x, 0, inputs);
                for (all, alone) in all.chunks_exact(62).zip(alone.chunks_exact(part.rows)) {
                    assert_same_bits("a stacked part", &all[first..][..part.rows], alone);
                }
                first += part.rows;
            }
        }
    }
}

#[test]
fn fused_instruction_sets_agree() {
    if !Isa::Avx512.available() {
        return;
    }
    let mut rng = rng(3);
    for kind in KINDS {
        for rows in [1, 7, 30] {
            let w = Stored::random(&mut rng, kind, 90, 333);
            let x = values(&mut rng, rows * 333);
            let [a, b] = [Isa::Avx512, Isa::Avx2]
                .map(|isa| apply(&CpuBackend::with_isa(1, isa), &[&w], None, &x, 0, 333));
            assert_same_bits("AVX-512 and AVX2", &a, &b);
        }
    }
}

#[test]
fn weights_that_are_not_finite_are_reported() {
    let backend = CpuBackend::new(2);
    for (kind, bytes) in [
        (Kind::F32, f32::NAN.to_le_bytes().to_vec()),
        (Kind::F32, f32::NEG_INFINITY.to_le_bytes().to_vec()),
        (Kind::F16, half::f16::INFINITY.to_le_bytes().to_vec()),
        (Kind::Bf16, half::bf16::NAN.to_le_bytes().to_vec()),
        (FP8, vec![0xff]),
    ] {
        let mut w = Stored::random(&mut rng(4), kind, 40, 30);
        let at = (33 * 30 + 7) * bytes.len();
        w.bytes[at..][..bytes.len()].copy_from_slice(&bytes);
        let error = |error| {
            matches!(
                error,
                KernelError::NotFinite {
                    row: 33,
                    col: 7,
                    rows: 40,
                    cols: 30
                }
            )
        };
        assert!(
            error(backend.linear(&[w.matrix()], None).err().unwrap()),
            "{kind:?}"
        );
        assert!(
            error(backend.absorbed(w.matrix(), 2, 12, 8).err().unwrap()),
            "{kind:?}"
        );
        assert!(
            error(backend.embedding(w.matrix()).err().unwrap()),
            "{kind:?}"
        );
    }
    let mut w = Stored::random(&mut rng(4), FP8, 300, 200);
    w.scales[4 * 3..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = backend.linear(&[w.matrix()], None).err().unwrap();
    assert!(matches!(
        error,
        KernelError::NotFinite {
            row: 128,
            col: 128,
            ..
        }
    ));
}

fn no_rotation(dim: usize, positions: usize) -> RopeTable {
    let len = positions * dim / 2;
    RopeTable {
        cos: vec![1.0; len],
        sin: vec![0.0; len],
        dim,
        interleaved: true,
    }
}

/// Heads' shapes: aligned to scale blocks, inside one, across two; and scales that do not line up.
const HEADS: [(usize, usize, usize, usize); 5] = [
    (2, 128, 128, 96),
    (8, 16, 24, 50),
    (4, 32, 32, 130),
    (3, 100, 60, 64),
    (2, 256, 128, 40),
];

#[test]
fn both_halves_of_kv_b_are_right() {
    let mut rng = rng(5);
    for (heads, nope, v, latent) in HEADS {
        for kind in [Kind::F32, Kind::Bf16, FP8] {
            for rows in [1, 6, 21] {
                let kv_b = Stored::random(&mut rng, kind, heads * (nope + v), latent);
                let pe = 4;
                let q = values(&mut rng, rows * heads * (nope + pe));
                let x = values(&mut rng, rows * heads * latent);
                let mut batch = Batch::default();
                batch.push(&vec![0; rows], 0, [0]);
                for backend in backends(2) {
                    let (w_uk, w_uv) = backend.absorbed(kv_b.matrix(), heads, nope, v).unwrap();
                    let mut out = backend.tensor(rows, heads * (latent + pe));
                    let rope = no_rotation(pe, rows);
                    backend.absorb_query(
                        &w_uk,
                        &tensor(&backend, &q, heads * (nope + pe)),
                        &rope,
                        &batch,
                        &mut out,
                    );
                    let (mut want, mut size) = (Vec::new(), Vec::new());
                    for (i, q) in q.chunks_exact(nope + pe).enumerate() {
                        let base = i % heads * (nope + v);
                        for col in 0..latent {
                            let products =
                                (0..nope).map(|k| kv_b.at(base + k, col) * f64::from(q[k]));
                            want.push(products.clone().sum());
                            size.push(products.map(f64::abs).sum::<f64>());
                        }
                        want.extend(doubles(&q[nope..]));
                        size.extend([0.0; 4]);
                    }
                    let what = format!(
                        "{:?} {kind:?} {heads} heads of {nope} and {v}",
                        backend.isa()
                    );
                    assert_close(&what, out.values(), &want, |i| TOLERANCE * size[i]);

                    let mut out = backend.tensor(rows, heads * v);
                    backend.apply_heads(&w_uv, &tensor(&backend, &x, heads * latent), &mut out);
                    let mut want = Vec::new();
                    for (i, x) in x.chunks_exact(latent).enumerate() {
                        let base = i % heads * (nope + v) + nope;
                        want.extend(kv_b.product(base..base + v, &doubles(x)));
                    }
                    let sums: Vec<f64> = want.iter().map(|w| w.0).collect();
                    assert_close(&what, out.values(), &sums, |i| TOLERANCE * want[i].1);
                }
            }
        }
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::F32),
        Just(Kind::F16),
        Just(Kind::Bf16),
        Just(FP8),
        (1..200usize, 1..200usize, any::<bool>()).prop_map(|(rows, cols, ue8m0)| Kind::Fp8 {
            rows,
            cols,
            ue8m0
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_row_of_a_product_does_not_know_its_batch(
        kind in kinds(), rows in 1..140usize, outputs in 1..200usize, inputs in 1..400usize,
        threads in 1..4usize, biased: bool, seed: u64,
    ) {
        let mut rng = rng(seed);
        let w = Stored::random(&mut rng, kind, outputs, inputs);
        let x = values(&mut rng, rows * inputs);
        let bias = biased.then(|| values(&mut rng, outputs));
        for isa in isas() {
            let together = apply(&CpuBackend::with_isa(threads, isa), &[&w], bias.as_deref(), &x, 0, inputs);
            let alone = CpuBackend::with_isa(1, isa);
            for (x, together) in x.chunks_exact(inputs).zip(together.chunks_exact(outputs)) {
                assert_same_bits("a row", &apply(&alone, &[&w], bias.as_deref(), x, 0, inputs), together);
            }
        }
    }

    #[test]
    fn a_row_of_head_products_does_not_know_its_batch(
        shape in 0..HEADS.len(), rows in 1..120usize, threads in 1..4usize, seed: u64,
    ) {
        let (heads, nope, v, latent) = HEADS[shape];
        let mut rng = rng(seed);
        let kv_b = Stored::random(&mut rng, FP8, heads * (nope + v), latent);
        let pe = 6;
        let q = values(&mut rng, rows * heads * (nope + pe));
        let x = values(&mut rng, rows * heads * latent);
        let rope = RopeTable { cos: values(&mut rng, rows * 3), sin: values(&mut rng, rows * 3), dim: pe, interleaved: true };
        let run = |isa, threads, rows: std::ops::Range<usize>| {
            let backend = CpuBackend::with_isa(threads, isa);
            let (w_uk, w_uv) = backend.absorbed(kv_b.matrix(), heads, nope, v).unwrap();
            let mut batch = Batch::default();
            batch.push(&vec![0; rows.len()], rows.start, [0, 0]);
            let cols = heads * (nope + pe);
            let q = tensor(&backend, &q[rows.start * cols..rows.end * cols], cols);
            let x = tensor(&backend, &x[rows.start * heads * latent..rows.end * heads * latent], heads * latent);
            let mut absorbed = backend.tensor(rows.len(), heads * (latent + pe));
            backend.absorb_query(&w_uk, &q, &rope, &batch, &mut absorbed);
            let mut applied = backend.tensor(rows.len(), heads * v);
            backend.apply_heads(&w_uv, &x, &mut applied);
            (absorbed.values().to_vec(), applied.values().to_vec())
        };
        for isa in isas() {
            let together = run(isa, threads, 0..rows);
            for row in 0..rows {
                let alone = run(isa, 1, row..row + 1);
                assert_same_bits("absorbed", &alone.0, &together.0[row * alone.0.len()..][..alone.0.len()]);
                assert_same_bits("applied", &alone.1, &together.1[row * alone.1.len()..][..alone.1.len()]);
            }
        }
    }
}
