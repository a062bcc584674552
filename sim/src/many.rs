//! Several runs at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{Report, Scenario, ScenarioError, run};

/// Runs scenarios on `threads` threads, each run on one of them, and tells of each as it ends. The reports are in
/// the order of the scenarios.
///
/// # Errors
/// A scenario has a value that is none; nothing is run then.
pub fn run_all(
    scenarios: &[Scenario],
    threads: usize,
    ended: impl Fn(&Report) + Sync,
) -> Result<Vec<Report>, ScenarioError> {
    for scenario in scenarios {
        scenario.check()?;
    }
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<Report>>> = Mutex::new(vec![None; scenarios.len()]);
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, scenarios.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(scenario) = scenarios.get(number) else {
                        break;
                    };
                    // It was checked above.
                    let Ok(report) = run(scenario) else { break };
                    ended(&report);
                    done.lock().expect("nobody panics with it")[number] = Some(report);
                }
            });
        }
    });
    let done = done.into_inner().expect("nobody panics with it");
    Ok(done.into_iter().flatten().collect())
}
