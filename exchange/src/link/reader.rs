//! The loop of a reader thread: socket to inbox, for the life of one connection.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use millrace_engine::exchange::Work;

use super::{Frame, Incoming, Link};
use crate::wire::{HEADER, Header, Kind, Phase};
use crate::{FrameError, FrameLimits, LinkError};

// Values and work travel as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));

/// Reads until the link ends, and says why. Frames of epochs before `floor` are read and dropped;
/// `news` is called for what an engine may wait for outside a step.
pub(crate) fn read_frames(
    link: &Link,
    incoming: &mut Incoming,
    limits: &FrameLimits,
    floor: &AtomicU64,
    news: &(dyn Fn() + Send + Sync),
) -> LinkError {
    loop {
        if let Err(error) = read_frame(link, incoming, limits, floor, news) {
            return error;
        }
    }
}

fn read_frame(
    link: &Link,
    incoming: &mut Incoming,
    limits: &FrameLimits,
    floor: &AtomicU64,
    news: &(dyn Fn() + Send + Sync),
) -> Result<(), LinkError> {
    let header = incoming.header(limits)?;
    match header.kind {
        Kind::Heartbeat => return Ok(()),
        Kind::Start => {
            link.inbox.push_start(header.to_start())?;
            news();
        }
        Kind::Dispatch => read_parcel(link, incoming, limits, floor, &header, Phase::Dispatch)?,
        Kind::Respond => read_parcel(link, incoming, limits, floor, &header, Phase::Respond)?,
        Kind::Share => read_shared(link, incoming, floor, &header)?,
        Kind::Hello | Kind::Welcome | Kind::Refused => {
            return Err(FrameError::Unexpected {
                kind: header.kind.name(),
            }
            .into());
        }
    }
    link.counters.received(HEADER + header.length as usize);
    Ok(())
}

fn read_parcel(
    link: &Link,
    incoming: &mut Incoming,
    limits: &FrameLimits,
    floor: &AtomicU64,
    header: &Header,
    phase: Phase,
) -> Result<(), LinkError> {
    let key = header.key(phase);
    let mut frame = link.inbox.spare();
    frame.key = Some(key);
    frame.rows = header.rows as usize;
    frame.work.resize(header.work as usize, Work::default());
    incoming.exact(bytemuck::cast_slice_mut(&mut frame.work))?;
    check_work(&frame, limits)?;
    let count = frame.rows * limits.hidden;
    incoming.exact(bytemuck::cast_slice_mut(frame.values_mut(count)))?;
    put(link, floor, frame, key.epoch)
}

fn read_shared(
    link: &Link,
    incoming: &mut Incoming,
    floor: &AtomicU64,
    header: &Header,
) -> Result<(), LinkError> {
    let key = header.key(Phase::Share);
    let mut frame = link.inbox.spare();
    frame.key = Some(key);
    frame.bytes.resize(header.length as usize, 0);
    incoming.exact(&mut frame.bytes)?;
    put(link, floor, frame, key.epoch)
}

fn put(link: &Link, floor: &AtomicU64, frame: Frame, epoch: u64) -> Result<(), LinkError> {
    if epoch < floor.load(Relaxed) {
        link.inbox.recycle(frame);
        return Ok(());
    }
    link.inbox.push(frame)
}

/// Rows and slots become indices at the receiver.
fn check_work(frame: &Frame, limits: &FrameLimits) -> Result<(), FrameError> {
    let (rows, slots) = (frame.rows, limits.slots);
    let wrong = |work: &&Work| work.row as usize >= rows || work.slot as usize >= slots;
    match frame.work.iter().find(wrong) {
        Some(&Work { row, slot }) => Err(FrameError::Work {
            row,
            rows,
            slot,
            slots,
        }),
        None => Ok(()),
    }
}
