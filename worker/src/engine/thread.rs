//! The thread that owns the engine.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use prometheus::Histogram;
use tokio::sync::{mpsc::UnboundedSender, watch};

use millrace_engine::{Engine, Event, LeasedPages, RequestId, engine::Pending};
use millrace_kernels::Backend;

use super::{
    handle::{Command, EngineHandle, RequestEvent},
    monitor::{EngineMonitor, EngineState},
};

/// How long a blocked engine waits before it looks for free pages again: pages that a transfer
/// held come back without a word to this thread.
const BLOCKED: Duration = Duration::from_millis(2);

/// What the thread measures itself.
#[derive(Clone)]
pub struct StepMetrics {
    pub seconds: Histogram,
    /// Rows a step.
    pub tokens: Histogram,
}

/// The running thread; ends after [`EngineHandle::stop`] or when all handles are gone.
pub struct EngineThread(JoinHandle<()>);

impl EngineThread {
    /// Blocks until the thread has ended.
    pub fn join(self) {
        // A panic has ended the process before it could come here.
        let _ = self.0.join();
    }
}

/// Starts the thread. `reserved` is called on it with the pages of each `Kind::Decode` request that
/// a peer should fill and the index of the first of them; what it makes of them goes to the request
/// as [`RequestEvent::Reserved`], and must see to it that they are settled, also when it is dropped.
///
/// A panic on the thread ends the process: a worker without an engine must not look alive.
pub fn start<B: Backend, R: Send + 'static>(
    engine: Engine<B>,
    metrics: StepMetrics,
    reserved: impl FnMut(LeasedPages, usize) -> R + Send + 'static,
) -> std::io::Result<(EngineHandle<R>, EngineMonitor, EngineThread)> {
    let (sender, commands) = mpsc::channel();
    let pool = engine.pool().clone();
    let state = watch::Sender::new(state_of(&engine));
    let monitor = EngineMonitor {
        state: state.subscribe(),
        pool,
    };
    let mut driver = Driver {
        engine,
        commands,
        requests: HashMap::new(),
        reserved,
        state,
        metrics,
    };
    let span = tracing::Span::current();
    let thread = std::thread::Builder::new()
        .name("engine".to_string())
        .spawn(move || {
            let _entered = span.enter();
            // The driver stays outside, so that a panic does not drop it: whoever waits for an
            // event must not see a closed channel before the process is gone.
            if catch_unwind(AssertUnwindSafe(|| driver.run())).is_err() {
                // The panic hook has told where.
                tracing::error!("the engine's thread panicked; this process ends now");
                std::process::abort();
            }
        })?;
    Ok((EngineHandle::new(sender), monitor, EngineThread(thread)))
}

struct Driver<B: Backend, R, F> {
    engine: Engine<B>,
    commands: Receiver<Command<R>>,
    requests: HashMap<RequestId, UnboundedSender<RequestEvent<R>>>,
    reserved: F,
    state: watch::Sender<EngineState>,
    metrics: StepMetrics,
}

/// The handles are gone, or one of them said stop.
struct Stopped;

impl<B: Backend, R, F: FnMut(LeasedPages, usize) -> R> Driver<B, R, F> {
    fn run(&mut self) {
        while self.take_commands().is_ok() {
            if self.engine.pending() != Pending::Idle {
                self.step();
            }
            self.publish();
        }
        // Every request's channel closes here, which tells its owner.
        for id in std::mem::take(&mut self.requests).into_keys() {
            self.engine.abort(id);
        }
        self.publish();
    }

    /// Waits for a command if there is nothing to compute, then takes all that are there.
    fn take_commands(&mut self) -> Result<(), Stopped> {
        let first = match self.engine.pending() {
            Pending::Runnable => None,
            Pending::Blocked => match self.commands.recv_timeout(BLOCKED) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Err(Stopped),
            },
            Pending::Idle => Some(self.commands.recv().map_err(|_| Stopped)?),
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
                let result = self.engine.submit(request);
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
            Command::Stop => return Err(Stopped),
        }
        Ok(())
    }

    fn step(&mut self) {
        let before = self.engine.counters();
        let started = Instant::now();
        let (requests, reserved) = (&mut self.requests, &mut self.reserved);
        self.engine
            .step(&mut |event| deliver(requests, reserved, event));
        let after = self.engine.counters();
        if after.steps != before.steps {
            self.metrics
                .seconds
                .observe(started.elapsed().as_secs_f64());
            self.metrics
                .tokens
                .observe((after.step_tokens - before.step_tokens) as f64);
        }
    }

    fn publish(&self) {
        let state = state_of(&self.engine);
        self.state
            .send_if_modified(|shown| std::mem::replace(shown, state) != state);
    }
}

/// Hands an event to its request.
fn deliver<R>(
    requests: &mut HashMap<RequestId, UnboundedSender<RequestEvent<R>>>,
    reserved: &mut impl FnMut(LeasedPages, usize) -> R,
    event: Event,
) {
    let (id, last, event) = match event {
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

fn state_of<B: Backend>(engine: &Engine<B>) -> EngineState {
    EngineState {
        status: engine.status(),
        counters: engine.counters(),
    }
}
