//! Two failure domains for every expert.

use super::layer::Layer;

/// Whether the slots allow it: a domain is of use to each expert once.
pub(super) fn possible(domains: &[usize], slots: usize, experts: usize) -> bool {
    let useful = sizes(domains)
        .into_iter()
        .map(|(_, ranks)| (ranks * slots).min(experts));
    useful.sum::<usize>() >= 2 * experts
}

/// `(domain, ranks in it)`, in order of domain.
fn sizes(domains: &[usize]) -> Vec<(usize, usize)> {
    let mut sorted = domains.to_vec();
    sorted.sort_unstable();
    let chunks = sorted.chunk_by(|a, b| a == b);
    chunks.map(|chunk| (chunk[0], chunk.len())).collect()
}

/// Puts every expert, each of which has a host, in two domains, which is [`possible`].
pub(super) fn enforce(layer: &mut Layer<'_>) {
    let frail = |layer: &Layer<'_>, expert: usize| layer.domains(expert, None, None) < 2;
    for expert in 0..layer.weights().len() {
        if frail(layer, expert)
            && !(take(layer, expert) || exchange(layer, expert) || shift(layer, expert))
        {
            break;
        }
    }
    if (0..layer.weights().len()).any(|expert| frail(layer, expert)) {
        deal(layer);
    }
}

/// Takes the slot of a replica that its own expert can spare. One load.
fn take(layer: &mut Layer<'_>, expert: usize) -> bool {
    let fits =
        |&place: &usize| can_spare(layer, place) && layer.domains(expert, None, Some(place)) == 2;
    let coolest = |&a: &usize, &b: &usize| {
        let load = |place: usize| layer.loads()[place / layer.slots()];
        load(a).total_cmp(&load(b))
    };
    let place = (0..layer.table().len()).filter(fits).min_by(coolest);
    place
        .inspect(|&place| layer.replace(place, expert))
        .is_some()
}

/// Exchanges one of several replicas in one domain for a replica elsewhere, of an expert that needs
/// the same, or else of one that loses nothing by it. Two loads.
fn exchange(layer: &mut Layer<'_>, expert: usize) -> bool {
    let &[a, _, ..] = layer.hosts(expert) else {
        return false;
    };
    let fits = |&b: &usize| {
        let other = layer.expert(b);
        !layer.is_on(expert, b / layer.slots())
            && !layer.is_on(other, a / layer.slots())
            && layer.domains(expert, Some(a), Some(b)) == 2
            && layer.hosts(other).contains(&b)
            && layer.domains(other, Some(b), Some(a)) == 2
    };
    let both = |&b: &usize| layer.domains(layer.expert(b), None, None) == 2;
    let place = (0..layer.table().len()).filter(fits).min_by_key(both);
    place.inspect(|&b| layer.swap(a, b)).is_some()
}

/// Makes room elsewhere: what is there moves to a slot that can be spared. Two loads.
fn shift(layer: &mut Layer<'_>, expert: usize) -> bool {
    let places = 0..layer.table().len();
    for spare in places.clone().filter(|&place| can_spare(layer, place)) {
        let fits = |&b: &usize| {
            let other = layer.expert(b);
            layer.domains(expert, None, Some(b)) == 2
                && layer.hosts(other).contains(&b)
                && !layer.is_on(other, spare / layer.slots())
                && layer.domains(other, Some(b), Some(spare)) == 2
        };
        if let Some(b) = places.clone().find(fits) {
            layer.replace(spare, layer.expert(b));
            layer.replace(b, expert);
            return true;
        }
    }
    false
}

/// Whether the expert of a place stays in two domains without it.
fn can_spare(layer: &Layer<'_>, place: usize) -> bool {
    let expert = layer.expert(place);
    !layer.hosts(expert).contains(&place) || layer.domains(expert, Some(place), None) == 2
}

/// Starts anew where no such step leads on. Experts are dealt in turn to the slots of one domain after
/// the other, to at most as many slots of a domain as there are experts: none comes to a domain
/// twice, and two rounds are enough for all.
fn deal(layer: &mut Layer<'_>) {
    let (experts, slots) = (layer.weights().len(), layer.slots());
    let mut next = 0;
    for (domain, _) in sizes(layer.domain_of_ranks()) {
        let ranks =
            (0..layer.loads().len()).filter(|&rank| layer.domain_of_ranks()[rank] == domain);
        let places: Vec<usize> = ranks
            .flat_map(|rank| rank * slots..(rank + 1) * slots)
            .collect();
        for place in places.into_iter().take(experts) {
            layer.replace(place, next % experts);
            next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(domains: &[usize], slots: usize, experts: usize, table: &[u32]) -> usize {
        assert!(possible(domains, slots, experts));
        let weights = vec![1.0; experts];
        let mut layer = Layer::new(&weights, domains, slots, table, table.to_vec());
        enforce(&mut layer);
        for expert in 0..experts {
            assert_eq!(layer.domains(expert, None, None), 2, "{:?}", layer.table());
        }
        let changed = layer.table().iter().zip(table).filter(|(a, b)| a != b);
        changed.count()
    }

    #[test]
    fn with_as_few_loads_as_it_takes() {
        assert_eq!(spread(&[0, 1, 2], 2, 3, &[0, 1, 1, 2, 2, 0]), 0);
        // One to spare.
        assert_eq!(spread(&[0, 1, 2], 2, 2, &[0, 1, 0, 0, 0, 0]), 1);
        // Two experts, each twice in one domain, exchange.
        assert_eq!(spread(&[0, 0, 1, 1], 1, 2, &[0, 0, 1, 1]), 2);
        // 0 must leave the first domain, but only there is something to spare.
        assert_eq!(spread(&[0, 0, 1, 2], 1, 2, &[0, 1, 1, 1]), 1);
    }

    #[test]
    fn or_anew() {
        spread(&[0, 0, 1, 1], 3, 5, &[0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn one_large_domain_is_not_enough() {
        assert!(!possible(&[0, 0, 0, 1], 2, 3));
        assert!(possible(&[0, 0, 0, 1], 3, 3));
        assert!(!possible(&[5, 5], 8, 2));
    }
}
