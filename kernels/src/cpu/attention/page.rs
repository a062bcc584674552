//! Rows of a page as float32, and back.

use std::ops::Range;

use super::{Cache, fp8, value_bytes};
use crate::cpu::buffer::Floats;
use crate::cpu::elementwise;
use crate::cpu::simd::{Isa, Kernel, LANES, Simd};
use crate::{KvDtype, PAGE_TOKENS, PageMemory};

/// Some columns of a page's rows. Whole vectors can be read from every row.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    pub base: *const u8,
    /// Bytes from one row to the next.
    pub stride: usize,
    pub dtype: KvDtype,
    /// Values.
    len: usize,
}

/// The first `filled` rows of a page.
pub(super) struct Source<'a> {
    pub cache: Cache<'a>,
    pub page: usize,
    pub filled: usize,
    /// Narrower values are widened once, for many queries, rather than each time they are read.
    pub widen: bool,
}

impl Source<'_> {
    /// Columns `cols`: where they are, if they are whole vectors that need no widening; or part of
    /// `known`, columns (beginning at its first field) that were asked for before; or as float32 in
    /// `buffer`.
    pub fn columns(
        &self,
        isa: Isa,
        cols: Range<usize>,
        known: Option<(usize, Columns)>,
        buffer: &mut Floats,
    ) -> Columns {
        let layout = self.cache.pages.layout();
        assert!(cols.end <= layout.row_values && self.filled <= PAGE_TOKENS);
        let first = self.cache.pages.row_ptr(self.page, self.cache.layer, 0);
        if !self.widen {
            assert!(cols.len().is_multiple_of(LANES));
            return Columns {
                // SAFETY: inside the row, by the assertion.
                base: unsafe { first.add(cols.start * value_bytes(layout.dtype)) },
                stride: layout.row_bytes(),
                dtype: layout.dtype,
                len: cols.len(),
            };
        }
        let padded = cols.len().next_multiple_of(LANES);
        if let Some((start, known)) = known
            && start <= cols.start
            && cols.start + padded <= start + known.len
        {
            // SAFETY: inside the known columns.
            let base = unsafe { known.base.add((cols.start - start) * size_of::<f32>()) };
            return Columns { base, ..known };
        }
        let rows = buffer.at_least(PAGE_TOKENS * padded);
        for (slot, row) in rows.chunks_exact_mut(padded).take(self.filled).enumerate() {
            let (row, padding) = row.split_at_mut(cols.len());
            // SAFETY: a row of this layer; the batch's sequences hold their pages for reading.
            unsafe {
                let from = first.add(slot * layout.row_bytes());
                match layout.dtype {
                    KvDtype::F32 => {
                        let from = from.add(4 * cols.start).cast();
                        std::ptr::copy_nonoverlapping(from, row.as_mut_ptr(), row.len())
                    }
                    KvDtype::Bf16 => isa.run(Widen {
                        from: from.add(2 * cols.start),
                        to: row,
                    }),
                    KvDtype::Fp8 => {
                        assert_eq!(cols.start, 0, "latent keys and values begin with the row");
                        isa.run(fp8::Decode {
                            from: std::slice::from_raw_parts(from, layout.row_bytes()),
                            latent: layout.latent,
                            to: row,
                        })
                    }
                }
            }
            padding.fill(0.0);
        }
        Columns {
            base: rows.as_ptr().cast(),
            stride: padded * size_of::<f32>(),
            dtype: KvDtype::F32,
            len: padded,
        }
    }
}

/// bf16 values to float32.
struct Widen<'a> {
    from: *const u8,
    to: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (i, to) in self.to.chunks_mut(LANES).enumerate() {
            let count = to.len();
            // SAFETY: `from` holds as many values as `to`; a short rest is copied out first.
            unsafe {
                let from = self.from.add(i * LANES * 2);
                if count == LANES {
                    S::store(to.as_mut_ptr(), S::load_bf16(from));
                } else {
                    let mut rest = [0u8; 2 * LANES];
                    std::ptr::copy_nonoverlapping(from, rest.as_mut_ptr(), 2 * count);
                    S::store_part(to.as_mut_ptr(), S::load_bf16(rest.as_ptr()), count);
                }
            }
        }
    }
}

/// Writes one token's row.
///
/// # Safety
/// Nobody else reads or writes this row now.
pub(in crate::cpu) unsafe fn write_row(
    isa: Isa,
    pages: &PageMemory,
    layer: usize,
    page: usize,
    slot: usize,
    values: &[f32],
) {
    let layout = pages.layout();
    assert_eq!(values.len(), layout.row_values);
    let to = pages.row_ptr(page, layer, slot);
    // SAFETY: a whole row; exclusive by the caller.
    unsafe {
        match layout.dtype {
            KvDtype::F32 => std::ptr::copy_nonoverlapping(values.as_ptr(), to.cast(), values.len()),
            KvDtype::Bf16 => isa.run(Narrow { from: values, to }),
            KvDtype::Fp8 => isa.run(fp8::Encode {
                values,
                latent: layout.latent,
                to: std::slice::from_raw_parts_mut(to, layout.row_bytes()),
            }),
        }
    }
}

/// float32 values to bf16, to the nearest, ties to even.
struct Narrow<'a> {
    from: &'a [f32],
    to: *mut u8,
}

impl Kernel for Narrow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (i, from) in self.from.chunks(LANES).enumerate() {
            let count = from.len();
            // SAFETY: `to` has room for as many values; a short rest goes by way of a buffer.
            unsafe {
                let to = self.to.add(i * LANES * 2);
                let v = elementwise::load::<S>(from.as_ptr(), count);
                if count == LANES {
                    S::store_bf16(to, v);
                } else {
                    let mut rest = [0u8; 2 * LANES];
                    S::store_bf16(rest.as_mut_ptr(), v);
                    std::ptr::copy_nonoverlapping(rest.as_ptr(), to, 2 * count);
                }
            }
        }
    }
}
