//! A router's part: a real [`Coordinator`], its streams to ranks and its view of the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_experts::group::coordinator::Config;
use millrace_experts::group::{Coordinator, GroupShape, Order, Report, StoreView};
use millrace_experts::{Loads, Placement, RankId, Shape};
use rand::Rng;
use rand::seq::SliceRandom;
use std::time::Duration;

use crate::Flaw;
use crate::context::{Context, Event, RouterInput, number};

pub struct Router {
    index: usize,
    pub life: u64,
    pub up: bool,
    /// Believes to lead.
    pub leads: bool,
    shape: GroupShape,
    coordinator: Coordinator,
    streams: BTreeMap<usize, Stream>,
    revision: Option<u64>,
    view: StoreView,
    in_flight: bool,
    wake: Option<Duration>,
}

struct Stream {
    number: u64,
    id: RankId,
    last: Option<Order>,
}

/// A tenth of what is used in earnest, as all times of the simulation are.
fn config() -> Config {
    Config {
        attach_grace: Duration::from_millis(300),
        detach_grace: Duration::from_millis(300),
        partition_grace: Duration::from_millis(50),
        plan_deadline: Duration::from_millis(500),
        retry_first: Duration::from_millis(50),
        retry_most: Duration::from_millis(400),
    }
}

impl Router {
    pub fn new(index: usize, life: u64, shape: Shape, cx: &mut Context) -> Router {
        let shape = GroupShape {
            shape,
            expert_bytes: 1,
        };
        Router {
            index,
            life,
            up: true,
            leads: false,
            shape,
            coordinator: Coordinator::new(shape, cx.rng.random(), config(), cx.time()),
            streams: BTreeMap::new(),
            revision: None,
            view: Default::default(),
            in_flight: false,
            wake: None,
        }
    }

    pub fn input(&mut self, input: RouterInput, cx: &mut Context) {
        let now = cx.time();
        match input {
            RouterInput::Report {
                stream,
                first,
                report,
            } => self.report(stream, first, *report, cx),
            RouterInput::Detach { stream, id } => {
                if self
                    .streams
                    .get(&id.rank)
                    .is_some_and(|s| s.number == stream)
                {
                    self.streams.remove(&id.rank);
                    self.coordinator.detached(id, now);
                }
            }
            RouterInput::View { revision, view } => self.look(revision, view, cx),
            RouterInput::Answer(answer) => {
                self.in_flight = false;
                match answer {
                    Some((revision, view)) => self.look(revision, view, cx),
                    None => self.wake_in(20_000, cx),
                }
            }
            RouterInput::Wake => self.wake = None,
        }
        self.settle(cx);
    }

    fn report(&mut self, stream: u64, first: bool, mut report: Report, cx: &mut Context) {
        let id = report.me.id;
        match cx.flaw {
            // Takes it that whoever was told of an epoch has adopted it.
            Flaw::BelieveAllAdopted if report.adopted.is_some() => {
                report.adopted.clone_from(&self.view.epoch)
            }
            Flaw::ForgetNumbers => {
                report.known = 0;
                report.adopted = report.adopted.filter(|_| self.view.epoch.is_some());
            }
            _ => {}
        }
        if first {
            if self
                .streams
                .get(&id.rank)
                .is_some_and(|s| s.number > stream)
            {
                return;
            }
            self.coordinator
                .attached(self.shape, report, cx.time())
                .expect("it fits");
            self.streams.insert(
                id.rank,
                Stream {
                    number: stream,
                    id,
                    last: None,
                },
            );
        } else if self
            .streams
            .get(&id.rank)
            .is_some_and(|s| s.number == stream)
        {
            self.coordinator.report(report);
        }
    }

    fn look(&mut self, revision: u64, view: StoreView, cx: &mut Context) {
        if self.revision.is_none_or(|known| known < revision) {
            self.revision = Some(revision);
            self.view = view.clone();
            self.coordinator.store(view, cx.time());
        }
    }

    fn wake_in(&mut self, delay: u64, cx: &mut Context) {
        let (router, life) = (self.index, self.life);
        let input = RouterInput::Wake;
        cx.later(
            delay,
            Event::Router {
                router,
                life,
                input,
            },
        );
    }

    pub fn settle(&mut self, cx: &mut Context) {
        if let Some(revision) = self.revision
            && self.leads
            && !self.in_flight
        {
            if let Some(write) = self.coordinator.decide(cx.time()) {
                self.in_flight = true;
                let (router, life) = (self.index, self.life);
                let delay = cx.delay();
                cx.later(
                    delay,
                    Event::Store {
                        router,
                        life,
                        revision,
                        write,
                    },
                );
            }
            if let Some(next) = self.coordinator.next_deadline()
                && self.wake.is_none_or(|wake| next < wake)
            {
                self.wake = Some(next);
                self.wake_in((next - cx.time()).as_micros() as u64, cx);
            }
        }
        let order = self.coordinator.order();
        for stream in self.streams.values_mut() {
            if stream.last.as_ref() != Some(&order) {
                stream.last = Some(order.clone());
                cx.push_order(stream.id, self.index, stream.number, order.clone());
            }
        }
    }

    /// Anything that is a placement.
    pub fn propose(&mut self, cx: &mut Context) {
        let shape = self.shape.shape;
        let experts = shape.experts as u32;
        let mut table: Vec<u32> = (0..experts).collect();
        table.resize_with(shape.layer_slots(), || cx.rng.random_range(0..experts));
        table.shuffle(&mut cx.rng);
        let placement = Placement::new(shape, table).expect("every expert is in it");
        let loads = Loads {
            experts: shape.experts,
            counts: (0..experts).map(|_| cx.rng.random_range(0..100)).collect(),
        };
        let base = number(self.view.epoch.as_ref());
        // Refused most of the time, and that is fine.
        let taken = self
            .coordinator
            .propose(base, Arc::new(placement), Arc::new(loads));
        if taken.is_ok() {
            self.settle(cx);
        }
    }

    pub fn describe(&self) -> String {
        format!(
            "router {} leads {} in flight {} {:?} epoch {} plan {:?} next {:?}",
            self.index,
            self.leads,
            self.in_flight,
            self.coordinator.state(),
            number(self.view.epoch.as_ref()),
            self.view.plan.as_ref().map(|plan| (plan.id, plan.base)),
            self.coordinator.next_deadline(),
        )
    }
}
