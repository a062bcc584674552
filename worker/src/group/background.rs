//! A thread for work that must not take time from decoding.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
};

use tokio::sync::oneshot;

/// About a tenth of an engine thread's share of a core that both want. Less, and on a machine
/// without a spare core a plan would not be staged before its deadline.
#[cfg(target_os = "linux")]
const NICE: libc::c_int = 10;

type Job = Box<dyn FnOnce() + Send>;

/// One thread of low priority: packing and hashing weights there takes little but the cycles that
/// the engine's threads leave. Ends when the last clone is dropped.
#[derive(Clone)]
pub struct Background(mpsc::Sender<Job>);

/// The job panicked; the panic hook has told where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("work on weights panicked; the log says where")]
pub struct Panicked;

impl Background {
    pub fn start() -> io::Result<Background> {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("staging".to_string())
            .spawn(move || {
                lower_priority();
                for job in queue {
                    // The next one may do better; `run` tells of this one.
                    let _ = catch_unwind(AssertUnwindSafe(job));
                }
            })?;
        Ok(Background(jobs))
    }

    /// Runs `job` when those before it are done. It runs to its end also if this future is dropped.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Panicked> {
        let (done, result) = oneshot::channel();
        let job = move || {
            // Nobody waits any more if staging was given up.
            let _ = done.send(job());
        };
        // If the thread were gone, `done` is dropped with the job.
        let _ = self.0.send(Box::new(job));
        result.await.map_err(|_| Panicked)
    }
}

/// On Linux priorities are a thread's own.
#[cfg(target_os = "linux")]
fn lower_priority() {
    // SAFETY: no pointers; `who` 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } != 0 {
        let error = io::Error::last_os_error();
        tracing::warn!(%error, "weights are staged at normal priority");
    }
}

#[cfg(not(target_os = "linux"))]
fn lower_priority() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_fails_its_own_job_alone() {
        let background = Background::start().unwrap();
        let failed = background.run(|| -> u32 { panic!("on purpose") }).await;
        assert_eq!(failed, Err(Panicked));
        assert_eq!(background.run(|| 7).await, Ok(7));
    }
}
