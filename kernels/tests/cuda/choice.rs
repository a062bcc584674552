//! Rows of logits besides the choice: changes before it, and log-probs.

use std::borrow::Cow;

use millrace_kernels::{Edits, LogProbs, Scored, Seen};

use super::*;

const COLS: [usize; 7] = [1, 5, 31, 1000, 1025, 32_769, 129_280];
const ROWS: usize = 9;

/// Few different values here and there, what cannot be compared in some rows, and what cannot be chosen.
fn spoil(rng: &mut SmallRng, values: &mut [f32], cols: usize) {
    for (number, row) in values.chunks_exact_mut(cols).enumerate() {
        let mut some = |value: f32, count: usize| {
            for _ in 0..count {
                row[rng.random_range(0..cols)] = value;
            }
        };
        match number % ROWS {
            1 => some(f32::NAN, 1),
            2 => some(f32::NAN, cols),
            3 => some(f32::NEG_INFINITY, cols),
            4 => row.fill(f32::NEG_INFINITY),
            5 => some(f32::INFINITY, 1),
            6 => row.iter_mut().for_each(|value| *value = value.round()),
            7 => row.fill(-0.5),
            _ => {
                some(0.0, cols / 4);
                some(-0.0, cols / 4);
            }
        }
    }
}

/// Rows of the same bits on both, of all that a row may be.
fn logits(pair: &mut Pair, cols: usize) -> Both {
    let mut values = pair.values(ROWS * cols);
    spoil(&mut pair.rng, &mut values, cols);
    let mut both = pair.empty_f32(ROWS, cols);
    pair.cpu.write(&values, &mut both.cpu);
    pair.cuda.write(&values, &mut both.cuda);
    both
}

/// Lists of one row.
struct Lists {
    bias: Vec<(u32, f32)>,
    banned: Vec<u32>,
    seen: Vec<Seen>,
    repetition: f32,
    frequency: f32,
    presence: f32,
}

impl Lists {
    /// Some of them empty, some with tokens twice, some with tokens that there are not.
    fn random(rng: &mut SmallRng, cols: usize) -> Lists {
        let most = [0, 1, 3, 40, 3000][rng.random_range(0..5)];
        let count = |rng: &mut SmallRng| rng.random_range(0..=most);
        let token = |rng: &mut SmallRng| rng.random_range(0..cols as u32 + 3);
        let few = |rng: &mut SmallRng| token(rng) % (1 + most as u32 / 3);
        let mut seen: Vec<u32> = (0..count(rng)).map(|_| token(rng)).collect();
        seen.sort_unstable();
        seen.dedup();
        Lists {
            bias: (0..count(rng))
                .map(|_| (few(rng), rng.random_range(-3.0..3.0)))
                .collect(),
            banned: (0..count(rng) / 8).map(|_| few(rng)).collect(),
            seen: seen
                .into_iter()
                .map(|token| Seen {
                    token,
                    count: rng.random_range(0u32..4).pow(9),
                })
                .collect(),
            repetition: [1.0, 1.1, 0.7][rng.random_range(0..3)],
            frequency: [0.0, 0.37, -1.3][rng.random_range(0..3)],
            presence: [0.0, 0.21, -0.9][rng.random_range(0..3)],
        }
    }

    fn edits(&self) -> Edits<'_> {
        Edits {
            bias: &self.bias,
            banned: self.banned.clone(),
            repetition: self.repetition,
            frequency: self.frequency,
            presence: self.presence,
            seen: Cow::Borrowed(&self.seen),
        }
    }
}

/// The same bits, or both not a number.
#[track_caller]
fn assert_same(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let same = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
        assert!(same, "value {i} is {got:e}, on the processor {want:e}");
    }
}

#[test]
#[ignore = "needs an H100 or H200"]
fn changes_of_rows_are_the_processors_to_the_bit() {
    let mut pair = Pair::new();
    for cols in COLS {
        for _ in 0..12 {
            let mut both = logits(&mut pair, cols);
            let lists: Vec<(usize, Lists)> = (0..ROWS)
                .rev()
                .filter(|row| row % 4 != 2)
                .map(|row| (row, Lists::random(&mut pair.rng, cols)))
                .collect();
            let edits: Vec<(usize, Edits<'_>)> = lists
                .iter()
                .map(|(row, lists)| (*row, lists.edits()))
                .collect();
            let edits: Vec<(usize, &Edits<'_>)> =
                edits.iter().map(|(row, edits)| (*row, edits)).collect();

            let values = both.cpu.values()[..cols].to_vec();
            let mut alone = pair.cuda.tensor_f32(1, cols);
            pair.cuda.write(&values, &mut alone);

            pair.cpu.edit(&mut both.cpu, &edits);
            pair.cuda.edit(&mut both.cuda, &edits);
            let got = pair.cuda_rows(&both.cuda);
            assert_same(&got, both.cpu.values());
            let (mut best, mut want) = (Vec::new(), Vec::new());
            pair.cuda.arg_max(&both.cuda, &mut best);
            pair.cpu.arg_max(&both.cpu, &mut want);
            for (got, want) in best.iter().zip(&want) {
                assert_eq!(got.0, want.0);
                assert_same(&[got.1], &[want.1]);
            }

            // Row 0 is the last of the list.
            pair.cuda.edit(&mut alone, &edits[edits.len() - 1..]);
            assert_same(&pair.cuda_rows(&alone), &got[..cols]);
        }
    }
}

#[test]
#[ignore = "needs an H100 or H200"]
fn no_change_is_none_at_all() {
    let mut pair = Pair::new();
    let mut both = logits(&mut pair, 1000);
    pair.cuda.edit(&mut both.cuda, &[]);
    let nothing = Edits::default();
    pair.cuda
        .edit(&mut both.cuda, &[(0, &nothing), (8, &nothing)]);
    assert_same(&pair.cuda_rows(&both.cuda), both.cpu.values());
}

/// The same tokens in the same order, and log-probs that differ by rounding.
fn error(got: &LogProbs, want: &LogProbs) -> f64 {
    let tokens =
        |log_probs: &LogProbs| -> Vec<u32> { log_probs.top.iter().map(|one| one.0).collect() };
    assert_eq!(tokens(got), tokens(want));
    let values = |log_probs: &LogProbs| -> Vec<f32> {
        let top = log_probs.top.iter().map(|one| one.1);
        top.chain([log_probs.chosen]).collect()
    };
    let errors = values(got)
        .into_iter()
        .zip(values(want))
        .map(|(got, want)| {
            let same = got == want || (got.is_nan() && want.is_nan());
            match same {
                true => 0.0,
                false => f64::from((got - want).abs()) / f64::from(want.abs()).max(1.0),
            }
        });
    // NaN where one alone is: that never passes.
    errors.fold(0.0, |most, error| match error.is_nan() {
        true => f64::INFINITY,
        false => error.max(most),
    })
}

#[test]
#[ignore = "needs an H100 or H200"]
fn log_probs_are_the_processors_but_for_rounding() {
    let mut pair = Pair::new();
    let mut worst = Worst::new("log-probs", 1e-6);
    for cols in COLS {
        let both = logits(&mut pair, cols);
        let counts = [0, 1, 2, 20, 100, 2000, cols, cols + 5];
        for most in counts {
            let mut scored = Vec::new();
            for row in 0..ROWS {
                // Rows in any order and several times, each with a number of its own.
                for _ in 0..2 {
                    scored.push(Scored {
                        row: ROWS - 1 - row,
                        token: pair.rng.random_range(0..cols as u32),
                        count: pair.rng.random_range(0..=most),
                    });
                }
            }
            scored[3].count = most;
            let (mut got, mut want, mut again) = (Vec::new(), Vec::new(), Vec::new());
            pair.cuda.log_probs(&both.cuda, &scored, &mut got);
            pair.cpu.log_probs(&both.cpu, &scored, &mut want);
            for ((got, want), one) in got.iter().zip(&want).zip(&scored) {
                worst.see(error(got, want), (cols, one));
                pair.cuda.log_probs(&both.cuda, &[*one], &mut again);
                let bits = |one: &LogProbs| -> Vec<(u32, u32)> {
                    let top = one
                        .top
                        .iter()
                        .map(|(token, value)| (*token, value.to_bits()));
                    top.chain([(0, one.chosen.to_bits())]).collect()
                };
                assert_eq!(bits(&again[0]), bits(got), "alone");
            }
            assert_eq!(got.len(), scored.len());
        }
    }
    let both = pair.rows_f32(2, 100);
    let mut none = vec![LogProbs {
        chosen: 0.0,
        top: Vec::new(),
    }];
    pair.cuda.log_probs(&both.cuda, &[], &mut none);
    assert!(none.is_empty());
}
