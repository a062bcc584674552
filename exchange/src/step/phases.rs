//! The four calls, and what may come before them.

use millrace_engine::exchange::{ExpertExchange, Parcel, StepDropped};
use millrace_kernels::Backend;

use super::{Seat, StepExchange};
use crate::FrameError;
use crate::wire::{Header, MOST_SHARED, Phase};

impl<B: Backend> ExpertExchange<B> for StepExchange<'_> {
    fn share(&mut self, round: usize, mine: &[u8]) -> Result<Vec<Option<Vec<u8>>>, StepDropped> {
        assert!(mine.len() <= MOST_SHARED, "a few bytes");
        let key = self.key(round, Phase::Share);
        for seat in &self.scratch.seats {
            match seat {
                Seat::Lost => return Err(StepDropped),
                Seat::Linked(link) => {
                    let sent = link.send_bytes(&Header::bytes(key, mine.len()), mine);
                    sent.map_err(|why| self.give_up(link, why))?;
                }
                Seat::Empty | Seat::Me => {}
            }
        }
        let heard = |seat: &Seat| match seat {
            Seat::Empty => Ok(None),
            Seat::Me => Ok(Some(mine.to_vec())),
            Seat::Lost => Err(StepDropped),
            Seat::Linked(link) => {
                let mut frame = self.take(link, key)?;
                let bytes = std::mem::take(&mut frame.bytes);
                link.recycle(frame);
                Ok(Some(bytes))
            }
        };
        self.scratch.seats.iter().map(heard).collect()
    }

    fn is_over(&self) -> bool {
        let is_lost = |seat: &Seat| match seat {
            Seat::Empty | Seat::Me => false,
            Seat::Linked(link) => link.is_broken(),
            Seat::Lost => true,
        };
        self.roster.is_over(self.epoch) || self.scratch.seats.iter().any(is_lost)
    }

    fn dispatch(
        &mut self,
        backend: &B,
        layer: usize,
        parcels: &[Parcel],
        sent: &B::Tensor,
    ) -> Result<(), StepDropped> {
        let mut values = std::mem::take(&mut self.scratch.sent);
        backend.read(sent, &mut values);
        let own = self.send(self.key(layer, Phase::Dispatch), parcels, &values);
        self.scratch.sent = values;
        self.scratch.own.sent = own?;
        let parcel = &parcels[self.roster.config.me.rank];
        self.scratch.own.parcel.rows = parcel.rows;
        self.scratch.own.parcel.work.clone_from(&parcel.work);
        Ok(())
    }

    fn collect(
        &mut self,
        backend: &B,
        layer: usize,
        parcels: &mut [Parcel],
        received: &mut B::Tensor,
    ) -> Result<(), StepDropped> {
        let key = self.key(layer, Phase::Dispatch);
        let mut staged = std::mem::take(&mut self.scratch.staged);
        staged.clear();
        let capacity = backend.capacity(received);
        let mut rows = 0;
        for (seat, parcel) in self.scratch.seats.iter().zip(parcels) {
            parcel.rows = 0;
            parcel.work.clear();
            match seat {
                Seat::Empty => {}
                Seat::Lost => return Err(StepDropped),
                Seat::Me => {
                    let own = &self.scratch.own;
                    parcel.rows = own.parcel.rows;
                    parcel.work.extend_from_slice(&own.parcel.work);
                    staged.extend_from_slice(&self.scratch.sent[own.sent.clone()]);
                }
                Seat::Linked(link) => {
                    let frame = self.take(link, key)?;
                    if rows + frame.rows > capacity {
                        let (what, count, limit) =
                            ("rows of all ranks", rows + frame.rows, capacity);
                        let why = FrameError::TooMany { what, count, limit };
                        return Err(self.give_up(link, why));
                    }
                    parcel.rows = frame.rows;
                    parcel.work.extend_from_slice(&frame.work);
                    staged.extend_from_slice(frame.values());
                    link.recycle(frame);
                }
            }
            rows += parcel.rows;
        }
        backend.write(&staged, received);
        self.scratch.staged = staged;
        Ok(())
    }

    fn respond(
        &mut self,
        backend: &B,
        layer: usize,
        parcels: &[Parcel],
        results: &B::Tensor,
    ) -> Result<(), StepDropped> {
        let mut values = std::mem::take(&mut self.scratch.results);
        backend.read(results, &mut values);
        let own = self.send(self.key(layer, Phase::Respond), parcels, &values);
        self.scratch.results = values;
        self.scratch.own.results = own?;
        Ok(())
    }

    fn combine(
        &mut self,
        backend: &B,
        layer: usize,
        parcels: &[Parcel],
        returned: &mut B::Tensor,
    ) -> Result<(), StepDropped> {
        let key = self.key(layer, Phase::Respond);
        let mut staged = std::mem::take(&mut self.scratch.staged);
        staged.clear();
        for (seat, parcel) in self.scratch.seats.iter().zip(parcels) {
            match seat {
                Seat::Empty => {}
                Seat::Lost => return Err(StepDropped),
                Seat::Me => {
                    let own = self.scratch.own.results.clone();
                    staged.extend_from_slice(&self.scratch.results[own]);
                }
                Seat::Linked(link) => {
                    let frame = self.take(link, key)?;
                    let (results, work) = (frame.rows, parcel.work.len());
                    if results != work {
                        return Err(self.give_up(link, FrameError::Results { results, work }));
                    }
                    staged.extend_from_slice(frame.values());
                    link.recycle(frame);
                }
            }
        }
        backend.write(&staged, returned);
        self.scratch.staged = staged;
        Ok(())
    }
}
