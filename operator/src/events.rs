//! What happened, for `kubectl describe` (events.k8s.io).

use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Resource, ResourceExt as _};

/// Cheap to clone. The same event again within minutes becomes a series of one.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

/// What became different about an object.
#[derive(Debug, PartialEq, Eq)]
pub struct News {
    pub warning: bool,
    /// What happened, in CamelCase.
    pub reason: &'static str,
    /// What was done, likewise.
    pub action: &'static str,
    /// For people.
    pub note: String,
}

/// The API server takes no longer notes.
const LONGEST: usize = 1000;

impl Events {
    pub fn new(client: Client, identity: &str) -> Events {
        let reporter = Reporter {
            controller: "millrace-operator".to_owned(),
            instance: Some(identity.to_owned()),
        };
        Events {
            recorder: Recorder::new(client, reporter),
        }
    }

    /// `reason` (what happened) and `action` (what was done) are CamelCase, `note` is for people.
    pub async fn normal<K>(&self, about: &K, reason: &str, action: &str, note: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        self.publish(EventType::Normal, about, reason, action, note.into())
            .await;
    }

    pub async fn warning<K>(&self, about: &K, reason: &str, action: &str, note: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        self.publish(EventType::Warning, about, reason, action, note.into())
            .await;
    }

    pub async fn tell<K>(&self, about: &K, news: Vec<News>)
    where
        K: Resource<DynamicType = ()>,
    {
        for piece in news {
            let type_ = match piece.warning {
                true => EventType::Warning,
                false => EventType::Normal,
            };
            self.publish(type_, about, piece.reason, piece.action, piece.note)
                .await;
        }
    }

    async fn publish<K>(
        &self,
        type_: EventType,
        about: &K,
        reason: &str,
        action: &str,
        mut note: String,
    ) where
        K: Resource<DynamicType = ()>,
    {
        if note.len() > LONGEST {
            let end = (0..=LONGEST).rev().find(|&at| note.is_char_boundary(at));
            note.truncate(end.unwrap_or(0));
        }
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: action.to_owned(),
            secondary: None,
        };
        // An event is a courtesy: what it is about went on already.
        if let Err(error) = self.recorder.publish(&event, &about.object_ref(&())).await {
            tracing::warn!(%error, object = about.name_any(), reason, "an event could not be written");
        }
    }
}
