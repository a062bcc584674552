//! Activations on the device.

use std::cell::RefCell;
use std::sync::Arc;

use half::bf16;

use super::device::Device;
use super::fp8::{self, Quantised};
use super::memory::Memory;
use super::narrow::Narrow;
use super::params::{self, Address, Matrix};

/// What a value of a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    F32,
    Bf16,
}

impl Kind {
    pub fn bytes(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::Bf16 => 2,
        }
    }
}

/// Rows begin 16 bytes apart at least, as copies into shared memory want it.
const ROW_VALUES: usize = 8;

/// `[rows, cols]`, row-major, with room for `capacity` rows.
pub struct Tensor {
    memory: Memory,
    kind: Kind,
    capacity: usize,
    rows: usize,
    cols: usize,
    /// Of the device's ops; one thread at a time has a tensor.
    narrow: RefCell<Narrow>,
}

impl Tensor {
    pub(super) fn new(device: &Arc<Device>, capacity: usize, cols: usize, kind: Kind) -> Tensor {
        let bytes = capacity * cols.next_multiple_of(ROW_VALUES) * kind.bytes();
        Tensor {
            memory: Memory::noted(device, bytes, "activations"),
            kind,
            capacity,
            rows: 0,
            cols,
            narrow: RefCell::default(),
        }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Values from one row to the next.
    pub(super) fn stride(&self) -> usize {
        self.cols.next_multiple_of(ROW_VALUES)
    }

    pub(super) fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    pub(super) fn address(&self) -> Address {
        self.memory.address()
    }

    pub(super) fn matrix(&self) -> Matrix {
        Matrix {
            data: self.address(),
            stride: self.stride() as u64,
        }
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
        self.changed();
    }

    /// An op wrote to it.
    pub(super) fn changed(&mut self) {
        self.narrow.get_mut().forget();
    }

    /// Where an op that writes columns `first .. first + cols` of all rows puts them in 8 bits besides.
    pub(super) fn narrow_fill(
        &mut self,
        device: &Arc<Device>,
        first: usize,
        cols: usize,
    ) -> params::Narrow {
        let narrow = self.narrow.get_mut();
        narrow.filled(device, self.rows, self.capacity, (first, cols))
    }

    /// Columns `first .. first + cols` of all rows in 8 bits.
    pub(super) fn narrow(&self, device: &Arc<Device>, first: usize, cols: usize) -> Quantised {
        assert_eq!(self.kind, Kind::Bf16, "products are of bf16");
        let rows = fp8::Rows {
            x: self.address() + 2 * first as u64,
            stride: self.stride(),
            count: self.rows,
            counted: 0,
            likely: self.rows,
            cols,
            index: 0,
            gated: false,
        };
        let mut narrow = self.narrow.borrow_mut();
        narrow.of(device, self.capacity, rows, first)
    }

    /// The current rows, row-major. Waits for the device.
    pub(super) fn read(&self, out: &mut Vec<f32>) {
        out.clear();
        let stride = self.stride();
        if self.rows == 0 || self.cols == 0 {
            return;
        }
        match self.kind {
            Kind::F32 => {
                let mut values = vec![0.0f32; self.rows * stride];
                self.memory.download(0, &mut values);
                let rows = values.chunks_exact(stride);
                out.extend(rows.flat_map(|row| &row[..self.cols]));
            }
            Kind::Bf16 => {
                let mut values = vec![bf16::ZERO; self.rows * stride];
                self.memory.download(0, &mut values);
                let rows = values.chunks_exact(stride);
                out.extend(
                    rows.flat_map(|row| row[..self.cols].iter().map(|value| value.to_f32())),
                );
            }
        }
    }

    /// Makes `values` (whole rows, row-major) the rows.
    pub(super) fn write(&mut self, values: &[f32]) {
        let (cols, stride) = (self.cols, self.stride());
        self.resize(values.len() / cols, cols);
        let rows = values.chunks_exact(cols);
        match self.kind {
            Kind::F32 => {
                let mut padded = vec![0.0f32; self.rows * stride];
                for (to, from) in padded.chunks_exact_mut(stride).zip(rows) {
                    to[..cols].copy_from_slice(from);
                }
                self.memory.upload(0, &padded);
            }
            Kind::Bf16 => {
                let mut padded = vec![bf16::ZERO; self.rows * stride];
                for (to, from) in padded.chunks_exact_mut(stride).zip(rows) {
                    for (to, from) in to.iter_mut().zip(from) {
                        *to = bf16::from_f32(*from);
                    }
                }
                self.memory.upload(0, &padded);
            }
        }
    }
}
