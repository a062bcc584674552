//! Windows, part by part.

use crate::ExchangeShape;

/// Where the parts of a window are; all ranks' are alike.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub counts: usize,
    pub arrived: usize,
    pub returned: usize,
    pub work: usize,
    pub rows: usize,
    pub results: usize,
    pub bytes: usize,
    pub row_bytes: usize,
}

impl Layout {
    pub(super) fn of(shape: &ExchangeShape) -> Layout {
        let mut at = 0;
        let mut part = |bytes: usize| {
            let begin = at;
            at += bytes.next_multiple_of(256);
            begin
        };
        let (ranks, pieces) = (shape.ranks, shape.rows * shape.per_token);
        // Wide enough for either form; what is in 8 bits has its scales behind it.
        let row_bytes = (2 * shape.hidden).next_multiple_of(16);
        Layout {
            counts: part(8 * ranks),
            arrived: part(8 * ranks),
            returned: part(8 * ranks),
            work: part(12 * ranks * pieces),
            rows: part(row_bytes * ranks * shape.rows),
            results: part(2 * shape.hidden * pieces),
            row_bytes,
            bytes: at,
        }
    }
}
