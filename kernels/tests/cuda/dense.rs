//! Embedding, norms, products, copies.

use millrace_kernels::{Backend, Batch};

use super::*;

#[test]
#[ignore = "needs an H100 or H200"]
fn embedding() {
    let mut pair = Pair::new();
    let (vocab, hidden) = (57, 84);
    let bytes = pair.bf16_bytes(vocab * hidden);
    let table = matrix(&bytes, vocab, hidden);
    let tables = (
        pair.cpu.embedding(table).unwrap(),
        pair.cuda.embedding(table).unwrap(),
    );
    let mut batch = Batch::default();
    batch.push(&[56, 0, 3, 3], 0, [0]);
    let mut placed = pair.cuda.placed();
    pair.cuda.place(&batch, &mut placed);
    for mut out in [pair.empty(4, hidden), pair.empty_f32(4, hidden)] {
        pair.cpu.embed(&tables.0, &batch, &mut out.cpu);
        pair.cuda.embed(&tables.1, &placed, &mut out.cuda);
        assert_eq!(pair.cuda_rows(&out.cuda), out.cpu.values());
    }
}

#[test]
#[ignore = "needs an H100 or H200"]
fn norms() {
    let mut pair = Pair::new();
    let mut narrow = Worst::new("rms_norm to bf16", BF16);
    let mut wide = Worst::new("rms_norm to f32", F32);
    for (rows, cols) in [(1, 7168), (3, 84), (130, 96), (5, 1), (2, 33)] {
        let weight = pair.vectors(cols);
        for input in [pair.rows(rows, cols), pair.rows_f32(rows, cols)] {
            for (mut out, worst) in [
                (pair.empty(rows, cols), &mut narrow),
                (pair.empty_f32(rows, cols), &mut wide),
            ] {
                pair.cpu.rms_norm(&input.cpu, &weight.0, 1e-6, &mut out.cpu);
                pair.cuda
                    .rms_norm(&input.cuda, &weight.1, 1e-6, &mut out.cuda);
                worst.see(pair.error(&out), (rows, cols));
            }
        }
        let (mut residual, delta) = (pair.rows_f32(rows, cols), pair.rows(rows, cols));
        let mut out = pair.empty(rows, cols);
        pair.cpu
            .add_rms_norm(&mut residual.cpu, &delta.cpu, &weight.0, 1e-6, &mut out.cpu);
        pair.cuda.add_rms_norm(
            &mut residual.cuda,
            &delta.cuda,
            &weight.1,
            1e-6,
            &mut out.cuda,
        );
        narrow.see(pair.error(&out), ("add", rows, cols));
        wide.see(pair.error(&residual), ("sum", rows, cols));
    }
    for (heads, width, first) in [(1, 40, 0), (4, 48, 16), (2, 128, 8)] {
        let mut x = pair.rows(9, first + heads * width + 5);
        let weight = pair.vectors(width);
        pair.cpu
            .head_rms_norm(&mut x.cpu, first, heads, width, &weight.0, 1e-6);
        pair.cuda
            .head_rms_norm(&mut x.cuda, first, heads, width, &weight.1, 1e-6);
        narrow.see(pair.error(&x), ("heads", heads, width));
    }
}

#[test]
#[ignore = "needs an H100 or H200"]
fn products() {
    let mut pair = Pair::new();
    let mut narrow = Worst::new("linear to bf16", BF16);
    let mut wide = Worst::new("linear to f32", F32);
    for (inputs, outputs) in [
        (64, 64),
        (7168, 576),
        (84, 20),
        (28, 96),
        (136, 320),
        (8, 1),
        (200, 65),
    ] {
        let bytes = pair.bf16_bytes(outputs * inputs);
        let parts = [
            matrix(&bytes[..2 * inputs], 1, inputs),
            matrix(&bytes[2 * inputs..], outputs - 1, inputs),
        ];
        let parts = if outputs == 1 {
            &parts[..1]
        } else {
            &parts[..]
        };
        let bias = pair.values(outputs);
        for bias in [None, Some(&bias[..])] {
            let w = (
                pair.cpu.linear(parts, bias).unwrap(),
                pair.cuda.linear(parts, bias).unwrap(),
            );
            for rows in [1, 2, 16, 17, 63, 64, 65, 129, 300] {
                let first = 16;
                let x = pair.rows(rows, first + inputs);
                for (mut out, worst) in [
                    (pair.empty(rows, outputs), &mut narrow),
                    (pair.empty_f32(rows, outputs), &mut wide),
                ] {
                    pair.cpu.apply(&w.0, &x.cpu, first, &mut out.cpu);
                    pair.cuda.apply(&w.1, &x.cuda, first, &mut out.cuda);
                    worst.see(pair.error(&out), (inputs, outputs, rows, bias.is_some()));
                }
            }
        }
    }
}

/// Whatever the batch and so the tile.
#[test]
#[ignore = "needs an H100 or H200"]
fn rows_do_not_see_their_batch() {
    let mut pair = Pair::new();
    let (inputs, outputs, rows) = (1536, 192, 300);
    let bytes = pair.bf16_bytes(outputs * inputs);
    let w = pair
        .cuda
        .linear(&[matrix(&bytes, outputs, inputs)], None)
        .unwrap();
    let values = pair.values(rows * inputs);
    let product = |count: usize| {
        let mut x = pair.cuda.tensor(rows, inputs);
        let mut out = pair.cuda.tensor_f32(rows, outputs);
        pair.cuda.write(&values[..count * inputs], &mut x);
        pair.cuda.apply(&w, &x, 0, &mut out);
        pair.cuda_rows(&out)
    };
    let whole = product(rows);
    for count in [1, 5, 16, 33, 64, 200, 257] {
        assert_eq!(product(count), whole[..count * outputs], "{count} rows");
    }
}

#[test]
#[ignore = "needs an H100 or H200"]
fn heads() {
    let mut pair = Pair::new();
    let mut worst = Worst::new("one matrix a head", BF16);
    for (heads, nope, v, latent) in [
        (4, 32, 32, 64),
        (4, 24, 20, 72),
        (2, 40, 40, 512),
        (128, 128, 128, 512),
    ] {
        let bytes = pair.bf16_bytes(heads * (nope + v) * latent);
        let kv_b = matrix(&bytes, heads * (nope + v), latent);
        let on_cpu = pair.cpu.absorbed(kv_b, heads, nope, v).unwrap();
        let on_cuda = pair.cuda.absorbed(kv_b, heads, nope, v).unwrap();
        for rows in [1, 7, 40] {
            let x = pair.rows(rows, heads * latent);
            let mut out = pair.empty(rows, heads * v);
            pair.cpu.apply_heads(&on_cpu.1, &x.cpu, &mut out.cpu);
            pair.cuda.apply_heads(&on_cuda.1, &x.cuda, &mut out.cuda);
            worst.see(pair.error(&out), (heads, latent, rows));
        }
    }
}

#[test]
#[ignore = "needs an H100 or H200"]
fn elementwise_and_copies() {
    let mut pair = Pair::new();
    let mut worst = Worst::new("add, silu_mul", BF16);
    for (rows, cols) in [(1, 2), (5, 168), (66, 4096)] {
        let x = pair.rows(rows, cols);
        let mut out = pair.empty(rows, cols / 2);
        pair.cpu.silu_mul(&x.cpu, &mut out.cpu);
        pair.cuda.silu_mul(&x.cuda, &mut out.cuda);
        worst.see(pair.error(&out), ("silu", rows, cols));
        let delta = pair.rows(rows, cols);
        for mut sum in [pair.rows(rows, cols), pair.rows_f32(rows, cols)] {
            pair.cpu.add(&mut sum.cpu, &delta.cpu);
            pair.cuda.add(&mut sum.cuda, &delta.cuda);
            worst.see(pair.error(&sum), ("add", rows, cols));
        }
        let mut joined = pair.empty(rows, 2 * cols);
        pair.cpu.concat(&x.cpu, &delta.cpu, &mut joined.cpu);
        pair.cuda.concat(&x.cuda, &delta.cuda, &mut joined.cuda);
        assert_eq!(pair.cuda_rows(&joined.cuda), joined.cpu.values());
        let index: Vec<usize> = (0..rows + 3).map(|i| i * 7 % rows).collect();
        let mut chosen = pair.empty(rows + 3, cols);
        pair.cpu.gather(&x.cpu, &index, &mut chosen.cpu);
        pair.cuda.gather(&x.cuda, &index, &mut chosen.cuda);
        assert_eq!(pair.cuda_rows(&chosen.cuda), chosen.cpu.values());
    }
}

/// Inputs are quantised on the device, so the reference is the CPU form over what quantising leaves of them. The
/// matrix units add up 128 products with fewer bits than float32 has.
#[test]
#[ignore = "needs an H100 or H200"]
fn products_in_8_bits() {
    let mut pair = Pair::new();
    let mut narrow = Worst::new("linear of fp8 to bf16", BF16);
    let mut wide = Worst::new("linear of fp8 to f32", 1e-3);
    for (inputs, outputs) in [
        (128, 64),
        (256, 192),
        (1536, 640),
        (7168, 2112),
        (3072, 576),
        (512, 8256),
    ] {
        let stored = [
            Narrow::random(&mut pair.rng, outputs / 2 / BLOCK * BLOCK, inputs),
            Narrow::random(&mut pair.rng, outputs - outputs / 2 / BLOCK * BLOCK, inputs),
        ];
        let parts: Vec<_> = stored
            .iter()
            .filter(|part| part.rows > 0)
            .map(Narrow::matrix)
            .collect();
        let w = (
            pair.cpu.linear(&parts, None).unwrap(),
            pair.cuda.linear(&parts, None).unwrap(),
        );
        let most = 1100;
        let values = pair.values(most * inputs);
        let left = quantised(&values, inputs);
        let mut first_row = Vec::new();
        for rows in [1, 3, 16, 64, 65, 129, 257, 1100] {
            let mut x = pair.empty(rows, inputs);
            pair.cpu.write(&left[..rows * inputs], &mut x.cpu);
            pair.cuda.write(&values[..rows * inputs], &mut x.cuda);
            for (mut out, worst) in [
                (pair.empty(rows, outputs), &mut narrow),
                (pair.empty_f32(rows, outputs), &mut wide),
            ] {
                pair.cpu.apply(&w.0, &x.cpu, 0, &mut out.cpu);
                pair.cuda.apply(&w.1, &x.cuda, 0, &mut out.cuda);
                worst.see(pair.error(&out), (inputs, outputs, rows));
                if out.cuda.kind() == cuda::Kind::F32 {
                    let row = pair.cuda_rows(&out.cuda)[..outputs].to_vec();
                    if first_row.is_empty() {
                        first_row.clone_from(&row);
                    }
                    assert_eq!(row, first_row, "{inputs} {outputs}: {rows} rows");
                }
            }
        }
    }
}
