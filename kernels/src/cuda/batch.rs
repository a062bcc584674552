//! A batch on the device: one word a row and field, and the page tables.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::device::Device;
use super::memory::Memory;
use super::params::Rows;
use crate::{Batch, KernelError};

/// Tokens, positions and first table entries of all rows one after another, then the tables.
#[derive(Default)]
pub struct Placed {
    memory: Option<Memory>,
    words: Vec<u32>,
    rows: usize,
    /// Another one for every batch that was ever placed.
    number: u64,
}

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

const FIELDS: usize = 3;

impl Placed {
    pub(super) fn place(&mut self, device: &Arc<Device>, batch: &Batch) -> Result<(), KernelError> {
        let Placed {
            memory,
            words,
            rows,
            number,
        } = self;
        *number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        *rows = batch.rows();
        words.clear();
        words.extend_from_slice(&batch.tokens);
        words.extend_from_slice(&batch.positions);
        for segment in &batch.segments {
            words.extend(segment.rows.clone().map(|_| segment.pages.start as u32));
        }
        assert_eq!(words.len(), FIELDS * *rows, "segments cover all rows");
        words.extend_from_slice(&batch.page_tables);
        let bytes = size_of_val(&words[..]);
        if memory.as_ref().is_none_or(|memory| memory.bytes() < bytes) {
            // Twice as much as now, so that growing sequences do not ask for memory at every page.
            *memory = Some(Memory::new(device, 2 * bytes, "page tables")?);
        }
        if let Some(memory) = memory {
            memory.upload(0, words);
        }
        Ok(())
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Tells it from all others.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Every row, where its sequence's pages begin in the tables, and how many positions it attends to.
    pub(super) fn rows_in_pages(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let fields = &self.words[..FIELDS * self.rows];
        let (positions, tables) = fields[self.rows..].split_at(self.rows);
        let rows = positions.iter().zip(tables).enumerate();
        rows.map(|(row, (position, table))| (row, *table as usize, *position as usize + 1))
    }

    /// Positions that all rows attend to together.
    pub(super) fn attended(&self) -> usize {
        self.rows_in_pages().map(|(_, _, count)| count).sum()
    }

    /// Positions that are read at least once: rows of one sequence share theirs.
    pub(super) fn distinct_positions(&self) -> usize {
        let mut most = HashMap::new();
        for (_, table, count) in self.rows_in_pages() {
            let known = most.entry(table).or_insert(0);
            *known = count.max(*known);
        }
        most.values().sum()
    }

    pub(super) fn params(&self) -> Rows {
        let base = self.memory.as_ref().map_or(0, Memory::address);
        let field = |number: usize| base + (number * self.rows * size_of::<u32>()) as u64;
        Rows {
            tokens: field(0),
            positions: field(1),
            table_of: field(2),
            tables: field(FIELDS),
        }
    }
}
