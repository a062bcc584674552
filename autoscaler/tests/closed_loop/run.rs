//! Lets a fleet and whoever scales it go on together, and says what came of it.

use millrace_autoscaler::model::{DecodeModel, PerformanceModel, PrefillModel};
use millrace_autoscaler::observation::Observation;
use millrace_autoscaler::policy::{Behavior, Objectives, Policy, PoolPolicy};
use millrace_autoscaler::{ByRole, Decision, Memory, decide};

use crate::counters::{ITL, Served, TTFT};
use crate::fleet::{Fleet, Truth};
use crate::load::Arrivals;

pub const HOUR: f64 = 3600.0;
/// Between two looks.
pub const LOOK: f64 = 5.0;
/// Of attainment.
const SPAN: f64 = 300.0;

pub fn model() -> PerformanceModel {
    PerformanceModel {
        prefill: PrefillModel {
            chunk_tokens: 2048,
            base_seconds: 0.02,
            seconds_per_token: 2e-4,
            seconds_per_token_context: 5e-9,
        },
        decode: DecodeModel {
            base_seconds: 0.014,
            seconds_per_sequence: 3e-4,
            seconds_per_context_token: 5e-8,
        },
        max_running: 96,
        kv_tokens: 400_000,
    }
}

pub fn policy() -> Policy {
    let pool = PoolPolicy {
        min: 1,
        max: 40,
        ranks: 1,
        gpus: 1,
    };
    Policy {
        objectives: Objectives {
            quantile: 0.95,
            ttft_seconds: Some(TTFT),
            itl_seconds: Some(ITL),
            queue_seconds: None,
        },
        pools: ByRole {
            prefill: pool,
            decode: pool,
        },
        max_gpus: None,
        behavior: Behavior::default(),
        scale_to_zero: None,
        schedule: Vec::new(),
        cold_start_seconds: 120.0,
        local_prefill_tokens: 0,
        model: model(),
    }
}

/// What workers really do: the model's times `prefill` and `decode`.
pub fn truth(prefill: f64, decode: f64) -> Truth {
    let mut model = model();
    model.prefill.base_seconds *= prefill;
    model.prefill.seconds_per_token *= prefill;
    model.prefill.seconds_per_token_context *= prefill;
    model.decode.base_seconds *= decode;
    model.decode.seconds_per_sequence *= decode;
    model.decode.seconds_per_context_token *= decode;
    Truth {
        model,
        cold_start: 120.0,
        tokens_per_update: 1.6,
        hit_rate: 0.4,
    }
}

pub fn fleet(
    seed: u64,
    start: ByRole<u32>,
    most: f64,
    rate: impl Fn(f64) -> f64 + 'static,
) -> Fleet {
    Fleet::new(
        truth(1.0, 1.0),
        Arrivals::new(seed, most, 100.0 * HOUR, rate),
        start,
    )
}

pub fn both(prefill: u32, decode: u32) -> ByRole<u32> {
    ByRole { prefill, decode }
}

/// Millrace's own.
pub struct Ours {
    pub policy: Policy,
    pub memory: Memory,
    pub last: Option<Decision>,
}

impl Ours {
    pub fn new(policy: Policy) -> Ours {
        Ours {
            policy,
            memory: Memory::default(),
            last: None,
        }
    }
}

pub trait Scaler {
    fn look(&mut self, observation: &Observation) -> ByRole<u32>;
}

impl Scaler for Ours {
    fn look(&mut self, observation: &Observation) -> ByRole<u32> {
        let decision = decide(&self.policy, observation, &mut self.memory).expect("valid");
        let desired = decision.desired;
        if std::env::var_os("SHOW").is_some() && decision.changes() {
            eprintln!("{:8.0} s {}", observation.now, decision.message());
            eprintln!("   {:?}\n   {:?}", decision.seen, decision.correction);
        }
        self.last = Some(decision);
        desired
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Change {
    pub at: f64,
    pub from: ByRole<u32>,
    pub to: ByRole<u32>,
}

/// (in time, all) of first tokens and of all tokens.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub from: f64,
    pub first: (f64, f64),
    pub tokens: (f64, f64),
}

pub struct Report {
    pub changes: Vec<Change>,
    pub spans: Vec<Span>,
    pub gpu_hours: f64,
    pub ttft: f64,
    pub itl: f64,
    pub end: ByRole<u32>,
}

/// Of what came between two.
fn span(from: f64, before: Served, after: Served) -> Span {
    Span {
        from,
        first: (
            after.first_in_time - before.first_in_time,
            after.first_tokens - before.first_tokens,
        ),
        tokens: (
            after.tokens_in_time - before.tokens_in_time,
            after.tokens - before.tokens,
        ),
    }
}

impl Report {
    pub fn after(&self, from: f64) -> Vec<Change> {
        let later = self.changes.iter().filter(|change| change.at >= from);
        later.copied().collect()
    }

    /// (in time, all) from `from` on.
    pub fn first_tokens(&self, from: f64) -> (f64, f64) {
        let later = self.spans.iter().filter(|span| span.from >= from);
        later.fold((0.0, 0.0), |(met, all), span| {
            (met + span.first.0, all + span.first.1)
        })
    }

    /// Of half an hour, from `from` on, the least that was met: first tokens and all tokens.
    pub fn worst_half_hour(&self, from: f64) -> f64 {
        let spans: Vec<&Span> = self.spans.iter().filter(|span| span.from >= from).collect();
        let mean = |six: &[&Span], of: fn(&Span) -> (f64, f64)| {
            let all: f64 = six.iter().map(|span| of(span).1).sum();
            let met: f64 = six.iter().map(|span| of(span).0).sum();
            if all > 0.0 { met / all } else { 1.0 }
        };
        let worst = spans
            .windows(6)
            .map(|six| mean(six, |span| span.first).min(mean(six, |span| span.tokens)));
        worst.fold(1.0, f64::min)
    }
}

pub fn run(fleet: &mut Fleet, until: f64, scaler: &mut dyn Scaler) -> Report {
    run_with(fleet, until, scaler, |_, observation| Some(observation))
}

/// `between` changes what is seen; `None`: nobody looks.
pub fn run_with(
    fleet: &mut Fleet,
    until: f64,
    scaler: &mut dyn Scaler,
    mut between: impl FnMut(&mut Fleet, Observation) -> Option<Observation>,
) -> Report {
    let (began, used) = (fleet.counters.served, fleet.used);
    let start = fleet.now;
    let mut report = Report {
        changes: Vec::new(),
        spans: Vec::new(),
        gpu_hours: 0.0,
        ttft: 0.0,
        itl: 0.0,
        end: ByRole::default(),
    };
    let (mut span_from, mut span_served) = (start, began);
    while fleet.now + LOOK <= until {
        fleet.run_until(fleet.now + LOOK);
        let observation = fleet.observe();
        let present = observation.pools.map(|_, pool| pool.wanted);
        report.end = present;
        if let Some(observation) = between(fleet, observation) {
            let desired = scaler.look(&observation);
            if desired != present {
                report.changes.push(Change {
                    at: fleet.now,
                    from: present,
                    to: desired,
                });
                fleet.scale(desired);
                report.end = desired;
            }
        }
        if fleet.now - span_from >= SPAN {
            let served = fleet.counters.served;
            report.spans.push(span(span_from, span_served, served));
            (span_from, span_served) = (fleet.now, served);
        }
    }
    let all = span(start, began, fleet.counters.served);
    (report.ttft, report.itl) = (
        all.first.0 / all.first.1.max(1.0),
        all.tokens.0 / all.tokens.1.max(1.0),
    );
    let seconds = fleet.used.prefill - used.prefill + fleet.used.decode - used.decode;
    report.gpu_hours = seconds / HOUR;
    report
}
