//! What the thread does the same whether its engine is alone or one rank of a group.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use tokio::sync::{mpsc::UnboundedSender, watch};

use millrace_engine::{Engine, Event, LeasedPages, RequestId};
use millrace_kernels::Backend;
use millrace_telemetry::Histogram;

use super::{
    handle::{Command, RequestEvent, SubmitError},
    monitor::EngineState,
    watchdog::StepClock,
};

/// How long a blocked engine waits before it looks for free pages again: pages that a transfer
/// held come back without a word to this thread.
pub const BLOCKED: Duration = Duration::from_millis(2);

/// What the thread measures itself.
#[derive(Clone)]
pub struct StepMetrics {
    pub seconds: Histogram,
    /// Rows a step.
    pub tokens: Histogram,
}

/// How long to wait for a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// There is something else to do.
    None,
    AtMost(Duration),
    Forever,
}

/// The handles are gone, or one of them said stop.
pub struct Stopped;

/// The engine, its requests and who hears of them.
pub struct Runner<B: Backend, R, F> {
    pub engine: Engine<B>,
    pub(super) commands: Receiver<Command<R>>,
    pub requests: HashMap<RequestId, UnboundedSender<RequestEvent<R>>>,
    pub reserved: F,
    pub state: watch::Sender<EngineState>,
    pub metrics: StepMetrics,
    pub(super) clock: Arc<StepClock>,
    /// A rank that is no member of its group's epoch: takes no requests.
    pub outside: bool,
}

impl<B: Backend, R, F: FnMut(LeasedPages, usize) -> R> Runner<B, R, F> {
    /// Waits for a command as long as `patience` says, then takes all that are there.
    pub fn take_commands(&mut self, patience: Patience) -> Result<(), Stopped> {
        let first = match patience {
            Patience::None => None,
            Patience::AtMost(wait) => match self.commands.recv_timeout(wait) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Err(Stopped),
            },
            Patience::Forever => Some(self.commands.recv().map_err(|_| Stopped)?),
        };
        if let Some(command) = first {
            self.obey(command)?;
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(Stopped),
            }
        }
    }

    fn obey(&mut self, command: Command<R>) -> Result<(), Stopped> {
        match command {
            Command::Submit {
                request,
                events,
                answer,
            } => {
                let id = request.id;
                let result = match self.outside {
                    true => Err(SubmitError::Outside),
                    false => self.engine.submit(request).map_err(SubmitError::Rejected),
                };
                if result.is_ok() {
                    self.requests.insert(id, events);
                }
                // If nobody waits for the answer, the request was dropped and its abort follows.
                let _ = answer.send(result);
            }
            Command::Abort(id) => {
                self.requests.remove(&id);
                self.engine.abort(id);
            }
            Command::Prefilled {
                id,
                pages,
                first,
                draft,
            } => {
                for event in self.engine.prefilled(id, pages, first, draft) {
                    deliver(&mut self.requests, &mut self.reserved, event);
                }
            }
            Command::Wake(wakeup) => wakeup.heard(),
            Command::Stop => return Err(Stopped),
        }
        Ok(())
    }

    /// Runs a step of whichever kind, handing its events to the requests, and measures it.
    pub fn measured<T>(
        &mut self,
        step: impl FnOnce(&mut Engine<B>, &mut dyn FnMut(Event)) -> T,
    ) -> T {
        let before = self.engine.counters();
        let started = Instant::now();
        self.clock.begin();
        let (requests, reserved) = (&mut self.requests, &mut self.reserved);
        let result = step(&mut self.engine, &mut |event| {
            deliver(requests, reserved, event);
        });
        self.clock.end();
        let after = self.engine.counters();
        if after.steps != before.steps {
            self.metrics
                .seconds
                .observe(started.elapsed().as_secs_f64());
            self.metrics
                .tokens
                .observe((after.step_tokens - before.step_tokens) as f64);
        }
        result
    }

    /// Forgets every request after `last`, which tells its owner why.
    pub fn end_requests(&mut self, last: impl Fn() -> Option<RequestEvent<R>>) {
        for (id, events) in std::mem::take(&mut self.requests) {
            if let Some(event) = last() {
                let _ = events.send(event);
            }
            self.engine.abort(id);
        }
    }

    pub fn publish(&self) {
        let state = state_of(&self.engine, self.outside);
        self.state
            .send_if_modified(|shown| std::mem::replace(shown, state) != state);
    }
}

pub fn state_of<B: Backend>(engine: &Engine<B>, outside: bool) -> EngineState {
    EngineState {
        status: engine.status(),
        counters: engine.counters(),
        outside,
    }
}

/// Hands an event to its request.
fn deliver<R>(
    requests: &mut HashMap<RequestId, UnboundedSender<RequestEvent<R>>>,
    reserved: &mut impl FnMut(LeasedPages, usize) -> R,
    event: Event,
) {
    let (id, last, event) = match event {
        Event::Started { id } => (id, false, RequestEvent::Started(Instant::now())),
        Event::Reserved {
            id,
            lease,
            first_page,
        } => (
            id,
            false,
            RequestEvent::Reserved(reserved(lease, first_page)),
        ),
        Event::PageFinished { id, index, page } => {
            (id, false, RequestEvent::PageFinished { index, page })
        }
        Event::Prefilled {
            id,
            first,
            draft,
            cached_tokens,
        } => {
            let event = RequestEvent::Prefilled {
                first,
                draft,
                cached_tokens,
            };
            (id, true, event)
        }
        Event::Output { id, output } => (id, output.finish.is_some(), RequestEvent::Output(output)),
        Event::Failed { id, message } => (id, true, RequestEvent::Failed { message }),
    };
    // An event that its request no longer wants is dropped; its abort is on the way.
    if let Some(events) = requests.get(&id) {
        let _ = events.send(event);
    }
    if last {
        requests.remove(&id);
    }
}
