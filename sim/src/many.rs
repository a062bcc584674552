//! Several runs at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{Report, Scenario, ScenarioError, run};

/// Runs scenarios on `threads` threads, each run on one of them, and tells of each as it ends, whoever else is still
/// running. The reports are in the order of the scenarios.
///
/// # Errors
/// A scenario has a value that is none, and nothing is run then; or whoever was told of a run has failed, and no
/// further one begins.
pub fn run_all<E: From<ScenarioError> + Send>(
    scenarios: &[Scenario],
    threads: usize,
    ended: impl Fn(&Report) -> Result<(), E> + Sync,
) -> Result<Vec<Report>, E> {
    for scenario in scenarios {
        scenario.check()?;
    }
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<Report>>> = Mutex::new(vec![None; scenarios.len()]);
    let failed: Mutex<Option<E>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, scenarios.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(scenario) = scenarios.get(number) else {
                        break;
                    };
                    let told = run(scenario).map_err(E::from).and_then(|report| {
                        ended(&report)?;
                        Ok(report)
                    });
                    match told {
                        Ok(report) => {
                            done.lock().expect("nobody panics with it")[number] = Some(report);
                        }
                        Err(error) => {
                            next.store(scenarios.len(), Ordering::Relaxed);
                            let mut failed = failed.lock().expect("nobody panics with it");
                            failed.get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().expect("nobody panics with it") {
        return Err(error);
    }
    let done = done.into_inner().expect("nobody panics with it");
    Ok(done.into_iter().flatten().collect())
}
