//! Stopping a deployment: the router first, so that nothing new comes in while it finishes what it has,
//! then the workers; what is left at the deadline is killed.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    child::Order,
    screen::Screen,
    signals::Signals,
    supervisor::{Deployment, Events},
};
use crate::errors::{INTERRUPTED, Outcome};

/// What a process gets on top of its own drain time. Workers get it alone: without a router they have
/// nothing left to serve.
const GRACE: Duration = Duration::from_secs(5);

/// Returns when no child is left: `Done` after a clean stop, code 1 if any had to be killed, 130 if a
/// second signal asked for that.
pub async fn shut_down(
    deployment: &Deployment,
    events: &mut Events,
    screen: &mut Screen,
    signals: &mut Signals,
    drain: Duration,
) -> Outcome {
    let mut outcome = Outcome::Done;
    for (stage, allowed) in [(0..1, drain + GRACE), (deployment.workers(), GRACE)] {
        deployment.order(stage.clone(), Order::Stop);
        let mut killed = outcome != Outcome::Done;
        let until = Instant::now() + allowed;
        while deployment.any_left(stage.clone()) {
            if killed {
                deployment.order(deployment.all(), Order::Kill);
            }
            tokio::select! {
                (child, event) = events.next() => screen.stopping(child, event),
                () = deployment.ended(stage.clone()) => {}
                () = tokio::time::sleep_until(until), if !killed => {
                    screen.say("the deadline has passed; killing what is left");
                    (killed, outcome) = (true, Outcome::Code(1));
                }
                () = signals.next(), if !killed => {
                    screen.say("stopping at once");
                    (killed, outcome) = (true, Outcome::Code(INTERRUPTED));
                }
            }
        }
    }
    outcome
}
