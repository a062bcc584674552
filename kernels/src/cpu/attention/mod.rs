//! Causal attention over pages, latent (MLA) and grouped-query.
//!
//! Both are the same work: query rows that share keys and values (all heads of a token for latent
//! attention, the heads of a group for GQA) pass over the pages of their sequence in order, with a
//! running softmax. A query row sees exactly the tokens up to its position, never a masked one, so
//! what else a page holds cannot touch it: not a later token's row, nor a former owner's.

mod fp8;
mod kernels;
mod page;

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use super::buffer::Floats;
use super::simd::{Isa, LANES};
use super::tensor::{Input, Output};
use super::threads::Threads;
use crate::{Batch, KvDtype, PAGE_TOKENS, PageMemory, Segment};
use kernels::{Running, Scores, Softmax, Weighted};

pub(super) use page::write_row;

/// Where query, key and value lie in their rows, in values.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    /// Query heads, and how many of them share one key head.
    pub count: usize,
    pub share: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    /// First value of key head 0 and of value head 0 in a cache row; heads follow one another.
    pub first_key: usize,
    pub first_value: usize,
    pub scale: f32,
}

/// Pages to read.
#[derive(Clone, Copy)]
pub(super) struct Cache<'a> {
    pub pages: &'a PageMemory,
    pub layer: usize,
}

/// Query rows that a task takes: enough to use a page that was widened for them, few enough that
/// their sums stay in the second-level cache.
const TASK_ROWS: usize = 64;

/// Consecutive tokens of one segment and query heads that share a key head.
struct Item {
    segment: usize,
    rows: Range<usize>,
    heads: Range<usize>,
}

#[derive(Default)]
struct Scratch {
    query: Floats,
    keys: Floats,
    values: Floats,
    scores: Floats,
    sums: Floats,
    running: Vec<Running>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static ITEMS: RefCell<Vec<Item>> = RefCell::default();
}

/// `out[r][head]` = attention of `q[r][head]` over its sequence up to its own position.
pub(super) fn attend(
    isa: Isa,
    threads: &Threads,
    q: &Input<'_>,
    heads: &Heads,
    batch: &Batch,
    cache: Cache<'_>,
    out: &Output,
) {
    ITEMS.with_borrow_mut(|items| {
        items.clear();
        plan(batch, heads, threads.count(), items);
        threads.run(items.len(), &|i| {
            // From the end: a prompt's last tokens see most and take longest.
            let item = &items[items.len() - 1 - i];
            SCRATCH.with_borrow_mut(|scratch| one(isa, q, heads, batch, item, cache, out, scratch));
        });
    })
}

/// Bytes of a value where values of one size follow one another.
fn value_bytes(dtype: KvDtype) -> usize {
    match dtype {
        KvDtype::F32 => 4,
        KvDtype::Bf16 => 2,
        KvDtype::Fp8 => unreachable!("always widened"),
    }
}

/// A buffer for one cache row.
pub(super) fn with_row(len: usize, f: impl FnOnce(&mut [f32])) {
    SCRATCH.with_borrow_mut(|scratch| f(scratch.query.at_least(len)))
}

fn plan(batch: &Batch, heads: &Heads, threads: usize, items: &mut Vec<Item>) {
    // With few rows in all, the heads of a token are spread over the threads.
    let total = batch.rows() * heads.count;
    let limit = if threads == 1 {
        TASK_ROWS
    } else {
        (total / (2 * threads)).clamp(4, TASK_ROWS)
    };
    let heads_each = heads.share.min(limit.next_multiple_of(4));
    let tokens_each = (limit / heads_each).max(1);
    for (segment, s) in batch.segments.iter().enumerate() {
        for rows in super::gemm::chunks(s.rows.clone(), tokens_each) {
            for group in super::gemm::chunks(0..heads.count, heads.share) {
                for heads in super::gemm::chunks(group, heads_each) {
                    items.push(Item {
                        segment,
                        rows: rows.clone(),
                        heads,
                    });
                }
            }
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn one(
    isa: Isa,
    q: &Input<'_>,
    heads: &Heads,
    batch: &Batch,
    item: &Item,
    cache: Cache<'_>,
    out: &Output,
    scratch: &mut Scratch,
) {
    let Scratch {
        query,
        keys,
        values,
        scores,
        sums,
        running,
    } = scratch;
    let segment: &Segment = &batch.segments[item.segment];
    let table = &batch.page_tables[segment.pages.clone()];
    let position = |row: usize| segment.start + row - segment.rows.start;
    let (count, tokens) = (item.heads.len(), item.rows.len());
    let key_head = item.heads.start / heads.share;
    let key_cols = heads.first_key + key_head * heads.key_dim;
    let value_cols = heads.first_value + key_head * heads.value_dim;
    let (key_dim, value_dim) = (
        heads.key_dim.next_multiple_of(LANES),
        heads.value_dim.next_multiple_of(LANES),
    );

    // A single token reads every key and value once or twice: then widening is best done in passing.
    let dtype = cache.pages.layout().dtype;
    let whole = key_dim == heads.key_dim && value_dim == heads.value_dim;
    let widen = match dtype {
        KvDtype::F32 => !whole,
        KvDtype::Bf16 => !whole || tokens > 1,
        KvDtype::Fp8 => true,
    };

    let sums = sums.at_least(tokens * count * value_dim);
    sums.fill(0.0);
    let scores = scores.at_least(count * PAGE_TOKENS);
    running.clear();
    running.resize(tokens * count, Running::START);
    // Queries are read where they are, unless whole vectors would reach into the next head.
    let padded = key_dim != heads.key_dim;
    let query = query.at_least(if padded { tokens * count * key_dim } else { 0 });
    for (i, to) in query.chunks_exact_mut(key_dim).enumerate() {
        let from =
            &q.row(item.rows.start + i / count)[(item.heads.start + i % count) * heads.key_dim..];
        to[..heads.key_dim].copy_from_slice(&from[..heads.key_dim]);
        to[heads.key_dim..].fill(0.0);
    }

    let seen_by_last = position(item.rows.end - 1) + 1;
    for (page, number) in table
        .iter()
        .enumerate()
        .take(seen_by_last.div_ceil(PAGE_TOKENS))
    {
        let filled = (seen_by_last - page * PAGE_TOKENS).min(PAGE_TOKENS);
        // A page that is widened is read in one go anyway.
        let next = table[page..]
            .get(1)
            .filter(|_| !widen && page * PAGE_TOKENS + filled < seen_by_last);
        let next: Option<*const u8> = next.map(|next| {
            cache
                .pages
                .row_ptr(*next as usize, cache.layer, 0)
                .cast_const()
        });
        let source = page::Source {
            cache,
            page: *number as usize,
            filled,
            widen,
        };
        let k = source.columns(isa, key_cols..key_cols + heads.key_dim, None, keys);
        let known = Some((key_cols, k));
        let v = source.columns(isa, value_cols..value_cols + heads.value_dim, known, values);
        for (token, row) in item.rows.clone().enumerate() {
            let seen = (position(row) + 1)
                .saturating_sub(page * PAGE_TOKENS)
                .min(PAGE_TOKENS);
            if seen == 0 {
                continue;
            }
            let q = if padded {
                &query[token * count * key_dim..][..count * key_dim]
            } else {
                &q.row(row)[item.heads.start * heads.key_dim..][..count * heads.key_dim]
            };
            let next_v = next.map_or(v.base, |next| {
                next.wrapping_add(value_cols * value_bytes(dtype))
            });
            let step = Step {
                next_v,
                q,
                k,
                v,
                seen,
                value_dim,
                scale: heads.scale,
            };
            let running = &mut running[token * count..][..count];
            let sums = &mut sums[token * count * value_dim..][..count * value_dim];
            match k.dtype {
                KvDtype::F32 => step.run::<kernels::F32>(isa, scores, running, sums),
                KvDtype::Bf16 => step.run::<kernels::Bf16>(isa, scores, running, sums),
                KvDtype::Fp8 => unreachable!("always widened"),
            }
        }
    }

    for (i, (sums, running)) in sums.chunks_exact(value_dim).zip(running.iter()).enumerate() {
        let (row, head) = (item.rows.start + i / count, item.heads.start + i % count);
        // SAFETY: this head of this row is this task's own.
        let out = unsafe { out.slice(row, head * heads.value_dim, heads.value_dim) };
        let scale = 1.0 / running.sum;
        out.iter_mut()
            .zip(sums)
            .for_each(|(out, sum)| *out = sum * scale);
    }
}

/// All queries of one token and the part of one page that it sees.
struct Step<'a> {
    /// `[queries][dimensions]`, dimensions a multiple of 16.
    q: &'a [f32],
    k: page::Columns,
    v: page::Columns,
    /// Where the values of the next page are.
    next_v: *const u8,
    seen: usize,
    value_dim: usize,
    scale: f32,
}

impl Step<'_> {
    fn run<D: kernels::Stored>(
        &self,
        isa: Isa,
        scores: &mut [f32],
        running: &mut [Running],
        sums: &mut [f32],
    ) {
        let rows = running.len();
        let key_dim = self.q.len() / rows;
        assert!(scores.len() >= rows * PAGE_TOKENS && sums.len() == rows * self.value_dim);
        // SAFETY: lengths as asserted; `seen` rows of the page are written, in keys and values of
        // type `D` whose whole vectors can be read.
        unsafe {
            isa.run(Scores {
                q: self.q.as_ptr(),
                q_stride: key_dim,
                rows,
                k: self.k.base,
                k_stride: self.k.stride,
                tokens: self.seen,
                dims: key_dim,
                scores: scores.as_mut_ptr(),
                stored: PhantomData::<D>,
            });
            isa.run(Softmax {
                scores,
                running,
                tokens: self.seen,
                scale: self.scale,
            });
            isa.run(Weighted {
                weights: scores.as_ptr(),
                running,
                v: self.v.base,
                v_stride: self.v.stride,
                next_v: self.next_v,
                tokens: self.seen,
                dims: self.value_dim,
                out: sums.as_mut_ptr(),
                out_stride: self.value_dim,
                stored: PhantomData::<D>,
            });
        }
    }
}
