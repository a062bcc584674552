//! Takes keys from a queue and looks at them, several at a time.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use millrace_telemetry::traces::{Parent, Span};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, timeout};
use tracing::Instrument as _;

use super::queue::Queue;
use super::{Context, Next, autoscaler, deployment, pool};
use crate::cache::Key;
use crate::error::Error;
use crate::requests;

/// So many objects of a kind are looked at at the same time.
const AT_ONCE: usize = 8;
/// A look ends by then, or is tried again: the API server may hang.
const LONGEST: Duration = Duration::from_secs(60);
/// Everything is looked at now and then, in case something was missed. It costs no request.
const AT_LATEST: Duration = Duration::from_secs(300);

pub struct Controller {
    name: &'static str,
    look: for<'a> fn(&'a Context, &'a Key) -> BoxFuture<'a, Next>,
    tell: for<'a> fn(&'a Context, &'a Key, &'a Error) -> BoxFuture<'a, ()>,
}

pub static POOLS: Controller = Controller {
    name: "pool",
    look: |context, key| Box::pin(pool::reconcile(context, key)),
    tell: |context, key, error| {
        Box::pin(async move {
            if let Some(pool) = context.cache.pools.get(&key.namespace, &key.name) {
                let note = error.to_string();
                let events = &context.events;
                events.warning(&pool.object, "Failed", "Apply", note).await;
            }
        })
    },
};

pub static DEPLOYMENTS: Controller = Controller {
    name: "deployment",
    look: |context, key| Box::pin(deployment::reconcile(context, key)),
    tell: |context, key, error| {
        Box::pin(async move {
            if let Some(found) = context.cache.deployments.get(&key.namespace, &key.name) {
                let note = error.to_string();
                let events = &context.events;
                events.warning(&found.0, "Failed", "Apply", note).await;
            }
        })
    },
};

pub static AUTOSCALERS: Controller = Controller {
    name: "autoscaler",
    look: |context, key| Box::pin(autoscaler::reconcile(context, key)),
    tell: |context, key, error| {
        Box::pin(async move {
            if let Some(found) = context.cache.autoscalers.get(&key.namespace, &key.name) {
                let note = error.to_string();
                let events = &context.events;
                events.warning(&found.0, "Failed", "Scale", note).await;
            }
        })
    },
};

/// Never returns.
pub async fn work(context: Arc<Context>, queue: Queue, controller: &'static Controller) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut looks = JoinSet::new();
    let mut counts = interval(Duration::from_secs(5));
    loop {
        context.metrics.queued(controller.name, queue.depth());
        let place = places.clone().acquire_owned().await;
        let key = loop {
            tokio::select! {
                key = queue.next() => break key,
                Some(_) = looks.join_next() => {}
                _ = counts.tick() => context.metrics.queued(controller.name, queue.depth()),
            }
        };
        let (context, queue) = (context.clone(), queue.clone());
        let trace = Span::server(
            format_args!("reconcile {}", controller.name),
            &Parent::default(),
        );
        trace.set_text("k8s.namespace.name", &key.namespace);
        trace.set_text("millrace.object", &key.name);
        let span = tracing::info_span!(
            "reconcile",
            controller = controller.name,
            object = %key,
            trace_id = trace.trace_id()
        );
        let look = async move {
            look(&context, &queue, controller, key, &trace).await;
            drop(place);
        };
        looks.spawn(look.instrument(span));
    }
}

async fn look(context: &Context, queue: &Queue, controller: &Controller, key: Key, trace: &Span) {
    let began = Instant::now();
    let looking = requests::part_of(trace.clone(), (controller.look)(context, &key));
    let found = match timeout(LONGEST, looking).await {
        Ok(found) => found,
        Err(_) => Err(Error::TimedOut {
            what: format!("a look at {key}"),
            seconds: LONGEST.as_secs(),
        }),
    };
    let result = found.as_ref().map_or_else(Error::label, |_| "ok");
    let metrics = &context.metrics;
    metrics.reconciled(trace, controller.name, result, began.elapsed());
    if let Err(error) = &found {
        trace.failed(error.label(), error);
    }
    match found {
        Ok(again) => {
            let latest = at_latest(&key);
            queue.done(key, Some(again.map_or(latest, |again| again.min(latest))));
        }
        Err(error) if error.is_transient() => {
            tracing::debug!(%error, "looking again");
            queue.failed(key);
        }
        Err(error) => {
            tracing::warn!(%error, "could not make it what it should be; trying again");
            // The next look may begin only after this: it is about the same object.
            let tell = (controller.tell)(context, &key, &error);
            let _ = timeout(Duration::from_secs(5), tell).await;
            queue.failed(key);
        }
    }
}

/// Spread, so that not everything comes at once.
fn at_latest(key: &Key) -> Duration {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    AT_LATEST + Duration::from_secs(hasher.finish() % 60)
}
