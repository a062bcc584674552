//! What two workers must have in common before latent pages may move between them.

use millrace_kernels::PageLayout;
use millrace_model::blocks::BLOCK_TOKENS;
use millrace_proto::worker::v1 as wire;
use millrace_transfer::Layout;

/// Everything that decides what the bytes of a page mean, and the weights they were computed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compatibility {
    /// Hash of the checkpoint.
    pub model_revision: String,
    pub page_tokens: u32,
    /// MTP layers included.
    pub cached_layers: u32,
    /// Cached values a token and layer.
    pub row_values: u32,
    pub kv_dtype: String,
    /// How the cache is split over ranks. Latent rows are the same on every rank.
    pub parallelism: String,
}

/// The first field in which two workers differ.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{field} is {ours} here and {theirs} at the peer; pair only workers of one model and one cache layout"
)]
pub struct Mismatch {
    pub field: &'static str,
    pub ours: String,
    pub theirs: String,
}

impl Compatibility {
    pub fn new(model_revision: String, layout: &PageLayout) -> Compatibility {
        Compatibility {
            model_revision,
            page_tokens: BLOCK_TOKENS as u32,
            cached_layers: layout.layers as u32,
            row_values: layout.row_values as u32,
            kv_dtype: layout.dtype.as_str().to_string(),
            parallelism: "replicated".to_string(),
        }
    }

    /// Names the first field that differs, with both values.
    pub fn check(&self, peer: &Compatibility) -> Result<(), Mismatch> {
        for ((field, ours), (_, theirs)) in self.fields().into_iter().zip(peer.fields()) {
            if ours != theirs {
                return Err(Mismatch {
                    field,
                    ours,
                    theirs,
                });
            }
        }
        Ok(())
    }

    /// The same for the transfer layer, whose handshake refuses a peer by field name, too: an RPC
    /// may be checked by one process and the bytes taken by another.
    pub fn transfer_layout(&self, layout: &PageLayout) -> Layout {
        self.fields()
            .into_iter()
            .fold(Layout::new(layout.page_bytes()), |layout, (name, value)| {
                layout.with(name, value)
            })
    }

    /// Names are those of the wire message.
    fn fields(&self) -> [(&'static str, String); 6] {
        [
            ("model_revision", self.model_revision.clone()),
            ("page_tokens", self.page_tokens.to_string()),
            ("cached_layers", self.cached_layers.to_string()),
            ("row_values", self.row_values.to_string()),
            ("kv_dtype", self.kv_dtype.clone()),
            ("parallelism", self.parallelism.clone()),
        ]
    }
}

impl From<wire::Compatibility> for Compatibility {
    fn from(wire: wire::Compatibility) -> Compatibility {
        Compatibility {
            model_revision: wire.model_revision,
            page_tokens: wire.page_tokens,
            cached_layers: wire.cached_layers,
            row_values: wire.row_values,
            kv_dtype: wire.kv_dtype,
            parallelism: wire.parallelism,
        }
    }
}

impl From<Compatibility> for wire::Compatibility {
    fn from(own: Compatibility) -> wire::Compatibility {
        wire::Compatibility {
            model_revision: own.model_revision,
            page_tokens: own.page_tokens,
            cached_layers: own.cached_layers,
            row_values: own.row_values,
            kv_dtype: own.kv_dtype,
            parallelism: own.parallelism,
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_kernels::KvDtype;

    use super::*;

    #[test]
    fn a_mismatch_names_the_field_and_both_values() {
        let layout = |layers, dtype| PageLayout {
            layers,
            row_values: 576,
            latent: 512,
            dtype,
        };
        let ours = Compatibility::new("rev".into(), &layout(5, KvDtype::Bf16));
        assert_eq!(ours.check(&ours.clone()), Ok(()));

        let theirs = Compatibility::new("rev".into(), &layout(5, KvDtype::F32));
        let mismatch = ours.check(&theirs).unwrap_err();
        assert_eq!(
            (
                mismatch.field,
                mismatch.ours.as_str(),
                mismatch.theirs.as_str()
            ),
            ("kv_dtype", "bf16", "f32")
        );
        let theirs = Compatibility::new("other".into(), &layout(4, KvDtype::Bf16));
        assert_eq!(ours.check(&theirs).unwrap_err().field, "model_revision");

        let wire = wire::Compatibility::from(ours.clone());
        assert_eq!(
            Compatibility::from(wire),
            ours,
            "nothing is lost on the wire"
        );
    }
}
