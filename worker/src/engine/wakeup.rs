//! Waking the engine's thread for what is not a command: frames of peers, orders, staged weights.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::AcqRel},
    mpsc::Sender,
};

use super::handle::Command;

/// Wakes the thread. Cheap to clone and to call: however often it is called, one message at most is
/// on its way.
#[derive(Clone)]
pub struct Waker(Arc<dyn Fn() + Send + Sync>);

impl Waker {
    /// What is new must be there to be found before this is called.
    pub fn wake(&self) {
        (self.0)();
    }

    pub(super) fn new<R: Send + 'static>(commands: Sender<Command<R>>) -> Waker {
        let wakeup = Wakeup::default();
        Waker(Arc::new(move || {
            if !wakeup.0.swap(true, AcqRel) {
                // An error says that the thread has ended: nothing is left to wake.
                let _ = commands.send(Command::Wake(wakeup.clone()));
            }
        }))
    }
}

/// The message on its way.
#[derive(Clone, Default)]
pub(super) struct Wakeup(Arc<AtomicBool>);

impl Wakeup {
    /// From here on a call sends another. The thread looks for what is new after this, so that
    /// nothing is missed.
    pub(super) fn heard(self) {
        self.0.swap(false, AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn many_calls_are_one_message_until_it_is_heard() {
        let (commands, received) = mpsc::channel::<Command<()>>();
        let waker = Waker::new(commands);
        let hear = || match received.try_recv() {
            Ok(Command::Wake(wakeup)) => wakeup.heard(),
            _ => panic!("no message is there"),
        };
        for _ in 0..2 {
            (0..5).for_each(|_| waker.wake());
            hear();
            assert!(received.try_recv().is_err(), "more than one message");
        }
    }
}
