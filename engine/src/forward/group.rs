//! One MoE layer among ranks: this rank's rows go where their experts are, others' come here.

use millrace_experts::{Choice, LayerChoice};
use millrace_kernels::{Backend, Work};

use crate::exchange::{ExpertExchange, Parcel, StepDropped};

/// Where a pass finds the experts of its rows.
pub enum Ranks<'a, B: Backend> {
    /// All here.
    Alone,
    /// On the ranks of a group.
    Group {
        choice: &'a Choice,
        /// Number of the batch's first row: counted on from step to step, rows spread over replicas
        /// evenly also where a step has only one.
        first_row: u32,
        exchange: &'a mut dyn ExpertExchange<B>,
    },
    /// On devices that reach each other's memory, and need no host between them.
    Devices {
        exchange: &'a mut B::Exchange,
        /// Nobody is waited for any more.
        is_over: &'a dyn Fn() -> bool,
    },
}

impl<B: Backend> Ranks<'_, B> {
    /// Waits for a pass on devices to end, and answers whether all ranks were there. Before this nothing may be waited
    /// for by itself, since a rank that is gone would keep it from ending.
    pub fn finish(&self, backend: &B) -> Result<(), StepDropped> {
        match self {
            Ranks::Devices { exchange, is_over } if !backend.exchange_finish(exchange, is_over) => {
                Err(StepDropped)
            }
            _ => Ok(()),
        }
    }
}

/// Buffers of one exchange; they grow to the largest and stay.
pub struct GroupSpace<B: Backend> {
    slots: usize,
    outgoing: Outgoing,
    pub incoming: Vec<Parcel>,
    /// Of all incoming parcels, with rows counted over all of them.
    pub work: Vec<Work>,
    pub sent: B::Tensor,
    pub received: B::Tensor,
    pub results: B::Tensor,
    pub returned: B::Tensor,
}

impl<B: Backend> GroupSpace<B> {
    /// For a group whose every rank computes batches of up to `rows`.
    pub fn new(
        backend: &B,
        shape: millrace_experts::Shape,
        rows: usize,
        hidden: usize,
        per_token: usize,
    ) -> GroupSpace<B> {
        let ranks = shape.ranks;
        GroupSpace {
            slots: shape.slots,
            outgoing: Outgoing::new(ranks),
            incoming: vec![Parcel::default(); ranks],
            work: Vec::new(),
            sent: backend.tensor(rows * per_token.min(ranks), hidden),
            received: backend.tensor(rows * ranks, hidden),
            results: backend.tensor(rows * ranks * per_token.min(shape.slots), hidden),
            returned: backend.tensor(rows * per_token, hidden),
        }
    }

    /// Sends the rows of `x` to the ranks of their experts.
    #[allow(clippy::too_many_arguments)]
    pub fn dispatch(
        &mut self,
        backend: &B,
        layer: usize,
        x: &B::Tensor,
        choices: &[(u32, f32)],
        per_token: usize,
        choice: LayerChoice<'_>,
        first_row: u32,
        exchange: &mut dyn ExpertExchange<B>,
    ) -> Result<(), StepDropped> {
        self.outgoing.fill(choices, per_token, choice, first_row);
        backend.gather(x, &self.outgoing.rows, &mut self.sent);
        exchange.dispatch(backend, layer, &self.outgoing.parcels, &self.sent)
    }

    /// Products that each rank was asked for.
    pub fn sent_products(&self) -> impl Iterator<Item = usize> {
        self.outgoing.parcels.iter().map(|parcel| parcel.work.len())
    }

    /// Computes what the ranks sent here, and answers how many products that were.
    pub fn serve(
        &mut self,
        backend: &B,
        layer: usize,
        experts: &B::Experts,
        exchange: &mut dyn ExpertExchange<B>,
    ) -> Result<usize, StepDropped> {
        exchange.collect(backend, layer, &mut self.incoming, &mut self.received)?;
        let rows = backend.capacity(&self.received);
        let products = backend.capacity(&self.results);
        if !unpack(&self.incoming, self.slots, rows, products, &mut self.work) {
            // Nothing that a rank of this version sends; computing it would be worse than stopping.
            tracing::error!(
                layer,
                "a rank sent rows or work that this rank has no place for"
            );
            return Err(StepDropped);
        }
        backend.expert_rows(&self.received, &self.work, experts, &mut self.results);
        exchange.respond(backend, layer, &self.incoming, &self.results)?;
        Ok(self.work.len())
    }

    /// Waits for this rank's own rows and sums them into `out`.
    pub fn combine(
        &mut self,
        backend: &B,
        layer: usize,
        routing: &B::Routing,
        exchange: &mut dyn ExpertExchange<B>,
        out: &mut B::Tensor,
    ) -> Result<(), StepDropped> {
        exchange.combine(backend, layer, &self.outgoing.parcels, &mut self.returned)?;
        backend.combine(&self.returned, &self.outgoing.places, routing, out);
        Ok(())
    }
}

/// What leaves this rank in one layer.
struct Outgoing {
    /// One a rank.
    parcels: Vec<Parcel>,
    /// Rows of the batch that each parcel holds.
    rows_of: Vec<Vec<usize>>,
    /// The same, one after another.
    rows: Vec<usize>,
    /// Rank and piece of its work, of every (row, choice).
    pieces: Vec<(usize, u32)>,
    /// Where the results of each rank begin among those that return.
    firsts: Vec<u32>,
    /// Where the result of every (row, choice) returns.
    places: Vec<u32>,
}

impl Outgoing {
    fn new(ranks: usize) -> Outgoing {
        Outgoing {
            parcels: vec![Parcel::default(); ranks],
            rows_of: vec![Vec::new(); ranks],
            rows: Vec::new(),
            pieces: Vec::new(),
            firsts: Vec::new(),
            places: Vec::new(),
        }
    }

    fn fill(
        &mut self,
        choices: &[(u32, f32)],
        per_token: usize,
        choice: LayerChoice<'_>,
        first_row: u32,
    ) {
        self.rows_of.iter_mut().for_each(Vec::clear);
        self.parcels
            .iter_mut()
            .for_each(|parcel| parcel.work.clear());
        self.pieces.clear();
        for (row, chosen) in choices.chunks_exact(per_token).enumerate() {
            for (expert, _) in chosen {
                let number = first_row.wrapping_add(row as u32);
                let (rank, slot) = choice.pick(*expert as usize, number);
                let rows = &mut self.rows_of[rank];
                // A row goes to a rank once, however many of its experts are there.
                if rows.last() != Some(&row) {
                    rows.push(row);
                }
                let work = &mut self.parcels[rank].work;
                self.pieces.push((rank, work.len() as u32));
                work.push(Work {
                    row: rows.len() as u32 - 1,
                    slot: slot as u32,
                });
            }
        }
        self.rows.clear();
        self.firsts.clear();
        self.places.clear();
        // Results return rank by rank, each in the order of its work.
        let mut first = 0;
        for (parcel, rows) in self.parcels.iter_mut().zip(&self.rows_of) {
            parcel.rows = rows.len();
            self.rows.extend_from_slice(rows);
            self.firsts.push(first);
            first += parcel.work.len() as u32;
        }
        let place = |&(rank, piece): &(usize, u32)| self.firsts[rank] + piece;
        self.places.extend(self.pieces.iter().map(place));
    }
}

/// Puts the work of all parcels into one list, or answers that it does not fit this rank.
fn unpack(
    parcels: &[Parcel],
    slots: usize,
    most_rows: usize,
    most_work: usize,
    work: &mut Vec<Work>,
) -> bool {
    work.clear();
    let mut first = 0;
    for parcel in parcels {
        let fits = |work: &Work| (work.row as usize) < parcel.rows && (work.slot as usize) < slots;
        if !parcel.work.iter().all(fits)
            || parcel.rows > most_rows - first
            || parcel.work.len() > most_work - work.len()
        {
            return false;
        }
        work.extend(parcel.work.iter().map(|piece| Work {
            row: piece.row + first as u32,
            slot: piece.slot,
        }));
        first += parcel.rows;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parcels_that_do_not_fit_are_noticed() {
        let parcel = |rows, row, slot| Parcel {
            rows,
            work: vec![Work { row, slot }],
        };
        let mut work = Vec::new();
        let good = [parcel(2, 1, 0), parcel(1, 0, 3)];
        assert!(unpack(&good, 4, 3, 2, &mut work));
        assert_eq!(work, [Work { row: 1, slot: 0 }, Work { row: 2, slot: 3 }]);
        for (bad, slots, rows, products) in [
            (parcel(1, 1, 0), 4, 9, 9),
            (parcel(1, 0, 4), 4, 9, 9),
            (parcel(usize::MAX, 0, 0), 4, 9, 9),
            (parcel(3, 0, 0), 4, 3, 9),
            (parcel(1, 0, 0), 4, 9, 1),
        ] {
            assert!(!unpack(
                &[parcel(1, 0, 0), bad],
                slots,
                rows,
                products,
                &mut work
            ));
        }
    }
}
