//! A sequence's blocks as each model names them.

use millrace_model::blocks::{BlockHash, block_hashes};

/// Hashes of a sequence's full blocks, first to last, under each model revision that some worker has:
/// the revision is the root of the chain. As a rule there is one.
#[derive(Debug, Clone, Default)]
pub struct Blocks(Vec<(String, Vec<BlockHash>)>);

impl Blocks {
    /// Of the given revisions those that it has no hashes under, each once.
    pub fn lacking<'a>(&self, model_revisions: impl Iterator<Item = &'a str>) -> Vec<String> {
        let mut lacking: Vec<String> = Vec::new();
        for revision in model_revisions {
            let known = self.0.iter().map(|(known, _)| known);
            if known.chain(&lacking).all(|known| known != revision) {
                lacking.push(revision.to_owned());
            }
        }
        lacking
    }

    /// Names `tokens` under a model revision.
    pub fn add(&mut self, model_revision: String, salt: &str, tokens: &[u32]) {
        let root = BlockHash::root(&model_revision, salt);
        self.0.push((model_revision, block_hashes(root, tokens)));
    }

    /// As `model_revision` names them. None if that is a revision they have no hashes under: whoever is of
    /// it is as one that caches nothing.
    pub(super) fn of(&self, model_revision: &str) -> &[BlockHash] {
        let of = self.0.iter().find(|(model, _)| model == model_revision);
        of.map_or(&[], |(_, hashes)| hashes)
    }

    /// Hashes that the caller has made, of any kind: a simulation has no tokens to name.
    pub fn named(model_revision: &str, hashes: Vec<BlockHash>) -> Blocks {
        Blocks(vec![(model_revision.to_owned(), hashes)])
    }
}

/// Of a sequence shorter than a block.
#[cfg(test)]
pub(super) static NONE: Blocks = Blocks(Vec::new());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_named_once_under_each_model() {
        let mut blocks = Blocks::default();
        let models = ["a", "b", "a"];
        assert_eq!(blocks.lacking(models.into_iter()), ["a", "b"]);
        let tokens: Vec<u32> = (0..130).collect();
        blocks.add("a".into(), "salt", &tokens);
        assert_eq!(blocks.lacking(models.into_iter()), ["b"]);
        blocks.add("b".into(), "salt", &tokens);
        assert!(blocks.lacking(models.into_iter()).is_empty());
        for (model, hashes) in &blocks.0 {
            let root = BlockHash::root(model, "salt");
            assert_eq!(*hashes, block_hashes(root, &tokens));
        }
    }
}
