//! What a router counted, checked, and the difference of two.

use crate::histogram::Histogram;
use crate::observation::Traffic;

/// Sums over a router's life, or over a piece of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sums {
    pub arrived: u64,
    pub refused: u64,
    pub prompt_tokens: u64,
    pub cached_prompt_tokens: u64,
    pub generated_tokens: u64,
    pub updates: u64,
    pub queue: Histogram,
    pub ttft: Histogram,
    pub itl: Histogram,
    pub prompts: Histogram,
    pub generations: Histogram,
}

impl Sums {
    /// `None` if they are inconsistent.
    pub fn of(traffic: &Traffic) -> Option<Sums> {
        Some(Sums {
            arrived: traffic.arrived,
            refused: traffic.refused,
            prompt_tokens: traffic.prompt_tokens,
            cached_prompt_tokens: traffic.cached_prompt_tokens,
            generated_tokens: traffic.generated_tokens,
            updates: traffic.updates,
            queue: Histogram::of(&traffic.queue_seconds)?,
            ttft: Histogram::of(&traffic.first_token_seconds)?,
            itl: Histogram::of(&traffic.inter_token_seconds)?,
            prompts: Histogram::of(&traffic.prompt_length)?,
            generations: Histogram::of(&traffic.generation_length)?,
        })
    }

    /// `None` if these cannot follow on `earlier`.
    pub fn since(&self, earlier: &Sums) -> Option<Sums> {
        Some(Sums {
            arrived: self.arrived.checked_sub(earlier.arrived)?,
            refused: self.refused.checked_sub(earlier.refused)?,
            prompt_tokens: self.prompt_tokens.checked_sub(earlier.prompt_tokens)?,
            cached_prompt_tokens: (self.cached_prompt_tokens)
                .checked_sub(earlier.cached_prompt_tokens)?,
            generated_tokens: (self.generated_tokens).checked_sub(earlier.generated_tokens)?,
            updates: self.updates.checked_sub(earlier.updates)?,
            queue: self.queue.since(&earlier.queue)?,
            ttft: self.ttft.since(&earlier.ttft)?,
            itl: self.itl.since(&earlier.itl)?,
            prompts: self.prompts.since(&earlier.prompts)?,
            generations: self.generations.since(&earlier.generations)?,
        })
    }

    pub fn add(&mut self, other: &Sums) {
        let add = |to: &mut u64, more: u64| *to = to.saturating_add(more);
        add(&mut self.arrived, other.arrived);
        add(&mut self.refused, other.refused);
        add(&mut self.prompt_tokens, other.prompt_tokens);
        add(&mut self.cached_prompt_tokens, other.cached_prompt_tokens);
        add(&mut self.generated_tokens, other.generated_tokens);
        add(&mut self.updates, other.updates);
        self.queue.add(&other.queue);
        self.ttft.add(&other.ttft);
        self.itl.add(&other.itl);
        self.prompts.add(&other.prompts);
        self.generations.add(&other.generations);
    }
}
