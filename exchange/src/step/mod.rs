//! One step's exchange.
//!
//! Host copies on the way (device to host, frame to host rows to device) are what TCP costs; an
//! implementation with device access has the four calls and none of the copies.

mod phases;

use std::ops::Range;
use std::sync::Arc;

use millrace_engine::exchange::{Parcel, StepDropped, Work};
use millrace_experts::RankId;
use parking_lot::Mutex;

use crate::LinkError;
use crate::link::{Frame, Link, Taken};
use crate::roster::Roster;
use crate::wire::{Header, Key, Phase};

/// [`ExpertExchange`](millrace_engine::exchange::ExpertExchange) over a mesh's links, for one step of one epoch.
///
/// It holds on to the links there were when it was made: one that breaks and is made anew does not
/// serve the same step.
pub struct StepExchange<'a> {
    roster: &'a Roster,
    home: &'a Mutex<Scratch>,
    scratch: Scratch,
    epoch: u64,
    step: u64,
}

/// What outlives a step, so that the next one allocates nothing.
#[derive(Default)]
pub(crate) struct Scratch {
    /// By rank.
    seats: Vec<Seat>,
    /// What was last dispatched and responded; this rank's own part is taken from here.
    sent: Vec<f32>,
    results: Vec<f32>,
    own: Own,
    /// What came from all ranks, in order.
    staged: Vec<f32>,
}

enum Seat {
    Empty,
    Me,
    Linked(Arc<Link>),
    /// A member that cannot be reached in this epoch.
    Lost,
}

/// This rank's parcel for itself.
#[derive(Default)]
struct Own {
    parcel: Parcel,
    /// Its values in `sent`, and in `results`.
    sent: Range<usize>,
    results: Range<usize>,
}

impl<'a> StepExchange<'a> {
    pub(crate) fn new(
        roster: &'a Roster,
        home: &'a Mutex<Scratch>,
        epoch: u64,
        step: u64,
        members: &[RankId],
        ranks: usize,
    ) -> StepExchange<'a> {
        let mut scratch = std::mem::take(&mut *home.lock());
        scratch.seats.clear();
        scratch.seats.resize_with(ranks, || Seat::Empty);
        for member in members {
            scratch.seats[member.rank] = if *member == roster.config.me {
                Seat::Me
            } else {
                let link = roster.link_in(*member, epoch);
                link.map_or(Seat::Lost, Seat::Linked)
            };
        }
        StepExchange {
            roster,
            home,
            scratch,
            epoch,
            step,
        }
    }

    fn key(&self, layer: usize, phase: Phase) -> Key {
        Key {
            epoch: self.epoch,
            step: self.step,
            layer: layer as u32,
            phase,
        }
    }

    /// Sends each member its part of `values`, and says which part is this rank's own. Every rank
    /// begins with the one after it, so that they do not all send to the same one first.
    fn send(
        &self,
        key: Key,
        parcels: &[Parcel],
        values: &[f32],
    ) -> Result<Range<usize>, StepDropped> {
        let hidden = self.roster.config.limits.hidden;
        let me = self.roster.config.me.rank;
        let rows = |parcel: &Parcel| match key.phase {
            Phase::Dispatch => parcel.rows,
            Phase::Share | Phase::Respond => parcel.work.len(),
        };
        let before = |rank: usize| hidden * parcels[..rank].iter().map(rows).sum::<usize>();
        let ranks = self.scratch.seats.len();
        assert_eq!(parcels.len(), ranks, "a parcel for each rank");
        assert_eq!(values.len(), before(ranks), "rows of all parcels");
        if self.roster.is_over(self.epoch) {
            return Err(StepDropped);
        }
        let own = before(me)..before(me + 1);
        let mut from = own.end;
        for rank in (me + 1..ranks).chain(0..me) {
            if rank == 0 {
                from = 0;
            }
            let part = &values[from..][..rows(&parcels[rank]) * hidden];
            from += part.len();
            self.send_part(rank, key, &parcels[rank], rows(&parcels[rank]), part)?;
        }
        Ok(own)
    }

    fn send_part(
        &self,
        rank: usize,
        key: Key,
        parcel: &Parcel,
        rows: usize,
        part: &[f32],
    ) -> Result<(), StepDropped> {
        let limits = &self.roster.config.limits;
        let (work, most) = match key.phase {
            Phase::Dispatch => (parcel.work.as_slice(), limits.rows),
            Phase::Share | Phase::Respond => (&[] as &[Work], limits.work),
        };
        assert!(
            rows <= most && work.len() <= limits.work,
            "a parcel of {rows} rows and {} pieces of work, and {limits:?}",
            work.len()
        );
        match &self.scratch.seats[rank] {
            Seat::Linked(link) => {
                let header = Header::parcel(key, rows, work.len(), limits.hidden);
                let sent = link.send(&header, work, part);
                sent.map_err(|why| self.give_up(link, why))
            }
            Seat::Lost => Err(StepDropped),
            Seat::Empty | Seat::Me => {
                assert_eq!(rows, 0, "rows for rank {rank}, which is no member");
                Ok(())
            }
        }
    }

    fn take(&self, link: &Arc<Link>, awaited: Key) -> Result<Frame, StepDropped> {
        match link.take(awaited, || self.roster.is_over(self.epoch)) {
            Taken::Frame(frame) => Ok(frame),
            Taken::Dropped => Err(StepDropped),
            Taken::OutOfStep(sent) => {
                let (awaited, sent) = (awaited.to_string(), sent.to_string());
                Err(self.give_up(link, LinkError::OutOfStep { awaited, sent }))
            }
        }
    }

    fn give_up(&self, link: &Arc<Link>, why: impl Into<LinkError>) -> StepDropped {
        self.roster.break_link(link, why.into());
        StepDropped
    }
}

impl Drop for StepExchange<'_> {
    fn drop(&mut self) {
        // Without the links: one that breaks between two steps must not linger here.
        self.scratch.seats.clear();
        *self.home.lock() = std::mem::take(&mut self.scratch);
    }
}
