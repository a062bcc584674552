//! Log-probabilities of a row of raw logits.

use std::cmp::Ordering;

/// The chosen token's log-prob and the most probable alternatives.
#[derive(Debug, Clone, PartialEq)]
pub struct LogProbs {
    pub chosen: f32,
    /// Most probable first; equal ones in order of token id.
    pub top: Vec<(u32, f32)>,
}

/// `log_softmax(logits)` at `chosen` and at the `count` largest.
pub fn log_probs(logits: &[f32], chosen: u32, count: usize) -> LogProbs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|&logit| f64::from(logit - max).exp())
        .sum();
    let log_sum = f64::from(max) + sum.ln();
    let log_prob = |token: u32| (f64::from(logits[token as usize]) - log_sum) as f32;
    let top = largest(logits, count)
        .into_iter()
        .map(|token| (token, log_prob(token)))
        .collect();
    LogProbs {
        chosen: log_prob(chosen),
        top,
    }
}

/// Indexes of the `count` largest values, largest first, ties by lower index.
fn largest(values: &[f32], count: usize) -> Vec<u32> {
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
    indexes.sort_unstable_by(order);
    indexes
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
