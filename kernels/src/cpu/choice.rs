//! Changing a row of logits before a token is chosen, and log-probs of one that was.

use std::cmp::Ordering;

use crate::{Edits, LogProbs};

pub fn edit(logits: &mut [f32], edits: &Edits<'_>) {
    for &(token, bias) in edits.bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    for &token in &edits.banned {
        if let Some(logit) = logits.get_mut(token as usize).filter(|l| !l.is_nan()) {
            *logit = f32::NEG_INFINITY;
        }
    }
    for seen in edits.seen.iter() {
        let Some(logit) = logits.get_mut(seen.token as usize) else {
            continue;
        };
        if edits.repetition != 1.0 {
            *logit = if *logit > 0.0 {
                *logit / edits.repetition
            } else {
                *logit * edits.repetition
            };
        }
        if seen.count > 0 {
            *logit -= edits.frequency * seen.count as f32 + edits.presence;
        }
    }
}

/// `log_softmax(logits)` at `chosen` and at the `count` largest.
pub fn log_probs(logits: &[f32], chosen: u32, count: usize) -> LogProbs {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|&logit| f64::from(logit - largest).exp())
        .sum();
    let top = most(logits, count);
    LogProbs::new(largest, sum, logits[chosen as usize], top)
}

/// The `count` largest values and their indexes; of equal ones those that come first.
fn most(values: &[f32], count: usize) -> Vec<(u32, f32)> {
    let count = count.min(values.len());
    if count == 0 {
        return Vec::new();
    }
    let order = |a: &u32, b: &u32| -> Ordering {
        values[*b as usize]
            .total_cmp(&values[*a as usize])
            .then(a.cmp(b))
    };
    let mut indexes: Vec<u32> = (0..values.len() as u32).collect();
    if count < indexes.len() {
        indexes.select_nth_unstable_by(count - 1, order);
        indexes.truncate(count);
    }
    let with_value = |index: u32| (index, values[index as usize]);
    indexes.into_iter().map(with_value).collect()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::Seen;

    #[test]
    fn log_probs_sum_to_one_and_are_ordered() {
        let logits = [1.0, 3.0, 3.0, -2.0];
        let all = log_probs(&logits, 3, 9);
        let total: f32 = all.top.iter().map(|(_, p)| p.exp()).sum();
        assert!((total - 1.0).abs() < 1e-6);
        assert_eq!(
            all.top.iter().map(|t| t.0).collect::<Vec<_>>(),
            [1, 2, 0, 3]
        );
        assert_eq!(all.chosen, all.top[3].1);
    }

    #[test]
    fn edits_come_in_their_order_and_pass_over_what_is_not_there() {
        let mut logits = [2.0, -1.0, 0.5, 8.0, 1.0, 1.0];
        let seen = |token, count| Seen { token, count };
        let edits = Edits {
            bias: &[(2, 1.0), (0, 2.0), (2, -3.5), (3, 1.0), (99, 1.0)],
            banned: vec![3, 3, 77],
            repetition: 2.0,
            frequency: 0.25,
            presence: 0.5,
            seen: Cow::Owned(vec![
                seen(0, 2),
                seen(1, 1),
                seen(2, 0),
                seen(3, 1),
                seen(6, 1),
            ]),
        };
        edit(&mut logits, &edits);
        let banned = f32::NEG_INFINITY;
        assert_eq!(logits, [1.0, -2.75, -4.0, banned, 1.0, 1.0]);
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        let mut logits = [f32::NAN; 3];
        let edits = Edits {
            bias: &[(0, 1.0)],
            banned: vec![1],
            repetition: 2.0,
            seen: Cow::Borrowed(&[Seen { token: 2, count: 1 }]),
            ..Edits::default()
        };
        edit(&mut logits, &edits);
        assert!(logits.iter().all(|logit| logit.is_nan()));
    }
}
