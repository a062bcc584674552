//! The handshake's bodies. JSON, as the records of epochs are: read once a connection, and by people.

use millrace_experts::RankId;
use serde::{Deserialize, Serialize};

use crate::{FrameError, MeshConfig, Refusal};

/// Longest `Hello` or `Refused` body.
pub(crate) const MAX_GREETING: usize = 16 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hello {
    pub(crate) group: String,
    /// Who dials.
    pub(crate) from: RankId,
    /// Whom it means to reach.
    pub(crate) to: RankId,
    pub(crate) layout: Vec<(String, String)>,
}

impl Hello {
    pub(crate) fn new(config: &MeshConfig, to: RankId) -> Hello {
        Hello {
            group: config.group.clone(),
            from: config.me,
            to,
            layout: config.agreed(),
        }
    }

    /// What the rank that listens has against it, besides not knowing it.
    pub(crate) fn check(&self, config: &MeshConfig) -> Result<(), Refusal> {
        let group = |name: &str| vec![("group".to_owned(), name.to_owned())];
        first_difference(&group(&config.group), &group(&self.group))?;
        first_difference(&config.agreed(), &self.layout)?;
        if self.to != config.me {
            return Err(Refusal::OtherLife {
                asked: self.to,
                here: config.me,
            });
        }
        if self.from.rank >= config.me.rank {
            return Err(Refusal::Direction);
        }
        Ok(())
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data becomes JSON")
    }

    pub(crate) fn from_json(json: &[u8]) -> Result<Hello, FrameError> {
        serde_json::from_slice(json).map_err(|error| FrameError::Greeting(error.to_string()))
    }
}

impl Refusal {
    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data becomes JSON")
    }

    pub(crate) fn from_json(json: &[u8]) -> Result<Refusal, FrameError> {
        serde_json::from_slice(json).map_err(|error| FrameError::Greeting(error.to_string()))
    }
}

fn first_difference(
    listener: &[(String, String)],
    dialer: &[(String, String)],
) -> Result<(), Refusal> {
    let value = |fields: &[(String, String)], name: &str| {
        let found = fields.iter().find(|(field, _)| field == name);
        found.map_or("absent".to_owned(), |(_, value)| value.clone())
    };
    for (field, _) in listener.iter().chain(dialer) {
        let (listener, dialer) = (value(listener, field), value(dialer, field));
        if listener != dialer {
            return Err(Refusal::Differs {
                field: field.clone(),
                listener,
                dialer,
            });
        }
    }
    Ok(())
}
