//! A modelled worker: the real scheduler, page pool and leases, and a step time instead of a device.
//!
//! What an engine does around its scheduler is here once more in short, without tokens: commands are taken
//! between steps, sequences change at the end of a step, and finished ones leave.
//!
//! A run of decode steps in which nothing changes is scheduled as one of several rows a sequence: to the
//! scheduler and the pool it is the same, but that pages are taken a little early. Whatever arrives in between
//! cuts the run at the end of the step it arrives in ([`step`]).

mod pool;
mod step;

use std::collections::HashMap;
use std::sync::Arc;

use millrace_engine::pages::{self, CacheChanges, PagePool};
use millrace_engine::scheduler::{Limits, Scheduler};
use millrace_engine::sequence::Sequence;
use millrace_engine::{Event, Kind, LeasedPages, Request, RequestId, SamplingParams};
use millrace_model::blocks::BlockHash;
use millrace_router::fleet::Load;
use millrace_transfer::{Lease, LeaseTable};

use crate::clock::Nanos;
use crate::profile::{Engine, Profile};
use crate::random::Random;
use step::Step;
pub use step::StepEnd;

/// One request as an engine is asked for it.
#[derive(Debug, Clone)]
pub struct Submission {
    pub id: RequestId,
    pub prompt: usize,
    /// Tokens generated before, by a worker that failed.
    pub output: usize,
    /// In all.
    pub max_tokens: usize,
    pub kind: Kind,
    /// Names of all blocks that the sequence will fill.
    pub blocks: Vec<BlockHash>,
}

#[derive(Debug)]
pub enum Command {
    Submit(Box<Submission>),
    /// A peer has written the pages that were reserved for it, and its first token is here.
    Prefilled(RequestId),
    Abort(RequestId),
}

/// What others must hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Its pages from this one on are reserved: have a peer compute them.
    Reserved {
        id: RequestId,
        first_page: usize,
    },
    FirstToken {
        id: RequestId,
    },
    Finished {
        id: RequestId,
    },
    /// All pages have been sent, and the first token with them, at that time.
    Prefilled {
        id: RequestId,
        at: Nanos,
    },
}

pub struct Worker {
    pool: PagePool,
    leases: Arc<LeaseTable>,
    scheduler: Scheduler,
    profile: Arc<Profile>,
    engine: Engine,
    prefix_cache: bool,
    /// Steps take so many times as long.
    pub slowdown: f64,
    inbox: Vec<Command>,
    /// Pages that peers write.
    leased: HashMap<RequestId, (Lease, LeasedPages)>,
    step: Option<Step>,
    steps_begun: u64,
    /// Nothing that waits could be admitted, and nothing has been freed since.
    blocked: bool,
    /// When the link has sent what it was given.
    link_free: Nanos,
    /// Tokens of the last step's sequences that had begun before, and seconds between two.
    generated: Option<(u64, f64)>,
}

impl Worker {
    pub fn new(profile: Arc<Profile>, engine: Engine, prefix_cache: bool) -> Worker {
        let (pool, leases) = pool::empty(engine.kv_pages);
        let limits = Limits {
            // The bound is given with each step: a run of steps has more rows than one may.
            max_batch_tokens: usize::MAX,
            max_running: engine.max_running,
            local_prefill_tokens: engine.local_prefill_tokens,
            prefix_cache,
        };
        Worker {
            scheduler: Scheduler::new(limits, pool.clone()),
            pool,
            leases,
            profile,
            engine,
            prefix_cache,
            slowdown: 1.0,
            inbox: Vec::new(),
            leased: HashMap::new(),
            step: None,
            steps_begun: 0,
            blocked: false,
            link_free: 0,
            generated: None,
        }
    }

    /// Taken before the next step.
    pub fn send(&mut self, command: Command) {
        self.inbox.push(command);
    }

    /// Tokens that the last step added to answers that had begun, and how many seconds apart they came.
    pub fn take_generated(&mut self) -> Option<(u64, f64)> {
        self.generated.take()
    }

    /// As the worker's stream tells it.
    pub fn load(&self) -> Load {
        let ahead = self.step.as_ref().map_or(0, Step::rows_ahead);
        Load {
            running: (self.scheduler.running.len() + self.scheduler.remote()) as u32,
            waiting: self.scheduler.waiting() as u32,
            waiting_tokens: (self.scheduler.waiting_tokens() - ahead) as u64,
            free_pages: self.pool.available() as u64,
            leased_pages: self.pool.leased() as u64,
            outside: false,
        }
    }

    /// Nothing is here and nothing will come of what was.
    pub fn is_idle(&self) -> bool {
        let scheduler = &self.scheduler;
        scheduler.running.is_empty()
            && scheduler.waiting() == 0
            && scheduler.remote() == 0
            && self.inbox.is_empty()
    }

    pub fn preemptions(&self) -> u64 {
        self.scheduler.preemptions
    }

    /// Prompt tokens looked up in the prefix cache, and found there.
    pub fn prefix(&self) -> (u64, u64) {
        (self.scheduler.prefix_queries, self.scheduler.prefix_hits)
    }

    pub fn take_changes(&self) -> CacheChanges {
        self.pool.take_changes()
    }

    /// All cached blocks, in an order that does not depend on the process.
    pub fn snapshot(&self) -> Vec<BlockHash> {
        let mut blocks = self.pool.snapshot();
        blocks.sort_unstable();
        blocks
    }

    /// Pages that are neither free nor evictable. None of an idle worker: else it has lost some.
    pub fn held_pages(&self) -> usize {
        self.pool.total() - self.pool.available()
    }

    fn take_commands(&mut self, told: &mut Vec<Told>) {
        if self.inbox.is_empty() {
            return;
        }
        self.blocked = false;
        for command in std::mem::take(&mut self.inbox) {
            match command {
                Command::Submit(submission) => self.scheduler.push(sequence(*submission)),
                Command::Abort(id) => {
                    self.scheduler.remove(id);
                    pages::release(self.end_lease(id));
                }
                Command::Prefilled(id) => self.prefilled(id, told),
            }
        }
    }

    fn end_lease(&mut self, id: RequestId) -> Vec<millrace_engine::PageRef> {
        self.leased
            .remove(&id)
            .map_or_else(Vec::new, |(lease, pages)| pages.settle(lease.revoke()))
    }

    fn prefilled(&mut self, id: RequestId, told: &mut Vec<Told>) {
        let pages = self.end_lease(id);
        let Some(mut sequence) = self.scheduler.take_remote(id) else {
            pages::release(pages);
            return;
        };
        sequence.pages.extend(pages);
        sequence.computed = sequence.tokens.len();
        if self.prefix_cache {
            sequence.store_full_pages(&self.pool);
        }
        sequence.tokens.push(0);
        sequence.started = true;
        told.push(Told::FirstToken { id });
        if sequence.output_tokens() >= sequence.sampling.max_tokens {
            told.push(Told::Finished { id });
        } else {
            self.scheduler.running.push(sequence);
        }
    }

    fn reserve(&mut self, events: Vec<Event>, told: &mut Vec<Told>) {
        for event in events {
            // Schedulers say nothing else.
            if let Event::Reserved {
                id,
                lease: pages,
                first_page,
            } = event
            {
                let lease = self.leases.lease(&pages.indexes(), None);
                let lease = lease.expect("fresh pages are under no lease");
                self.leased.insert(id, (lease, pages));
                told.push(Told::Reserved { id, first_page });
            }
        }
    }
}

impl Drop for Worker {
    /// A worker that dies takes its memory along, whoever would have written to it.
    fn drop(&mut self) {
        for (_, (lease, pages)) in self.leased.drain() {
            pages::release(pages.settle(lease.revoke()));
        }
    }
}

/// Tokens are zeros: nothing looks at them, their blocks have names.
fn sequence(submission: Submission) -> Sequence {
    let known = submission.prompt + submission.output;
    let most = match submission.kind {
        Kind::Prefill { .. } => known + 1,
        Kind::Decode | Kind::Whole => submission.prompt + submission.max_tokens,
    };
    // Room for all of them: a thousand workers' sequences are in no cache, and to move one is dear.
    let mut tokens = Vec::with_capacity(most);
    tokens.resize(known, 0);
    let sampling = SamplingParams {
        max_tokens: submission.max_tokens,
        ..SamplingParams::default()
    };
    let request = Request {
        id: submission.id,
        tokens,
        prompt_tokens: submission.prompt,
        sampling,
        cache_salt: String::new(),
        kind: submission.kind,
    };
    let mut sequence = Sequence::new(request, "");
    sequence.name_blocks(submission.blocks);
    sequence
}

/// What a worker is drawn for: how much longer or shorter than the model says a step takes.
fn variation(random: &mut Random, deviation: f64) -> f64 {
    (1.0 + deviation * random.normal()).max(0.5)
}
