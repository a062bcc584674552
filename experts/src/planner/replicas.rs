//! How many replicas each expert should have.

use super::layer::Layer;
use super::search::Rules;

/// `[experts]`.
pub(super) fn counts(table: &[u32], experts: usize) -> Vec<usize> {
    let mut counts = vec![0; experts];
    for &expert in table {
        counts[expert as usize] += 1;
    }
    counts
}

/// What the heaviest replica weighs. With the counts of EPLB, which no others better: no placement's
/// hottest rank has less.
pub(super) fn heaviest(weights: &[f64], counts: &[usize]) -> f64 {
    let shares = weights.iter().zip(counts);
    shares
        .map(|(weight, &count)| weight / count as f64)
        .fold(0.0, f64::max)
}

/// `[experts]`: with so few that no replica weighs more than `most`.
pub(super) fn fewest(weights: &[f64], most: f64) -> Vec<usize> {
    let fewest = |weight: &f64| (weight / most).ceil().max(1.0) as usize;
    weights.iter().map(fewest).collect()
}

/// Moves a layer towards `target` replicas of each expert with no more changes than it takes: slots of
/// experts that have too many, on the coolest rank first, go to those that have too few, heaviest
/// first. Ranks may come out hotter than before.
pub(super) fn adopt(layer: &mut Layer<'_>, rules: &Rules<'_>, target: &[usize]) {
    let weights = layer.weights();
    let mut wanted: Vec<(f64, usize)> = Vec::new();
    for (expert, &target) in target.iter().enumerate() {
        let missing = target.saturating_sub(layer.hosts(expert).len());
        let share = weights[expert] / target as f64;
        wanted.extend((0..missing).map(|_| (share, expert)));
    }
    wanted.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (_, expert) in wanted {
        let mut coolest: Option<(f64, usize)> = None;
        for place in 0..layer.table().len() {
            let (old, rank) = (layer.expert(place), place / layer.slots());
            let stands = layer.hosts(old).contains(&place);
            let left = layer.loads()[rank] - layer.share(place);
            if coolest.is_some_and(|(least, _)| left >= least)
                || stands && layer.hosts(old).len() <= target[old]
                || layer.is_on(expert, rank)
                || stands && !rules.spread(layer, old, Some(place), None)
                || !rules.spread(layer, expert, None, Some(place))
                || rules.price(layer, expert, rank).is_none()
            {
                continue;
            }
            coolest = Some((left, place));
        }
        if let Some((_, place)) = coolest {
            layer.replace(place, expert);
        }
    }
}
