//! What an engine tells about itself.

use crate::LocalPrefillReason;

/// Whether a step would do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pending {
    Runnable,
    /// Sequences wait for pages that others hold: try again after the next event or a short while.
    Blocked,
    Idle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// Sequences that take part in steps.
    pub running: usize,
    /// Sequences that a peer prefills.
    pub remote: usize,
    pub waiting: usize,
    /// Known tokens not yet computed, of running and waiting sequences.
    pub waiting_tokens: usize,
    /// Free or evictable.
    pub free_pages: usize,
    pub leased_pages: usize,
    pub total_pages: usize,
}

/// Sums since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    /// Prompt tokens looked up in the prefix cache, and found there.
    pub prefix_queries: u64,
    pub prefix_hits: u64,
    /// MTP drafts computed by the main model, and those that were right.
    pub drafts: u64,
    pub drafts_accepted: u64,
    pub preemptions: u64,
    /// By `LocalPrefillReason as usize`.
    pub local_prefills: [u64; LocalPrefillReason::ALL.len()],
    pub remote_prefills: u64,
    pub steps: u64,
    /// Rows computed, drafts included.
    pub step_tokens: u64,
}
