//! An engine that holds every expert itself.

use millrace_engine::{LeasedPages, engine::Pending};
use millrace_kernels::Backend;

use super::runner::{BLOCKED, Patience, Runner};

pub fn run<B: Backend, R, F: FnMut(LeasedPages, usize) -> R>(runner: &mut Runner<B, R, F>) {
    while runner
        .take_commands(patience(runner.engine.pending()))
        .is_ok()
    {
        if runner.engine.pending() != Pending::Idle {
            runner.measured(|engine, emit| engine.step(emit));
        }
        runner.publish();
    }
}

fn patience(pending: Pending) -> Patience {
    match pending {
        Pending::Runnable => Patience::None,
        Pending::Blocked => Patience::AtMost(BLOCKED),
        Pending::Idle => Patience::Forever,
    }
}
