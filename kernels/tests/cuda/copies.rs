//! Copies of pages that are begun together.

use millrace_kernels::{Backend, CopyPart, KvDtype, PageLayout};
use rand::{Rng, RngCore, seq::SliceRandom};

use super::Pair;

/// Neighbours that stay beside each other and parts that do not, of any size and at any address.
#[test]
#[ignore = "needs an H100 or H200"]
fn copies_that_are_begun_together_all_arrive() {
    let mut pair = Pair::new();
    let layout = PageLayout {
        layers: 3,
        row_values: 576,
        latent: 512,
        dtype: KvDtype::Bf16,
    };
    let memory = pair.cuda.pages(layout, 64).expect("there is room");
    let (base, half) = (memory.base() as u64, 32 * layout.page_bytes());
    let (_, copier) = memory.device().expect("pages of a device");
    for most in [1, 700, 40_000, layout.page_bytes()] {
        let mut bytes = vec![0; 2 * half];
        pair.rng.fill_bytes(&mut bytes);
        // SAFETY: all of the pool, which nobody else uses.
        unsafe { copier.write(&bytes, memory.base()) };

        let (mut runs, mut from) = (Vec::new(), 0);
        while from < half && runs.len() < 2000 {
            let mut run = Vec::new();
            for _ in 0..pair.rng.random_range(1..4) {
                let count = pair.rng.random_range(1..=most).min(half - from);
                run.push((from, count));
                from += count;
            }
            runs.push(run);
        }
        runs.shuffle(&mut pair.rng);
        let mut to = half;
        let mut parts = Vec::new();
        for (from, count) in runs.into_iter().flatten().filter(|(_, count)| *count > 0) {
            parts.push(CopyPart {
                from: base + from as u64,
                to: base + to as u64,
                bytes: count,
            });
            bytes.copy_within(from..from + count, to);
            to += count;
        }
        // SAFETY: from the pool's first half to its second, no byte of which is written twice.
        let mut copies = unsafe { copier.begin_copies(&parts) }.expect("a device that copies");
        copies.wait().expect("a device that copies");
        assert!(copies.is_done().expect("a device that copies"));

        let mut arrived = vec![0; bytes.len()];
        // SAFETY: all of the pool.
        unsafe { copier.read(memory.base(), &mut arrived) };
        assert!(arrived == bytes, "{} parts of up to {most}", parts.len());
    }
}
