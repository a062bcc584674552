//! Bringing back experts that no live rank has.

use super::layer::Layer;

/// Gives every expert without a host the slot of a redundant replica, heaviest expert first, where
/// the ranks it touches end up least loaded. There are slots for all.
pub(super) fn house(layer: &mut Layer<'_>) {
    let weights = layer.weights();
    let mut lost: Vec<usize> = (0..weights.len())
        .filter(|&expert| layer.hosts(expert).is_empty())
        .collect();
    lost.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    for expert in lost {
        let mut best: Option<(f64, usize)> = None;
        for place in 0..layer.table().len() {
            if !layer.is_spare(place) {
                continue;
            }
            let old = layer.expert(place);
            let load = layer.loads()[place / layer.slots()] - layer.share(place);
            let mut level = load + weights[expert];
            if layer.hosts(old).contains(&place) {
                level = level.max(layer.level_if(old, Some(place), None));
            }
            if best.is_none_or(|(least, _)| level < least) {
                best = Some((level, place));
            }
        }
        let (_, place) = best.expect("as many live slots as experts");
        layer.replace(place, expert);
    }
}
