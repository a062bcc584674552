//! How often experts were chosen.

use std::sync::atomic::{AtomicU64, Ordering};

use millrace_experts::Loads;

/// Sums since the start, read by other threads while the engine runs. Only steps that were completed
/// count, so that a step that was dropped and computed again counts once.
#[derive(Debug)]
pub struct ExpertCounts {
    experts: usize,
    /// `[layer][expert]`.
    chosen: Vec<AtomicU64>,
    /// `[layer]`.
    computed: Vec<AtomicU64>,
    /// `[layer][rank]`.
    sent: Vec<AtomicU64>,
}

impl ExpertCounts {
    /// `ranks`: of the group; 1 for a rank on its own.
    pub(crate) fn new(layers: usize, experts: usize, ranks: usize) -> ExpertCounts {
        let zeros = |len| (0..len).map(|_| AtomicU64::new(0)).collect();
        ExpertCounts {
            experts,
            chosen: zeros(layers * experts),
            computed: zeros(layers),
            sent: zeros(layers * ranks),
        }
    }

    /// Rows of this rank's own requests that chose each expert, drafts included.
    pub fn chosen(&self) -> Loads {
        Loads {
            experts: self.experts,
            counts: read(&self.chosen),
        }
    }

    /// `[layer]`: products of a row with an expert that were computed here, for whichever rank.
    pub fn computed(&self) -> Vec<u64> {
        read(&self.computed)
    }

    /// `[layer][rank]`: products of this rank's own rows, by the rank that computed them. Added up over
    /// all senders it is what each rank computes, and it holds for any moment: one sender's counts are
    /// of the same steps for all ranks, so that ranks can be compared although senders are read one
    /// after another.
    pub fn sent(&self) -> Vec<u64> {
        read(&self.sent)
    }
}

fn read(counts: &[AtomicU64]) -> Vec<u64> {
    counts
        .iter()
        .map(|count| count.load(Ordering::Relaxed))
        .collect()
}

/// Counts of the step at hand.
#[derive(Debug, Clone)]
pub(crate) struct StepCounts {
    ranks: usize,
    chosen: Vec<u64>,
    computed: Vec<u64>,
    sent: Vec<u64>,
}

impl StepCounts {
    pub fn new(layers: usize, experts: usize, ranks: usize) -> StepCounts {
        StepCounts {
            ranks,
            chosen: vec![0; layers * experts],
            computed: vec![0; layers],
            sent: vec![0; layers * ranks],
        }
    }

    /// `[layers][experts]`, to add to.
    pub fn chosen(&mut self) -> &mut [u64] {
        &mut self.chosen
    }

    /// `[layers][ranks]` sent and `[layers]` computed, to add to.
    pub fn products(&mut self) -> (&mut [u64], &mut [u64]) {
        (&mut self.sent, &mut self.computed)
    }

    pub fn computed(&mut self, layer: usize, products: usize) {
        self.computed[layer] += products as u64;
    }

    /// `products`: for each rank.
    pub fn sent(&mut self, layer: usize, products: impl Iterator<Item = usize>) {
        let sums = &mut self.sent[layer * self.ranks..][..self.ranks];
        for (sum, products) in sums.iter_mut().zip(products) {
            *sum += products as u64;
        }
    }

    /// The step was dropped, or a part of it was: forgets what is counted since the last `keep`.
    pub fn forget(&mut self) {
        self.chosen.fill(0);
        self.computed.fill(0);
        self.sent.fill(0);
    }

    /// This much is done for good.
    pub fn keep(&mut self, sums: &ExpertCounts) {
        for (sums, counts) in [
            (&sums.chosen, &self.chosen),
            (&sums.computed, &self.computed),
            (&sums.sent, &self.sent),
        ] {
            for (sum, count) in sums.iter().zip(counts) {
                // Nobody else adds, and an addition in one piece would cost far more: there are thousands.
                sum.store(sum.load(Ordering::Relaxed) + count, Ordering::Relaxed);
            }
        }
        self.forget();
    }
}
