//! One request's state inside an engine.

use millrace_model::blocks::{BLOCK_TOKENS, BlockHash};

use crate::{
    Kind, PageRef, PrefillPlace, PromptLogProbs, Request, RequestId, SamplingParams,
    pages::{self, PagePool},
    sampling::History,
};

/// A request and how far it has come.
///
/// `tokens[..computed]` have their rows in `pages`; the rest is to be computed. A sequence that
/// decodes has exactly one token to compute: the one that was sampled last.
pub struct Sequence {
    pub id: RequestId,
    pub kind: Kind,
    pub tokens: Vec<u32>,
    pub prompt_tokens: usize,
    pub sampling: SamplingParams,
    pub pages: Vec<PageRef>,
    pub computed: usize,
    /// The MTP layer's guess of the token after the last.
    pub draft: Option<u32>,
    /// Prompt tokens found in the cache when it first ran.
    pub cached_tokens: usize,
    /// Set when its prefill is placed, for good.
    pub place: Option<PrefillPlace>,
    /// Whether its first output has gone out.
    pub started: bool,
    pub history: Option<History>,
    /// For positions `1..`, as far as computed.
    pub prompt_logprobs: Vec<PromptLogProbs>,
    root: BlockHash,
    /// Hashes of the full blocks of `tokens`, as far as anyone asked.
    hashes: Vec<BlockHash>,
    /// Full pages that were already offered to the cache.
    pub stored_pages: usize,
    /// For `Kind::Prefill`: pages of the sequence that were announced, or that the peer had.
    pub announced_pages: usize,
}

impl Sequence {
    pub fn new(request: Request, revision: &str) -> Sequence {
        let Request {
            id,
            tokens,
            prompt_tokens,
            sampling,
            cache_salt,
            kind,
        } = request;
        let history = sampling
            .has_penalties()
            .then(|| History::new(&tokens[..prompt_tokens], &tokens[prompt_tokens..]));
        let announced_pages = match kind {
            Kind::Prefill { first_page } => first_page,
            _ => 0,
        };
        Sequence {
            id,
            kind,
            tokens,
            prompt_tokens,
            sampling,
            pages: Vec::new(),
            computed: 0,
            draft: None,
            cached_tokens: 0,
            place: None,
            started: false,
            history,
            prompt_logprobs: Vec::new(),
            root: BlockHash::root(revision, &cache_salt),
            hashes: Vec::new(),
            stored_pages: 0,
            announced_pages,
        }
    }

    /// Tokens to compute before the next one can be sampled.
    pub fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    pub fn is_decoding(&self) -> bool {
        self.started && self.remaining() == 1
    }

    /// Tokens generated so far, here and before a replay.
    pub fn output_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Pages that hold `tokens` positions.
    pub fn pages_for(tokens: usize) -> usize {
        tokens.div_ceil(BLOCK_TOKENS)
    }

    /// Hashes of the first `blocks` full blocks.
    pub fn hashes(&mut self, blocks: usize) -> &[BlockHash] {
        while self.hashes.len() < blocks {
            let at = self.hashes.len() * BLOCK_TOKENS;
            let parent = self.hashes.last().copied().unwrap_or(self.root);
            self.hashes
                .push(parent.child(&self.tokens[at..at + BLOCK_TOKENS]));
        }
        &self.hashes[..blocks]
    }

    /// Gives the first blocks names that the caller has made instead of hashes of their tokens: a simulation has
    /// no tokens worth hashing.
    pub fn name_blocks(&mut self, hashes: Vec<BlockHash>) {
        self.hashes = hashes;
    }

    /// Offers pages that are full now to the prefix cache.
    pub fn store_full_pages(&mut self, pool: &PagePool) {
        let full = self.computed / BLOCK_TOKENS;
        let stored = self.stored_pages;
        self.hashes(full);
        for (page, hash) in self.pages[stored..full].iter().zip(&self.hashes[stored..]) {
            pool.store(page, *hash);
        }
        self.stored_pages = full;
    }

    /// Gives everything back, to be computed again later (preemption by recompute).
    pub fn reset(&mut self) {
        pages::release(std::mem::take(&mut self.pages));
        self.computed = 0;
        self.draft = None;
        self.stored_pages = 0;
        self.prompt_logprobs.clear();
        if self.kind == Kind::Decode {
            // A peer prefilled it once; what it has generated since is only here.
            self.kind = Kind::Whole;
        }
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        pages::release(std::mem::take(&mut self.pages));
    }
}
