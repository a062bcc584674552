//! What is counted while a run goes on.

use millrace_autoscaler::observation::{Distribution, Traffic};
use millrace_autoscaler::{ByRole, Role};
use millrace_telemetry::buckets;

use crate::clock::{Nanos, SECOND, nanos, seconds};
use crate::scenario::Scenario;
use crate::worker::Worker;

/// Points of a plot over time.
const BINS: u64 = 120;

/// A request's times, from its arrival.
#[derive(Debug, Clone, Copy)]
pub struct Timeline {
    pub arrived: Nanos,
    pub first: Nanos,
    pub last: Nanos,
    pub output: u32,
}

impl Timeline {
    /// Mean time between tokens after the first. `None` of a single token.
    pub fn between(&self) -> Option<Nanos> {
        let later = u64::from(self.output.saturating_sub(1));
        (later > 0).then(|| (self.last - self.first) / later)
    }
}

/// A part of the run, for plots.
#[derive(Debug, Clone, Default)]
pub struct Bin {
    pub arrived: u64,
    /// Of those that ended, by when they arrived.
    pub ended: u64,
    pub attained: u64,
    pub ttft: Vec<Nanos>,
    /// A policy looked in it.
    pub looked: bool,
    /// Replicas that exist, sequences that wait at the router and GPUs in use: as last seen in it.
    pub replicas: ByRole<u32>,
    pub waiting: u64,
    pub gpus: u32,
}

#[derive(Debug)]
pub struct Tally {
    from: Nanos,
    ttft_bound: Nanos,
    itl_bound: Nanos,
    pub arrived: u64,
    pub answered: u64,
    pub refused: u64,
    pub failed: u64,
    pub attained: u64,
    pub attained_ttft: u64,
    pub attained_itl: u64,
    pub ttft: Vec<Nanos>,
    pub itl: Vec<Nanos>,
    pub whole: Vec<Nanos>,
    pub prompt_tokens: u64,
    pub output_tokens: u64,
    pub replays: u64,
    pub preemptions: u64,
    pub prefix_queries: u64,
    pub prefix_hits: u64,
    /// GPU nanoseconds.
    gpu_time: u128,
    gpus_since: Nanos,
    gpus: ByRole<u32>,
    pub gpus_most: u32,
    pub ups: ByRole<u32>,
    pub downs: ByRole<u32>,
    pub bins: Vec<Bin>,
    pub bin: Nanos,
    /// As a router tells its operator.
    pub traffic: Traffic,
}

impl Tally {
    pub fn new(scenario: &Scenario) -> Tally {
        let end = nanos(scenario.duration);
        Tally {
            from: nanos(scenario.warmup),
            ttft_bound: nanos(scenario.objectives.ttft),
            itl_bound: nanos(scenario.objectives.itl),
            arrived: 0,
            answered: 0,
            refused: 0,
            failed: 0,
            attained: 0,
            attained_ttft: 0,
            attained_itl: 0,
            ttft: Vec::new(),
            itl: Vec::new(),
            whole: Vec::new(),
            prompt_tokens: 0,
            output_tokens: 0,
            replays: 0,
            preemptions: 0,
            prefix_queries: 0,
            prefix_hits: 0,
            gpu_time: 0,
            gpus_since: nanos(scenario.warmup),
            gpus: ByRole::default(),
            gpus_most: 0,
            ups: ByRole::default(),
            downs: ByRole::default(),
            bins: vec![Bin::default(); BINS as usize],
            bin: end.div_ceil(BINS).max(1),
            traffic: traffic(1),
        }
    }

    pub fn bin_at(&mut self, at: Nanos) -> &mut Bin {
        let last = self.bins.len() - 1;
        &mut self.bins[((at / self.bin) as usize).min(last)]
    }

    pub fn arrives(&mut self, now: Nanos, prompt: u32) {
        self.traffic.arrived += 1;
        add(&mut self.traffic.prompt_length, f64::from(prompt), 1);
        self.bin_at(now).arrived += 1;
        self.arrived += u64::from(now >= self.from);
    }

    pub fn queued(&mut self, waited: Nanos) {
        add(&mut self.traffic.queue_seconds, seconds(waited), 1);
    }

    pub fn first_token(&mut self, prompt: u32, cached: u32, waited: Nanos) {
        self.traffic.prompt_tokens += u64::from(prompt);
        self.traffic.cached_prompt_tokens += u64::from(cached);
        self.traffic.updates += 1;
        self.traffic.generated_tokens += 1;
        add(&mut self.traffic.first_token_seconds, seconds(waited), 1);
    }

    /// Tokens came, each so long after the one before.
    pub fn tokens(&mut self, tokens: u64, apart: f64) {
        self.traffic.updates += tokens;
        self.traffic.generated_tokens += tokens;
        add(&mut self.traffic.inter_token_seconds, apart, tokens);
    }

    pub fn refuse(&mut self, arrived: Nanos) {
        self.traffic.refused += 1;
        self.bin_at(arrived).ended += 1;
        self.refused += u64::from(arrived >= self.from);
    }

    pub fn fail(&mut self, arrived: Nanos) {
        self.bin_at(arrived).ended += 1;
        self.failed += u64::from(arrived >= self.from);
    }

    pub fn answer(&mut self, timeline: Timeline, prompt: u32) {
        let Timeline {
            arrived,
            first,
            last,
            output,
        } = timeline;
        add(&mut self.traffic.generation_length, f64::from(output), 1);
        let ttft = first - arrived;
        let itl = timeline.between();
        let in_time = ttft <= self.ttft_bound;
        let fluent = itl.is_none_or(|itl| itl <= self.itl_bound);
        let bin = self.bin_at(arrived);
        bin.ended += 1;
        bin.attained += u64::from(in_time && fluent);
        bin.ttft.push(ttft);
        if arrived < self.from {
            return;
        }
        self.answered += 1;
        self.attained += u64::from(in_time && fluent);
        self.attained_ttft += u64::from(in_time);
        self.attained_itl += u64::from(fluent);
        self.prompt_tokens += u64::from(prompt);
        self.output_tokens += u64::from(output);
        self.ttft.push(ttft);
        self.itl.extend(itl);
        self.whole.push(last - arrived);
    }

    /// The router starts anew, and so do its sums.
    pub fn new_traffic(&mut self) {
        self.traffic = traffic(self.traffic.incarnation + 1);
    }

    /// A worker ends, or the run does.
    pub fn count_worker(&mut self, worker: &Worker) {
        let (queries, hits) = worker.prefix();
        self.prefix_queries += queries;
        self.prefix_hits += hits;
        self.preemptions += worker.preemptions();
    }

    /// GPUs in use change at `now`.
    pub fn gpus(&mut self, now: Nanos, role: Role, gpus: u32) {
        self.settle_gpus(now);
        *self.gpus.of_mut(role) = gpus;
        self.gpus_most = self.gpus_most.max(self.gpus.prefill + self.gpus.decode);
    }

    pub fn settle_gpus(&mut self, now: Nanos) {
        let gpus = u128::from(self.gpus.prefill + self.gpus.decode);
        self.gpu_time += gpus * u128::from(now.saturating_sub(self.gpus_since));
        self.gpus_since = self.gpus_since.max(now);
    }

    pub fn gpus_now(&self) -> u32 {
        self.gpus.prefill + self.gpus.decode
    }

    pub fn gpu_hours(&self) -> f64 {
        self.gpu_time as f64 / SECOND as f64 / 3600.0
    }
}

/// Nothing yet, in the buckets that routers have.
fn traffic(incarnation: u64) -> Traffic {
    let distribution = |bounds: &[f64]| Distribution {
        bounds: bounds.to_vec(),
        counts: vec![0; bounds.len() + 1],
        sum: 0.0,
    };
    Traffic {
        incarnation,
        queue_seconds: distribution(&buckets::SECONDS),
        first_token_seconds: distribution(&buckets::SECONDS),
        inter_token_seconds: distribution(&buckets::SHORT_SECONDS),
        prompt_length: distribution(&buckets::TOKENS),
        generation_length: distribution(&buckets::TOKENS),
        ..Traffic::default()
    }
}

fn add(distribution: &mut Distribution, value: f64, times: u64) {
    let at = distribution.bounds.partition_point(|&bound| bound < value);
    distribution.counts[at] += times;
    distribution.sum += value * times as f64;
}
