//! What happens next. Events of the same time come in the order in which they were asked for.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::clock::Nanos;

/// The one queue of a run.
#[derive(Debug)]
pub struct Events<E> {
    heap: BinaryHeap<Entry<E>>,
    asked: u64,
    now: Nanos,
    happened: u64,
}

#[derive(Debug)]
struct Entry<E> {
    at: Nanos,
    number: u64,
    event: E,
}

impl<E> Default for Events<E> {
    fn default() -> Events<E> {
        Events {
            heap: BinaryHeap::new(),
            asked: 0,
            now: 0,
            happened: 0,
        }
    }
}

impl<E> Events<E> {
    /// `event` happens at `at`, or now if that is past.
    pub fn at(&mut self, at: Nanos, event: E) {
        let entry = Entry {
            at: at.max(self.now),
            number: self.asked,
            event,
        };
        self.asked += 1;
        self.heap.push(entry);
    }

    pub fn after(&mut self, delay: Nanos, event: E) {
        self.at(self.now + delay, event);
    }

    /// The next event, if it is not after `until`. It is its time then.
    pub fn next(&mut self, until: Nanos) -> Option<E> {
        if self.heap.peek()?.at > until {
            return None;
        }
        let entry = self.heap.pop()?;
        self.now = entry.at;
        self.happened += 1;
        Some(entry.event)
    }

    pub fn now(&self) -> Nanos {
        self.now
    }

    /// Events so far.
    pub fn happened(&self) -> u64 {
        self.happened
    }
}

impl<E> Ord for Entry<E> {
    /// The greatest is the first: the heap gives the greatest.
    fn cmp(&self, other: &Entry<E>) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Entry<E>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Entry<E>) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_as_they_were_asked_for() {
        let mut events = Events::default();
        for (at, name) in [(5, 'c'), (3, 'a'), (5, 'd'), (3, 'b')] {
            events.at(at, name);
        }
        let mut seen = Vec::new();
        while let Some(name) = events.next(4) {
            seen.push((events.now(), name));
        }
        assert_eq!(seen, [(3, 'a'), (3, 'b')]);
        events.at(1, 'e');
        while let Some(name) = events.next(10) {
            seen.push((events.now(), name));
        }
        assert_eq!(seen[2..], [(3, 'e'), (5, 'c'), (5, 'd')], "the past is now");
    }
}
