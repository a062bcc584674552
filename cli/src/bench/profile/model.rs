//! What was measured, as two lines, and the YAML that says so. Pure.
//!
//! ```text
//! chunk of n tokens after c             base + token * n + token_context * n * (c + n / 2)
//! step of b sequences of c tokens each  base + sequence * b + context * b * c
//! ```
//!
//! Batches lie beside their line where kernels do better with some numbers of rows than with others. The simulation is
//! told of each size that was measured, too (`batch`).
//!
//! A PoolAutoscaler's profile and the simulation's have the same six numbers, so that the one is tested with what the
//! other is told.

use super::Measured;
use super::fit::{Point, fit, worst};
use super::measure::{Batch, Chunk};

pub struct Model {
    /// Base, of each token, of each token that one looks back at.
    prefill: [f64; 3],
    /// Base, of each sequence, of each token that one looks back at.
    decode: [f64; 3],
    /// Sequences of a step, and seconds of these beside base and what they look back at.
    batch: Vec<[f64; 2]>,
    /// How far off they are at most, as a part: in prefill, in decode by the line, in decode by size.
    off: [f64; 3],
}

impl Model {
    pub fn of(measured: &Measured) -> Model {
        let chunks: Vec<Point<3>> = measured.chunks.iter().map(chunk).collect();
        let batches: Vec<Point<3>> = measured.batches.iter().map(batch).collect();
        let (prefill, mut decode) = (fit(&chunks), fit(&batches));
        // A resource whose steps take no time is refused.
        decode[0] = decode[0].max(1e-6);
        let by_size = by_size(&measured.batches, &decode);
        let off_by_size = measured.batches.iter().map(|batch| {
            let own = by_size.iter().find(|[n, _]| *n == batch.sequences as f64);
            let [n, seconds] = own.expect("each size was measured");
            ((decode[0] + seconds + decode[2] * n * batch.context) / batch.seconds - 1.0).abs()
        });
        let off_by_size = off_by_size.fold(0.0, f64::max);
        Model {
            off: [
                worst(&chunks, &prefill),
                worst(&batches, &decode),
                off_by_size,
            ],
            prefill,
            decode,
            batch: by_size,
        }
    }

    fn title(&self, title: &str, decode: f64) -> String {
        let [prefill, decode] = [self.off[0], decode].map(|off| 100.0 * off);
        format!("# {title}; off by {prefill:.0} % at most in prefill and {decode:.0} % in decode.")
    }

    /// `spec.profile` of a PoolAutoscaler.
    pub fn autoscaler(&self, title: &str, measured: &Measured) -> String {
        let [base, token, token_context] = self.prefill;
        let [decode_base, sequence, context] = self.decode;
        format!(
            "{}
profile:
  prefill:
    chunkTokens: {}
    baseSeconds: {base:.4e}
    secondsPerToken: {token:.4e}
    secondsPerTokenContext: {token_context:.4e}
  decode:
    baseSeconds: {decode_base:.4e}
    secondsPerSequence: {sequence:.4e}
    secondsPerContextToken: {context:.4e}
  maxRunning: {}
  kvTokens: {}
",
            self.title(title, self.off[1]),
            measured.chunk_tokens,
            measured.max_running,
            measured.kv_tokens,
        )
    }

    /// `profile` of a scenario.
    pub fn simulation(&self, title: &str) -> String {
        let [prefill_base, token, token_context] = self.prefill;
        let [base, sequence, context] = self.decode;
        let batch = self.batch.iter();
        let batch: Vec<String> = batch.map(|[n, s]| format!("[{n}, {s:.4e}]")).collect();
        format!(
            "{}
step:
  base: {base:.4e}
  sequence: {sequence:.4e}
  batch: [{}]
  context: {context:.4e}
  prefill_base: {prefill_base:.4e}
  token: {token:.4e}
  token_context: {token_context:.4e}
",
            self.title(title, self.off[2]),
            batch.join(", "),
        )
    }
}

/// Each size's own time, by what its steps took at every context. A larger size may take less than a smaller one,
/// where kernels are at their best with so many rows.
fn by_size(batches: &[Batch], [base, _, context]: &[f64; 3]) -> Vec<[f64; 2]> {
    let mut sizes: Vec<usize> = batches.iter().map(|batch| batch.sequences).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let of = |size: usize| {
        let rest = |batch: &Batch| batch.seconds - base - context * size as f64 * batch.context;
        let of_size = batches.iter().filter(|batch| batch.sequences == size);
        let (mut sum, mut weights) = (0.0, 0.0);
        for batch in of_size {
            // Errors count relative to all of the step, as in the fit of the line.
            let weight = batch.seconds.powi(-2);
            sum += weight * rest(batch);
            weights += weight;
        }
        [size as f64, f64::max(0.0, sum / weights)]
    };
    sizes.into_iter().map(of).collect()
}

fn chunk(chunk: &Chunk) -> Point<3> {
    let tokens = chunk.tokens as f64;
    // A token looks back at all before its chunk, and on average at half of its chunk.
    let looks_back = tokens * (chunk.context as f64 + tokens / 2.0);
    Point {
        did: [1.0, tokens, looks_back],
        seconds: chunk.seconds,
    }
}

fn batch(batch: &Batch) -> Point<3> {
    let sequences = batch.sequences as f64;
    Point {
        did: [1.0, sequences, sequences * batch.context],
        seconds: batch.seconds,
    }
}

#[cfg(test)]
mod tests {
    use millrace_sim::profile::{StepTime, Work};

    use super::super::{halves, lengths};
    use super::*;

    /// What a profile is read into must say of every point what was measured.
    fn measured(step: &StepTime) -> Measured {
        let (chunk_tokens, longest) = (512, 1024);
        let mut chunks = Vec::new();
        for tokens in lengths(longest) {
            for context in (0..tokens).step_by(chunk_tokens) {
                let tokens = chunk_tokens.min(tokens - context);
                let mut work = Work::default();
                work.chunk(tokens as u64, context as u64);
                chunks.push(Chunk {
                    tokens,
                    context,
                    seconds: step.of(&work, 1),
                });
            }
        }
        let mut batches = Vec::new();
        for sequences in lengths(16) {
            for context in halves(longest) {
                let work = Work {
                    decoding: sequences as u64,
                    context: (sequences * context) as u64,
                    ..Work::default()
                };
                batches.push(Batch {
                    sequences,
                    context: context as f64,
                    seconds: step.of(&work, 1),
                });
            }
        }
        Measured {
            chunks,
            batches,
            max_running: 16,
            chunk_tokens,
            kv_tokens: 64_000,
        }
    }

    fn step() -> StepTime {
        StepTime {
            base: 5e-5,
            sequence: 2.9e-4,
            batch: Vec::new(),
            context: 9e-7,
            prefill_base: Some(1.2e-3),
            token: 2e-4,
            token_context: 7e-7,
        }
    }

    fn near(read: f64, written: f64) {
        // Five digits are printed.
        assert!((read / written - 1.0).abs() < 1e-3, "{read} for {written}");
    }

    #[test]
    fn a_worker_that_follows_the_formula_is_recovered_by_the_simulation() {
        let written = step();
        let text = Model::of(&measured(&written)).simulation("a model");
        let profile = millrace_sim::profile::Profile::parse(&text).unwrap();
        let read = profile.step;
        near(read.base, written.base);
        near(read.sequence, written.sequence);
        near(read.context, written.context);
        near(read.prefill_base(), written.prefill_base());
        near(read.token, written.token);
        near(read.token_context, written.token_context);
        assert!(text.contains("off by 0 % at most in prefill and 0 %"));
    }

    #[test]
    fn sizes_beside_the_line_are_recovered() {
        let mut written = step();
        let sizes = [1, 2, 3, 4, 6, 8, 12, 16].map(f64::from);
        // Three rows cost what four do.
        let rows = |n: f64| if n == 3.0 { 4.0 } else { n };
        written.batch = sizes.map(|n| [n, 2.9e-4 * rows(n)]).to_vec();
        let text = Model::of(&measured(&written)).simulation("a model");
        let read = millrace_sim::Profile::parse(&text).unwrap().step;
        for (decoding, context) in [(1, 100), (2, 600), (3, 100), (3, 900), (5, 500), (16, 1000)] {
            let work = Work {
                decoding,
                context: decoding * context,
                ..Work::default()
            };
            let off = read.of(&work, 1) / written.of(&work, 1) - 1.0;
            assert!(off.abs() < 0.02, "{decoding} of {context}: {off}");
        }
    }

    #[test]
    fn the_autoscaler_is_told_the_same_numbers() {
        let measured = measured(&step());
        let model = Model::of(&measured);
        let numbers = |text: String| {
            let values = text
                .lines()
                .filter(|line| !line.contains("batch"))
                .filter_map(|line| line.split_once(": "))
                .map(|(_, value)| value.to_owned());
            let mut numbers: Vec<String> = values.filter(|value| value.contains('e')).collect();
            numbers.sort();
            numbers
        };
        let told = numbers(model.autoscaler("a model", &measured));
        assert_eq!(told.len(), 6);
        assert_eq!(told, numbers(model.simulation("a model")));
    }
}
