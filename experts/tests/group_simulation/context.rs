//! What a part of the simulated world may do: be random, and make things happen later.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use millrace_experts::group::{Order, Report, StoreView, Write};
use millrace_experts::{Epoch, RankId};
use rand::Rng;
use rand::rngs::SmallRng;

use crate::Flaw;
use crate::check::Checker;
use crate::net::Net;
use crate::rank::Message;

/// Everything that happens. What is for a life that is over does not happen any more.
#[derive(Debug)]
pub enum Event {
    Rank {
        id: RankId,
        input: Input,
    },
    Router {
        router: usize,
        life: u64,
        input: RouterInput,
    },
    Store {
        router: usize,
        life: u64,
        revision: u64,
        write: Write,
    },
    World(Happening),
}

#[derive(Debug)]
pub enum Input {
    Open {
        peer: RankId,
        generation: u64,
    },
    Lost {
        peer: RankId,
        generation: u64,
    },
    Message {
        from: RankId,
        generation: u64,
        message: Message,
    },
    Order {
        router: usize,
        stream: u64,
        order: Order,
    },
    Loaded {
        job: u64,
        outcome: Result<(), String>,
    },
    Rows(usize),
}

#[derive(Debug)]
pub enum RouterInput {
    Report {
        stream: u64,
        first: bool,
        report: Box<Report>,
    },
    Detach {
        stream: u64,
        id: RankId,
    },
    View {
        revision: u64,
        view: StoreView,
    },
    /// To a write; `None`: the store is away, or its answer was lost.
    Answer(Option<(u64, StoreView)>),
    Wake,
}

#[derive(Debug)]
pub enum Happening {
    /// Whoever can connect or attach does.
    Tick,
    Rows,
    Propose,
    Fault,
    Break {
        pair: (usize, usize),
        generation: u64,
    },
    Resume(RankId),
    Start(usize),
    RouterUp(usize),
    StoreUp,
}

struct Queued {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Queued) -> bool {
        self.number == other.number
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Queued) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Queued) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

pub struct Context {
    /// Microseconds.
    pub now: u64,
    pub rng: SmallRng,
    pub check: Checker,
    pub net: Net,
    pub flaw: Flaw,
    /// Whether anything may still go wrong.
    pub faults: bool,
    /// Messages between ranks.
    pub sent: u64,
    queue: BinaryHeap<Reverse<Queued>>,
    number: u64,
    /// Of each stream between a rank and a router: when the last word up and down arrives.
    last: BTreeMap<(u64, bool), u64>,
}

impl Context {
    pub fn new(rng: SmallRng, flaw: Flaw) -> Context {
        Context {
            now: 0,
            rng,
            check: Checker::default(),
            net: Net::default(),
            flaw,
            faults: true,
            sent: 0,
            queue: BinaryHeap::new(),
            number: 0,
            last: BTreeMap::new(),
        }
    }

    pub fn time(&self) -> Duration {
        Duration::from_micros(self.now)
    }

    pub fn next(&mut self) -> Option<Event> {
        let Reverse(Queued { at, event, .. }) = self.queue.pop()?;
        self.now = at;
        Some(event)
    }

    pub fn at(&mut self, at: u64, event: Event) {
        self.number += 1;
        let number = self.number;
        self.queue.push(Reverse(Queued { at, number, event }));
    }

    pub fn later(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    pub fn happens(&mut self, delay: u64, what: Happening) {
        self.later(delay, Event::World(what));
    }

    pub fn deliver(&mut self, id: RankId, delay: u64, input: Input) {
        self.later(delay, Event::Rank { id, input });
    }

    /// Mostly short, now and then so long that everything else overtakes it.
    pub fn delay(&mut self) -> u64 {
        match self.rng.random_bool(0.02) {
            true => self.rng.random_range(3_000..60_000),
            false => self.rng.random_range(20..2_000),
        }
    }

    pub fn send(&mut self, from: RankId, to: RankId, generation: u64, message: Message) {
        self.sent += 1;
        let at = self.now + self.delay();
        let end = usize::from(to.rank > from.rank);
        let Some(link) = self.net.get(from.rank, to.rank) else {
            return;
        };
        if link.generation != generation {
            return;
        }
        link.last[end] = at.max(link.last[end] + 1);
        let at = link.last[end];
        let input = Input::Message {
            from,
            generation,
            message,
        };
        self.at(at, Event::Rank { id: to, input });
    }

    /// In order on each stream.
    fn on_stream(&mut self, stream: u64, up: bool) -> u64 {
        let at = self.now + self.delay();
        let last = self.last.entry((stream, up)).or_default();
        *last = at.max(*last + 1);
        *last
    }

    pub fn push_report(&mut self, router: (usize, u64), stream: u64, first: bool, report: Report) {
        let at = self.on_stream(stream, true);
        let report = Box::new(report);
        let input = RouterInput::Report {
            stream,
            first,
            report,
        };
        let (router, life) = router;
        self.at(
            at,
            Event::Router {
                router,
                life,
                input,
            },
        );
    }

    pub fn push_order(&mut self, id: RankId, router: usize, stream: u64, order: Order) {
        let at = self.on_stream(stream, false);
        let input = Input::Order {
            router,
            stream,
            order,
        };
        self.at(at, Event::Rank { id, input });
    }
}

pub fn number(epoch: Option<&Arc<Epoch>>) -> u64 {
    epoch.map_or(0, |epoch| epoch.number)
}
