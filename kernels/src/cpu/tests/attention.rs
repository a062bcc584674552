//! Latent and grouped-query attention over pages.

use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::{Batch, FP8_BLOCK, KvDtype, PAGE_TOKENS, PageLayout, PageMemory, RopeTable};
use millrace_model::fp8::{E4M3, e4m3_is_nan};

const EPS: f32 = 1e-6;

/// Cache rows of one sequence, and queries of all its tokens.
struct Sequence {
    tokens: usize,
    q: Vec<f32>,
    kv: Vec<f32>,
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    Latent {
        heads: usize,
        latent: usize,
        pe: usize,
    },
    Grouped {
        heads: usize,
        kv_heads: usize,
        dim: usize,
    },
}

impl Shape {
    fn row_values(self) -> usize {
        match self {
            Shape::Latent { latent, pe, .. } => latent + pe,
            Shape::Grouped { kv_heads, dim, .. } => 2 * kv_heads * dim,
        }
    }
    fn latent(self) -> usize {
        match self {
            Shape::Latent { latent, .. } => latent,
            Shape::Grouped { .. } => 0,
        }
    }
    fn heads(self) -> usize {
        match self {
            Shape::Latent { heads, .. } | Shape::Grouped { heads, .. } => heads,
        }
    }
    /// Columns of a head's key and value in a cache row.
    fn columns(self, head: usize) -> (Range<usize>, Range<usize>) {
        match self {
            Shape::Latent { latent, pe, .. } => (0..latent + pe, 0..latent),
            Shape::Grouped {
                heads,
                kv_heads,
                dim,
            } => {
                let first = head / (heads / kv_heads) * dim;
                let value = kv_heads * dim + first;
                (first..first + dim, value..value + dim)
            }
        }
    }
    fn q_dim(self) -> usize {
        self.columns(0).0.len()
    }
    fn out_dim(self) -> usize {
        self.columns(0).1.len()
    }
}

const SHAPES: [Shape; 6] = [
    Shape::Latent {
        heads: 8,
        latent: 64,
        pe: 16,
    },
    Shape::Latent {
        heads: 3,
        latent: 40,
        pe: 6,
    },
    Shape::Latent {
        heads: 17,
        latent: 96,
        pe: 32,
    },
    Shape::Grouped {
        heads: 6,
        kv_heads: 2,
        dim: 32,
    },
    Shape::Grouped {
        heads: 4,
        kv_heads: 4,
        dim: 20,
    },
    Shape::Grouped {
        heads: 10,
        kv_heads: 2,
        dim: 64,
    },
];

const SCALE: f32 = 0.3;
const LAYERS: usize = 2;
const LAYER: usize = 1;

impl Sequence {
    fn random(rng: &mut SmallRng, shape: Shape, tokens: usize) -> Sequence {
        let q = values(rng, tokens * shape.heads() * shape.q_dim())
            .iter()
            .map(|v| v * 3.0)
            .collect();
        Sequence {
            tokens,
            q,
            kv: values(rng, tokens * shape.row_values()),
        }
    }

    /// Cache rows as `dtype` stores them, by definition.
    fn kept(&self, shape: Shape, dtype: KvDtype) -> Vec<f64> {
        self.kv
            .chunks_exact(shape.row_values())
            .flat_map(|row| stored(row, shape.latent(), dtype))
            .collect()
    }

    /// Attention of `row` over the rows `kept`, by definition.
    fn reference(&self, shape: Shape, kept: &[f64], row: usize) -> Vec<f64> {
        let width = shape.row_values();
        let mut out = Vec::new();
        for head in 0..shape.heads() {
            let (key, value) = shape.columns(head);
            let q = &self.q[(row * shape.heads() + head) * key.len()..][..key.len()];
            let cache = |t: usize, cols: &Range<usize>| &kept[t * width..][cols.clone()];
            let scores: Vec<f64> = (0..=row)
                .map(|t| {
                    cache(t, &key)
                        .iter()
                        .zip(q)
                        .map(|(k, q)| k * f64::from(*q))
                        .sum::<f64>()
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores
                .iter()
                .map(|s| (f64::from(SCALE) * (s - max)).exp())
                .collect();
            let sum: f64 = weights.iter().sum();
            for col in 0..value.len() {
                let total: f64 = (0..=row).map(|t| weights[t] * cache(t, &value)[col]).sum();
                out.push(total / sum);
            }
        }
        out
    }
}

/// A cache row as it is stored, by definition.
fn stored(row: &[f32], latent: usize, dtype: KvDtype) -> Vec<f64> {
    let bf16 = |value: &f32| half::bf16::from_f32(*value).to_f64();
    match dtype {
        KvDtype::F32 => row.iter().map(|value| f64::from(*value)).collect(),
        KvDtype::Bf16 => row.iter().map(bf16).collect(),
        KvDtype::Fp8 => {
            let block = |block: &[f32]| -> Vec<f64> {
                let largest = block.iter().fold(0.0f32, |max, value| max.max(value.abs()));
                let scale = largest / 448.0;
                block
                    .iter()
                    .map(|value| f64::from(nearest_e4m3(value / scale) * scale))
                    .collect()
            };
            let (latent, rotated) = row.split_at(latent);
            let latent = latent.chunks(FP8_BLOCK).flat_map(block);
            latent.chain(rotated.iter().map(bf16)).collect()
        }
    }
}

/// Ties to the even one, which is the one with the even code.
fn nearest_e4m3(value: f32) -> f32 {
    let finite = (0..=255u8).filter(|code| !e4m3_is_nan(*code));
    let number = |code: u8| E4M3[usize::from(code)];
    let distance = |code: &u8| (f64::from(number(*code)) - f64::from(value)).abs();
    let nearest = finite.min_by(|a, b| {
        let by_distance = distance(a).total_cmp(&distance(b));
        by_distance.then((a % 2).cmp(&(b % 2)))
    });
    number(nearest.expect("there are numbers"))
}

/// The types that cache rows of this shape can have.
fn dtypes(shape: Shape) -> &'static [KvDtype] {
    match shape {
        Shape::Latent { .. } => &[KvDtype::F32, KvDtype::Bf16, KvDtype::Fp8],
        Shape::Grouped { .. } => &[KvDtype::F32, KvDtype::Bf16],
    }
}

/// Fills pages with NaN, as a former owner might have left them.
fn dirty_pages(
    backend: &CpuBackend,
    shape: Shape,
    dtype: KvDtype,
    pages: usize,
) -> std::sync::Arc<PageMemory> {
    let layout = PageLayout {
        layers: LAYERS,
        row_values: shape.row_values(),
        latent: shape.latent(),
        dtype,
    };
    let memory = backend.pages(layout, pages).unwrap();
    // SAFETY: the mapping is this long and nobody else has it.
    unsafe { memory.base().write_bytes(0xff, memory.bytes()) };
    memory
}

/// Writes and attends a batch; `parts` are (sequence, rows, page table).
fn step(
    backend: &CpuBackend,
    shape: Shape,
    memory: &PageMemory,
    parts: &[(&Sequence, Range<usize>, Vec<u32>)],
) -> Vec<f32> {
    let (width, heads) = (shape.row_values(), shape.heads());
    let (mut batch, mut kv, mut q) = (Batch::default(), Vec::new(), Vec::new());
    for (sequence, rows, table) in parts {
        batch.push(&vec![0; rows.len()], rows.start, table.iter().copied());
        kv.extend_from_slice(&sequence.kv[rows.start * width..rows.end * width]);
        let q_len = heads * shape.q_dim();
        q.extend_from_slice(&sequence.q[rows.start * q_len..rows.end * q_len]);
    }
    let q = tensor(backend, &q, heads * shape.q_dim());
    backend.write_kv(&tensor(backend, &kv, width), 0, &batch, memory, LAYER);
    let mut out = backend.tensor(q.rows(), heads * shape.out_dim());
    match shape {
        Shape::Latent { latent, .. } => {
            backend.latent_attention(&q, heads, latent, SCALE, &batch, memory, LAYER, &mut out);
        }
        Shape::Grouped { kv_heads, dim, .. } => {
            backend.gqa_attention(
                &q, heads, kv_heads, dim, SCALE, &batch, memory, LAYER, &mut out,
            );
        }
    }
    out.values().to_vec()
}

fn table(first: u32, tokens: usize) -> Vec<u32> {
    (0..tokens.div_ceil(PAGE_TOKENS) as u32)
        .map(|i| first + i * 3 % 16)
        .collect()
}

#[test]
fn attention_is_right() {
    let mut rng = rng(20);
    for shape in SHAPES {
        for &dtype in dtypes(shape) {
            for tokens in [1, 2, 63, 64, 65, 200] {
                let sequence = Sequence::random(&mut rng, shape, tokens);
                let mut want = Vec::new();
                let kept = sequence.kept(shape, dtype);
                for row in 0..tokens {
                    want.extend(sequence.reference(shape, &kept, row));
                }
                for backend in backends(2) {
                    let memory = dirty_pages(&backend, shape, dtype, 16);
                    let got = step(
                        &backend,
                        shape,
                        &memory,
                        &[(&sequence, 0..tokens, table(0, tokens))],
                    );
                    let what = format!("{:?} {shape:?} {dtype:?} {tokens} tokens", backend.isa());
                    assert_close(&what, &got, &want, |_| 5e-6);
                }
            }
        }
    }
}

#[test]
fn sequences_may_share_pages() {
    let mut rng = rng(21);
    let shape = SHAPES[0];
    for backend in backends(2) {
        let memory = dirty_pages(&backend, shape, KvDtype::F32, 8);
        let first = Sequence::random(&mut rng, shape, 150);
        step(&backend, shape, &memory, &[(&first, 0..150, vec![5, 1, 2])]);
        // The second one continues the first's two full pages in a page of its own.
        let mut second = Sequence::random(&mut rng, shape, 140);
        second.kv[..128 * 80].copy_from_slice(&first.kv[..128 * 80]);
        let got = step(
            &backend,
            shape,
            &memory,
            &[
                (&second, 128..140, vec![5, 1, 7]),
                (&first, 149..150, vec![5, 1, 2]),
            ],
        );
        let mut want: Vec<f64> = (128..140)
            .flat_map(|row| second.reference(shape, &second.kept(shape, KvDtype::F32), row))
            .collect();
        want.extend(first.reference(shape, &first.kept(shape, KvDtype::F32), 149));
        assert_close("shared prefix", &got, &want, |_| 5e-6);
    }
}

#[test]
fn latent_rows_are_normed_and_rotated() {
    let mut rng = rng(22);
    let (latent, pe, first, rows) = (50, 8, 3, 70);
    let width = latent + pe;
    let kv_a = values(&mut rng, rows * (first + width));
    let weight = values(&mut rng, latent);
    let angles = doubles(&values(&mut rng, 100 * pe / 2));
    let rope = RopeTable {
        cos: angles.iter().map(|a| a.cos() as f32).collect(),
        sin: angles.iter().map(|a| a.sin() as f32).collect(),
        dim: pe,
        interleaved: true,
    };
    let mut batch = Batch::default();
    batch.push(&vec![0; rows], 20, [3, 0]);
    for dtype in [KvDtype::F32, KvDtype::Bf16] {
        for backend in backends(2) {
            let memory = backend
                .pages(
                    PageLayout {
                        layers: 2,
                        row_values: width,
                        latent,
                        dtype,
                    },
                    4,
                )
                .unwrap();
            let (x, weight_) = (
                tensor(&backend, &kv_a, first + width),
                backend.vector(&weight),
            );
            backend.write_latent(&x, first, &weight_, EPS, &rope, &batch, &memory, 1);
            for (row, kv_a) in kv_a.chunks_exact(first + width).enumerate() {
                let (c_kv, k_pe) = kv_a[first..].split_at(latent);
                let position = 20 + row;
                let mean = c_kv.iter().map(|v| f64::from(v * v)).sum::<f64>() / latent as f64;
                let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
                let mut want: Vec<f64> = c_kv
                    .iter()
                    .zip(&weight)
                    .map(|(v, w)| f64::from(*v) * scale * f64::from(*w))
                    .collect();
                for (pair, angle) in k_pe.chunks_exact(2).zip(&angles[position * pe / 2..]) {
                    let (a, b, (sin, cos)) =
                        (f64::from(pair[0]), f64::from(pair[1]), angle.sin_cos());
                    want.extend([a * cos - b * sin, b * cos + a * sin]);
                }
                let at = memory.row_ptr([3, 0][position / 64], 1, position % 64);
                // SAFETY: a whole row of the mapping.
                let bytes = unsafe { std::slice::from_raw_parts(at, memory.layout().row_bytes()) };
                let (got, tolerance): (Vec<f32>, f64) = match dtype {
                    KvDtype::F32 => (
                        bytes
                            .as_chunks()
                            .0
                            .iter()
                            .map(|b| f32::from_le_bytes(*b))
                            .collect(),
                        1e-6,
                    ),
                    KvDtype::Bf16 => {
                        let wide = |b: &[u8; 2]| half::bf16::from_le_bytes(*b).to_f32();
                        (bytes.as_chunks().0.iter().map(wide).collect(), 1.0 / 256.0)
                    }
                    KvDtype::Fp8 => unreachable!("not asked for"),
                };
                assert_close("a latent row", &got, &want, |i| {
                    tolerance * want[i].abs() + 1e-6
                });
            }
        }
    }
}

#[test]
fn fused_instruction_sets_agree() {
    if !Isa::Avx512.available() {
        return;
    }
    for shape in SHAPES {
        let sequence = Sequence::random(&mut rng(23), shape, 130);
        let [a, b] = [Isa::Avx512, Isa::Avx2].map(|isa| {
            let backend = CpuBackend::with_isa(1, isa);
            let memory = dirty_pages(&backend, shape, KvDtype::Bf16, 16);
            step(
                &backend,
                shape,
                &memory,
                &[(&sequence, 0..130, table(0, 130))],
            )
        });
        assert_same_bits("AVX-512 and AVX2", &a, &b);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// A prompt at once, in a batch, on several threads; or cut anywhere (down to single tokens),
    /// alone, on one thread.
    #[test]
    fn a_row_of_attention_does_not_know_its_batch(
        shape in 0..SHAPES.len(), dtype in 0..3usize, tokens in 1..200usize, others in 0..3usize,
        cuts in proptest::collection::vec(0..200usize, 0..6), threads in 1..4usize, seed: u64,
    ) {
        let (shape, mut rng) = (SHAPES[shape], rng(seed));
        let dtype = dtypes(shape)[dtype % dtypes(shape).len()];
        let sequence = Sequence::random(&mut rng, shape, tokens);
        let others: Vec<Sequence> = (0..others).map(|i| Sequence::random(&mut rng, shape, 1 + 50 * i)).collect();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % tokens).chain([0, tokens]).collect();
        cuts.sort();
        cuts.dedup();
        for isa in isas() {
            let backend = CpuBackend::with_isa(threads, isa);
            let memory = dirty_pages(&backend, shape, dtype, 64);
            let mut parts: Vec<_> =
                others.iter().enumerate().map(|(i, o)| (o, 0..o.tokens, table(16 * (i as u32 + 1), o.tokens))).collect();
            parts.push((&sequence, 0..tokens, table(0, tokens)));
            let together = step(&backend, shape, &memory, &parts);
            let together = &together[together.len() - tokens * shape.heads() * shape.out_dim()..];

            let backend = CpuBackend::with_isa(1, isa);
            let memory = dirty_pages(&backend, shape, dtype, 16);
            let mut pieces = Vec::new();
            for cut in cuts.windows(2) {
                pieces.extend(step(&backend, shape, &memory, &[(&sequence, cut[0]..cut[1], table(0, tokens))]));
            }
            assert_same_bits("in pieces", &pieces, together);
            let last = step(&backend, shape, &memory, &[(&sequence, tokens - 1..tokens, table(0, tokens))]);
            assert_same_bits("the last token", &last, &together[together.len() - last.len()..]);
        }
    }
}
