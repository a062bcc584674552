//! Changing a layer step by step, each step the one that takes most off the hottest rank.

use super::layer::Layer;

/// What a step may do.
pub(super) struct Rules<'a> {
    /// Every expert must be in two failure domains, not only those that have replicas to spare.
    pub(super) two_domains: bool,
    /// `[ranks]`: how many experts each may load.
    pub(super) room: &'a [usize],
}

impl Rules<'_> {
    /// Loads that putting `expert` on `rank` takes; `None` if the rank has no room for it.
    pub(super) fn price(&self, layer: &Layer<'_>, expert: usize, rank: usize) -> Option<usize> {
        if layer.is_home(expert, rank) {
            return Some(0);
        }
        (layer.fetched()[rank] < self.room[rank]).then_some(1)
    }

    /// Whether an expert stays in as many failure domains as it should.
    pub(super) fn spread(
        &self,
        layer: &Layer<'_>,
        expert: usize,
        without: Option<usize>,
        with: Option<usize>,
    ) -> bool {
        let replicas = layer.hosts(expert).len() + usize::from(with.is_some())
            - usize::from(without.is_some());
        let need = if self.two_domains || replicas > 1 {
            2
        } else {
            1
        };
        let after = layer.domains(expert, without, with);
        after >= need || after >= layer.domains(expert, None, None)
    }
}

#[derive(Clone, Copy)]
enum Change {
    /// A redundant replica's slot goes to another expert.
    Replace { place: usize, expert: usize },
    /// Two ranks exchange experts.
    Swap { a: usize, b: usize },
}

/// What a change is good for: what it takes off the hottest rank for each load.
#[derive(Clone, Copy)]
struct Aim {
    peak: f64,
    goal: f64,
}

impl Aim {
    fn score(self, outcome: f64, price: usize) -> f64 {
        if outcome < self.peak * (1.0 - 1e-9) {
            // A change that loads nothing is good, not infinitely good.
            (self.peak - outcome.max(self.goal)) / (price as f64 + 0.1)
        } else {
            0.0 // by no more than rounding: that could go on forever
        }
    }
}

struct Best {
    score: f64,
    change: Option<Change>,
}

impl Best {
    fn offer(&mut self, score: f64, change: Change) {
        if score > self.score {
            *self = Best {
                score,
                change: Some(change),
            };
        }
    }
}

/// Of the hottest rank's experts, as many of the heaviest are considered for one more replica.
const HEAVIEST: usize = 2;

/// Which changes a step considers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Changes {
    All,
    /// Every expert keeps as many replicas as it has.
    Swaps,
}

/// Makes the change that takes most off the hottest rank for each load, without making another as
/// hot. Down to `goal` counts, not below. False: none takes more than `least` for a load.
pub(super) fn step(
    layer: &mut Layer<'_>,
    rules: &Rules<'_>,
    changes: Changes,
    goal: f64,
    least: f64,
) -> bool {
    let (hot, peak) = layer.hottest();
    let aim = Aim { peak, goal };
    let mut best = Best {
        score: least,
        change: None,
    };
    let slots = layer.slots();
    let mut own: Vec<usize> = (hot * slots..(hot + 1) * slots).collect();
    own.sort_by(|&a, &b| layer.share(b).total_cmp(&layer.share(a)));
    if changes == Changes::All {
        replicate(layer, rules, &own[..slots.min(HEAVIEST)], aim, &mut best);
    }
    if slots > 1 {
        exchange(layer, rules, hot, &own, aim, &mut best);
    }
    match best.change {
        None => return false,
        Some(Change::Replace { place, expert }) => layer.replace(place, expert),
        Some(Change::Swap { a, b }) => layer.swap(a, b),
    }
    true
}

/// The least that putting something else on a rank can take: a rank that has all that is its own has
/// nothing to take back.
fn least_price(layer: &Layer<'_>, rank: usize) -> usize {
    usize::from(layer.fetched()[rank] == 0)
}

/// Tries one more replica of the heaviest experts in slots of redundant ones.
fn replicate(
    layer: &mut Layer<'_>,
    rules: &Rules<'_>,
    heaviest: &[usize],
    aim: Aim,
    best: &mut Best,
) {
    for place in 0..layer.table().len() {
        if !layer.is_spare(place) {
            continue;
        }
        let rank = place / layer.slots();
        let least = least_price(layer, rank);
        let left = layer.loads()[rank] - layer.share(place);
        if aim.score(left, least) <= best.score {
            continue;
        }
        let old = layer.expert(place);
        let stands = layer.hosts(old).contains(&place);
        let without = stands.then_some(place);
        let after = if stands {
            layer.level_if(old, without, None)
        } else {
            0.0
        };
        if aim.score(after.max(left), least) <= best.score
            || stands && !rules.spread(layer, old, without, None)
        {
            continue;
        }
        for &hot in heaviest {
            let expert = layer.expert(hot);
            if layer.is_on(expert, rank) || !rules.spread(layer, expert, None, Some(place)) {
                continue;
            }
            if let Some(price) = rules.price(layer, expert, rank) {
                let outcome = layer.level_if(expert, None, Some(left)).max(after);
                best.offer(aim.score(outcome, price), Change::Replace { place, expert });
            }
        }
    }
}

/// Tries to exchange the hottest rank's experts for lighter ones of other ranks. What a replica
/// computes moves with it.
fn exchange(
    layer: &Layer<'_>,
    rules: &Rules<'_>,
    hot: usize,
    own: &[usize],
    aim: Aim,
    best: &mut Best,
) {
    let slots = layer.slots();
    let mut coolest: Vec<(usize, f64)> = layer.loads().iter().copied().enumerate().collect();
    coolest.sort_by(|a, b| a.1.total_cmp(&b.1));
    for (rank, load) in coolest {
        let least = least_price(layer, hot) + least_price(layer, rank);
        let half = (aim.peak + load) / 2.0;
        if rank == hot || aim.score(half, least) <= best.score {
            continue; // even an exact half would not do
        }
        for &a in own {
            for b in rank * slots..(rank + 1) * slots {
                let less = layer.share(a) - layer.share(b);
                let outcome = (aim.peak - less).max(load + less);
                if aim.score(outcome, least) <= best.score {
                    continue;
                }
                let (of_a, of_b) = (layer.expert(a), layer.expert(b));
                if layer.is_on(of_a, rank)
                    || layer.is_on(of_b, hot)
                    || !rules.spread(layer, of_a, Some(a), Some(b))
                    || !rules.spread(layer, of_b, Some(b), Some(a))
                {
                    continue;
                }
                let there = rules.price(layer, of_a, rank);
                let here = rules.price(layer, of_b, hot);
                if let (Some(there), Some(here)) = (there, here) {
                    best.offer(aim.score(outcome, there + here), Change::Swap { a, b });
                }
            }
        }
    }
}
