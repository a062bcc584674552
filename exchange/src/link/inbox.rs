//! What has arrived over one connection and has not been asked for yet.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use millrace_engine::exchange::Work;
use millrace_experts::group::Start;
use parking_lot::{Condvar, Mutex};

use crate::LinkError;
use crate::wire::Key;

/// In lockstep a rank is at most one phase ahead, so that two frames wait, and as many again of an
/// epoch that was left. More says that something is wrong, and memory must not grow with it.
const MOST_FRAMES: usize = 8;
const MOST_STARTS: usize = 64;

/// A parcel, its results, or shared bytes. Buffers only grow, and come back with [`Inbox::recycle`].
#[derive(Default)]
pub(crate) struct Frame {
    pub(crate) key: Option<Key>,
    pub(crate) rows: usize,
    pub(crate) work: Vec<Work>,
    pub(crate) bytes: Vec<u8>,
    values: Vec<f32>,
    count: usize,
}

impl Frame {
    pub(crate) fn values(&self) -> &[f32] {
        &self.values[..self.count]
    }

    /// Room for `count` values, with whatever they were before.
    pub(crate) fn values_mut(&mut self, count: usize) -> &mut [f32] {
        if self.values.len() < count {
            self.values.resize(count, 0.0);
        }
        self.count = count;
        &mut self.values[..count]
    }
}

pub(crate) enum Taken {
    Frame(Frame),
    /// The link was lost, or the step is over.
    Dropped,
    /// The frame can never come: this one came instead.
    OutOfStep(Key),
}

pub(super) struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    frames: VecDeque<Frame>,
    starts: VecDeque<Start>,
    spare: Vec<Frame>,
    closed: bool,
}

impl Inbox {
    pub(super) fn new() -> Inbox {
        Inbox {
            state: Mutex::new(State {
                frames: VecDeque::with_capacity(MOST_FRAMES),
                starts: VecDeque::with_capacity(MOST_STARTS),
                spare: Vec::with_capacity(MOST_FRAMES),
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// A frame to read into.
    pub(super) fn spare(&self) -> Frame {
        self.state.lock().spare.pop().unwrap_or_default()
    }

    pub(super) fn recycle(&self, frame: Frame) {
        let mut state = self.state.lock();
        if state.spare.len() < MOST_FRAMES {
            state.spare.push(frame);
        }
    }

    pub(super) fn push(&self, frame: Frame) -> Result<(), LinkError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(LinkError::Closed);
        }
        if state.frames.len() == MOST_FRAMES {
            return Err(LinkError::Overflow(MOST_FRAMES));
        }
        state.frames.push_back(frame);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    pub(super) fn push_start(&self, start: Start) -> Result<(), LinkError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(LinkError::Closed);
        }
        if state.starts.len() == MOST_STARTS {
            return Err(LinkError::Overflow(MOST_STARTS));
        }
        state.starts.push_back(start);
        Ok(())
    }

    pub(super) fn take_starts(&self, mut each: impl FnMut(Start)) {
        self.state.lock().starts.drain(..).for_each(&mut each);
    }

    /// Waits for the frame of `key`, and says for how long. [`look`](Self::look) must be called
    /// when `is_over` changes.
    pub(super) fn take(&self, key: Key, is_over: impl Fn() -> bool) -> (Taken, Duration) {
        let mut state = self.state.lock();
        let mut began = None;
        loop {
            if let Some(taken) = state.take(key, &is_over) {
                return (
                    taken,
                    began.map_or(Duration::ZERO, |began: Instant| began.elapsed()),
                );
            }
            began.get_or_insert_with(Instant::now);
            self.changed.wait(&mut state);
        }
    }

    pub(super) fn look(&self) {
        // With the lock, so that nobody is between looking and waiting.
        drop(self.state.lock());
        self.changed.notify_all();
    }

    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.frames.clear();
        state.starts.clear();
        drop(state);
        self.changed.notify_all();
    }
}

impl State {
    fn take(&mut self, awaited: Key, is_over: &impl Fn() -> bool) -> Option<Taken> {
        if self.closed || is_over() {
            return Some(Taken::Dropped);
        }
        loop {
            let key = self.frames.front()?.key?;
            if key == awaited {
                return self.frames.pop_front().map(Taken::Frame);
            }
            // A peer that has left this epoch: the order to leave it too is on its way.
            if key.epoch > awaited.epoch {
                return None;
            }
            // Both ends run the same steps in the same order, and so do frames on a connection.
            if key.epoch == awaited.epoch {
                return Some(Taken::OutOfStep(key));
            }
            let stale = self.frames.pop_front()?;
            if self.spare.len() < MOST_FRAMES {
                self.spare.push(stale);
            }
        }
    }
}
