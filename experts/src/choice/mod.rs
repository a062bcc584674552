//! Which replica of an expert a token takes.
//!
//! The rank's own replica first. Otherwise the epoch's expected loads say which part of an expert's
//! tokens each live replica should take, so that the layer's most loaded rank has as little as
//! possible; every rank computes the same parts from the same epoch and nobody asks anybody.
//!
//! A row's number, not a random one, then says which part it falls in. The points
//! `row·α + source·β (mod 1)` of the two-dimensional golden ratio cover every interval in proportion
//! to its length already for a few rows and a few sources, so that small batches come out right and
//! sources do not march in step.

pub(crate) mod fill;
#[cfg(test)]
mod tests;

use crate::Epoch;
use fill::{Fill, Hosts, weights};

/// 2³² times the powers of the inverse plastic number (ρ³ = ρ + 1), the golden ratio of two dimensions.
const ROW: u32 = 3_242_174_889;
const SOURCE: u32 = 2_447_445_414;

/// One rank's choices under one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    experts: usize,
    /// `[layer][expert]`.
    entries: Vec<Entry>,
    replicas: Vec<Replica>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    /// Where its replicas begin and how many there are, at least one.
    first: u32,
    len: u32,
    /// Where row 0 falls.
    offset: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Replica {
    rank: u32,
    slot: u32,
    /// Rows that fall at or below this take it, unless an earlier replica does.
    upto: u32,
}

/// One layer of a [`Choice`], for a loop over rows.
#[derive(Debug, Clone, Copy)]
pub struct LayerChoice<'a> {
    entries: &'a [Entry],
    replicas: &'a [Replica],
}

impl Choice {
    /// For `rank` under `epoch`, which was [checked](Epoch::check).
    pub fn new(epoch: &Epoch, rank: usize) -> Choice {
        let shape = epoch.placement.shape();
        let live = epoch.live();
        let members = epoch.members.len();
        // Sources are numbered without gaps, whoever is missing: it is their spread that matters.
        let source = live.iter().take(rank).filter(|&&live| live).count() as u32;
        let mut choice = Choice {
            experts: shape.experts,
            entries: Vec::with_capacity(shape.layers * shape.experts),
            replicas: Vec::new(),
        };
        for layer in 0..shape.layers {
            let hosts = Hosts::of(&epoch.placement, layer, &live);
            let weights = weights(epoch.expected.layer(layer));
            let fill = Fill::new(&weights, &hosts, shape.ranks, members);
            for (expert, &weight) in weights.iter().enumerate() {
                let first = choice.replicas.len() as u32;
                let places = hosts.places(expert);
                if let Some(&local) = places.iter().find(|place| place.0 == rank) {
                    choice.replicas.push(replica(local, u32::MAX));
                } else {
                    let own = weight / members as f64;
                    let remote = fill.shares(&hosts, expert).iter().map(|share| share - own);
                    choice.deal(places, remote, &fill.ranks);
                }
                choice.entries.push(Entry {
                    first,
                    len: choice.replicas.len() as u32 - first,
                    offset: source
                        .wrapping_mul(SOURCE)
                        .wrapping_add(scatter((layer * shape.experts + expert) as u32)),
                });
            }
        }
        choice
    }

    /// Adds the replicas of one expert with their parts.
    fn deal(
        &mut self,
        places: &[(usize, usize)],
        remote: impl Iterator<Item = f64> + Clone,
        ranks: &[f64],
    ) {
        let total: f64 = remote.clone().map(|share| share.max(0.0)).sum();
        if places.len() == 1 || total <= 0.0 {
            // Nothing is expected from afar; should something come, the least loaded takes it.
            let least = places
                .iter()
                .min_by(|a, b| ranks[a.0].total_cmp(&ranks[b.0]));
            self.replicas
                .extend(least.map(|&place| replica(place, u32::MAX)));
            return;
        }
        let mut sum = 0.0;
        let first = self.replicas.len();
        for (&place, share) in places.iter().zip(remote) {
            // Less than a millionth is what is left of rounding, not a part.
            if share > total * 1e-6 {
                sum += share;
                let upto = sum / total * f64::from(u32::MAX);
                self.replicas.push(replica(place, upto as u32));
            }
        }
        if let Some(last) = self.replicas[first..].last_mut() {
            last.upto = u32::MAX;
        }
    }

    /// `(rank, slot)` that computes an expert for a row of this rank's batch.
    ///
    /// # Panics
    /// There is no such layer or expert.
    pub fn pick(&self, layer: usize, expert: usize, row: u32) -> (usize, usize) {
        self.layer(layer).pick(expert, row)
    }

    /// What [`pick`](Self::pick) looks at, for a device that picks itself: of every expert of every layer where
    /// its replicas begin, how many they are and where row 0 falls; and of every replica its rank, its
    /// slot, and up to where rows fall to it. Row `r` falls `ROW * r` further than row 0.
    pub fn words(&self) -> (Vec<[u32; 3]>, Vec<[u32; 3]>) {
        let entries = self.entries.iter();
        let replicas = self.replicas.iter();
        (
            entries.map(|e| [e.first, e.len, e.offset]).collect(),
            replicas.map(|r| [r.rank, r.slot, r.upto]).collect(),
        )
    }

    /// # Panics
    /// There is no such layer.
    pub fn layer(&self, layer: usize) -> LayerChoice<'_> {
        LayerChoice {
            entries: &self.entries[layer * self.experts..][..self.experts],
            replicas: &self.replicas,
        }
    }
}

impl LayerChoice<'_> {
    /// `(rank, slot)` that computes an expert for a row of this rank's batch.
    ///
    /// # Panics
    /// There is no such expert.
    pub fn pick(&self, expert: usize, row: u32) -> (usize, usize) {
        let entry = self.entries[expert];
        let replicas = &self.replicas[entry.first as usize..][..entry.len as usize];
        let at = if let [_] = replicas {
            0
        } else {
            let point = row.wrapping_mul(ROW).wrapping_add(entry.offset);
            replicas.partition_point(|replica| replica.upto < point)
        };
        (replicas[at].rank as usize, replicas[at].slot as usize)
    }
}

fn replica((rank, slot): (usize, usize), upto: u32) -> Replica {
    Replica {
        rank: rank as u32,
        slot: slot as u32,
        upto,
    }
}

/// Numbers one apart end up far apart (the finaliser of MurmurHash3).
fn scatter(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}
