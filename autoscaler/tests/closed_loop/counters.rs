//! What the router counts, in the buckets of real routers, and what a test wants to know besides.

use crate::load::Sequence;

const SECONDS: [f64; 16] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0,
];
const TOKENS: [f64; 15] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
    16384.0,
];

#[derive(Clone)]
pub struct Buckets {
    pub bounds: &'static [f64],
    pub counts: Vec<f64>,
    pub sum: f64,
}

impl Buckets {
    fn new(bounds: &'static [f64]) -> Buckets {
        Buckets {
            bounds,
            counts: vec![0.0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    fn add(&mut self, value: f64, count: f64) {
        self.counts[self.bounds.partition_point(|bound| *bound < value)] += count;
        self.sum += value * count;
    }
}

#[derive(Clone)]
pub struct Counters {
    pub arrived: u64,
    pub prompt_tokens: f64,
    pub cached_prompt_tokens: f64,
    pub generated_tokens: f64,
    pub updates: f64,
    pub queue: Buckets,
    pub ttft: Buckets,
    pub itl: Buckets,
    pub prompts: Buckets,
    pub generations: Buckets,
    /// For the test, over all lives of a router.
    pub served: Served,
}

#[derive(Clone, Copy, Default)]
pub struct Served {
    pub first_tokens: f64,
    pub first_in_time: f64,
    pub tokens: f64,
    pub tokens_in_time: f64,
}

pub const TTFT: f64 = 2.0;
pub const ITL: f64 = 0.05;

impl Default for Counters {
    fn default() -> Self {
        Counters {
            arrived: 0,
            prompt_tokens: 0.0,
            cached_prompt_tokens: 0.0,
            generated_tokens: 0.0,
            updates: 0.0,
            queue: Buckets::new(&SECONDS),
            ttft: Buckets::new(&SECONDS),
            itl: Buckets::new(&SECONDS),
            prompts: Buckets::new(&TOKENS),
            generations: Buckets::new(&TOKENS),
            served: Served::default(),
        }
    }
}

impl Counters {
    /// A router's restart.
    pub fn forget(&mut self) {
        *self = Counters {
            served: self.served,
            ..Counters::default()
        };
    }

    pub fn begun(&mut self, sequence: &Sequence, now: f64, hit_rate: f64) {
        self.prompt_tokens += sequence.prompt;
        self.cached_prompt_tokens += sequence.prompt * hit_rate;
        self.prompts.add(sequence.prompt, 1.0);
        self.queue.add(now - sequence.arrived, 1.0);
    }

    pub fn first_token(&mut self, after: f64) {
        self.ttft.add(after, 1.0);
        self.generated_tokens += 1.0;
        self.updates += 1.0;
        self.served.first_tokens += 1.0;
        if after <= TTFT {
            self.served.first_in_time += 1.0;
        }
    }

    /// With one draft: an update brings one token or two.
    pub fn decoded(&mut self, tokens: f64, step: f64, tokens_per_update: f64) {
        let alone = tokens * (2.0 - tokens_per_update) / tokens_per_update;
        for (count, itl) in [(alone, step), (tokens - alone, step / 2.0)] {
            self.itl.add(itl, count);
            if itl <= ITL {
                self.served.tokens_in_time += count;
            }
        }
        self.generated_tokens += tokens;
        self.updates += tokens / tokens_per_update;
        self.served.tokens += tokens;
    }

    pub fn ended(&mut self, tokens: f64) {
        self.generations.add(tokens, 1.0);
    }
}
