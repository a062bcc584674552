//! The shape of one step: which rows belong to which sequence, and where its pages are.

use std::ops::Range;

/// Rows of several sequences, one after another (a varlen batch).
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// One token id a row.
    pub tokens: Vec<u32>,
    /// One position a row, counted from the start of its sequence.
    pub positions: Vec<u32>,
    /// Consecutive, without gaps, in row order.
    pub segments: Vec<Segment>,
    /// Page indexes of all segments, one run after another.
    pub page_tables: Vec<u32>,
}

/// Consecutive positions of one sequence. Row `r` of the segment has position
/// `start + r`, writes its cache row there, and attends to positions `0..=start + r`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub rows: Range<usize>,
    /// Position of the first row.
    pub start: usize,
    /// Where the sequence's page table lies in [`Batch::page_tables`]; entry `i` holds positions
    /// `64 * i ..`. It covers at least `start + rows.len()` positions.
    pub pages: Range<usize>,
}

impl Batch {
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Becomes the same batch as `other`, in the memory that it has.
    pub fn copy_from(&mut self, other: &Batch) {
        self.tokens.clone_from(&other.tokens);
        self.positions.clone_from(&other.positions);
        self.segments.clone_from(&other.segments);
        self.page_tables.clone_from(&other.page_tables);
    }

    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.segments.clear();
        self.page_tables.clear();
    }

    /// Appends a segment of `tokens` starting at position `start`.
    pub fn push(&mut self, tokens: &[u32], start: usize, pages: impl IntoIterator<Item = u32>) {
        let first_row = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions
            .extend((start..start + tokens.len()).map(|p| p as u32));
        let first_page = self.page_tables.len();
        self.page_tables.extend(pages);
        self.segments.push(Segment {
            rows: first_row..self.tokens.len(),
            start,
            pages: first_page..self.page_tables.len(),
        });
    }
}
