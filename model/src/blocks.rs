//! Blocks of tokens and the hash that names a block together with all that came before it.
//!
//! Workers key their prefix cache by these hashes and report them; the router computes the same
//! hashes for a prompt to see who holds how much of it. blake3 (truncated to 128 bits) keeps
//! collisions out of reach of tenants who share a cache.

/// Tokens in a block; one block fills one latent page.
pub const BLOCK_TOKENS: usize = 64;

/// Names a full block and its whole prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(pub u128);

impl BlockHash {
    /// The parent of a prompt's first block. `revision` is the model revision, so that caches of
    /// different weights never match; `salt` separates tenants that must not share (usually empty).
    pub fn root(revision: &str, salt: &str) -> BlockHash {
        let mut hasher = blake3::Hasher::new_derive_key("millrace block root v1");
        hasher.update(&(revision.len() as u64).to_le_bytes());
        hasher.update(revision.as_bytes());
        hasher.update(salt.as_bytes());
        truncate(hasher)
    }

    /// The hash of `tokens` (exactly [`BLOCK_TOKENS`]) following the prefix named by `self`.
    pub fn child(self, tokens: &[u32]) -> BlockHash {
        debug_assert_eq!(tokens.len(), BLOCK_TOKENS);
        let mut bytes = [0u8; 16 + 4 * BLOCK_TOKENS];
        bytes[..16].copy_from_slice(&self.0.to_le_bytes());
        for (slot, token) in bytes[16..].chunks_exact_mut(4).zip(tokens) {
            slot.copy_from_slice(&token.to_le_bytes());
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes);
        truncate(hasher)
    }

    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    pub fn from_bytes(bytes: [u8; 16]) -> BlockHash {
        BlockHash(u128::from_le_bytes(bytes))
    }
}

/// Hashes of all full blocks of `tokens`, first to last.
pub fn block_hashes(root: BlockHash, tokens: &[u32]) -> Vec<BlockHash> {
    let mut parent = root;
    tokens
        .chunks_exact(BLOCK_TOKENS)
        .map(|block| {
            parent = parent.child(block);
            parent
        })
        .collect()
}

fn truncate(hasher: blake3::Hasher) -> BlockHash {
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    BlockHash::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_names_the_whole_prefix() {
        let root = BlockHash::root("rev", "");
        let a: Vec<u32> = (0..128).collect();
        let mut b = a.clone();
        b[3] = 7;
        let (ha, hb) = (block_hashes(root, &a), block_hashes(root, &b));
        assert_eq!(ha.len(), 2);
        assert_ne!(ha[0], hb[0]);
        assert_ne!(
            ha[1], hb[1],
            "the second block has the same tokens but another prefix"
        );
        assert_ne!(ha[0], block_hashes(BlockHash::root("other", ""), &a)[0]);
        assert_eq!(
            block_hashes(root, &a[..127]).len(),
            1,
            "a part-filled block has no hash"
        );
    }
}
