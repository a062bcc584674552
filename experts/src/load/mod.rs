//! How many tokens chose each expert, and how evenly ranks are loaded by them.

mod balance;
mod history;
mod since;

pub use balance::Balance;
pub use history::History;
pub use since::Since;

use serde::{Deserialize, Serialize};

/// Tokens that chose each logical expert: `[layer][expert]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Loads {
    pub experts: usize,
    pub counts: Vec<u64>,
}

/// An expert that many tokens choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hot {
    pub layer: usize,
    pub expert: usize,
    pub tokens: u64,
}

impl Loads {
    pub fn zero(layers: usize, experts: usize) -> Loads {
        Loads {
            experts,
            counts: vec![0; layers * experts],
        }
    }

    pub fn layers(&self) -> usize {
        self.counts.len().checked_div(self.experts).unwrap_or(0)
    }

    pub fn layer(&self, layer: usize) -> &[u64] {
        &self.counts[layer * self.experts..][..self.experts]
    }

    /// Tokens times the experts each chose, over all layers.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds what another rank, or another window, counted.
    ///
    /// # Panics
    /// It is of another model.
    pub fn add(&mut self, other: &Loads) {
        assert_eq!(
            (self.experts, self.counts.len()),
            (other.experts, other.counts.len()),
            "loads of different models"
        );
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            *sum += count;
        }
    }

    /// The `most` hottest experts, hottest first. Hot against their own layer: layers count the same
    /// tokens, but one that drafts counts fewer.
    pub fn hottest(&self, most: usize) -> Vec<Hot> {
        let mut ranked: Vec<(f64, Hot)> = Vec::with_capacity(self.counts.len());
        for layer in 0..self.layers() {
            let counts = self.layer(layer);
            let total = counts.iter().sum::<u64>().max(1) as f64;
            ranked.extend(counts.iter().enumerate().map(|(expert, &tokens)| {
                let hot = Hot {
                    layer,
                    expert,
                    tokens,
                };
                (tokens as f64 / total, hot)
            }));
        }
        ranked.retain(|(_, hot)| hot.tokens > 0);
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0)); // stable: ties by layer, then expert
        ranked.truncate(most);
        ranked.into_iter().map(|(_, hot)| hot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_add_up_and_the_hottest_come_first() {
        let mut sum = Loads {
            experts: 2,
            counts: vec![1, 9, 30, 30],
        };
        sum.add(&Loads {
            experts: 2,
            counts: vec![0, 1, 0, 0],
        });
        assert_eq!(sum.total(), 71);
        assert_eq!(sum.layer(0), [1, 10]);
        let hot: Vec<_> = sum
            .hottest(3)
            .iter()
            .map(|hot| (hot.layer, hot.expert))
            .collect();
        assert_eq!(hot, [(0, 1), (1, 0), (1, 1)]);
        assert_eq!(Loads::zero(2, 3).hottest(5), []);
    }
}
