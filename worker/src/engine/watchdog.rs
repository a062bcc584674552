//! Steps that never end.
//!
//! A kernel that waits for what does not come, or a device that has fallen off its bus without saying so, leaves the
//! engine's thread waiting for ever, while everything around it looks alive: the worker is ready, its feed goes on, and
//! routers go on sending it requests. Then the process has to end, so that its supervisor starts it anew and its
//! requests go elsewhere.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// When the step that runs now began.
#[derive(Debug, Default)]
pub struct StepClock(Mutex<Option<Instant>>);

impl StepClock {
    pub fn begin(&self) {
        self.set(Some(Instant::now()));
    }

    pub fn end(&self) {
        self.set(None);
    }

    fn set(&self, began: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = began;
    }

    /// Whether a step has run for longer than `longest` at `now`.
    fn is_overdue(&self, longest: Duration, now: Instant) -> bool {
        let began = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        began.is_some_and(|began| now.saturating_duration_since(began) > longest)
    }
}

/// Ends the process once a step of `clock` takes longer than `longest`. Ends itself when the clock is gone.
pub fn watch(clock: &Arc<StepClock>, longest: Duration) -> std::io::Result<()> {
    let clock = Arc::downgrade(clock);
    thread::Builder::new()
        .name("watchdog".to_string())
        .spawn(move || {
            while let Some(clock) = Weak::upgrade(&clock) {
                if clock.is_overdue(longest, Instant::now()) {
                    tracing::error!(
                        seconds = longest.as_secs_f64(),
                        "the device has not ended a step for so long; this process ends now. If it happens again, look \
                         for the device's errors in the kernel's log (`dmesg | grep NVRM`)"
                    );
                    std::process::abort();
                }
                drop(clock);
                thread::sleep(longest / 8);
            }
        })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_overdue_while_it_runs_too_long_and_no_other_time() {
        let longest = Duration::from_secs(10);
        let clock = StepClock::default();
        let late = Instant::now() + 2 * longest;
        assert!(!clock.is_overdue(longest, late));
        clock.begin();
        assert!(!clock.is_overdue(longest, Instant::now()));
        assert!(clock.is_overdue(longest, late));
        clock.end();
        assert!(!clock.is_overdue(longest, late));
    }

    #[test]
    fn a_step_that_never_ends_ends_its_process() {
        use std::os::unix::process::ExitStatusExt;
        // It is this very process that would end, so another one takes its place.
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--ignored", "--exact", "engine::watchdog::tests::hangs"]);
        let output = child.output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
    }

    #[test]
    #[ignore = "never ends by itself; the test above runs it"]
    fn hangs() {
        let clock = Arc::new(StepClock::default());
        clock.begin();
        watch(&clock, Duration::from_millis(50)).unwrap();
        thread::sleep(Duration::from_secs(60));
    }
}
