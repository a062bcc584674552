//! What every worker must have in common with the router, and what with others, to be let in.

use millrace_model::blocks::BLOCK_TOKENS;

use super::{Description, Fleet, Mismatch};

/// What every worker must agree with to be admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Hash of the router's checkpoint: what workers must have that are of no deployment's revision.
    pub model_revision: String,
    /// Hash of its tokenizer, chat template and end tokens.
    pub text_revision: String,
    pub vocab_size: u32,
    /// The longest sequence that clients are promised.
    pub max_model_len: u32,
}

/// Why a worker is not admitted. The worker shows it to whoever started it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It differs from the served model or from the workers already attached.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    #[error(
        "{0}: its tokenizer, chat template or end tokens are not this router's; start a router with the worker's model"
    )]
    Text(Mismatch),
    /// It differs from the workers of its revision that are attached.
    #[error(
        "{mismatch}, as other workers of revision {revision} have; give those that differ a revision of their own"
    )]
    Revision {
        revision: String,
        mismatch: Mismatch,
    },
    #[error("{field} is missing from the worker's hello")]
    Missing { field: &'static str },
    #[error("address {address:?} is not host:port")]
    Address { address: String },
    /// No placement has such a shape.
    #[error("group: {0}")]
    Shape(#[from] millrace_experts::PlacementError),
}

impl Fleet {
    /// # Errors
    /// Names the first field that keeps a worker out.
    pub(super) fn check(&self, worker: &Description) -> Result<(), Refusal> {
        if worker.worker_id.is_empty() {
            return Err(Refusal::Missing { field: "worker_id" });
        }
        let (served, layout) = (&self.served, &worker.compatibility);
        let text = Mismatch::unless_equal(
            "text_revision",
            &worker.text_revision,
            &served.text_revision,
        );
        text.map_err(Refusal::Text)?;
        if worker.revision.is_empty() {
            // Nobody has said that it may be another.
            Mismatch::unless_equal(
                "model_revision",
                &layout.model_revision,
                &served.model_revision,
            )?;
        }
        // The router hashes prompts in blocks of this size.
        Mismatch::unless_equal("page_tokens", layout.page_tokens as usize, BLOCK_TOKENS)?;
        Mismatch::unless_equal("vocab_size", worker.vocab_size, served.vocab_size)?;
        if worker.max_model_len < served.max_model_len {
            return Err(Refusal::Mismatch(Mismatch {
                field: "max_model_len",
                worker: worker.max_model_len.to_string(),
                expected: format!("at least {}", served.max_model_len),
            }));
        }
        self.check_group(worker)?;
        // All attached workers of a revision are alike, so any of them stands for it.
        let mut others = self.others(worker);
        let Some(other) = others.find(|other| other.revision == worker.revision) else {
            return Ok(());
        };
        let check = layout.check(&other.compatibility);
        check.map_err(|mismatch| match worker.revision.as_str() {
            "" => Refusal::Mismatch(mismatch),
            revision => Refusal::Revision {
                revision: revision.to_owned(),
                mismatch,
            },
        })
    }

    /// All workers but the worker's own earlier life, which is about to be detached.
    fn others(&self, worker: &Description) -> impl Iterator<Item = &Description> {
        let all = self.workers.values().map(|other| &other.description);
        all.filter(|other| other.worker_id != worker.worker_id)
    }

    /// All ranks of a group are of one revision and shape. Others are taken once all of the old are
    /// gone.
    fn check_group(&self, worker: &Description) -> Result<(), Refusal> {
        let Some(rank) = &worker.group else {
            return Ok(());
        };
        rank.check()?;
        let peers = self
            .others(worker)
            .filter_map(|peer| Some((peer, peer.group.as_ref()?)));
        for (peer, place) in peers {
            if place.group == rank.group {
                Mismatch::unless_equal("group.revision", &worker.revision, &peer.revision)?;
                return Ok(rank.check_shape(&place.shape)?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{description, served};
    use super::super::{GroupRank, Role};
    use super::*;

    #[test]
    fn a_mismatch_is_refused_by_its_name() {
        let mut fleet = Fleet::new(served(), 1000);
        let reason = |fleet: &mut Fleet, change: fn(&mut Description)| {
            let mut worker = description("new", Role::Prefill);
            change(&mut worker);
            fleet.attach(worker).unwrap_err().to_string()
        };
        assert_eq!(
            reason(&mut fleet, |w| w.compatibility.model_revision = "r2".into()),
            "model_revision: the worker has r2, expected r1"
        );
        assert!(
            reason(&mut fleet, |w| w.compatibility.page_tokens = 32).starts_with("page_tokens")
        );
        assert!(reason(&mut fleet, |w| w.vocab_size = 99).starts_with("vocab_size"));
        assert!(reason(&mut fleet, |w| w.max_model_len = 100).contains("at least 4096"));
        assert!(reason(&mut fleet, |w| w.worker_id.clear()).starts_with("worker_id"));

        // The first worker decides what the router itself cannot know.
        fleet.attach(description("first", Role::Decode)).unwrap();
        assert_eq!(
            reason(&mut fleet, |w| w.compatibility.kv_dtype = "f32".into()),
            "kv_dtype: the worker has f32, expected bf16"
        );
        assert!(
            reason(&mut fleet, |w| w.compatibility.cached_layers = 4).starts_with("cached_layers")
        );
        assert!(fleet.attach(description("second", Role::Prefill)).is_ok());
    }

    #[test]
    fn revisions_may_differ_in_all_but_text_and_are_each_of_one_piece() {
        let mut fleet = Fleet::new(served(), 1000);
        let reason = |fleet: &mut Fleet, id: &str, change: fn(&mut Description)| {
            let mut worker = description(id, Role::Decode);
            worker.revision = "new".into();
            worker.compatibility.model_revision = "r2".into();
            change(&mut worker);
            let outcome = fleet.attach(worker);
            outcome.map_err(|refusal| refusal.to_string()).err()
        };
        fleet.attach(description("old", Role::Decode)).unwrap();
        assert_eq!(reason(&mut fleet, "a", |_| ()), None);
        assert_eq!(
            reason(&mut fleet, "b", |w| w.compatibility.model_revision =
                "r3".into())
            .unwrap(),
            "model_revision: the worker has r3, expected r2, as other workers of revision new have; \
             give those that differ a revision of their own"
        );
        let kv = reason(&mut fleet, "b", |w| w.compatibility.kv_dtype = "f32".into());
        assert!(kv.unwrap().starts_with("kv_dtype: the worker has f32"));
        let text = reason(&mut fleet, "b", |w| w.text_revision = "t2".into()).unwrap();
        assert!(
            text.starts_with("text_revision: the worker has t2, expected t1: its tokenizer"),
            "{text}"
        );
        // A third one may have what the second may not.
        let other = |w: &mut Description| {
            w.revision = "newer".into();
            w.compatibility.kv_dtype = "f32".into();
        };
        assert_eq!(reason(&mut fleet, "c", other), None);
        // The only worker of a revision may come back as another.
        assert_eq!(
            reason(&mut fleet, "c", |w| w.revision = "newer".into()),
            None
        );
        let models = |fleet: &Fleet| {
            fleet
                .workers(Role::Decode)
                .map(|(_, w)| w.model_revision().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(models(&fleet), ["r1", "r2", "r2"]);
    }

    #[test]
    fn a_group_is_of_one_revision() {
        let mut fleet = Fleet::new(served(), 1000);
        let rank = |rank: usize, revision: &str| {
            let shape = millrace_experts::Shape {
                layers: 1,
                experts: 2,
                ranks: 2,
                slots: 1,
            };
            Description {
                revision: revision.into(),
                group: Some(GroupRank {
                    group: "g".into(),
                    member: millrace_experts::Member {
                        id: millrace_experts::RankId {
                            rank,
                            incarnation: 1,
                        },
                        exchange: "127.0.0.1:2".into(),
                        grpc: "127.0.0.1:1".into(),
                    },
                    shape: millrace_experts::group::GroupShape {
                        shape,
                        expert_bytes: 1,
                    },
                }),
                ..description(&format!("g-{rank}"), Role::Decode)
            }
        };
        fleet.attach(rank(0, "a")).unwrap();
        let refusal = fleet.attach(rank(1, "b")).unwrap_err().to_string();
        assert_eq!(refusal, "group.revision: the worker has b, expected a");
        fleet.attach(rank(1, "a")).unwrap();
    }
}
