//! The fewest GPUs that meet all objectives, or what misses them least where GPUs do not suffice.

use crate::policy::Policy;
use crate::predict::{Bounds, Predictor, State};
use crate::{ByRole, Role};

/// How many there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub low: ByRole<u32>,
    pub high: ByRole<u32>,
    /// GPUs of one replica.
    pub gpus: ByRole<u32>,
    /// GPUs.
    pub budget: u64,
}

/// Why what is needed cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Short {
    /// Both pools may be as large as they like within the budget, but it is too small.
    Budget,
    Max,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Needed {
    pub replicas: ByRole<u32>,
    pub short: Option<Short>,
    /// Sequences a second that they are for.
    pub rate: f64,
}

/// More decode replicas than meet decode's own objectives shorten TTFT little: so many are tried.
const MORE_DECODE: u32 = 64;
/// Splits of a budget that are looked at first.
const SPLITS: u32 = 32;

impl Room {
    pub fn of(policy: &Policy, low: ByRole<u32>) -> Room {
        let gpus = policy.pools.map(|_, pool| pool.gpus);
        let budget = policy.max_gpus.map_or(u64::MAX, u64::from);
        let high = policy.pools.map(|_, pool| pool.max);
        Room {
            low: low.map(|role, &low| low.min(*high.of(role))),
            high,
            gpus,
            budget,
        }
    }

    pub fn cost(&self, replicas: ByRole<u32>) -> u64 {
        cost(self.gpus, replicas)
    }

    /// Within bounds and budget, as near to `wanted` as it goes: what is wanted beyond `anchor` is cut
    /// first, both pools' in proportion.
    pub fn fit(&self, wanted: ByRole<u32>, anchor: ByRole<u32>) -> ByRole<u32> {
        let within =
            |r: ByRole<u32>| r.map(|role, &n| n.min(*self.high.of(role)).max(*self.low.of(role)));
        let wanted = within(wanted);
        if self.cost(wanted) <= self.budget {
            return wanted;
        }
        let anchor = within(anchor).map(|role, &n| n.min(*wanted.of(role)));
        let floor = if self.cost(anchor) <= self.budget {
            anchor
        } else {
            self.low
        };
        let (most, least) = (self.cost(wanted), self.cost(floor));
        let share = self.budget.saturating_sub(least) as f64 / (most - least).max(1) as f64;
        let mut fit = wanted.map(|role, &n| {
            let floor = *floor.of(role);
            floor + (f64::from(n.saturating_sub(floor)) * share).floor() as u32
        });
        for role in [Role::Decode, Role::Prefill] {
            let left = self.budget.saturating_sub(self.cost(fit));
            let more = left / u64::from((*self.gpus.of(role)).max(1));
            let up_to = wanted.of(role).saturating_sub(*fit.of(role));
            *fit.of_mut(role) += up_to.min(u32::try_from(more).unwrap_or(u32::MAX));
        }
        fit
    }
}

fn cost(gpus: ByRole<u32>, replicas: ByRole<u32>) -> u64 {
    let of = |role: Role| u64::from(*gpus.of(role)) * u64::from(*replicas.of(role));
    of(Role::Prefill) + of(Role::Decode)
}

/// The cheapest in the room that meets all objectives at `rate`.
pub fn needed(predictor: &Predictor<'_>, bounds: &Bounds, rate: f64, room: &Room) -> Needed {
    if rate <= 0.0 {
        return Needed {
            replicas: room.low,
            short: None,
            rate,
        };
    }
    let state = |prefill, decode| predictor.state(rate, ByRole { prefill, decode });
    if !state(room.high.prefill, room.high.decode).meets(bounds) {
        return least_bad(predictor, bounds, rate, room, Short::Max);
    }
    let at_least = |low, high, holds: &dyn Fn(u32) -> bool| first(low, high, holds);
    let decode = at_least(room.low.decode, room.high.decode, &|n| {
        state(room.high.prefill, n).decode_meets(bounds)
    });
    let prefill = at_least(room.low.prefill, room.high.prefill, &|n| {
        state(n, room.high.decode).prefill_meets(bounds)
    });
    let mut best = room.high;
    let last = decode.saturating_add(MORE_DECODE).min(room.high.decode);
    for n in decode..=last {
        let least = ByRole { prefill, decode: n };
        if room.cost(least) >= room.cost(best) && n > decode {
            break;
        }
        if !state(room.high.prefill, n).ttft_meets(bounds) {
            continue;
        }
        let prefill = first(prefill, room.high.prefill, &|p| {
            state(p, n).ttft_meets(bounds)
        });
        let found = ByRole { prefill, decode: n };
        if room.cost(found) < room.cost(best) || best == room.high {
            best = found;
        }
    }
    if room.cost(best) > room.budget {
        return least_bad(predictor, bounds, rate, room, Short::Budget);
    }
    Needed {
        replicas: best,
        short: None,
        rate,
    }
}

/// The smallest number from `low` on for which it `holds`, which it does for `high` and all after the
/// first.
fn first(mut low: u32, mut high: u32, holds: &dyn Fn(u32) -> bool) -> u32 {
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    high
}

/// Of all that the budget buys: what misses the objective that is worst off by the least, then the other,
/// then costs the least.
fn least_bad(
    predictor: &Predictor<'_>,
    bounds: &Bounds,
    rate: f64,
    room: &Room,
    short: Short,
) -> Needed {
    let decode_with = |prefill: u32| {
        let left = room
            .budget
            .saturating_sub(u64::from(prefill) * u64::from(room.gpus.prefill));
        let most = left / u64::from(room.gpus.decode.max(1));
        room.high
            .decode
            .min(u32::try_from(most).unwrap_or(u32::MAX))
            .max(room.low.decode)
    };
    let misses = |replicas| score(&predictor.state(rate, replicas), bounds);
    let split = |prefill| {
        let decode = decode_with(prefill);
        let replicas = ByRole { prefill, decode };
        (misses(replicas), replicas)
    };
    // With all that decode must have, prefill can have no more than this.
    let least_decode = u64::from(room.low.decode) * u64::from(room.gpus.decode);
    let affordable = room.budget.saturating_sub(least_decode) / u64::from(room.gpus.prefill.max(1));
    let mut low = room.low.prefill;
    let mut high = room
        .high
        .prefill
        .min(u32::try_from(affordable).unwrap_or(u32::MAX))
        .max(low);
    let mut best = split(low);
    loop {
        let stride = ((high - low) / SPLITS).max(1);
        let mut at = low;
        while at <= high {
            let tried = split(at);
            if tried.0 < best.0 * (1.0 - 1e-6) {
                best = tried;
            }
            match at.checked_add(stride) {
                Some(next) => at = next,
                None => break,
            }
        }
        if stride == 1 {
            break;
        }
        low = best.1.prefill.saturating_sub(stride).max(low);
        high = best.1.prefill.saturating_add(stride).min(high);
    }
    let (missed, replicas) = best;
    let good = |replicas| misses(replicas) <= missed * (1.0 + 1e-6);
    let decode = first(room.low.decode, replicas.decode, &|decode| {
        good(ByRole { decode, ..replicas })
    });
    let prefill = first(room.low.prefill, replicas.prefill, &|prefill| {
        good(ByRole { prefill, decode })
    });
    Needed {
        replicas: ByRole { prefill, decode },
        short: Some(
            if room.budget < room.cost(room.high) && short == Short::Max {
                Short::Budget
            } else {
                short
            },
        ),
        rate,
    }
}

/// The worse miss, and a little of the other.
pub fn score(state: &State, bounds: &Bounds) -> f64 {
    let missed = state.missed(bounds);
    missed.prefill.max(missed.decode) + 0.001 * missed.prefill.min(missed.decode)
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
#[cfg(test)]
pub use tests::policy_of_tests;
