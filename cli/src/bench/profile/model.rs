//! What was measured, as two lines, and the YAML that says so. Pure.
//!
//! ```text
//! chunk of n tokens after c             base + token * n + token_context * n * (c + n / 2)
//! step of b sequences of c tokens each  base + sequence * b + context * b * c
//! ```
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
    /// How far off they are at most, as a part.
    off: [f64; 2],
}

impl Model {
    pub fn of(measured: &Measured) -> Model {
        let chunks: Vec<Point<3>> = measured.chunks.iter().map(chunk).collect();
        let batches: Vec<Point<3>> = measured.batches.iter().map(batch).collect();
        let (prefill, mut decode) = (fit(&chunks), fit(&batches));
        // A resource whose steps take no time is refused.
        decode[0] = decode[0].max(1e-6);
        Model {
            prefill,
            decode,
            off: [worst(&chunks, &prefill), worst(&batches, &decode)],
        }
    }

    fn title(&self, title: &str) -> String {
        let [prefill, decode] = self.off.map(|off| 100.0 * off);
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
            self.title(title),
            measured.chunk_tokens,
            measured.max_running,
            measured.kv_tokens,
        )
    }

    /// `profile` of a scenario.
    pub fn simulation(&self, title: &str) -> String {
        let [prefill_base, token, token_context] = self.prefill;
        let [base, sequence, context] = self.decode;
        format!(
            "{}
step:
  base: {base:.4e}
  sequence: {sequence:.4e}
  context: {context:.4e}
  prefill_base: {prefill_base:.4e}
  token: {token:.4e}
  token_context: {token_context:.4e}
",
            self.title(title),
        )
    }
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
        for sequences in halves(16) {
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
    fn the_autoscaler_is_told_the_same_numbers() {
        let measured = measured(&step());
        let model = Model::of(&measured);
        let numbers = |text: String| {
            let values = text
                .lines()
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
