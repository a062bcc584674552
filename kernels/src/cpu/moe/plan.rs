//! Who computes what: rows grouped by slot, and the products of all slots as tasks.

use std::ops::Range;

use crate::Work;
use crate::cpu::gemm::chunks;
use crate::cpu::linear;
use crate::cpu::pack::Packed;

/// A place is a piece of work in the order of slots.
#[derive(Default)]
pub(super) struct Plan {
    /// First place of every slot, and the end.
    starts: Vec<usize>,
    /// Row of every place.
    pub rows: Vec<u32>,
    /// Place of every piece of work.
    pub places: Vec<u32>,
    pub tasks: Vec<Task>,
}

pub(super) struct Task {
    pub slot: usize,
    pub places: Range<usize>,
    pub panels: Range<usize>,
}

impl Plan {
    pub fn group(&mut self, work: impl ExactSizeIterator<Item = Work> + Clone, slots: usize) {
        self.starts.clear();
        self.starts.resize(slots + 1, 0);
        for work in work.clone() {
            self.starts[work.slot as usize + 1] += 1;
        }
        for slot in 0..slots {
            self.starts[slot + 1] += self.starts[slot];
        }
        self.rows.resize(work.len(), 0);
        self.places.resize(work.len(), 0);
        for (i, work) in work.enumerate() {
            let start = &mut self.starts[work.slot as usize];
            self.rows[*start] = work.row;
            self.places[i] = *start as u32;
            *start += 1;
        }
        // Every start has moved to the end of its slot, which is the next one's start.
        self.starts.rotate_right(1);
        self.starts[0] = 0;
    }

    /// Divides the products of all slots that have work into tasks of about equal length.
    pub fn divide<'w>(&mut self, weights: impl Fn(usize) -> &'w Packed, threads: usize) {
        /// Even, as gate and up panels belong together.
        const PANEL_STEP: usize = 4;
        self.tasks.clear();
        let slots = self.starts.len() - 1;
        let places = |slot: usize| self.starts[slot]..self.starts[slot + 1];
        let cost = |slot: usize| match places(slot).len() {
            0 => 0,
            rows => linear::nanos(weights(slot), rows, weights(slot).panels()),
        };
        let total: usize = (0..slots).map(cost).sum();
        let each = (total / (4 * threads)).max(linear::TASK_NANOS);
        for slot in (0..slots).filter(|slot| !places(*slot).is_empty()) {
            let panels = weights(slot).panels();
            let parts = if threads == 1 {
                1
            } else {
                (cost(slot) / each).max(1)
            };
            for panels in chunks(
                0..panels,
                panels.div_ceil(parts).next_multiple_of(PANEL_STEP),
            ) {
                self.tasks.push(Task {
                    slot,
                    places: places(slot),
                    panels,
                });
            }
        }
    }
}
