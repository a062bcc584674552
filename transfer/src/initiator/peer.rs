//! One target's connection as its writers see it: a bounded queue.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::connect::Connection;
use super::delivery::Delivery;
use super::sender::Sender;
use crate::config::{InitiatorConfig, Wire};
use crate::deadline::within;
use crate::error::WriteError;
use crate::memory::Source;
use crate::stats::{Counters, add, sub};
use crate::wake::Wake;

pub(super) enum Job {
    Write {
        delivery: Arc<Delivery>,
        index: u32,
        source: Source,
        queued: Instant,
    },
    Finish {
        delivery: Arc<Delivery>,
        message: Vec<u8>,
    },
    Abandon {
        delivery: Arc<Delivery>,
    },
}

pub(super) struct Peer {
    wire: Wire,
    counters: Arc<Counters>,
    /// Most pages queued or unanswered.
    limit: usize,
    queue: Mutex<Queue>,
    room: Condvar,
    /// Wakes the connection's thread.
    pub wake: Wake,
}

struct Queue {
    jobs: VecDeque<Job>,
    /// Pages queued or unanswered.
    pages: usize,
    writers: usize,
    /// The connection's thread has found no job and may be waiting for one.
    hungry: bool,
    closed: Option<WriteError>,
}

impl Peer {
    pub fn wire(&self) -> Wire {
        self.wire
    }

    /// Counts one more writer; false if the connection has ended.
    pub fn attach(&self) -> bool {
        let mut queue = self.queue.lock();
        queue.writers += 1;
        queue.closed.is_none()
    }

    pub fn detach(&self) {
        self.queue.lock().writers -= 1;
    }

    pub fn is_closed(&self) -> bool {
        self.queue.lock().closed.is_some()
    }

    pub fn check_open(&self) -> Result<(), WriteError> {
        self.queue.lock().closed.clone().map_or(Ok(()), Err)
    }

    pub fn has_writers(&self) -> bool {
        self.queue.lock().writers > 0
    }

    /// Queues a page, waiting up to `patience` for room; the source comes back if there is none.
    pub fn write(
        &self,
        delivery: &Arc<Delivery>,
        index: u32,
        source: Source,
        patience: Duration,
    ) -> Result<Option<Source>, WriteError> {
        let deadline = within(patience);
        let mut queue = self.queue.lock();
        loop {
            if let Some(error) = &queue.closed {
                return Err(error.clone());
            }
            if queue.pages < self.limit {
                break;
            }
            if patience.is_zero() || self.room.wait_until(&mut queue, deadline).timed_out() {
                return Ok(Some(source));
            }
        }
        queue.pages += 1;
        delivery.page_queued();
        add(&self.counters.wire(self.wire).in_flight, 1);
        let queued = Instant::now();
        queue.jobs.push_back(Job::Write {
            delivery: delivery.clone(),
            index,
            source,
            queued,
        });
        self.feed(queue);
        Ok(None)
    }

    /// Queues what needs no room.
    pub fn push(&self, job: Job) -> Result<(), WriteError> {
        let mut queue = self.queue.lock();
        if let Some(error) = &queue.closed {
            return Err(error.clone());
        }
        queue.jobs.push_back(job);
        self.feed(queue);
        Ok(())
    }

    /// Wakes the connection's thread if it may be waiting for a job.
    fn feed(&self, mut queue: MutexGuard<'_, Queue>) {
        let hungry = std::mem::take(&mut queue.hungry);
        drop(queue);
        if hungry {
            self.wake.signal();
        }
    }

    /// The next job, or why there will be none.
    pub fn next(&self) -> Result<Option<Job>, WriteError> {
        let mut queue = self.queue.lock();
        match &queue.closed {
            Some(error) => Err(error.clone()),
            None => {
                let job = queue.jobs.pop_front();
                queue.hungry = job.is_none();
                Ok(job)
            }
        }
    }

    /// A page has left the queue for good.
    pub fn page_done(&self) {
        sub(&self.counters.wire(self.wire).in_flight, 1);
        self.queue.lock().pages -= 1;
        self.room.notify_one();
    }

    /// Ends the queue if nobody uses it.
    pub fn close_unused(&self) -> bool {
        let mut queue = self.queue.lock();
        let unused = queue.writers == 0 && queue.jobs.is_empty();
        if unused && queue.closed.is_none() {
            queue.closed = Some(WriteError::Closed);
        }
        unused
    }

    /// Ends the queue; returns what was still in it.
    pub fn close(&self, error: &WriteError) -> VecDeque<Job> {
        let mut queue = self.queue.lock();
        queue.closed.get_or_insert_with(|| error.clone());
        let jobs = std::mem::take(&mut queue.jobs);
        drop(queue);
        self.room.notify_all();
        jobs
    }

    /// Asks the connection's thread to end.
    fn request_close(&self) {
        self.queue.lock().closed.get_or_insert(WriteError::Closed);
        self.room.notify_all();
        self.wake.signal();
    }
}

/// A connection with its thread. Dropping it ends both.
pub(super) struct Running {
    peer: Arc<Peer>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub fn start(
        connection: Connection,
        config: &InitiatorConfig,
        counters: Arc<Counters>,
    ) -> io::Result<Running> {
        let queue = Queue {
            jobs: VecDeque::new(),
            pages: 0,
            writers: 0,
            hungry: false,
            closed: None,
        };
        let peer = Arc::new(Peer {
            wire: connection.wire,
            counters: counters.clone(),
            limit: config.queue_pages.max(1),
            queue: Mutex::new(queue),
            room: Condvar::new(),
            wake: Wake::new()?,
        });
        let sender = Sender::new(connection, peer.clone(), config, counters);
        let thread = thread::Builder::new()
            .name("transfer-out".into())
            .spawn(move || sender.run())?;
        Ok(Running {
            peer,
            thread: Some(thread),
        })
    }

    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.peer.request_close();
        if let Some(thread) = self.thread.take() {
            // It can only have panicked, which the panic hook has reported.
            let _ = thread.join();
        }
    }
}
