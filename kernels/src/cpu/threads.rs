//! A pool of threads for work of microseconds.
//!
//! The thread that calls [`Threads::run`] takes tasks itself and never waits for a helper that has
//! not started: a helper that sleeps, or that the system runs late, only means less help. So an
//! op's cost on a busy machine is bounded by its cost on one thread.
//!
//! A helper spins for [`SPIN`] after its last job (the next op of a forward pass follows within
//! that time) and then sleeps: an idle worker process uses no processor.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

const SPIN: Duration = Duration::from_micros(50);

/// `threads` threads, the caller among them.
pub struct Threads {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    wakers: Vec<Thread>,
    /// One `run` at a time uses the helpers; others do without.
    busy: Mutex<()>,
}

/// `[generation: 32 | open: 1 | helpers that entered: 31]`: one word, so that a helper enters a job
/// only while it is open, and the caller knows at closing how many to wait for.
struct Gate(AtomicU64);

const OPEN: u64 = 1 << 31;
const ENTERED: u64 = OPEN - 1;

#[repr(align(128))]
struct Own<T>(T);

struct Shared {
    gate: Own<Gate>,
    next: Own<AtomicUsize>,
    left: Own<AtomicUsize>,
    asleep: Own<AtomicUsize>,
    job: UnsafeCell<Option<Job>>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

// SAFETY: `job` is written only while the gate is closed and nobody is inside, and read only by
// those who entered through it; the task it points to is `Sync`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Threads {
    pub fn new(threads: usize) -> Threads {
        let shared = Arc::new(Shared {
            gate: Own(Gate(AtomicU64::new(0))),
            next: Own(AtomicUsize::new(0)),
            left: Own(AtomicUsize::new(0)),
            asleep: Own(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let helpers: Vec<_> = (1..threads)
            .map_while(|i| {
                let shared = shared.clone();
                // Without a thread that the system refuses, the others do the work.
                std::thread::Builder::new()
                    .name(format!("kernel-{i}"))
                    .spawn(move || shared.help())
                    .ok()
            })
            .collect();
        let wakers = helpers
            .iter()
            .map(|helper| helper.thread().clone())
            .collect();
        Threads {
            shared,
            helpers,
            wakers,
            busy: Mutex::new(()),
        }
    }

    pub fn count(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `task(i)` for every `i` below `tasks`, on any thread, in any order, and returns when all
    /// calls have. Panics if a task does. A nested `run` does all its tasks on its own thread.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let busy = match self.busy.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if tasks <= 1 || self.helpers.is_empty() || busy.is_none() {
            (0..tasks).for_each(task);
            return;
        }
        // SAFETY: only the lifetime is changed; `Closing` keeps the task borrowed until everyone
        // who could call it has left, even when a task panics.
        let task: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(task) };
        let job = Job { task, tasks };
        let closing = Closing(&self.shared);
        self.shared.open(job);
        if self.shared.asleep.0.load(Ordering::SeqCst) > 0 {
            self.wakers.iter().take(tasks - 1).for_each(Thread::unpark);
        }
        self.shared.take(job);
        drop(closing);
        if self.shared.panicked.swap(false, Ordering::Relaxed) {
            panic!("a task of this op panicked on another thread");
        }
    }

    /// Calls `row(r)` for every `r` below `rows`, several a task; a row takes about as long as
    /// reading and writing `values` values.
    pub fn for_rows(&self, rows: usize, values: usize, row: &(dyn Fn(usize) + Sync)) {
        /// Some microseconds.
        const TASK_VALUES: usize = 16 << 10;
        let tasks = (rows * values / TASK_VALUES)
            .clamp(1, 4 * self.count())
            .min(rows);
        self.run(tasks, &|task| {
            (rows * task / tasks..rows * (task + 1) / tasks).for_each(row)
        });
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // Its tasks' panics were reported by `run`.
            let _ = helper.join();
        }
    }
}

/// Closes the gate and waits for those inside, also while unwinding.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let gate = self.0.gate.0.0.fetch_and(!OPEN, Ordering::AcqRel);
        // After a panic of the caller's own task: nobody need begin another.
        self.0.next.0.store(usize::MAX / 2, Ordering::Relaxed);
        let mut spins = 0u32;
        while self.0.left.0.load(Ordering::Acquire) as u64 != gate & ENTERED {
            spins += 1;
            if spins < 4096 {
                std::hint::spin_loop();
            } else {
                // A helper lost its processor in the middle of a task.
                std::thread::yield_now();
            }
        }
    }
}

impl Shared {
    fn open(&self, job: Job) {
        // SAFETY: the gate is closed and everyone left (`Closing`), so nobody reads it.
        unsafe { *self.job.get() = Some(job) };
        self.next.0.store(0, Ordering::Relaxed);
        self.left.0.store(0, Ordering::Relaxed);
        let generation = (self.gate.0.0.load(Ordering::Relaxed) >> 32) + 1;
        self.gate
            .0
            .0
            .store(generation << 32 | OPEN, Ordering::SeqCst);
    }

    /// Takes tasks until none is left.
    fn take(&self, job: Job) {
        // SAFETY: the job is open or this thread is inside it, so the task is still borrowed.
        let task = unsafe { &*job.task };
        loop {
            let i = self.next.0.fetch_add(1, Ordering::Relaxed);
            if i >= job.tasks {
                return;
            }
            task(i);
        }
    }

    fn help(&self) {
        let mut served = 0;
        while let Some(gate) = self.wait(served) {
            served = gate >> 32;
            if !self.enter(gate) {
                continue;
            }
            // SAFETY: inside the gate the job is set and not written.
            let job = unsafe { *self.job.get() }.expect("an open gate has a job");
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.take(job)));
            if result.is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.left.0.fetch_add(1, Ordering::Release);
        }
    }

    /// Enters the job that `gate` was read of, unless it is closed by now.
    fn enter(&self, mut gate: u64) -> bool {
        let generation = gate >> 32;
        while gate & OPEN != 0 && gate >> 32 == generation {
            match self.gate.0.0.compare_exchange_weak(
                gate,
                gate + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => gate = now,
            }
        }
        false
    }

    /// Waits for an open job other than `served`. `None`: the pool is being dropped.
    fn wait(&self, served: u64) -> Option<u64> {
        let fresh = |gate: u64| gate & OPEN != 0 && gate >> 32 != served;
        loop {
            let since = Instant::now();
            while since.elapsed() < SPIN {
                for _ in 0..16 {
                    let gate = self.gate.0.0.load(Ordering::Acquire);
                    if fresh(gate) {
                        return Some(gate);
                    }
                    std::hint::spin_loop();
                }
            }
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            // Either the caller sees `asleep` and wakes this thread, or this thread sees its job.
            self.asleep.0.fetch_add(1, Ordering::SeqCst);
            if !fresh(self.gate.0.0.load(Ordering::SeqCst)) && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            self.asleep.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Threads::new(threads);
            for tasks in (0..200).chain([10_000]) {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    counts
                        .iter()
                        .all(|count| count.load(Ordering::Relaxed) == 1)
                );
            }
        }
    }

    #[test]
    fn sleepers_are_woken_and_help() {
        let pool = Threads::new(2);
        for _ in 0..5 {
            std::thread::sleep(SPIN * 20);
            // Each of the two tasks waits for the other, so both threads must come.
            let here = AtomicUsize::new(0);
            pool.run(2, &|_| {
                here.fetch_add(1, Ordering::SeqCst);
                while here.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn runs_may_nest_and_overlap() {
        let pool = Threads::new(3);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        pool.run(8, &|_| {
                            pool.run(4, &|_| {
                                total.fetch_add(1, Ordering::Relaxed);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 100 * 8 * 4);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Threads::new(2);
        for bad in 0..16 {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.run(16, &|i| {
                    std::thread::yield_now();
                    assert!(i != bad, "deliberate, in a test");
                });
            }));
            assert!(result.is_err());
        }
        pool.run(4, &|_| {});
    }
}
