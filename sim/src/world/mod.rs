//! Everything that exists in a run, and what happens to it.
//!
//! ```text
//! trace ─▶ admission ─▶ pairing ─▶ decode worker ─▶ prefill worker ─▶ decode worker ─▶ router
//!           requests.rs, answers.rs  workers.rs: commands, steps, reports of load
//!                                    pools.rs:   replicas start, attach, drain and go
//! observe.rs ─▶ policy ──────────────▲           faults.rs
//! ```

mod answers;
mod faults;
mod observe;
mod pools;
mod requests;
mod workers;

use std::collections::HashMap;
use std::sync::Arc;

use millrace_autoscaler::{ByRole, Role};
use millrace_engine::RequestId;
use millrace_router::config::{AdmissionLimits, Limits};
use millrace_router::dispatch::admission::queue::{Queue, WaiterId};
use millrace_router::fleet::{Fleet, Served};

use crate::clock::{Clock, Nanos, nanos};
use crate::events::Events;
use crate::policy::{Policy, Setup, make};
use crate::profile::Profile;
use crate::random::Random;
use crate::report::Report;
use crate::scenario::Scenario;
use crate::tally::Tally;
use crate::trace::{Arrival, Trace};
use crate::worker::{Command, StepEnd, Told};
use pools::Replica;
use requests::{Lost, Request};
use workers::Slot;

/// All workers are of one model revision.
pub(crate) const REVISION: &str = "r1";

/// What can happen.
enum Event {
    /// The next request of the trace is here.
    Arrive,
    /// A message reaches a worker.
    Deliver {
        worker: usize,
        command: Command,
    },
    StepEnd {
        worker: usize,
        end: StepEnd,
    },
    /// A worker tells routers of its load.
    Report {
        worker: usize,
    },
    /// A worker's message reaches the router.
    Heard(Told),
    /// The router learns that an attempt has failed.
    Lost {
        id: RequestId,
        lost: Lost,
    },
    /// A request looks for a worker again.
    Search {
        id: RequestId,
    },
    Attach {
        worker: usize,
    },
    Decide,
    Fault {
        number: usize,
        begins: bool,
    },
    RouterBack,
}

pub(crate) struct World {
    scenario: Scenario,
    profile: Arc<Profile>,
    /// Where no two prompts begin alike, caches are off: they would find nothing.
    prefix_cache: bool,
    clock: Clock,
    events: Events<Event>,
    random: Random,
    tally: Tally,

    trace: Trace,
    next: Option<Arrival>,
    requests: Vec<Option<Request>>,
    free: Vec<usize>,
    attempts: u64,
    /// Requests that found no worker.
    searching: Vec<RequestId>,

    limits: Limits,
    queue: Queue,
    waiters: HashMap<WaiterId, usize>,
    fleet: Fleet,
    /// Workers by the key that the fleet gave them.
    keys: Vec<usize>,
    /// `false` while it restarts.
    router_up: bool,
    /// When its life began.
    router_since: Nanos,

    workers: Vec<Slot>,
    replicas: Vec<Replica>,
    wanted: ByRole<u32>,
    policy: Box<dyn Policy>,
    /// Until when the policy hears of no router.
    gap_until: Nanos,
}

impl World {
    /// `slowdown`: of every step, by uneven experts.
    pub fn new(scenario: &Scenario, slowdown: f64) -> World {
        let gpus = scenario.gpus;
        let limits = admission(scenario);
        let replicas = |share: f64| {
            let gpus = share * f64::from(gpus) / f64::from(scenario.replica_gpus());
            (gpus.round() as u32).max(scenario.scaling.min.max(1))
        };
        let of = |shares: crate::scenario::Shares| ByRole {
            prefill: replicas(shares.prefill),
            decode: replicas(shares.decode),
        };
        let peak = of(scenario.peak);
        let start = match scenario.policy {
            crate::policy::PolicyName::Static => peak,
            _ => of(scenario.start),
        };
        let (seed, duration) = (scenario.seed, scenario.duration);
        let longest = scenario.max_model_len;
        let mut profile = scenario.profile.clone();
        profile.step.scale(slowdown);
        let mut world = World {
            profile: Arc::new(profile),
            prefix_cache: scenario.workload.sessions().is_some(),
            clock: Clock::start(),
            events: Events::default(),
            random: Random::new(seed, "workers"),
            tally: Tally::new(scenario),
            trace: Trace::new(&scenario.workload, gpus, duration, longest, seed),
            next: None,
            requests: Vec::new(),
            free: Vec::new(),
            attempts: 0,
            searching: Vec::new(),
            queue: Queue::new(limits.admission),
            waiters: HashMap::new(),
            fleet: empty_fleet(&limits, longest),
            limits,
            keys: Vec::new(),
            router_up: true,
            router_since: 0,
            workers: Vec::new(),
            replicas: Vec::new(),
            wanted: start,
            policy: make(scenario.policy, Setup::of(scenario, peak)),
            gap_until: 0,
            scenario: scenario.clone(),
        };
        for (role, count) in [(Role::Prefill, start.prefill), (Role::Decode, start.decode)] {
            for _ in 0..count {
                world.start_replica(role, 0);
            }
        }
        world.next_arrival();
        let interval = nanos(world.policy.period());
        world.events.at(interval, Event::Decide);
        for (number, fault) in scenario.faults.iter().enumerate() {
            let begins = Event::Fault {
                number,
                begins: true,
            };
            world.events.at(nanos(fault.at), begins);
        }
        world
    }

    /// To the end, and what came of it.
    pub fn run(mut self) -> Report {
        let end = nanos(self.scenario.duration);
        // The first look may be minutes away, and until then there is not nothing.
        self.note_pools();
        while let Some(event) = self.events.next(end) {
            self.happens(event);
        }
        self.tally.settle_gpus(end);
        self.check_conservation();
        self.count_workers();
        let running = self.requests.iter().flatten();
        let from = nanos(self.scenario.warmup);
        let running = running.filter(|r| r.arrival.at >= from).count() as u64;
        Report::new(&self.scenario, self.tally, running, self.events.happened())
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Arrive => self.arrive(),
            Event::Deliver { worker, command } => self.deliver(worker, command),
            Event::StepEnd { worker, end } => self.step_ends(worker, end),
            Event::Report { worker } => self.report_load(worker),
            Event::Heard(told) => self.hear(told),
            Event::Lost { id, lost } => self.lose(id, lost),
            Event::Search { id } => self.search_again(id),
            Event::Attach { worker } => self.attach(worker),
            Event::Decide => self.decide(),
            Event::Fault { number, begins } => self.fault(number, begins),
            Event::RouterBack => self.router_back(),
        }
    }

    /// A router that starts knows nothing.
    fn forget_router(&mut self) {
        self.fleet = empty_fleet(&self.limits, self.scenario.max_model_len);
        self.keys.clear();
        self.queue = Queue::new(self.limits.admission);
        self.waiters.clear();
        self.searching.clear();
        self.router_since = self.now();
        self.tally.new_traffic();
    }

    fn now(&self) -> Nanos {
        self.events.now()
    }

    fn hop(&self) -> Nanos {
        nanos(self.profile.hop)
    }
}

fn admission(scenario: &Scenario) -> Limits {
    let (gpus, admission) = (scenario.gpus, scenario.admission);
    Limits {
        admission: AdmissionLimits {
            max_running: admission.max_running.saturating_mul(gpus),
            max_waiting: admission.max_waiting.saturating_mul(gpus),
            max_waiting_tokens: admission.max_waiting_tokens.saturating_mul(u64::from(gpus)),
        },
        ..Limits::default()
    }
}

fn empty_fleet(limits: &Limits, max_model_len: u32) -> Fleet {
    let served = Served {
        model_revision: REVISION.to_owned(),
        text_revision: REVISION.to_owned(),
        vocab_size: 1,
        max_model_len,
    };
    Fleet::new(served, limits.max_indexed_blocks)
}
