//! The thread that owns the engine.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::watch;

use millrace_engine::{Engine, LeasedPages};
use millrace_kernels::Backend;

use super::{
    handle::{Command, EngineHandle},
    lone,
    monitor::EngineMonitor,
    runner::{Runner, StepMetrics, state_of},
    wakeup::Waker,
    watchdog::{self, StepClock},
};
use crate::group::{Driver, Rank};

/// The running thread; ends after [`EngineHandle::stop`] or when all handles are gone.
pub struct EngineThread(JoinHandle<()>);

impl EngineThread {
    /// Blocks until the thread has ended.
    pub fn join(self) {
        // A panic has ended the process before it could come here.
        let _ = self.0.join();
    }
}

/// Commands to a thread that is not there yet, so that what is to wake it can be made first.
pub(crate) struct Mailbox<R> {
    sender: mpsc::Sender<Command<R>>,
    commands: mpsc::Receiver<Command<R>>,
}

impl<R: Send + 'static> Mailbox<R> {
    pub fn waker(&self) -> Waker {
        Waker::new(self.sender.clone())
    }
}

impl<R> Default for Mailbox<R> {
    fn default() -> Mailbox<R> {
        let (sender, commands) = mpsc::channel();
        Mailbox { sender, commands }
    }
}

/// Starts the thread. `reserved` is called on it with the pages of each `Kind::Decode` request that
/// a peer should fill and the index of the first of them; what it makes of them goes to the request
/// as [`RequestEvent::Reserved`](super::RequestEvent::Reserved), and must see to it that they are
/// settled, also when it is dropped.
///
/// A panic on the thread ends the process: a worker without an engine must not look alive.
pub fn start<B: Backend, R: Send + 'static>(
    engine: Engine<B>,
    metrics: StepMetrics,
    reserved: impl FnMut(LeasedPages, usize) -> R + Send + 'static,
) -> std::io::Result<(EngineHandle<R>, EngineMonitor, EngineThread)> {
    start_in(Mailbox::default(), engine, metrics, reserved, None, None)
}

/// The same with a mailbox made before, and, for one rank of a group, what it needs to be one. A step that takes longer
/// than `longest_step` ends the process, too.
pub(crate) fn start_in<B: Backend, R: Send + 'static>(
    mailbox: Mailbox<R>,
    engine: Engine<B>,
    metrics: StepMetrics,
    reserved: impl FnMut(LeasedPages, usize) -> R + Send + 'static,
    rank: Option<Rank>,
    longest_step: Option<Duration>,
) -> std::io::Result<(EngineHandle<R>, EngineMonitor, EngineThread)> {
    let outside = rank.is_some();
    let state = watch::Sender::new(state_of(&engine, outside));
    let monitor = EngineMonitor {
        state: state.subscribe(),
        pool: engine.pool().clone(),
    };
    let clock = Arc::new(StepClock::default());
    let mut runner = Runner {
        engine,
        commands: mailbox.commands,
        requests: HashMap::new(),
        reserved,
        state,
        metrics,
        clock: clock.clone(),
        outside,
    };
    if let Some(longest) = longest_step {
        watchdog::watch(&clock, longest)?;
    }
    drop(clock);
    let span = tracing::Span::current();
    let thread = std::thread::Builder::new()
        .name("engine".to_string())
        .spawn(move || {
            let _entered = span.enter();
            // The runner stays outside, so that a panic does not drop it: whoever waits for an event
            // must not see a closed channel before the process is gone.
            if catch_unwind(AssertUnwindSafe(|| drive(&mut runner, rank))).is_err() {
                // The panic hook has told where.
                tracing::error!("the engine's thread panicked; this process ends now");
                std::process::abort();
            }
        })?;
    Ok((
        EngineHandle::new(mailbox.sender),
        monitor,
        EngineThread(thread),
    ))
}

fn drive<B: Backend, R, F: FnMut(LeasedPages, usize) -> R>(
    runner: &mut Runner<B, R, F>,
    rank: Option<Rank>,
) {
    match rank {
        None => lone::run(runner),
        Some(rank) => Driver::new(runner, rank).run(),
    }
    // Every request's channel closes here, which tells its owner.
    runner.end_requests(|| None);
    runner.publish();
}
