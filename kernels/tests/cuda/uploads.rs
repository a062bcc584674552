//! Weights on their way to the device.

use half::bf16;
use millrace_kernels::{Backend, Pace};
use rand::{Rng, RngCore};

use super::{Pair, matrix};

/// More than the buffers hold, of no round sizes, one right after another, and looked at only in the end.
#[test]
#[ignore = "needs an H100 or H200"]
fn weights_arrive_as_the_host_has_them() {
    let mut pair = Pair::new();
    let mut loaded = Vec::new();
    for round in 0..12 {
        // Rows that are padded, and (even rounds) rows that go as they are.
        let hidden = match round % 2 {
            0 => 8 * pair.rng.random_range(100..200),
            _ => 8 * pair.rng.random_range(100..200) + 3,
        };
        let inter = pair.rng.random_range(1..9000);
        let mut random = |rows: usize, cols: usize| {
            let mut bytes = vec![0; rows * cols * size_of::<bf16>()];
            pair.rng.fill_bytes(&mut bytes);
            // Finite ones.
            bytes.chunks_exact_mut(2).for_each(|value| value[1] &= 0xbf);
            bytes
        };
        let (gate, up, down) = (
            random(inter, hidden),
            random(inter, hidden),
            random(hidden, inter),
        );
        let pace = match round % 4 {
            3 => Pace::Background,
            _ => Pace::Full,
        };
        let expert = pair.cuda.expert(
            matrix(&gate, inter, hidden),
            matrix(&up, inter, hidden),
            matrix(&down, hidden, inter),
            pace,
        );
        let mut expected = Vec::new();
        for (bytes, cols) in [(&gate, hidden), (&up, hidden), (&down, inter)] {
            let padding = vec![0; (cols.next_multiple_of(8) - cols) * size_of::<bf16>()];
            for row in bytes.chunks_exact(cols * size_of::<bf16>()) {
                expected.extend_from_slice(row);
                expected.extend_from_slice(&padding);
            }
        }
        loaded.push((expert.expect("there is room"), expected));
        if round == 8 {
            pair.cuda.loaded();
        }
    }
    for (round, (expert, expected)) in loaded.iter().enumerate() {
        let bytes = pair.cuda.expert_bytes(expert);
        // Behind a name and two sizes.
        assert!(bytes[16..] == expected[..], "expert {round}");
    }
}

/// The first bad row is told, whichever thread came upon which.
#[test]
#[ignore = "needs an H100 or H200"]
fn values_that_are_not_finite_are_refused() {
    let pair = Pair::new();
    let (rows, cols) = (30_001, 1000);
    let mut bytes = vec![0; rows * cols * size_of::<bf16>()];
    for row in [29_000, 7001, 20_000] {
        let at = (row * cols + 5) * size_of::<bf16>();
        bytes[at..at + 2].copy_from_slice(&bf16::INFINITY.to_le_bytes());
    }
    let Err(refused) = pair.cuda.linear(&[matrix(&bytes, rows, cols)], None) else {
        panic!("taken");
    };
    assert!(refused.to_string().contains("7001"), "{refused}");
}
