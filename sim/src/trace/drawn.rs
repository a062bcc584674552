//! Arrivals and lengths drawn at random, and the turns of conversations.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use millrace_model::blocks::BLOCK_TOKENS;

use super::{Arrival, Arrivals, Lengths, Origin, Sessions, Shape, Workload};
use crate::clock::{Nanos, nanos};
use crate::random::Random;

/// Seconds a token that the next turn is put off by: arrivals are the same whoever serves them.
const READING: f64 = 0.04;

/// Requests drawn from a workload's rates and lengths.
pub struct Drawn {
    starts: Arrivals,
    next_start: Option<f64>,
    lengths: Lengths,
    sessions: Option<Sessions>,
    random: Random,
    until: f64,
    max_tokens: u32,
    /// Later turns: time in nanoseconds, and a number that makes the order total.
    turns: BinaryHeap<Reverse<(Nanos, u64, Turn)>>,
    numbers: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    session: u64,
    system: u64,
    /// Tokens said before.
    before: u32,
}

impl Drawn {
    /// See [`Trace::new`](super::Trace::new).
    pub(super) fn new(
        workload: &Workload,
        gpus: u32,
        seconds: f64,
        max_tokens: u32,
        seed: u64,
    ) -> Drawn {
        let shape = workload.shape;
        let lengths = workload.lengths.or(shape.map(Shape::lengths));
        let variation = workload.variation.or(shape.map(Shape::variation));
        let sessions = workload.sessions();
        let turns = sessions.map_or(1.0, |sessions| sessions.turns);
        let scale = f64::from(gpus) / turns;
        let rate = workload.rate.clone();
        let mut starts = Arrivals::new(rate, scale, variation.unwrap_or(1.0), seconds, seed);
        Drawn {
            next_start: starts.next(),
            starts,
            lengths: lengths.expect("a workload has lengths or a shape"),
            sessions,
            random: Random::new(seed, "requests"),
            until: seconds,
            max_tokens,
            turns: BinaryHeap::new(),
            numbers: 0,
        }
    }

    fn request(&mut self, at: Nanos, turn: Turn) -> Arrival {
        let output = self.lengths.output.draw(&mut self.random);
        let output = output.min(self.max_tokens / 2).max(1);
        let new = self.lengths.prompt.draw(&mut self.random);
        let prompt = (turn.before + new).min(self.max_tokens - output - 1);
        self.follow(at, turn, prompt + output);
        let system_tokens = self.sessions.map_or(0, |sessions| sessions.system_tokens);
        Arrival {
            at,
            prompt,
            output,
            origin: Origin {
                session: turn.session,
                system: turn.system,
                system_blocks: system_tokens / BLOCK_TOKENS as u32,
            },
        }
    }

    /// Perhaps there is another turn.
    fn follow(&mut self, at: Nanos, turn: Turn, said: u32) {
        let Some(sessions) = self.sessions else {
            return;
        };
        let last = self.random.uniform() * sessions.turns < 1.0;
        let think = sessions.think * self.random.exponential();
        let output = f64::from(said.saturating_sub(turn.before));
        let next = at + nanos(think + READING * output.min(2000.0));
        // A conversation that has filled the context is over.
        if last || said + 64 >= self.max_tokens || next >= nanos(self.until) {
            return;
        }
        self.numbers += 1;
        let turn = Turn {
            before: said,
            ..turn
        };
        self.turns.push(Reverse((next, self.numbers, turn)));
    }
}

impl Iterator for Drawn {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        let start = self.next_start.map(nanos);
        let turn = self.turns.peek().map(|Reverse((at, ..))| *at);
        match (start, turn) {
            (start, Some(turn)) if start.is_none_or(|start| turn < start) => {
                let Reverse((at, _, turn)) = self.turns.pop()?;
                Some(self.request(at, turn))
            }
            (Some(at), _) => {
                self.next_start = self.starts.next();
                self.numbers += 1;
                let system = match self.sessions {
                    Some(sessions) => self.random.below(u64::from(sessions.system_prompts.max(1))),
                    None => 0,
                };
                let before = self.sessions.map_or(0, |sessions| sessions.system_tokens);
                let turn = Turn {
                    session: self.numbers,
                    system,
                    before,
                };
                Some(self.request(at, turn))
            }
            (None, _) => None,
        }
    }
}
