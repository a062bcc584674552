use std::collections::VecDeque;
use std::time::Duration;

use futures::FutureExt;
use proptest::prelude::*;

use super::queue::Full;
use super::*;

fn limits(max_running: u32, max_waiting: u32, max_waiting_tokens: u64) -> AdmissionLimits {
    AdmissionLimits {
        max_running,
        max_waiting,
        max_waiting_tokens,
    }
}

fn entry(sequences: u32, prompt_tokens: u64) -> Entry {
    Entry {
        sequences,
        prompt_tokens,
    }
}

fn admission(limits: AdmissionLimits) -> Admission {
    let metrics = Metrics::new(&millrace_telemetry::Registry::new(), "test").unwrap();
    Admission::new(limits, Arc::new(metrics))
}

#[test]
fn both_bounds_refuse_by_their_own_name() {
    let now = Instant::now();
    let mut queue = Queue::new(limits(2, 2, 100));
    assert_eq!(
        queue.ask(entry(2, 10), now),
        Decision::Admitted { weight: 2 }
    );
    assert!(
        matches!(queue.ask(entry(1, 1000), now), Decision::Queued(_)),
        "an empty queue takes any"
    );
    let refused = |decision| match decision {
        Decision::Refused { full, .. } => full,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(queue.ask(entry(1, 1), now)), Full::Tokens);
    assert_eq!(refused(queue.ask(entry(2, 0), now)), Full::Sequences);
}

#[test]
fn a_request_larger_than_the_house_gets_the_whole_house() {
    let now = Instant::now();
    let mut queue = Queue::new(limits(4, 10, 100));
    assert_eq!(
        queue.ask(entry(1, 1), now),
        Decision::Admitted { weight: 1 }
    );
    let Decision::Queued(large) = queue.ask(entry(9, 1), now) else {
        panic!()
    };
    let Decision::Queued(small) = queue.ask(entry(1, 1), now) else {
        panic!("it overtook")
    };
    assert_eq!(queue.leave(1, now), [(large, 4)]);
    assert_eq!(queue.leave(4, now), [(small, 1)]);
}

async fn enter(admission: &Admission, deadline: Option<Instant>) -> Result<Permit, RequestError> {
    admission.ask(1, 1)?.come(deadline).await
}

#[tokio::test]
async fn a_turn_that_is_given_up_goes_to_the_next() {
    let admission = admission(limits(1, 10, 1000));
    let held = enter(&admission, None).await.unwrap();
    let mut first = Box::pin(enter(&admission, None));
    let mut second = Box::pin(enter(&admission, None));
    let mut third = Box::pin(enter(&admission, None));
    assert!(first.as_mut().now_or_never().is_none());
    assert!(second.as_mut().now_or_never().is_none());
    assert!(third.as_mut().now_or_never().is_none());
    drop(second);
    drop(held);
    // The first was given the turn, but leaves before it looks.
    drop(first);
    let permit = third.await.unwrap();
    let state = admission.shared.state.lock();
    assert_eq!((state.queue.running(), state.queue.waiting()), (1, 0));
    assert!(state.waiters.is_empty());
    drop(state);
    drop(permit);
    assert_eq!(admission.shared.state.lock().queue.running(), 0);
}

#[tokio::test]
async fn a_deadline_frees_the_place() {
    let admission = admission(limits(1, 10, 1000));
    let _held = enter(&admission, None).await.unwrap();
    let soon = Instant::now() + Duration::from_millis(1);
    let error = enter(&admission, Some(soon)).await.err().unwrap();
    assert!(matches!(error, RequestError::Deadline { .. }));
    assert_eq!(admission.shared.state.lock().queue.waiting(), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Ask(u32, u64),
    Leave(usize),
    Abandon(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..6u32, 0..50u64).prop_map(|(s, t)| Step::Ask(s, t)),
        2 => any::<usize>().prop_map(Step::Leave),
        1 => any::<usize>().prop_map(Step::Abandon),
    ]
}

proptest! {
    /// Turns come in the order of asking, bounds hold, nothing is lost, and nobody waits who fits.
    #[test]
    fn the_queue_is_fair_and_bounded(steps in prop::collection::vec(step(), 0..80)) {
        let now = Instant::now();
        let limits = limits(5, 8, 100);
        let mut queue = Queue::new(limits);
        let mut running: Vec<u32> = Vec::new();
        let mut waiting: VecDeque<(WaiterId, u32)> = VecDeque::new();
        for step in steps {
            let granted = match step {
                Step::Ask(sequences, tokens) => {
                    match queue.ask(entry(sequences, tokens), now) {
                        Decision::Admitted { weight } => {
                            prop_assert!(waiting.is_empty(), "overtook");
                            running.push(weight);
                        }
                        Decision::Queued(id) => waiting.push_back((id, sequences.min(5))),
                        Decision::Refused { retry_after_seconds, .. } => {
                            prop_assert!(!waiting.is_empty());
                            prop_assert!((1..=60).contains(&retry_after_seconds));
                        }
                    }
                    Vec::new()
                }
                Step::Leave(at) if !running.is_empty() => {
                    let weight = running.swap_remove(at % running.len());
                    queue.leave(weight, now)
                }
                Step::Abandon(at) if !waiting.is_empty() => {
                    let (id, _) = waiting.remove(at % waiting.len()).unwrap();
                    queue.abandon(id)
                }
                _ => Vec::new(),
            };
            for turn in granted {
                prop_assert_eq!(Some(turn), waiting.pop_front());
                running.push(turn.1);
            }
            prop_assert_eq!(queue.running(), running.iter().sum::<u32>());
            prop_assert_eq!(queue.waiting(), waiting.iter().map(|w| w.1).sum::<u32>());
            prop_assert!(queue.running() <= limits.max_running);
            prop_assert!(queue.waiting() <= limits.max_waiting);
            if let Some((_, weight)) = waiting.front() {
                prop_assert!(queue.running() + weight > limits.max_running, "the first one fits");
            }
        }
    }
}
