//! A tensor's rows in 8 bits, kept beside them for the products that read them so.
//!
//! The first product that asks for a tensor's rows in 8 bits makes room for them. From then on the op that writes the
//! tensor writes these, too, where its kernel can, and several products of one input quantise it once.

use std::sync::Arc;

use super::device::Device;
use super::fp8::{self, Quantised};
use super::params;

/// Of columns `first .. first + cols`.
#[derive(Default)]
pub struct Narrow {
    space: fp8::Space,
    columns: Option<(usize, usize)>,
    /// Whether they are of the rows that the tensor has now.
    fresh: bool,
}

impl Narrow {
    /// The tensor has changed.
    pub fn forget(&mut self) {
        self.fresh = false;
    }

    /// Where an op that writes all of these columns puts them as well; nowhere, if nobody asked yet.
    pub fn filled(
        &mut self,
        device: &Arc<Device>,
        rows: usize,
        capacity: usize,
        columns: (usize, usize),
    ) -> params::Narrow {
        if self.columns != Some(columns) {
            return params::Narrow::default();
        }
        self.fresh = true;
        let room = self.room(device, rows, capacity, columns.1);
        params::Narrow {
            codes: room.codes,
            scales: room.scales,
            stride: room.cols as u64,
            scale_stride: room.scale_stride as u64,
        }
    }

    /// Rows in 8 bits; quantised now unless that was done before.
    pub fn of(
        &mut self,
        device: &Arc<Device>,
        capacity: usize,
        rows: fp8::Rows,
        first: usize,
    ) -> Quantised {
        let columns = Some((first, rows.cols));
        let room = self.room(device, rows.count, capacity, rows.cols);
        if !self.fresh || self.columns != columns {
            fp8::quantise(device, rows, &room);
            self.columns = columns;
            self.fresh = true;
        }
        room
    }

    fn room(
        &mut self,
        device: &Arc<Device>,
        rows: usize,
        capacity: usize,
        cols: usize,
    ) -> Quantised {
        Quantised {
            rows,
            likely: rows,
            ..self.space.room(device, capacity, capacity, cols)
        }
    }
}
