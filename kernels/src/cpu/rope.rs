//! Rotary position embedding.

use crate::RopeTable;

/// Rotates the first `rope.dim` values of a head for `position`. Products and sums are rounded
/// separately on every instruction set.
pub(super) fn rotate(head: &mut [f32], rope: &RopeTable, position: u32) {
    let pairs = rope.dim / 2;
    let first = position as usize * pairs;
    let (cos, sin) = (&rope.cos[first..][..pairs], &rope.sin[first..][..pairs]);
    let turn = |a: f32, b: f32, c: f32, s: f32| (a * c - b * s, b * c + a * s);
    if rope.interleaved {
        for ((pair, c), s) in head[..rope.dim]
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .zip(cos)
            .zip(sin)
        {
            let (a, b) = turn(pair[0], pair[1], *c, *s);
            *pair = [a, b];
        }
    } else {
        let (first, second) = head[..rope.dim].split_at_mut(pairs);
        for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = turn(*a, *b, *c, *s);
        }
    }
}
