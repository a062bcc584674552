//! Steps of a worker: begun, perhaps cut short, ended.

use millrace_engine::scheduler::Share;
use millrace_engine::sequence::Sequence;
use millrace_engine::{Kind, RequestId};

use super::{Told, Worker, variation};
use crate::clock::{Nanos, nanos, seconds};
use crate::profile::{StepTime, Work};
use crate::random::Random;

/// A run of steps is no longer than this: workers report at least so often.
const LONGEST_RUN: f64 = 1.0;

/// One step, or a run of decode steps of the same sequences.
pub(super) struct Step {
    number: u64,
    began: Nanos,
    shares: Vec<Share>,
    work: Work,
    /// Steps that were scheduled, and those of them that will be done.
    scheduled: u64,
    steps: u64,
    factor: f64,
}

/// Names the end of a step. One that was cut short has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepEnd {
    pub at: Nanos,
    number: u64,
    steps: u64,
}

impl Step {
    fn time(&self, model: &StepTime, steps: u64) -> Nanos {
        // A step takes some time, so that a worker cannot keep the clock from going on.
        nanos(model.of(&self.work, steps) * self.factor).max(1)
    }

    fn end(&self, model: &StepTime) -> StepEnd {
        StepEnd {
            at: self.began + self.time(model, self.steps),
            number: self.number,
            steps: self.steps,
        }
    }

    /// Steps that are done at `now` (`ended`), or that it takes to be past it.
    fn steps_at(&self, model: &StepTime, now: Nanos, ended: bool) -> u64 {
        let steps = 1..=self.steps;
        let mut past = steps.filter(|&steps| self.began + self.time(model, steps) >= now);
        let first = past.next().unwrap_or(self.steps);
        if ended && self.began + self.time(model, first) > now {
            first - 1
        } else {
            first
        }
    }

    /// Rows that stand for tokens which earlier steps of the run have yet to sample.
    pub(super) fn rows_ahead(&self) -> usize {
        (self.scheduled - 1) as usize * self.shares.len()
    }
}

impl Worker {
    /// There are commands. If a step is under way it ends as soon as it may; otherwise one begins. Returns its end,
    /// where that is news.
    pub fn wake(
        &mut self,
        now: Nanos,
        random: &mut Random,
        told: &mut Vec<Told>,
    ) -> Option<StepEnd> {
        let Some(step) = &mut self.step else {
            return self.begin(now, random, told);
        };
        let steps = step.steps_at(&self.profile.step, now, false);
        if steps == step.steps {
            return None;
        }
        step.steps = steps;
        Some(step.end(&self.profile.step))
    }

    /// The step ends, if it still ends then, and the next begins. Returns that one's end.
    pub fn end(
        &mut self,
        end: StepEnd,
        random: &mut Random,
        told: &mut Vec<Told>,
    ) -> Option<StepEnd> {
        let step = self
            .step
            .take_if(|step| (step.number, step.steps) == (end.number, end.steps))?;
        self.finish(step, end.at, told);
        self.begin(end.at, random, told)
    }

    fn begin(&mut self, now: Nanos, random: &mut Random, told: &mut Vec<Told>) -> Option<StepEnd> {
        self.take_commands(told);
        let steps = self.run_length();
        let limit = if steps > 1 {
            for sequence in &mut self.scheduler.running {
                let length = sequence.tokens.len() + steps as usize - 1;
                sequence.tokens.resize(length, 0);
            }
            usize::MAX
        } else {
            let engine = &self.engine;
            engine.max_batch_tokens.max(2 * engine.max_running)
        };
        let mut events = Vec::new();
        let shares = self.scheduler.schedule(limit, &mut events);
        self.blocked = self.scheduler.waiting() > 0;
        self.reserve(events, told);
        if shares.is_empty() {
            return None;
        }
        let mut work = Work::default();
        for share in &shares {
            let sequence = &mut self.scheduler.running[share.sequence];
            if steps > 1 || sequence.is_decoding() {
                work.decoding += 1;
                work.context += sequence.computed as u64 + 1;
            } else {
                work.chunk(share.tokens as u64, sequence.computed as u64);
            }
            if let Kind::Prefill { .. } = sequence.kind {
                let cached = announce(sequence, false);
                self.send_pages(now, cached);
            }
        }
        self.steps_begun += 1;
        let step = Step {
            number: self.steps_begun,
            began: now,
            shares,
            work,
            scheduled: steps,
            steps,
            factor: self.slowdown * variation(random, self.profile.noise),
        };
        let end = step.end(&self.profile.step);
        self.step = Some(step);
        Some(end)
    }

    /// How many steps will be alike, if nothing arrives: those until the first sequence ends.
    fn run_length(&self) -> u64 {
        let running = &self.scheduler.running;
        if running.is_empty() || (self.scheduler.waiting() > 0 && !self.blocked) {
            return 1;
        }
        let (mut shortest, mut context) = (usize::MAX, 0);
        for sequence in running {
            if !sequence.is_decoding() {
                return 1;
            }
            shortest = shortest.min(sequence.sampling.max_tokens - sequence.output_tokens());
            context += sequence.computed as u64 + 1;
        }
        let work = Work {
            decoding: running.len() as u64,
            context,
            ..Work::default()
        };
        let one = self.profile.step.of(&work, 1) * self.slowdown;
        let steps = shortest.min((LONGEST_RUN / one) as usize).max(1);
        let missing =
            |s: &Sequence| Sequence::pages_for(s.computed + steps).saturating_sub(s.pages.len());
        // Where pages run out somebody is preempted, and that is the scheduler's to decide, step by step.
        match running.iter().map(missing).sum::<usize>() <= self.pool.available() {
            true => steps as u64,
            false => 1,
        }
    }

    fn finish(&mut self, step: Step, now: Nanos, told: &mut Vec<Told>) {
        if step.work.decoding > 0 {
            let apart = seconds(now - step.began) / step.steps as f64;
            self.generated = Some((step.work.decoding * step.steps, apart));
        }
        let undone = (step.scheduled - step.steps) as usize;
        let mut ended = Vec::new();
        let mut sent = 0;
        for share in &step.shares {
            let sequence = &mut self.scheduler.running[share.sequence];
            sequence.tokens.truncate(sequence.tokens.len() - undone);
            sequence.computed += share.tokens - undone;
            if self.prefix_cache {
                sequence.store_full_pages(&self.pool);
            }
            let id = sequence.id;
            if share.samples {
                sequence.tokens.push(0);
            }
            if let Kind::Prefill { .. } = sequence.kind {
                sent += announce(sequence, share.samples);
                if share.samples {
                    ended.push((id, true));
                }
            } else if share.samples {
                if !std::mem::replace(&mut sequence.started, true) {
                    told.push(Told::FirstToken { id });
                }
                if sequence.output_tokens() >= sequence.sampling.max_tokens {
                    ended.push((id, false));
                }
            }
        }
        self.send_pages(now, sent);
        for (id, prefill) in ended {
            self.blocked = false;
            self.scheduler.remove(id);
            told.push(match prefill {
                true => Told::Prefilled {
                    id,
                    at: self.link_free + nanos(self.profile.transfer.latency),
                },
                false => Told::Finished { id },
            });
        }
    }

    fn send_pages(&mut self, now: Nanos, pages: usize) {
        self.link_free = self.link_free.max(now) + self.profile.transfer.busy(pages);
    }

    /// Tokens that a sequence has generated when its worker dies at `now`. `None` if it did not run.
    pub fn output(&self, id: RequestId, now: Nanos) -> Option<usize> {
        let running = &self.scheduler.running;
        let at = running.iter().position(|sequence| sequence.id == id)?;
        let known = running[at].output_tokens();
        let Some(step) = &self.step else {
            return Some(known);
        };
        // The run's tokens stand there already; those that were not sampled yet do not count.
        let ahead = match step.shares.iter().any(|share| share.sequence == at) {
            true => step.scheduled - 1,
            false => 0,
        };
        let done = match step.steps {
            1 => 0,
            _ => step.steps_at(&self.profile.step, now, true).min(ahead),
        };
        Some(known - (ahead - done) as usize)
    }
}

/// How many pages of a prefill became finished: full ones, and with its last token the part-filled one.
fn announce(sequence: &mut Sequence, last: bool) -> usize {
    let finished = match last {
        true => Sequence::pages_for(sequence.computed),
        false => sequence.computed / millrace_model::blocks::BLOCK_TOKENS,
    };
    let new = finished.saturating_sub(sequence.announced_pages);
    sequence.announced_pages += new;
    new
}
