//! What to compute next. Pure: it knows sequences and pages, and neither tensors nor clocks.
//!
//! Every step has a budget of tokens. Decoding sequences come first, so that a long prompt never
//! stalls them; then prompts are cut into chunks of what is left, in order of arrival. Where pages
//! run out, the sequence that arrived last gives its pages back and is computed again later.

use std::collections::{HashMap, VecDeque};

use crate::{
    Event, Kind, LeasedPages, LocalPrefillReason, PrefillPlace, RequestId,
    pages::{self, PagePool},
    sequence::Sequence,
};

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_batch_tokens: usize,
    pub max_running: usize,
    pub local_prefill_tokens: usize,
    pub prefix_cache: bool,
}

pub struct Scheduler {
    limits: Limits,
    pool: PagePool,
    /// In order of arrival; preempted ones stand in front, and then those that have output already.
    waiting: VecDeque<Sequence>,
    /// In order of arrival.
    pub running: Vec<Sequence>,
    /// Prefilled by a peer at this moment.
    remote: HashMap<RequestId, Sequence>,
    pub preemptions: u64,
    pub prefix_queries: u64,
    pub prefix_hits: u64,
}

/// One sequence's share of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Index in `running`.
    pub sequence: usize,
    /// Known tokens to compute.
    pub tokens: usize,
    /// Whether its draft is computed behind them.
    pub draft: bool,
    /// Whether these are the last tokens before one is sampled.
    pub samples: bool,
}

impl Scheduler {
    pub fn new(limits: Limits, pool: PagePool) -> Scheduler {
        Scheduler {
            limits,
            pool,
            waiting: VecDeque::new(),
            running: Vec::new(),
            remote: HashMap::new(),
            preemptions: 0,
            prefix_queries: 0,
            prefix_hits: 0,
        }
    }

    /// A sequence that goes on after it was cut off elsewhere comes before those that have yet to
    /// begin: its client has seen its first words and waits for the next.
    pub fn push(&mut self, sequence: Sequence) {
        let begun = |sequence: &Sequence| sequence.output_tokens() > 0;
        let place = begun(&sequence)
            .then(|| self.waiting.iter().position(|other| !begun(other)))
            .flatten()
            .unwrap_or(self.waiting.len());
        self.waiting.insert(place, sequence);
    }

    pub fn contains(&self, id: RequestId) -> bool {
        self.remote.contains_key(&id)
            || self
                .running
                .iter()
                .chain(&self.waiting)
                .any(|sequence| sequence.id == id)
    }

    /// Drops the request, wherever it is. Pages leased to a peer stay with their lease.
    pub fn remove(&mut self, id: RequestId) {
        self.remote.remove(&id);
        self.waiting.retain(|sequence| sequence.id != id);
        self.running.retain(|sequence| sequence.id != id);
    }

    /// Takes back a sequence whose peer is done with it.
    pub fn take_remote(&mut self, id: RequestId) -> Option<Sequence> {
        self.remote.remove(&id)
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn remote(&self) -> usize {
        self.remote.len()
    }

    /// Tokens of prompts that nobody has computed yet.
    pub fn waiting_tokens(&self) -> usize {
        self.waiting
            .iter()
            .chain(&self.running)
            .map(Sequence::remaining)
            .sum()
    }

    /// Rows that the next step could want at most. Prompts that a peer will prefill are among them:
    /// who prefills is known only when pages are.
    pub fn demand(&self) -> usize {
        let rows =
            |sequence: &Sequence| sequence.remaining() + usize::from(sequence.draft.is_some());
        let all: usize = self.running.iter().chain(&self.waiting).map(rows).sum();
        all.min(self.limits.max_batch_tokens)
    }

    /// Plans a step of up to `limit` rows. Reservations for peers are pushed to `events`. The plan is
    /// empty when nothing can be computed now.
    pub fn schedule(&mut self, limit: usize, events: &mut Vec<Event>) -> Vec<Share> {
        let mut budget = self.limits.max_batch_tokens.min(limit);
        let mut shares = Vec::with_capacity(self.running.len());
        for decoding in [true, false] {
            let mut index = 0;
            while index < self.running.len() && budget > 0 {
                if (self.running[index].remaining() == 1) == decoding {
                    if let Some(share) = self.share(index, budget, &mut shares) {
                        budget -= share.tokens + usize::from(share.draft);
                        shares.push(share);
                    } else {
                        continue; // It, or a later one, was preempted: look at this index again.
                    }
                }
                index += 1;
            }
        }
        while self.running.len() + self.remote.len() < self.limits.max_running {
            let Some(mut sequence) = self.waiting.pop_front() else {
                break;
            };
            let placed = sequence.place.is_some();
            match self.admit(&mut sequence, budget) {
                Admission::Local => {
                    if !placed {
                        events.push(Event::Started { id: sequence.id });
                    }
                    self.running.push(sequence);
                    let index = self.running.len() - 1;
                    let share = self
                        .share(index, budget, &mut shares)
                        .expect("its pages are there");
                    budget -= share.tokens + usize::from(share.draft);
                    shares.push(share);
                }
                Admission::Remote(lease) => {
                    let first_page = sequence.pages.len();
                    events.push(Event::Reserved {
                        id: sequence.id,
                        lease,
                        first_page,
                    });
                    self.remote.insert(sequence.id, sequence);
                }
                Admission::Later => {
                    self.waiting.push_front(sequence);
                    break;
                }
            }
        }
        shares
    }

    /// What `running[index]` computes within `budget`, with its pages allocated. `None` if it had
    /// to make room, or if room had to be made behind it (then ask again).
    fn share(&mut self, index: usize, budget: usize, shares: &mut Vec<Share>) -> Option<Share> {
        let sequence = &self.running[index];
        let tokens = sequence.remaining().min(budget);
        let samples = tokens == sequence.remaining();
        let mut draft = samples && sequence.draft.is_some() && budget > tokens;
        let held = sequence.pages.len();
        let missing =
            |rows: usize| Sequence::pages_for(sequence.computed + rows).saturating_sub(held);
        let pages = match self.pool.allocate(missing(tokens + usize::from(draft))) {
            Some(pages) => pages,
            None => {
                // A draft is not worth a page that is not there.
                draft = false;
                match self.pool.allocate(missing(tokens)) {
                    Some(pages) => pages,
                    None => {
                        self.preempt_last(shares);
                        return None;
                    }
                }
            }
        };
        self.running[index].pages.extend(pages);
        Some(Share {
            sequence: index,
            tokens,
            draft,
            samples,
        })
    }

    /// Sends the sequence that arrived last back to wait; if it had a share of this step, that
    /// share goes too.
    fn preempt_last(&mut self, shares: &mut Vec<Share>) {
        let Some(mut sequence) = self.running.pop() else {
            return;
        };
        shares.retain(|share| share.sequence != self.running.len());
        sequence.reset();
        self.preemptions += 1;
        self.waiting.push_front(sequence);
    }

    /// Finds what the cache has of `sequence` and the pages for the rest.
    fn admit(&mut self, sequence: &mut Sequence, budget: usize) -> Admission {
        let known = sequence.tokens.len();
        let wants_prompt = sequence.sampling.prompt_logprobs.is_some();
        // The last token is always computed: its logits are wanted.
        let blocks = (known - 1) / millrace_model::blocks::BLOCK_TOKENS;
        let cached = if self.limits.prefix_cache && !wants_prompt {
            self.pool.matching(sequence.hashes(blocks))
        } else {
            Vec::new()
        };
        let cached_tokens = cached.len() * millrace_model::blocks::BLOCK_TOKENS;
        let rest = known - cached_tokens;
        let remote = sequence.kind == Kind::Decode
            && !wants_prompt
            && rest > self.limits.local_prefill_tokens;
        // With the page that the first generated token needs, so that a sequence that was just
        // admitted is not preempted at once.
        let wanted = if remote { known } else { known + 1 };
        let missing = Sequence::pages_for(wanted) - cached.len();
        let fresh = if remote || budget > 0 {
            self.pool.allocate(missing)
        } else {
            None
        };
        let Some(fresh) = fresh else {
            pages::release(cached);
            return Admission::Later;
        };
        if sequence.place.is_none() {
            sequence.cached_tokens = cached_tokens;
            self.prefix_queries += known as u64;
            self.prefix_hits += cached_tokens as u64;
            sequence.place = Some(if remote {
                PrefillPlace::Remote
            } else {
                PrefillPlace::Local(if sequence.kind != Kind::Decode {
                    LocalPrefillReason::NoPrefillWorker
                } else if wants_prompt {
                    LocalPrefillReason::PromptLogProbs
                } else if cached_tokens > 0 {
                    LocalPrefillReason::Cached
                } else {
                    LocalPrefillReason::Short
                })
            });
        }
        sequence.stored_pages = cached.len();
        sequence.pages = cached;
        if remote {
            return Admission::Remote(LeasedPages::lease(fresh));
        }
        sequence.computed = cached_tokens;
        sequence.pages.extend(fresh);
        Admission::Local
    }
}

enum Admission {
    Local,
    Remote(LeasedPages),
    Later,
}
