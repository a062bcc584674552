//! What ranks counted, in windows. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_experts::load::{History, Since};
use millrace_experts::{Loads, RankId, Shape};

use super::wire::Counts;

/// The sums of every rank, and what they were when the window began.
#[derive(Debug)]
pub struct Tally {
    shape: Shape,
    began: Duration,
    ranks: BTreeMap<RankId, Rank>,
    history: History,
}

#[derive(Debug)]
struct Rank {
    chosen: Since,
    computed: Since,
    /// The latest sums.
    sums: Counts,
    left: bool,
}

/// What was counted between two looks.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    pub length: Duration,
    /// Of all ranks.
    pub chosen: Loads,
    /// `[rank][layer]`.
    pub computed: Vec<Vec<u64>>,
}

impl Tally {
    /// Loads count half after `half_life`. Times are since any fixed moment.
    pub fn new(shape: Shape, half_life: Duration, now: Duration) -> Tally {
        Tally {
            shape,
            began: now,
            ranks: BTreeMap::new(),
            history: History::new(shape.layers, shape.experts, half_life),
        }
    }

    /// What a rank has counted since it started.
    pub fn counts(&mut self, id: RankId, sums: Counts) {
        let rank = self.ranks.entry(id).or_insert_with(|| {
            // What it counted before this router heard of it is of no window here.
            let (mut chosen, mut computed) = (Since::default(), Since::default());
            chosen.advance(&sums.chosen);
            computed.advance(&sums.computed);
            Rank {
                chosen,
                computed,
                sums: Counts::default(),
                left: false,
            }
        });
        rank.sums = sums;
        rank.left = false;
    }

    /// A rank's last counts are still of this window.
    pub fn left(&mut self, id: RankId) {
        if let Some(rank) = self.ranks.get_mut(&id) {
            rank.left = true;
        }
    }

    /// Ends the window and begins the next. `None` if nothing was counted: the last one says more.
    pub fn cut(&mut self, now: Duration) -> Option<Window> {
        let Shape {
            layers,
            experts,
            ranks,
            ..
        } = self.shape;
        let mut window = Window {
            length: now.saturating_sub(self.began),
            chosen: Loads::zero(layers, experts),
            computed: vec![vec![0; layers]; ranks],
        };
        self.began = now;
        for rank in self.ranks.values_mut() {
            window.chosen.add(&Loads {
                experts,
                counts: rank.chosen.advance(&rank.sums.chosen),
            });
            // What one rank had computed is of the same steps for all ranks, so that the window is right
            // although ranks tell their sums at different times.
            let computed = rank.computed.advance(&rank.sums.computed);
            for (layer, by_rank) in computed.chunks_exact(ranks).enumerate() {
                for (&rows, sums) in by_rank.iter().zip(&mut window.computed) {
                    sums[layer] += rows;
                }
            }
        }
        self.ranks.retain(|_, rank| !rank.left);
        let counted = window.chosen.total() > 0;
        if counted {
            self.history.add(now, &window.chosen);
        }
        counted.then_some(window)
    }

    /// Choices remembered, for each logical expert on average.
    pub fn remembered(&self) -> f64 {
        self.history.total() / (self.shape.layers * self.shape.experts) as f64
    }

    /// What to plan for.
    pub fn loads(&self) -> Loads {
        self.history.loads()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn tally() -> Tally {
        let shape = Shape::new(1, 2, 2, 0).unwrap();
        Tally::new(shape, 10 * SECOND, Duration::ZERO)
    }

    fn id(rank: usize, incarnation: u64) -> RankId {
        RankId { rank, incarnation }
    }

    fn sums(chosen: [u64; 2], computed: [u64; 2]) -> Counts {
        Counts {
            chosen: chosen.to_vec(),
            computed: computed.to_vec(),
        }
    }

    #[test]
    fn windows_are_differences_over_all_ranks() {
        let mut tally = tally();
        tally.counts(id(0, 1), sums([1000, 0], [400, 600]));
        tally.counts(id(1, 1), sums([0, 0], [0, 0]));
        assert_eq!(tally.cut(SECOND), None, "counted before we listened");
        tally.counts(id(0, 1), sums([1004, 1], [402, 603]));
        tally.counts(id(1, 1), sums([2, 3], [4, 1]));
        let window = tally.cut(3 * SECOND).unwrap();
        assert_eq!(window.length, 2 * SECOND);
        assert_eq!(window.chosen.counts, [6, 4]);
        assert_eq!(window.computed, [[6], [4]]);
        assert_eq!(tally.cut(4 * SECOND), None, "an idle window");
        assert_eq!(tally.remembered(), 5.0);
    }

    #[test]
    fn a_life_that_ended_counts_to_its_end_and_the_next_from_its_beginning() {
        let mut tally = tally();
        tally.counts(id(0, 1), sums([0, 0], [0, 0]));
        tally.counts(id(0, 1), sums([10, 0], [7, 3]));
        tally.left(id(0, 1));
        tally.counts(id(0, 2), sums([0, 0], [0, 0]));
        tally.counts(id(0, 2), sums([0, 5], [5, 0]));
        let window = tally.cut(SECOND).unwrap();
        assert_eq!(window.chosen.counts, [10, 5]);
        assert_eq!(window.computed, [[12], [3]]);
        tally.counts(id(0, 2), sums([0, 6], [6, 0]));
        assert_eq!(tally.cut(2 * SECOND).unwrap().chosen.counts, [0, 1]);
    }
}
