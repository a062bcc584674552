//! Which rank takes which bin of a placement, and which slot which expert: as it is now, where it can be.

/// Gives the bins of `table` (`[bin][slot]`) to the ranks that have most of them in `home`
/// (`[rank][slot]`): the pairs with most in common first. The optimum would take a cubic time, and the
/// common part of unrelated bins is small either way.
pub(super) fn onto_ranks(table: &[u32], home: &[u32], slots: usize, experts: usize) -> Vec<u32> {
    let ranks = home.len() / slots;
    let mut at: Vec<Vec<usize>> = vec![Vec::new(); experts];
    for (place, &expert) in home.iter().enumerate() {
        let ranks = &mut at[expert as usize];
        if ranks.last() != Some(&(place / slots)) {
            ranks.push(place / slots);
        }
    }
    let mut pairs: Vec<(usize, usize, usize)> = Vec::new();
    let mut common = vec![0usize; ranks];
    for (bin, held) in table.chunks_exact(slots).enumerate() {
        for (slot, &expert) in held.iter().enumerate() {
            if !held[..slot].contains(&expert) {
                at[expert as usize]
                    .iter()
                    .for_each(|&rank| common[rank] += 1);
            }
        }
        for (rank, common) in common.iter_mut().enumerate() {
            if *common > 0 {
                pairs.push((slots - std::mem::take(common), bin, rank));
            }
        }
    }
    pairs.sort_unstable();
    let mut bin_of: Vec<Option<usize>> = vec![None; ranks];
    let mut given = vec![false; ranks];
    for (_, bin, rank) in pairs {
        if bin_of[rank].is_none() && !given[bin] {
            bin_of[rank] = Some(bin);
            given[bin] = true;
        }
    }
    let mut rest = (0..ranks).filter(|&bin| !given[bin]);
    let mut matched = Vec::with_capacity(table.len());
    for bin in bin_of {
        let bin = bin.or_else(|| rest.next()).expect("as many bins as ranks");
        matched.extend_from_slice(&table[bin * slots..][..slots]);
    }
    matched
}

/// Permutes each rank's slots so that an expert which stays on its rank stays in its slot.
pub(super) fn in_place(table: &[u32], home: &[u32], slots: usize) -> Vec<u32> {
    let mut placed = home.to_vec();
    let bins = table.chunks_exact(slots).zip(home.chunks_exact(slots));
    for ((held, home), placed) in bins.zip(placed.chunks_exact_mut(slots)) {
        let mut rest = held.to_vec();
        let mut open = Vec::new();
        for (slot, expert) in home.iter().enumerate() {
            match rest.iter().position(|held| held == expert) {
                Some(at) => {
                    rest.remove(at);
                }
                None => open.push(slot),
            }
        }
        for (slot, expert) in open.into_iter().zip(rest) {
            placed[slot] = expert;
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_go_where_most_of_them_is() {
        let home = [0, 1, 2, 3, 4, 5];
        let table = [4, 3, 0, 1, 5, 2];
        // Bin 1 is rank 0's in full; then bin 0 has as much of rank 1 as of rank 2, and comes first.
        let matched = onto_ranks(&table, &home, 2, 6);
        assert_eq!(matched, [0, 1, 4, 3, 5, 2]);
        assert_eq!(in_place(&matched, &home, 2), [0, 1, 4, 3, 2, 5]);
    }

    #[test]
    fn single_slots_and_twins() {
        assert_eq!(onto_ranks(&[2, 0, 0, 1], &[0, 1, 2, 2], 1, 3), [0, 1, 2, 0]);
        assert_eq!(in_place(&[1, 1, 0], &[0, 0, 1], 3), [0, 1, 1]);
    }
}
