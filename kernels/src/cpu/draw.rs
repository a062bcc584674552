//! Drawing a token from a row of logits.

use crate::Draw;

/// Reusable scratch for drawing from large vocabularies.
#[derive(Debug, Default)]
pub struct Drawer {
    /// `(token, weight)` of the tokens still possible; weight 1 is the most probable one's.
    candidates: Vec<(u32, f32)>,
}

impl Drawer {
    /// A token of `logits`, whose largest value `max` is finite.
    pub fn draw(&mut self, logits: &[f32], max: f32, draw: &Draw) -> u32 {
        self.weigh(logits, max, draw);
        self.pick(draw.quantile)
    }

    /// Fills `candidates` with what `min_p`, `top_k` and `top_p` leave, in order of token.
    fn weigh(&mut self, logits: &[f32], max: f32, draw: &Draw) {
        self.candidates.clear();
        self.candidates
            .extend(logits.iter().enumerate().filter_map(|(token, &logit)| {
                let weight = ((logit - max) * draw.inverse_temperature).exp();
                (weight > 0.0 && weight >= draw.min_p).then_some((token as u32, weight))
            }));
        let by_weight = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let top_k = draw.top_k as usize;
        if top_k > 0 && top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(top_k - 1, by_weight);
            self.candidates.truncate(top_k);
        }
        if draw.top_p < 1.0 {
            self.candidates.sort_unstable_by(by_weight);
            let total: f64 = self.candidates.iter().map(|c| f64::from(c.1)).sum();
            let wanted = total * f64::from(draw.top_p);
            let mut sum = 0.0;
            // The smallest set that reaches top_p: always at least the most probable token.
            let kept = self.candidates.iter().position(|c| {
                sum += f64::from(c.1);
                sum >= wanted
            });
            self.candidates
                .truncate(kept.map_or(self.candidates.len(), |last| last + 1));
        }
        self.candidates.sort_unstable_by_key(|c| c.0);
    }

    /// The candidate at quantile `u` in [0, 1).
    fn pick(&self, u: f64) -> u32 {
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.1)).sum();
        let mut rest = u * total;
        for &(token, weight) in &self.candidates {
            rest -= f64::from(weight);
            if rest < 0.0 {
                return token;
            }
        }
        // Rounding left a sliver: it belongs to the last one.
        self.candidates
            .last()
            .expect("the most probable token is always a candidate")
            .0
    }
}
