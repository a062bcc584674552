//! What a pair is. With P prefill and D decode groups wanted there are N = max(P, D) pairs, and k of
//! them are ceil(P·k/N) prefill and ceil(D·k/N) decode groups: rounded up, so that k pairs can always
//! do k/N of the work. The other way round, groups make as many pairs as they can make complete.

use crate::api::Role;

/// Groups of each role.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Groups {
    pub prefill: u32,
    pub decode: u32,
}

impl Groups {
    pub fn of(self, role: Role) -> u32 {
        match role {
            Role::Prefill => self.prefill,
            Role::Decode => self.decode,
        }
    }

    pub fn map(f: impl Fn(Role) -> u32) -> Groups {
        Groups {
            prefill: f(Role::Prefill),
            decode: f(Role::Decode),
        }
    }
}

/// The groups that are wanted in all, by which pairs are counted. A role of which none are wanted (as
/// prefill in an aggregated deployment) takes no part in the counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ratio(pub Groups);

impl Ratio {
    /// N.
    pub fn pairs(self) -> u32 {
        self.0.prefill.max(self.0.decode)
    }

    pub fn counts(self, role: Role) -> bool {
        self.0.of(role) > 0
    }

    /// The groups that `pairs` take.
    pub fn share(self, pairs: u32) -> Groups {
        Groups::map(|role| proportion_up(self.0.of(role), pairs, self.pairs()))
    }

    /// The pairs for which `groups` of one role are enough. `None`: for any number.
    pub fn enough_for(self, role: Role, groups: u32) -> Option<u32> {
        let wanted = u64::from(self.0.of(role));
        (u64::from(groups) * u64::from(self.pairs()))
            .checked_div(wanted)
            .map(narrow)
    }

    /// The fewest pairs that have as many as `groups` of one role in their share.
    pub fn takes(self, role: Role, groups: u32) -> u32 {
        let wanted = u64::from(self.0.of(role));
        let Some(fewer) = groups.checked_sub(1) else {
            return 0;
        };
        (u64::from(fewer) * u64::from(self.pairs()))
            .checked_div(wanted)
            .map_or(0, |pairs| narrow(pairs + 1))
    }
}

/// `whole · part / of`, rounded up; 0 of nothing.
pub fn proportion_up(whole: u32, part: u32, of: u32) -> u32 {
    match of {
        0 => 0,
        _ => narrow((u64::from(whole) * u64::from(part)).div_ceil(u64::from(of))),
    }
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_round_up_and_are_what_pairs_take() {
        for prefill in 0..7 {
            for decode in 0..7 {
                let ratio = Ratio(Groups { prefill, decode });
                for k in 0..=ratio.pairs() {
                    let share = ratio.share(k);
                    for role in Role::ALL.into_iter().filter(|&role| ratio.counts(role)) {
                        assert!(ratio.enough_for(role, share.of(role)).unwrap() >= k);
                        assert!(ratio.takes(role, share.of(role)) <= k);
                    }
                }
                assert_eq!(ratio.share(ratio.pairs()), ratio.0);
            }
        }
    }
}
