//! Rotation, the cache, attention.

use std::sync::Arc;

use millrace_kernels::{Batch, FP8_BLOCK, KvDtype, PageLayout, PageMemory, RopeTable};

use millrace_model::fp8::E4M3;

use super::*;

struct Cache {
    cpu: Arc<PageMemory>,
    cuda: Arc<PageMemory>,
}

const LAYERS: usize = 2;
const PAGES: usize = 24;

impl Pair {
    fn cache(&self, row_values: usize, latent: usize, dtype: KvDtype) -> Cache {
        self.cache_of(PAGES, row_values, latent, dtype)
    }

    fn cache_of(&self, pages: usize, row_values: usize, latent: usize, dtype: KvDtype) -> Cache {
        let layout = PageLayout {
            layers: LAYERS,
            row_values,
            latent,
            dtype,
        };
        Cache {
            cpu: self.cpu.pages(layout, pages).unwrap(),
            cuda: self.cuda.pages(layout, pages).unwrap(),
        }
    }

    /// The rows that `batch` wrote, as numbers.
    fn compare_pages(
        &self,
        cache: &Cache,
        batch: &Batch,
        layer: usize,
        latent: usize,
        worst: &mut Worst,
    ) {
        let layout = cache.cpu.layout();
        for segment in &batch.segments {
            for position in segment.start..segment.start + segment.rows.len() {
                let page = batch.page_tables[segment.pages.start + position / 64] as usize;
                let at = layer * layout.layer_bytes() + position % 64 * layout.row_bytes();
                // SAFETY: nobody writes to it now.
                let bytes = unsafe {
                    let row = cache.cpu.row_ptr(page, layer, position % 64);
                    std::slice::from_raw_parts(row, layout.row_bytes())
                };
                let want = row_values(bytes, &layout, latent);
                let (_, copier) = cache.cuda.device().expect("a device's pages");
                let mut bytes = vec![0; layout.row_bytes()];
                self.cuda.wait();
                // SAFETY: a row of that page, which nobody writes now.
                unsafe { copier.read(cache.cuda.page_ptr(page).add(at), &mut bytes) };
                let got = row_values(&bytes, &layout, latent);
                worst.see(relative(&got, &want), (layout.dtype, position));
            }
        }
    }

    fn table(&mut self, dim: usize, interleaved: bool) -> RopeTable {
        let angles: Vec<f32> = (0..dim / 2 * 2048)
            .map(|_| self.rng.random_range(0.0..6.3))
            .collect();
        RopeTable {
            cos: angles.iter().map(|a| a.cos()).collect(),
            sin: angles.iter().map(|a| a.sin()).collect(),
            dim,
            interleaved,
        }
    }
}

fn row_values(bytes: &[u8], layout: &PageLayout, latent: usize) -> Vec<f32> {
    let f32_at = |at: usize| f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let bf16_at = |at: usize| bf16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()).to_f32();
    (0..layout.row_values)
        .map(|i| match layout.dtype {
            KvDtype::F32 => f32_at(4 * i),
            KvDtype::Bf16 => bf16_at(2 * i),
            KvDtype::Fp8 if i < latent => {
                E4M3[bytes[i] as usize] * f32_at(latent + 4 * (i / FP8_BLOCK))
            }
            KvDtype::Fp8 => bf16_at(latent + 4 * latent.div_ceil(FP8_BLOCK) + 2 * (i - latent)),
        })
        .collect()
}

/// Sequences that begin at 0 and go on, in pages out of order; and one that goes on from the cache.
fn batches() -> [Batch; 2] {
    let tokens = vec![1u32; 300];
    let mut first = Batch::default();
    first.push(&tokens[..300], 0, [9, 3, 17, 0, 12]);
    first.push(&tokens[..1], 0, [5]);
    first.push(&tokens[..64], 0, [20]);
    let mut second = Batch::default();
    second.push(&tokens[..2], 64, [20, 7]);
    second.push(&tokens[..5], 300, [9, 3, 17, 0, 12]);
    second.push(&tokens[..1], 1, [5]);
    [first, second]
}

#[test]
#[ignore = "needs an H100 or H200"]
fn latent() {
    let mut pair = Pair::new();
    let mut worst = Worst::new("latent attention", BF16);
    let mut absorbed = Worst::new("absorbed queries", BF16);
    // A value between two 8-bit ones may round to either.
    let mut rows_worst = Worst::new("cache rows", 3e-2);
    for (heads, latent, pe, nope, interleaved) in [
        (8, 512, 64, 128, true),
        (4, 64, 16, 32, true),
        (4, 72, 16, 24, false),
        (20, 96, 16, 8, true),
        (128, 512, 64, 128, true),
    ] {
        for dtype in [KvDtype::Bf16, KvDtype::F32, KvDtype::Fp8] {
            let width = latent + pe;
            let cache = pair.cache(width, latent, dtype);
            let table = pair.table(pe, interleaved);
            let rope = pair.cuda.rope_table(table.clone());
            let norm = pair.vectors(latent);
            let v = 8;
            let bytes = pair.bf16_bytes(heads * (nope + v) * latent);
            let kv_b = matrix(&bytes, heads * (nope + v), latent);
            let keys = (
                pair.cpu.absorbed(kv_b, heads, nope, v).unwrap().0,
                pair.cuda.absorbed(kv_b, heads, nope, v).unwrap().0,
            );
            let mut placed = pair.cuda.placed();
            for batch in batches() {
                let rows = batch.rows();
                pair.cuda.place(&batch, &mut placed);
                let first = 24;
                let kv_a = pair.rows(rows, first + width);
                let (layer, eps) = (1, 1e-6);
                pair.cpu.write_latent(
                    &kv_a.cpu, first, &norm.0, eps, &table, &batch, &cache.cpu, layer,
                );
                pair.cuda.write_latent(
                    &kv_a.cuda,
                    first,
                    &norm.1,
                    eps,
                    &rope,
                    &placed,
                    &cache.cuda,
                    layer,
                );

                let q = pair.rows(rows, heads * (nope + pe));
                let mut latent_q = pair.empty(rows, heads * width);
                pair.cpu
                    .absorb_query(&keys.0, &q.cpu, &table, &batch, &mut latent_q.cpu);
                pair.cuda
                    .absorb_query(&keys.1, &q.cuda, &rope, &placed, &mut latent_q.cuda);
                absorbed.see(pair.error(&latent_q), (heads, latent, dtype));

                pair.compare_pages(&cache, &batch, layer, latent, &mut rows_worst);

                // The same queries for both, small enough for the softmax not to be one position's.
                let q = pair.rows(rows, heads * width);
                let mut out = pair.empty(rows, heads * latent);
                let scale = 2.0 / (width as f32).sqrt();
                pair.cpu.latent_attention(
                    &q.cpu,
                    heads,
                    latent,
                    scale,
                    &batch,
                    &cache.cpu,
                    layer,
                    &mut out.cpu,
                );
                pair.cuda.latent_attention(
                    &q.cuda,
                    heads,
                    latent,
                    scale,
                    &placed,
                    &cache.cuda,
                    layer,
                    &mut out.cuda,
                );
                worst.see(pair.error(&out), (heads, latent, dtype, rows));
            }
        }
    }
}

#[test]
#[ignore = "needs an H100 or H200"]
fn grouped() {
    let mut pair = Pair::new();
    let mut worst = Worst::new("grouped-query attention", BF16);
    let mut turned = Worst::new("rotation", BF16);
    for (heads, kv_heads, dim) in [
        (6, 2, 20),
        (7, 1, 12),
        (28, 4, 128),
        (32, 2, 48),
        (64, 8, 128),
    ] {
        for dtype in [KvDtype::Bf16, KvDtype::F32] {
            let cache = pair.cache(2 * kv_heads * dim, 0, dtype);
            let table = pair.table(dim, false);
            let rope = pair.cuda.rope_table(table.clone());
            let mut placed = pair.cuda.placed();
            for batch in batches() {
                let rows = batch.rows();
                pair.cuda.place(&batch, &mut placed);
                let mut qkv = pair.rows(rows, (heads + 2 * kv_heads) * dim);
                pair.cpu
                    .rope(&mut qkv.cpu, 0, heads + kv_heads, dim, &table, &batch);
                pair.cuda
                    .rope(&mut qkv.cuda, 0, heads + kv_heads, dim, &rope, &placed);
                turned.see(pair.error(&qkv), (heads, dim));
                pair.cpu
                    .write_kv(&qkv.cpu, heads * dim, &batch, &cache.cpu, 0);
                pair.cuda
                    .write_kv(&qkv.cuda, heads * dim, &placed, &cache.cuda, 0);
                let mut out = pair.empty(rows, heads * dim);
                let scale = 1.0 / (dim as f32).sqrt();
                pair.cpu.gqa_attention(
                    &qkv.cpu,
                    heads,
                    kv_heads,
                    dim,
                    scale,
                    &batch,
                    &cache.cpu,
                    0,
                    &mut out.cpu,
                );
                pair.cuda.gqa_attention(
                    &qkv.cuda,
                    heads,
                    kv_heads,
                    dim,
                    scale,
                    &placed,
                    &cache.cuda,
                    0,
                    &mut out.cuda,
                );
                worst.see(pair.error(&out), (heads, kv_heads, dim, dtype));
            }
        }
    }
}

/// Long enough to be cut into parts; and a row's result is the same whatever else is asked for.
#[test]
#[ignore = "needs an H100 or H200"]
fn long_contexts() {
    let mut pair = Pair::new();
    let mut worst = Worst::new("long latent attention", BF16);
    let (latent, pe, length) = (512, 64, 14_000);
    let width = latent + pe;
    let pages: Vec<u32> = (0..length as u32 / 64 + 1).rev().collect();
    let cache = pair.cache_of(pages.len(), width, latent, KvDtype::Bf16);
    let mut table = pair.table(pe, true);
    let angles = table.cos.len();
    (table.cos, table.sin) = (0..pe / 2 * length)
        .map(|i| (table.cos[i % angles], table.sin[i % angles]))
        .unzip();
    let rope = pair.cuda.rope_table(table.clone());
    let norm = pair.vectors(latent);
    let mut batch = Batch::default();
    batch.push(&vec![1; length], 0, pages.iter().copied());
    let mut placed = pair.cuda.placed();
    pair.cuda.place(&batch, &mut placed);
    let kv_a = pair.rows(length, width);
    pair.cpu
        .write_latent(&kv_a.cpu, 0, &norm.0, 1e-6, &table, &batch, &cache.cpu, 1);
    pair.cuda
        .write_latent(&kv_a.cuda, 0, &norm.1, 1e-6, &rope, &placed, &cache.cuda, 1);
    for heads in [8, 72, 128] {
        let mut batch = Batch::default();
        for start in [0, 63, 64, 4095, 6143, 6144, 13_998] {
            batch.push(&[1, 1], start, pages.iter().copied());
        }
        pair.cuda.place(&batch, &mut placed);
        let rows = batch.rows();
        let q = pair.rows(rows, heads * width);
        let mut out = pair.empty(rows, heads * latent);
        let scale = 2.0 / (width as f32).sqrt();
        pair.cpu.latent_attention(
            &q.cpu,
            heads,
            latent,
            scale,
            &batch,
            &cache.cpu,
            1,
            &mut out.cpu,
        );
        pair.cuda.latent_attention(
            &q.cuda,
            heads,
            latent,
            scale,
            &placed,
            &cache.cuda,
            1,
            &mut out.cuda,
        );
        worst.see(pair.error(&out), heads);

        let mut alone = Batch::default();
        alone.push(&[1], 13_999, pages.iter().copied());
        pair.cuda.place(&alone, &mut placed);
        let mut values = pair.cuda_rows(&q.cuda);
        let last = values.split_off((rows - 1) * heads * width);
        let mut q = pair.cuda.tensor(1, heads * width);
        pair.cuda.write(&last, &mut q);
        let mut one = pair.cuda.tensor(1, heads * latent);
        pair.cuda
            .latent_attention(&q, heads, latent, scale, &placed, &cache.cuda, 1, &mut one);
        let all = pair.cuda_rows(&out.cuda);
        assert_eq!(pair.cuda_rows(&one), all[all.len() - heads * latent..]);
    }
}
