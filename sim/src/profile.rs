//! How long things take on a modelled worker. A profile is a file, so that a measurement can write it.
//!
//! ```text
//! decode    = base + sequence * decoding + context * their tokens
//! prefill   = prefill_base + token * tokens + token_context * sum of each one's context   (chunk by chunk)
//! both      = the larger base, and the rest of either
//! transfer  = latency + bytes / bandwidth, one after another on the sender's link
//! ```
//!
//! The default is one rank of DeepSeek-V3 on an H200, fitted to bench/results/2026-11-30-cuda.md:
//!
//! - decode, rank of 32, 4096 tokens each: 26.954, 38.916 and 64.961 ms for 64, 128 and 256 sequences. The least
//!   squares line is 13.93 ms + 0.1988 ms a sequence (it misses the points by 1.2 % at most). Latent attention took
//!   14.601 ms of the 128's: 27.85 ns a sequence and token; the rest of the slope is 84.7 us a sequence.
//! - prefill, a chunk of 4096 from nothing: 624.368 ms, of which latent attention took 220.364 ms: 26.27 ns a token and
//!   token before it. Only this chunk was measured, so the base is taken to be decode's (the same weights are read),
//!   and the rest is 95.2 us a token.
//!
//! Not measured, and assumed: 40 GB/s and 0.5 ms between machines (one 400 Gbit/s card at 80 %), 0.5 ms from process
//! to process, 90 s from the order for a replica to its first request, steps that vary by 3 %.

use serde::{Deserialize, Serialize};

use crate::clock::{Nanos, nanos};
use crate::experts::Group;
use crate::scenario::ScenarioError;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    pub step: StepTime,
    pub transfer: Transfer,
    /// Seconds that a message takes from process to process.
    pub hop: f64,
    /// Seconds from the order for a replica to when its workers attach, and the standard deviation of that.
    pub start: f64,
    pub start_deviation: f64,
    /// Standard deviation of a step's time, as a part of it.
    pub noise: f64,
    /// Whose experts are uneven. `None`: even, as where the default's times were measured.
    pub group: Option<Group>,
    pub prefill: Engine,
    pub decode: Engine,
}

/// Seconds, all of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepTime {
    /// Of a step that decodes.
    pub base: f64,
    /// Of a step that computes prompt tokens. Absent: `base`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_base: Option<f64>,
    /// Of each sequence that decodes.
    pub sequence: f64,
    /// Of so many sequences together, where that is no line through 0: `[sequences, seconds]` by number, the last for
    /// the largest batch measured. Lines lie between them, and past the last, each costs `sequence`. Absent: all do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub batch: Vec<[f64; 2]>,
    /// Of each token that such a sequence looks back at.
    pub context: f64,
    /// Of each prompt token.
    pub token: f64,
    /// Of each token that a prompt token looks back at.
    pub token_context: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// Seconds.
    pub latency: f64,
    /// Bytes a second.
    pub bandwidth: f64,
    pub page_bytes: f64,
}

/// How a worker's engine is sized; as the flags of the same names.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    pub max_batch_tokens: usize,
    pub max_running: usize,
    pub kv_pages: usize,
    pub local_prefill_tokens: usize,
}

impl Default for Profile {
    fn default() -> Profile {
        let engine = Engine {
            max_batch_tokens: 4096,
            max_running: 128,
            kv_pages: 12_288,
            local_prefill_tokens: 16,
        };
        Profile {
            step: StepTime {
                base: 13.93e-3,
                prefill_base: None,
                sequence: 84.7e-6,
                batch: Vec::new(),
                context: 27.85e-9,
                token: 95.2e-6,
                token_context: 26.27e-9,
            },
            transfer: Transfer {
                latency: 0.5e-3,
                bandwidth: 40e9,
                // 62 layers of 64 rows of 576 values in bf16.
                page_bytes: 4_571_136.0,
            },
            hop: 0.5e-3,
            start: 90.0,
            start_deviation: 10.0,
            noise: 0.03,
            group: None,
            prefill: engine,
            decode: Engine {
                max_running: 256,
                ..engine
            },
        }
    }
}

impl Profile {
    /// Reads YAML, and thus JSON. What is absent is the default's.
    ///
    /// # Errors
    /// Says where the text is no profile.
    pub fn parse(text: &str) -> Result<Profile, ScenarioError> {
        ScenarioError::read(text)
    }
}

/// What one step computes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Work {
    /// Sequences that decode, and the tokens that they look back at.
    pub decoding: u64,
    pub context: u64,
    /// Prompt tokens, and the sum of what each looks back at.
    pub tokens: u64,
    pub token_context: f64,
}

impl Work {
    /// A prompt's next `tokens` after `before`.
    pub fn chunk(&mut self, tokens: u64, before: u64) {
        self.tokens += tokens;
        self.token_context += tokens as f64 * (before as f64 + tokens as f64 / 2.0);
    }
}

impl StepTime {
    /// Every step takes so many times as long.
    pub fn scale(&mut self, factor: f64) {
        let StepTime {
            base,
            prefill_base,
            sequence,
            batch,
            context,
            token,
            token_context,
        } = self;
        let always = [base, sequence, context, token, token_context];
        let batch = batch.iter_mut().map(|[_, seconds]| seconds);
        for seconds in always.into_iter().chain(prefill_base).chain(batch) {
            *seconds *= factor;
        }
    }

    pub fn prefill_base(&self) -> f64 {
        self.prefill_base.unwrap_or(self.base)
    }

    /// Seconds of so many sequences that decode, but for what they look back at.
    fn batch(&self, decoding: f64) -> f64 {
        let after = self.batch.partition_point(|[number, _]| *number < decoding);
        let before = after.checked_sub(1).map_or([0.0; 2], |at| self.batch[at]);
        let each = match self.batch.get(after) {
            Some(next) => (next[1] - before[1]) / (next[0] - before[0]),
            None => self.sequence,
        };
        before[1] + each * (decoding - before[0])
    }

    /// Seconds of `steps` steps of the same sequences, each of which is a token longer after each.
    pub fn of(&self, work: &Work, steps: u64) -> f64 {
        let (decoding, context) = (work.decoding as f64, work.context as f64);
        let base = match (work.decoding, work.tokens) {
            (_, 0) => self.base,
            (0, _) => self.prefill_base(),
            _ => self.base.max(self.prefill_base()),
        };
        let one = base
            + self.batch(decoding)
            + self.context * context
            + self.token * work.tokens as f64
            + self.token_context * work.token_context;
        let growth = (steps * steps.saturating_sub(1) / 2) as f64;
        steps as f64 * one + self.context * decoding * growth
    }
}

impl Transfer {
    /// How long the link is busy with `pages`.
    pub fn busy(&self, pages: usize) -> Nanos {
        nanos(pages as f64 * self.page_bytes / self.bandwidth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_within_two_percent_of_what_was_measured() {
        let step = Profile::default().step;
        for (decoding, milliseconds) in [(64, 26.954), (128, 38.916), (256, 64.961)] {
            let work = Work {
                decoding,
                context: 4096 * decoding,
                ..Work::default()
            };
            let ratio = step.of(&work, 1) * 1e3 / milliseconds;
            assert!((ratio - 1.0).abs() < 0.02, "{decoding}: {ratio}");
        }
        let mut work = Work::default();
        work.chunk(4096, 0);
        let ratio = step.of(&work, 1) * 1e3 / 624.368;
        assert!((ratio - 1.0).abs() < 0.01, "prefill: {ratio}");
    }

    #[test]
    fn a_profile_of_one_base_and_no_batches_is_still_one() {
        let text =
            "step: {base: 1e-3, sequence: 2e-4, context: 1e-8, token: 3e-4, token_context: 0}";
        let step = Profile::parse(text).unwrap().step;
        let mut work = Work::default();
        work.chunk(10, 0);
        assert!((step.of(&work, 1) - 4e-3).abs() < 1e-12);
        let work = Work {
            decoding: 5,
            ..Work::default()
        };
        assert!((step.of(&work, 1) - 2e-3).abs() < 1e-12);
    }

    #[test]
    fn several_steps_are_the_sum_of_single_ones() {
        let step = Profile::default().step;
        let mut work = Work {
            decoding: 10,
            context: 1000,
            ..Work::default()
        };
        let together = step.of(&work, 5);
        let mut sum = 0.0;
        for _ in 0..5 {
            sum += step.of(&work, 1);
            work.context += work.decoding;
        }
        assert!((together - sum).abs() < 1e-12);
    }

    #[test]
    fn a_prefill_step_has_its_own_base_and_one_that_decodes_too_the_larger() {
        let mut step = Profile::default().step;
        let decode = Work {
            decoding: 1,
            ..Work::default()
        };
        let (mut prefill, mut both) = (Work::default(), decode);
        prefill.chunk(1, 0);
        both.chunk(1, 0);
        let bases = |step: &StepTime| {
            let without = StepTime {
                base: 0.0,
                prefill_base: None,
                ..step.clone()
            };
            [decode, prefill, both].map(|work| step.of(&work, 1) - without.of(&work, 1))
        };
        let near = |step: &StepTime, expected: [f64; 3]| {
            let off = bases(step).into_iter().zip(expected);
            off.map(|(base, expected)| (base - expected).abs())
                .all(|off| off < 1e-12)
        };
        step.base = 3e-3;
        assert!(near(&step, [3e-3; 3]), "as profiles without the field say");
        step.prefill_base = Some(5e-3);
        assert!(near(&step, [3e-3, 5e-3, 5e-3]));
        step.prefill_base = Some(1e-3);
        assert!(near(&step, [3e-3, 1e-3, 3e-3]));
        step.scale(2.0);
        assert!(near(&step, [6e-3, 2e-3, 6e-3]));
    }

    #[test]
    fn a_batch_takes_what_was_measured_of_it() {
        let mut step = StepTime {
            base: 0.0,
            sequence: 5.0,
            context: 0.0,
            ..Profile::default().step
        };
        let of = |step: &StepTime, decoding| {
            let work = Work {
                decoding,
                ..Work::default()
            };
            step.of(&work, 1)
        };
        let times = |step: &StepTime| [0, 1, 2, 3, 4, 6].map(|decoding| of(step, decoding));
        assert_eq!(times(&step), [0.0, 5.0, 10.0, 15.0, 20.0, 30.0]);
        step.batch = vec![[1.0, 4.0], [2.0, 7.0], [4.0, 16.0]];
        assert_eq!(times(&step), [0.0, 4.0, 7.0, 11.5, 16.0, 26.0]);
        step.scale(2.0);
        assert_eq!(times(&step), [0.0, 8.0, 14.0, 23.0, 32.0, 52.0]);
    }

    #[test]
    fn chunks_look_back_at_what_the_whole_prompt_does() {
        let (mut whole, mut cut) = (Work::default(), Work::default());
        whole.chunk(1000, 0);
        cut.chunk(400, 0);
        cut.chunk(600, 400);
        assert_eq!(whole, cut);
    }
}
