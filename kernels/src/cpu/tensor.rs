//! Activations, and views of them that tasks share.

use super::buffer::Floats;

/// `[rows, cols]`, row-major, with room for `capacity` rows.
pub struct Tensor {
    data: Floats,
    capacity: usize,
    rows: usize,
    cols: usize,
}

impl Tensor {
    pub(super) fn new(capacity: usize, cols: usize) -> Tensor {
        Tensor {
            data: Floats::zeroed(capacity * cols),
            capacity,
            rows: 0,
            cols,
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Most rows.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The current rows, row-major.
    pub fn values(&self) -> &[f32] {
        &self.data[..self.rows * self.cols]
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        let len = self.rows * self.cols;
        &mut self.data[..len]
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.values()[row * self.cols..][..self.cols]
    }

    /// Sets the number of rows and checks the width.
    pub(super) fn resize(&mut self, rows: usize, cols: usize) {
        assert_eq!(self.cols, cols, "width of an output");
        assert!(
            rows <= self.capacity,
            "{rows} rows in a tensor for {}",
            self.capacity
        );
        self.rows = rows;
    }

    /// Columns `first ..` of every row, to read.
    pub(super) fn input(&self, first: usize) -> Input<'_> {
        Input {
            data: self.values(),
            first,
            stride: self.cols,
            index: None,
            rows: self.rows,
        }
    }

    /// Columns `first ..` of every row, for tasks to write.
    pub(super) fn output(&mut self, first: usize) -> Output {
        let (rows, stride) = (self.rows, self.cols);
        Output::new(self.values_mut(), first, stride, rows)
    }
}

/// Rows to read: `first ..` of rows `stride` apart, or of those that `index` names.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub data: &'a [f32],
    pub first: usize,
    pub stride: usize,
    pub index: Option<&'a [u32]>,
    pub rows: usize,
}

impl<'a> Input<'a> {
    /// Values from `first` to the end of row `row`.
    #[inline]
    pub fn row(&self, row: usize) -> &'a [f32] {
        assert!(row < self.rows);
        let row = self.index.map_or(row, |index| index[row] as usize);
        &self.data[row * self.stride..][..self.stride][self.first..]
    }
}

/// Rows that tasks write, each task its own part.
#[derive(Clone, Copy)]
pub(super) struct Output {
    base: *mut f32,
    first: usize,
    stride: usize,
    rows: usize,
}

// SAFETY: plain memory; that no two tasks write the same values is the promise of `slice`'s callers.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    pub fn new(data: &mut [f32], first: usize, stride: usize, rows: usize) -> Output {
        assert!(data.len() >= rows * stride && first <= stride);
        Output {
            base: data.as_mut_ptr(),
            first,
            stride,
            rows,
        }
    }

    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The same rows from column `first` on.
    pub fn columns(&self, first: usize) -> Output {
        assert!(self.first + first <= self.stride);
        Output {
            first: self.first + first,
            ..*self
        }
    }

    /// Where columns `col ..` of row `row` begin; `len` of them lie inside the row.
    #[inline]
    pub fn ptr(&self, row: usize, col: usize, len: usize) -> *mut f32 {
        assert!(row < self.rows && self.first + col + len <= self.stride);
        // SAFETY: inside the slice by the assertion.
        unsafe { self.base.add(row * self.stride + self.first + col) }
    }

    /// Columns `col .. col + len` of row `row`.
    ///
    /// # Safety
    /// The memory is still borrowed for this `Output`, and nothing else reads or writes these values
    /// while the slice lives.
    #[allow(clippy::mut_from_ref)]
    #[inline]
    pub unsafe fn slice(&self, row: usize, col: usize, len: usize) -> &mut [f32] {
        // SAFETY: `ptr` is valid for `len` values; exclusivity is the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.ptr(row, col, len), len) }
    }
}
