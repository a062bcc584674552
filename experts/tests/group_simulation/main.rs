//! Ranks and routers on a simulated network, with real state machines in them: `Lockstep` and
//! `Coordinator`. Deterministic: a seed is a schedule.
//!
//! Links delay, break and lose what is under way; ranks are killed, restarted, stopped and cut off from
//! each other; staging fails; routers restart, none or two believe to lead; the store goes away, and a
//! lone router's store forgets. `check` says what must hold at every moment, and in the end, when
//! faults have stopped, every rank has to be in one epoch, at work when there is some, else silent.
//!
//! `MILLRACE_SCHEDULES` sets how many are run, `MILLRACE_SEED` runs a single one.

mod check;
mod context;
mod faults;
mod net;
mod rank;
mod router;
mod store;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use check::Seen;
use world::simulate;

/// A mistake that is built in, to see that the checker would find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// A rank adopts an epoch without having agreed on leaving the last.
    AdoptAlone,
    /// A rank says that weights are staged before they are.
    AdoptUnstaged,
    /// The exchange looks at a step's number and not at its epoch.
    IgnoreEpochOfData,
    /// The store takes every write.
    NoCompare,
    /// Ranks do not say which numbers a forgetful store gave out.
    ForgetNumbers,
    /// The coordinator does not wait until an epoch is adopted.
    BelieveAllAdopted,
}

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect("a number"))
}

#[test]
fn no_two_ranks_compute_one_step_under_different_epochs() {
    let (first, count) = match setting("MILLRACE_SEED") {
        Some(seed) => (seed, 1),
        None => (0, setting("MILLRACE_SCHEDULES").unwrap_or(10_000)),
    };
    let next = AtomicU64::new(first);
    let work = || {
        let mut seen = Seen::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return Ok(seen);
            }
            match simulate(seed, Flaw::None) {
                Ok(of_this) => seen.add(&of_this),
                Err(violation) => return Err(format!("schedule {seed}: {}", violation.0)),
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let mut seen = Seen::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join().expect("a simulation does not panic") {
                Ok(of_some) => seen.add(&of_some),
                Err(violation) => panic!("{violation}"),
            }
        }
    });
    println!("{count} schedules: {seen:?}");
    if count > 1000 {
        // A simulation in which nothing happens proves nothing.
        let often = [
            seen.agreed,
            seen.at_once,
            seen.dropped,
            seen.left_out,
            seen.repairs,
            seen.forgotten,
            seen.lost_races,
        ];
        assert!(often.iter().all(|&times| times > 100), "{seen:?}");
    }
}

/// The first schedule that shows it, and what the checker said.
fn found(flaw: Flaw) -> (u64, String) {
    let mut violations = (0..3000).filter_map(|seed| Some((seed, simulate(seed, flaw).err()?.0)));
    let found = violations.next();
    found.unwrap_or_else(|| panic!("{flaw:?} goes unnoticed"))
}

#[test]
fn the_checker_finds_mistakes() {
    let expected = [
        (Flaw::AdoptAlone, "leaves epoch"),
        (Flaw::AdoptUnstaged, "without its weights"),
        (Flaw::IgnoreEpochOfData, "uses what"),
        (Flaw::NoCompare, "is committed a"),
        (Flaw::ForgetNumbers, "is committed"),
        (Flaw::BelieveAllAdopted, "is committed while"),
    ];
    for (flaw, what) in expected {
        let (seed, violation) = found(flaw);
        println!("{flaw:?}: schedule {seed}: {violation}");
        assert!(violation.contains(what), "{flaw:?}: {violation}");
    }
}
