//! The last 15 minutes: routers' sums become pieces of traffic, and pieces become windows.

mod fleet;
mod sums;

use std::collections::{BTreeMap, VecDeque};

pub use fleet::{Fleet, capacity};
pub use sums::Sums;

use crate::decision::Frozen;
use crate::observation::Observation;

/// Seconds. What happens now, what decides, and what gives context.
pub const SHORT: f64 = 60.0;
pub const MIDDLE: f64 = 300.0;
pub const LONG: f64 = 900.0;
/// The shortest piece: more frequent looks add to the last one.
const PIECE: f64 = 5.0;
/// A router says something every 5 s. One whose clock stood still for so long is not there.
const GAP: f64 = 15.0;

/// What all routers and workers did between two looks.
#[derive(Debug, Clone)]
pub struct Piece {
    /// When it ended.
    pub at: f64,
    /// By the routers' own clocks, mean.
    pub seconds: f64,
    pub sums: Sums,
    pub fleet: Fleet,
}

/// All pieces of the last so many seconds together.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    pub seconds: f64,
    pub sums: Sums,
    pub fleet: Fleet,
}

#[derive(Debug, Clone)]
struct Heard {
    incarnation: u64,
    /// When the last piece ended.
    base_seconds: f64,
    base: Sums,
}

/// The latest of a router's own clock, and when it came.
#[derive(Debug, Clone, Copy)]
struct Clock {
    incarnation: u64,
    latest: f64,
    at: f64,
}

#[derive(Debug, Clone, Default)]
pub struct Window {
    routers: BTreeMap<String, Heard>,
    /// Outlives gaps: a clock that stands still is no fresh one.
    clocks: BTreeMap<String, Clock>,
    pieces: VecDeque<Piece>,
    /// The three windows as of the last piece, each with when its first piece began.
    known: Vec<(f64, f64, Totals)>,
    /// Of looks since the last piece ended.
    fleet: Option<Fleet>,
    /// When the last piece ended.
    ended: Option<f64>,
    last_look: Option<f64>,
    /// Since when something is missing.
    gap_since: Option<f64>,
}

impl Window {
    /// Takes in one look. An error is why nothing can be decided on it; what was seen before a longer gap
    /// is forgotten.
    pub fn take(&mut self, observation: &Observation) -> Result<(), Frozen> {
        let now = observation.now;
        if !now.is_finite() || self.last_look.is_some_and(|last| now < last) {
            *self = Window::default();
            return Err(Frozen::MetricsGap);
        }
        // Nobody looked: what routers counted meanwhile is a fact, but not what workers did.
        if self.last_look.is_some_and(|last| now - last > SHORT) {
            *self = Window {
                clocks: std::mem::take(&mut self.clocks),
                ..Window::default()
            };
        }
        self.last_look = Some(now);
        match self.look(observation) {
            Ok(()) => {
                self.gap_since = None;
                Ok(())
            }
            Err(why) => {
                let since = *self.gap_since.get_or_insert(now);
                if now - since >= GAP || why == Frozen::NoRouters {
                    *self = Window {
                        clocks: std::mem::take(&mut self.clocks),
                        last_look: Some(now),
                        gap_since: Some(since),
                        ..Window::default()
                    };
                }
                Err(why)
            }
        }
    }

    fn look(&mut self, observation: &Observation) -> Result<(), Frozen> {
        let now = observation.now;
        let heard = &observation.routers;
        if heard.is_empty() && observation.routers_expected == 0 {
            return Err(Frozen::NoRouters);
        }
        if heard.len() < observation.routers_expected as usize {
            return Err(Frozen::MetricsGap);
        }
        let mut told = BTreeMap::new();
        for router in heard {
            let traffic = &router.traffic;
            let sane = traffic.seconds.is_finite() && traffic.seconds >= 0.0;
            let sums = Sums::of(traffic)
                .filter(|_| sane)
                .ok_or(Frozen::MetricsGap)?;
            told.insert(&router.name, (traffic.incarnation, traffic.seconds, sums));
        }
        let mut stands_still = false;
        let mut clocks = BTreeMap::new();
        for (name, (incarnation, seconds, _)) in &told {
            let known = self.clocks.get(*name);
            let known = known.filter(|clock| clock.incarnation == *incarnation);
            let clock = match known {
                Some(clock) if *seconds <= clock.latest => *clock,
                _ => Clock {
                    incarnation: *incarnation,
                    latest: *seconds,
                    at: now,
                },
            };
            stands_still |= now - clock.at >= GAP;
            clocks.insert((*name).clone(), clock);
        }
        self.clocks = clocks;
        if stands_still {
            return Err(Frozen::MetricsGap);
        }
        let fleet = Fleet::of(observation);
        match &mut self.fleet {
            Some(sum) => sum.add(&fleet),
            none => *none = Some(fleet),
        }
        let due = self.ended.is_none_or(|ended| now - ended >= PIECE);
        // A piece is the same stretch of time at every router: it waits for the slowest.
        let all_moved = told.iter().all(|(name, (incarnation, seconds, _))| {
            let known = self.routers.get(*name);
            known.is_none_or(|k| k.incarnation != *incarnation || *seconds > k.base_seconds)
        });
        if due && all_moved {
            self.end_piece(now, told);
        }
        Ok(())
    }

    fn end_piece(&mut self, now: f64, told: BTreeMap<&String, (u64, f64, Sums)>) {
        let elapsed = self.ended.map(|ended| now - ended);
        let mut sums = Sums::default();
        let mut clocks = Vec::new();
        // A router of which no difference can be had yet leaves the piece without part of its traffic.
        let mut whole = elapsed.is_some();
        let mut routers = BTreeMap::new();
        for (name, (incarnation, seconds, now_sums)) in told {
            let known = self.routers.get(name);
            let same = known.filter(|known| known.incarnation == incarnation);
            match same.and_then(|known| Some((known, now_sums.since(&known.base)?))) {
                Some((known, more)) => {
                    clocks.push(seconds - known.base_seconds);
                    sums.add(&more);
                }
                // All of its life is in this piece.
                None if same.is_none() && elapsed.is_some_and(|e| seconds <= e) => {
                    sums.add(&now_sums)
                }
                None => whole = false,
            }
            routers.insert(
                name.clone(),
                Heard {
                    incarnation,
                    base_seconds: seconds,
                    base: now_sums,
                },
            );
        }
        // Who is gone takes nothing back.
        self.routers = routers;
        self.ended = Some(now);
        let fleet = self.fleet.take().unwrap_or_default();
        let Some(elapsed) = elapsed.filter(|_| whole) else {
            return;
        };
        let clock = clocks.iter().sum::<f64>() / clocks.len() as f64;
        let seconds = if (clock - elapsed).abs() <= GAP {
            clock
        } else {
            elapsed
        };
        self.pieces.push_back(Piece {
            at: now,
            seconds,
            sums,
            fleet,
        });
        while self.pieces.front().is_some_and(|p| now - p.at > LONG) {
            self.pieces.pop_front();
        }
        let known = [SHORT, MIDDLE, LONG].map(|seconds| {
            let first = self.recent(seconds, f64::MIN).last();
            let began = first.map_or(now, |piece| piece.at - piece.seconds);
            (seconds, began, self.add_up(seconds, f64::MIN))
        });
        self.known = known.into();
    }

    /// Seconds of traffic there are.
    pub fn covered(&self) -> f64 {
        self.pieces.iter().map(|piece| piece.seconds).sum()
    }

    pub fn latest(&self) -> Option<&Piece> {
        self.pieces.back()
    }

    /// Pieces of the last `seconds` that began after `from`, the latest first.
    pub fn recent(&self, seconds: f64, from: f64) -> impl Iterator<Item = &Piece> {
        let mut before = 0.0;
        self.pieces.iter().rev().take_while(move |piece| {
            let within = before < seconds && piece.at - piece.seconds >= from - 1e-6;
            before += piece.seconds;
            within
        })
    }

    pub fn totals(&self, seconds: f64, from: f64) -> Totals {
        let whole = |known: &&(f64, f64, Totals)| known.0 == seconds && known.1 >= from;
        match self.known.iter().find(whole) {
            Some((.., totals)) => totals.clone(),
            None => self.add_up(seconds, from),
        }
    }

    fn add_up(&self, seconds: f64, from: f64) -> Totals {
        let mut totals = Totals::default();
        for piece in self.recent(seconds, from) {
            totals.seconds += piece.seconds;
            totals.sums.add(&piece.sums);
            totals.fleet.add(&piece.fleet);
        }
        totals
    }
}

#[cfg(test)]
mod tests;
