//! Links between ranks: in order, any delay, and any of it lost once they break.

use std::collections::BTreeMap;

use millrace_experts::RankId;

/// One connection between two lives.
pub struct Link {
    pub generation: u64,
    pub ends: [RankId; 2],
    pub broken: bool,
    /// Towards each end: what is under way when it breaks never arrives.
    pub cut: [bool; 2],
    /// When each end opens it.
    pub opens: [u64; 2],
    /// When the last frame towards each end arrives.
    pub last: [u64; 2],
}

#[derive(Default)]
pub struct Net {
    generations: u64,
    /// By pair of ranks, the lower one first: the latest.
    links: BTreeMap<(usize, usize), Link>,
    /// Pairs that cannot connect, and until when.
    pub partitions: BTreeMap<(usize, usize), u64>,
}

pub fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Net {
    pub fn connect(&mut self, a: RankId, b: RankId, arrivals: [u64; 2]) -> u64 {
        self.generations += 1;
        let ends = if a.rank < b.rank { [a, b] } else { [b, a] };
        let link = Link {
            generation: self.generations,
            ends,
            broken: false,
            cut: [false; 2],
            opens: arrivals,
            last: arrivals,
        };
        self.links.insert(pair(a.rank, b.rank), link);
        self.generations
    }

    pub fn get(&mut self, a: usize, b: usize) -> Option<&mut Link> {
        self.links.get_mut(&pair(a, b))
    }

    pub fn of(&self, rank: usize) -> Vec<((usize, usize), u64)> {
        let links = self.links.iter();
        links
            .filter(|(pair, link)| (pair.0 == rank || pair.1 == rank) && !link.broken)
            .map(|(&pair, link)| (pair, link.generation))
            .collect()
    }

    /// Whether what was sent over it may still arrive at `to`.
    pub fn arrives(&mut self, from: usize, to: usize, generation: u64) -> bool {
        let end = usize::from(to > from);
        self.get(from, to)
            .is_some_and(|link| link.generation == generation && !(link.broken && link.cut[end]))
    }
}
