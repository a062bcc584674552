//! What keeps replicas from changing too often and too much.

use std::collections::VecDeque;

use crate::policy::Behavior;
use crate::{ByRole, Role};

/// Entries that a window is kept in, whatever its length.
const ENTRIES: f64 = 64.0;

/// What every look of a window wanted at least or at most.
#[derive(Debug, Clone, Default)]
pub struct Stabilizer {
    /// (when it began, least, most).
    entries: VecDeque<(f64, u32, u32)>,
    since: Option<f64>,
}

impl Stabilizer {
    pub fn push(&mut self, now: f64, wanted: u32, window: f64) {
        self.since.get_or_insert(now);
        match self.entries.back_mut() {
            Some((began, least, most)) if now - *began < window / ENTRIES => {
                (*least, *most) = (wanted.min(*least), wanted.max(*most));
            }
            _ => self.entries.push_back((now, wanted, wanted)),
        }
        // An entry is needed until all that it tells of is older than the window.
        while self
            .entries
            .get(1)
            .is_some_and(|next| now - next.0 >= window)
        {
            self.entries.pop_front();
        }
    }

    /// Least and most. `None`: there were no looks for all of the window.
    pub fn range(&self, now: f64, window: f64) -> Option<(u32, u32)> {
        self.since.filter(|since| now - since >= window)?;
        let least = self.entries.iter().map(|entry| entry.1).min()?;
        Some((least, self.entries.iter().map(|entry| entry.2).max()?))
    }

    /// The most that a look of the last `seconds` wanted, an entry's length more or less. `None`: there were
    /// none, or they began later.
    pub fn most(&self, now: f64, seconds: f64) -> Option<u32> {
        self.since.filter(|since| now - since >= seconds)?;
        let next = |i: usize| self.entries.get(i + 1);
        let counts = |i: usize| next(i).is_none_or(|next| next.0 > now - seconds);
        let within = self.entries.iter().enumerate().filter(|(i, _)| counts(*i));
        within.map(|(_, entry)| entry.2).max()
    }
}

/// How much longer than asked a pool waits before it shrinks: twice as long each time that it had to grow
/// again soon after it had shrunk, so that load that comes and goes is not followed back and forth.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    times: f64,
    shrank: Option<f64>,
    grew_again: f64,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            times: 1.0,
            shrank: None,
            grew_again: 0.0,
        }
    }
}

/// Seconds after shrinking in which growing is growing again, at least.
const SOON: f64 = 3600.0;
const MOST_TIMES: f64 = 16.0;
/// Seconds until patience halves again.
const CALM: f64 = 43_200.0;

impl Patience {
    pub fn changed(&mut self, now: f64, from: u32, to: u32, window: f64) {
        if to < from {
            self.shrank = Some(now);
        } else if to > from {
            let soon = SOON.max(2.0 * self.times * window);
            if self.shrank.take().is_some_and(|shrank| now - shrank < soon) {
                self.times = (2.0 * self.times).min(MOST_TIMES);
                self.grew_again = now;
            }
        }
    }

    pub fn times(&mut self, now: f64) -> f64 {
        if self.times > 1.0 && now - self.grew_again > CALM {
            self.times /= 2.0;
            self.grew_again = now;
        }
        self.times
    }
}

/// Replicas that there were, as far as steps are counted back.
#[derive(Debug, Clone, Default)]
pub struct Steps {
    /// (since when, replicas).
    were: VecDeque<(f64, ByRole<u32>)>,
}

/// Changes that are remembered at most.
const CHANGES: usize = 64;

impl Steps {
    pub fn push(&mut self, now: f64, present: ByRole<u32>) {
        if self.were.back().is_none_or(|(_, last)| *last != present) {
            self.were.push_back((now, present));
        }
        while self.were.len() > CHANGES {
            self.were.pop_front();
        }
    }

    /// `wanted`, or what is as near to it as `behavior` lets the pool get from `present`.
    pub fn limit(&self, now: f64, role: Role, wanted: u32, behavior: &Behavior) -> u32 {
        let Some((_, present)) = self.were.back() else {
            return wanted;
        };
        let present = *present.of(role);
        let up = wanted > present;
        let direction = if up { &behavior.up } else { &behavior.down };
        // What was in force when the period began, and all since.
        let began = now - direction.period_seconds;
        let ended = |i: usize| self.were.get(i + 1).map_or(f64::INFINITY, |next| next.0);
        let within = self.were.iter().enumerate();
        let within = within.filter(|(i, _)| ended(*i) > began);
        let counts = within.map(|(_, (_, replicas))| *replicas.of(role));
        if up {
            let least = counts.min().unwrap_or(present);
            let most = least.saturating_add(direction.max_step);
            wanted.min(most.max(present))
        } else {
            let most = counts.max().unwrap_or(present);
            let least = most.saturating_sub(direction.max_step);
            wanted.max(least.min(present))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_must_have_been_seen_in_full() {
        let mut stable = Stabilizer::default();
        for (at, wanted) in [(0.0, 3), (100.0, 5), (200.0, 2), (650.0, 2)] {
            stable.push(at, wanted, 600.0);
        }
        assert_eq!(stable.range(590.0, 600.0), None);
        assert_eq!(stable.range(650.0, 600.0), Some((2, 5)));
        stable.push(900.0, 2, 600.0);
        assert_eq!(stable.range(900.0, 600.0), Some((2, 2)));
    }

    fn both(n: u32) -> ByRole<u32> {
        ByRole {
            prefill: n,
            decode: n,
        }
    }

    #[test]
    fn steps_are_counted_over_their_period() {
        let mut behavior = Behavior::default();
        (behavior.up.max_step, behavior.up.period_seconds) = (2, 100.0);
        (behavior.down.max_step, behavior.down.period_seconds) = (1, 100.0);
        let mut steps = Steps::default();
        steps.push(0.0, both(4));
        steps.push(50.0, both(6));
        let limit = |now, wanted| steps.limit(now, Role::Decode, wanted, &behavior);
        assert_eq!(limit(60.0, 9), 6, "two were added 10 s ago");
        assert_eq!(limit(160.0, 9), 8);
        assert_eq!(limit(60.0, 1), 5);
        assert_eq!(limit(60.0, 6), 6);
    }

    #[test]
    fn what_had_to_grow_again_shrinks_later() {
        let mut patience = Patience::default();
        patience.changed(0.0, 3, 2, 600.0);
        patience.changed(10_000.0, 2, 3, 600.0);
        assert_eq!(patience.times(10_000.0), 1.0, "that was not soon");
        patience.changed(20_000.0, 3, 2, 600.0);
        patience.changed(21_000.0, 2, 3, 600.0);
        assert_eq!(patience.times(21_000.0), 2.0);
        assert_eq!(patience.times(21_000.0 + 2.0 * CALM), 1.0);
    }
}
