//! Latent attention of DeepSeek's sizes: who computes what.
//!
//! The host cuts the work of a batch into items (64 heads of a row, over some positions), once for all layers. How a row
//! is cut depends on how many positions it attends to and on nothing else, so that its result does not depend on the
//! batch either.

use std::sync::Arc;

use cudarc::driver::sys::CUtensorMap;

use super::batch::Placed;
use super::device::{Device, Shape};
use super::map::{Map, Value};
use super::memory::Scratch;
use super::params::{self, Address, MlaItem, MlaMergeItem};
use super::tensor::Tensor;
use crate::{KvDtype, PAGE_TOKENS, PageLayout, PageMemory};

const LATENT: usize = 512;
const WIDTH: usize = 576;
/// Heads of an item.
const TILE: usize = 64;
const THREADS: usize = 384;
const SHARED: usize = 222_832;
/// Positions of an item, about: fewer cost more for the partial results than they win.
const CHUNK: usize = 4096;
/// Partial results at a time: 128 KiB each.
const SLOTS: usize = 2048;

/// Whether this form takes it.
pub fn takes(layout: &PageLayout, heads: usize, latent: usize) -> bool {
    layout.dtype == KvDtype::Bf16
        && layout.row_values == WIDTH
        && latent == LATENT
        && heads.is_multiple_of(8)
}

/// The work of one batch, and what it takes.
#[derive(Default)]
pub struct Space {
    /// Of which batch the work is, and for how many heads.
    of: Option<(u64, usize)>,
    waves: Vec<Wave>,
    memory: Scratch,
    partial: Scratch,
    stats: Scratch,
    /// Of the pools seen so far, by where they are and how many rows they have.
    pools: Vec<((Address, usize), CUtensorMap)>,
}

/// What fits into the partial results at once. Addresses count from the start of `memory`. They depend on the batch's
/// work by powers of two only, so that batches of one number of rows mostly have them in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Wave {
    items: u64,
    merges: u64,
    counts: u64,
    has_merges: bool,
}

/// One wave while it is made.
#[derive(Default)]
struct Plan {
    items: Vec<MlaItem>,
    merges: Vec<MlaMergeItem>,
    slots: usize,
}

/// Where the positions `0 .. count` of a row are cut: into equal parts of whole pages.
fn parts(count: usize) -> (usize, usize) {
    let parts = ((count + CHUNK / 2) / CHUNK).max(1);
    let size = count.div_ceil(parts).next_multiple_of(PAGE_TOKENS);
    (size, count.div_ceil(size))
}

impl Plan {
    fn add(&mut self, row: usize, table: usize, count: usize, heads: usize) {
        let (size, parts) = parts(count);
        for head in (0..heads).step_by(TILE) {
            let first = self.slots;
            for part in 0..parts {
                let split = if parts == 1 {
                    -1
                } else {
                    (first + part) as i32
                };
                self.items.push(MlaItem {
                    row: row as u32,
                    rows: 1,
                    table: table as u32,
                    begin: (part * size) as u32,
                    end: (part * size + size).min(count) as u32,
                    last: count as u32,
                    head: head as u32,
                    split,
                });
            }
            if parts > 1 {
                self.slots += parts;
                self.merges.push(MlaMergeItem {
                    row: row as u32,
                    rows: 1,
                    head: head as u32,
                    split: first as u32,
                    step: 1,
                    parts: parts as u32,
                });
            }
        }
    }
}

impl Space {
    fn prepare(&mut self, device: &Arc<Device>, batch: &Placed, heads: usize) {
        if self.of == Some((batch.number(), heads)) {
            return;
        }
        // The longest first, so that none of them is left to the end.
        let mut rows: Vec<(usize, usize, usize)> = batch.rows_in_pages().collect();
        rows.sort_by_key(|(row, _, count)| (std::cmp::Reverse(*count), *row));
        let mut plans = vec![Plan::default()];
        for (row, table, count) in rows {
            let more = parts(count).1 * heads.div_ceil(TILE);
            let last = plans.last().expect("never empty");
            if last.slots + more > SLOTS && !last.items.is_empty() {
                plans.push(Plan::default());
            }
            let plan = plans.last_mut().expect("never empty");
            plan.add(row, table, count, heads);
        }
        let mut bytes = Vec::new();
        self.waves.clear();
        let mut slots = 0;
        for plan in &plans {
            let mut put = |part: &[u8]| {
                let at = bytes.len();
                bytes.extend_from_slice(part);
                bytes.resize(at + part.len().next_power_of_two().max(16), 0);
                at as u64
            };
            let counts = [plan.items.len() as u32, plan.merges.len() as u32];
            self.waves.push(Wave {
                items: put(bytemuck::cast_slice(&plan.items)),
                merges: put(bytemuck::cast_slice(&plan.merges)),
                counts: put(bytemuck::cast_slice(&counts)),
                has_merges: !plan.merges.is_empty(),
            });
            slots = slots.max(plan.slots);
        }
        let slots = slots.next_power_of_two();
        self.memory.upload(device, &bytes);
        self.partial.at_least(device, slots * TILE * LATENT * 4);
        self.stats.at_least(device, slots * TILE * 8);
        self.of = Some((batch.number(), heads));
    }

    /// Cuts the work of a batch that was just placed, as that of the one before it.
    pub fn prepare_again(&mut self, device: &Arc<Device>, batch: &Placed) {
        if let Some((_, heads)) = self.of {
            self.prepare(device, batch, heads);
        }
    }

    /// How the work of the last batch lies.
    pub fn waves(&self) -> &[Wave] {
        &self.waves
    }

    fn pool(&mut self, device: &Device, pages: &PageMemory) -> CUtensorMap {
        let rows = pages.pages() * pages.layout().layers * PAGE_TOKENS;
        let pool = (pages.base() as Address, rows);
        if let Some((_, map)) = self.pools.iter().find(|(known, _)| *known == pool) {
            return *map;
        }
        let map = Map {
            data: pool.0,
            kind: Value::Bf16,
            cols: WIDTH,
            rows,
            stride: pages.layout().row_bytes(),
            box_cols: 64,
            box_rows: 64,
            swizzled: true,
        }
        .encode(device);
        self.pools.push((pool, map));
        map
    }

    /// [`latent_attention`](crate::Backend::latent_attention) of what [`takes`] says; shapes were checked.
    #[allow(clippy::too_many_arguments)]
    pub fn attend(
        &mut self,
        device: &Arc<Device>,
        q: &Tensor,
        heads: usize,
        scale: f32,
        batch: &Placed,
        pages: &PageMemory,
        layer: usize,
        out: &Tensor,
    ) {
        if batch.rows() == 0 {
            return;
        }
        self.prepare(device, batch, heads);
        let map = self.pool(device, pages);
        let base = self.memory.address();
        let (partial, stats) = (self.partial.address(), self.stats.address());
        for wave in &self.waves {
            let mla = params::Mla {
                map,
                q: q.address(),
                q_stride: q.stride() as u64,
                out: out.address(),
                out_stride: out.stride() as u64,
                tables: batch.params().tables,
                items: base + wave.items,
                count: base + wave.counts,
                partial,
                stats,
                scale,
                heads: heads as u32,
                page_rows: (PAGE_TOKENS * pages.layout().layers) as u32,
                layer_row: (PAGE_TOKENS * layer) as u32,
            };
            let shape = Shape {
                grid: [device.multiprocessors(), 1, 1],
                threads: THREADS,
                shared: SHARED,
            };
            // SAFETY: items name rows of the batch and its page tables; partial results have as many slots.
            unsafe { device.launch(&device.kernels.mla_bf16, shape, &mla) };
            if !wave.has_merges {
                continue;
            }
            let merge = params::MlaMerge {
                out: out.address(),
                out_stride: out.stride() as u64,
                partial,
                stats,
                merges: base + wave.merges,
                count: base + wave.counts + 4,
                heads: heads as u32,
            };
            let shape = Shape {
                grid: [8 * device.multiprocessors(), 1, 1],
                threads: 128,
                shared: 0,
            };
            // SAFETY: as above.
            unsafe { device.launch(&device.kernels.mla_merge, shape, &merge) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_cut_into_equal_parts_of_whole_pages() {
        for count in [1, 63, 64, 65, 4096, 6143, 6144, 6145, 32768, 163_840] {
            let (size, parts) = parts(count);
            assert!(size.is_multiple_of(PAGE_TOKENS));
            assert!(
                (parts - 1) * size < count && count <= parts * size,
                "{count}"
            );
            assert!(size <= CHUNK + CHUNK / 2 + PAGE_TOKENS, "{count}");
        }
        assert_eq!(parts(4096), (4096, 1));
        assert_eq!(parts(32768), (4096, 8));
    }
}
