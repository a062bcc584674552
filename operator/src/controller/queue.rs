//! Which objects are to be looked at, and when. Each is there once, however often it changed; none is
//! looked at twice at the same time; one that fails waits longer each time.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::Key;

/// Changes of one object often come together.
const GATHER: Duration = Duration::from_millis(50);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Cheap to clone; all clones are the same queue.
#[derive(Clone, Default)]
pub struct Queue {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct Inner {
    due: BTreeSet<(Instant, Key)>,
    when: HashMap<Key, Instant>,
    running: HashSet<Key>,
    failures: HashMap<Key, u32>,
}

impl Queue {
    /// To be looked at soon.
    pub fn add(&self, key: Key) {
        self.add_after(key, GATHER);
    }

    /// To be looked at after `pause`, or sooner if it was to be already.
    pub fn add_after(&self, key: Key, pause: Duration) {
        self.inner.lock().add(key, Instant::now() + pause);
        self.changed.notify_one();
    }

    /// The next one that is due. It has to be given back with [`Queue::done`] or [`Queue::failed`].
    pub async fn next(&self) -> Key {
        loop {
            let wait = match self.inner.lock().take(Instant::now()) {
                Ok(key) => return key,
                Err(due) => due,
            };
            match wait {
                None => self.changed.notified().await,
                Some(due) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = tokio::time::sleep_until(due) => {}
                },
            }
        }
    }

    /// It was looked at, and is to be looked at again after `again` at the latest.
    pub fn done(&self, key: Key, again: Option<Duration>) {
        self.inner.lock().done(key, again, Instant::now());
        self.changed.notify_one();
    }

    /// Looking at it failed.
    pub fn failed(&self, key: Key) {
        self.inner.lock().failed(key, Instant::now());
        self.changed.notify_one();
    }

    /// How many are due and wait.
    pub fn depth(&self) -> usize {
        let (inner, now) = (self.inner.lock(), Instant::now());
        inner.due.iter().take_while(|(due, _)| *due <= now).count()
    }
}

impl Inner {
    fn done(&mut self, key: Key, again: Option<Duration>, now: Instant) {
        self.running.remove(&key);
        self.failures.remove(&key);
        if let Some(again) = again {
            self.add(key, now + again);
        }
    }

    fn failed(&mut self, key: Key, now: Instant) {
        self.running.remove(&key);
        let failures = self.failures.entry(key.clone()).or_default();
        let pause = FIRST_PAUSE * 2u32.saturating_pow((*failures).min(16));
        *failures += 1;
        // Sooner if it changes: that may be the fix.
        self.add(key, now + pause.min(LONGEST_PAUSE));
    }

    fn add(&mut self, key: Key, due: Instant) {
        match self.when.get(&key) {
            Some(&earlier) if earlier <= due => return,
            Some(&later) => self.due.remove(&(later, key.clone())),
            None => false,
        };
        self.when.insert(key.clone(), due);
        self.due.insert((due, key));
    }

    /// The first that is due and not being looked at, or when the next one will be.
    fn take(&mut self, now: Instant) -> Result<Key, Option<Instant>> {
        let mut first = None;
        for (due, key) in &self.due {
            if self.running.contains(key) {
                continue;
            }
            if *due > now {
                first = first.or(Some(*due));
                break;
            }
            let (due, key) = (*due, key.clone());
            self.due.remove(&(due, key.clone()));
            self.when.remove(&key);
            self.running.insert(key.clone());
            return Ok(key);
        }
        Err(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("n", name)
    }

    #[tokio::test]
    async fn what_is_added_is_handed_out() {
        let queue = Queue::default();
        let waiting = {
            let queue = queue.clone();
            tokio::spawn(async move { queue.next().await })
        };
        queue.add(key("a"));
        assert_eq!(waiting.await.unwrap(), key("a"));
        assert_eq!(queue.depth(), 0);
    }

    #[test]
    fn many_changes_are_one_look() {
        let (mut queue, now) = (Inner::default(), Instant::now());
        queue.add(key("a"), now + GATHER);
        queue.add(key("a"), now + 2 * GATHER);
        queue.add(key("b"), now + 3 * GATHER);
        assert_eq!(queue.take(now), Err(Some(now + GATHER)));
        assert_eq!(queue.take(now + GATHER), Ok(key("a")));
        assert_eq!(queue.take(now + GATHER), Err(Some(now + 3 * GATHER)));
        assert_eq!(queue.take(now + 3 * GATHER), Ok(key("b")));
        assert_eq!(queue.take(now + 9 * GATHER), Err(None));
    }

    #[test]
    fn what_changes_while_it_is_looked_at_is_looked_at_again() {
        let (mut queue, now) = (Inner::default(), Instant::now());
        queue.add(key("a"), now);
        assert_eq!(queue.take(now), Ok(key("a")));
        queue.add(key("a"), now);
        assert_eq!(queue.take(now), Err(None));
        queue.done(key("a"), None, now);
        assert_eq!(queue.take(now), Ok(key("a")));
    }

    #[test]
    fn failures_wait_longer_each_time_and_success_forgets_them() {
        let (mut queue, mut now) = (Inner::default(), Instant::now());
        queue.add(key("a"), now);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            assert_eq!(queue.take(now), Ok(key("a")));
            queue.failed(key("a"), now);
            let next = queue.take(now).unwrap_err().unwrap();
            pauses.push(next - now);
            now = next;
        }
        assert_eq!(pauses[0], FIRST_PAUSE);
        assert_eq!(pauses[1], 2 * FIRST_PAUSE);
        assert_eq!(pauses[11], LONGEST_PAUSE);
        assert_eq!(queue.take(now), Ok(key("a")));
        queue.done(key("a"), Some(LONGEST_PAUSE), now);
        assert_eq!(queue.take(now), Err(Some(now + LONGEST_PAUSE)));
        // A change makes it due sooner.
        queue.add(key("a"), now);
        assert_eq!(queue.take(now), Ok(key("a")));
        queue.failed(key("a"), now);
        assert_eq!(queue.take(now), Err(Some(now + FIRST_PAUSE)));
    }
}
