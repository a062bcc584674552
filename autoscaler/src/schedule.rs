//! Hints of the schedule: at some times of the week there are at least so many replicas.

use crate::policy::Policy;
use crate::{ByRole, Role};

const DAY: u64 = 86_400;
/// 1970 began on a Thursday; Monday is 0.
const FIRST_DAY: u64 = 3;

/// Replicas that the hints in force ask for, 0 without any. A hint is in force a cold start early, so
/// that its replicas are there on time.
pub fn floor(policy: &Policy, unix_seconds: u64) -> ByRole<u32> {
    let early = unix_seconds.saturating_add(policy.cold_start_seconds.max(0.0) as u64);
    let mut floor = ByRole::default();
    for hint in &policy.schedule {
        let in_force = |at| within(hint.days, hint.from, hint.until, at);
        if in_force(unix_seconds) || in_force(early) {
            for role in [Role::Prefill, Role::Decode] {
                let least: &mut u32 = floor.of_mut(role);
                *least = (*least).max(*hint.min.of(role));
            }
        }
    }
    floor
}

fn within(days: [bool; 7], from: u32, until: u32, at: u64) -> bool {
    let today = ((at / DAY + FIRST_DAY) % 7) as usize;
    let yesterday = (today + 6) % 7;
    let second = (at % DAY) as u32;
    if from < until {
        days[today] && (from..until).contains(&second)
    } else {
        days[today] && second >= from || days[yesterday] && second < until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Friday, 2024-03-01 00:00 UTC.
    const FRIDAY: u64 = 1_709_251_200;
    const HOUR: u32 = 3600;

    fn on(day: usize) -> [bool; 7] {
        std::array::from_fn(|i| i == day)
    }

    #[test]
    fn days_are_counted_from_monday() {
        for (day, days) in (0..7).map(|day| (day, on(day))) {
            let noon = FRIDAY + 12 * u64::from(HOUR);
            assert_eq!(within(days, 9 * HOUR, 17 * HOUR, noon), day == 4, "{day}");
        }
    }

    #[test]
    fn a_night_belongs_to_the_day_it_began() {
        let night = |at| within(on(4), 22 * HOUR, 6 * HOUR, at);
        assert!(!night(FRIDAY + u64::from(HOUR)));
        assert!(night(FRIDAY + 23 * u64::from(HOUR)));
        assert!(night(FRIDAY + 29 * u64::from(HOUR)));
        assert!(!night(FRIDAY + 30 * u64::from(HOUR)));
        assert!(within(on(4), 0, 0, FRIDAY), "a whole day");
    }
}
