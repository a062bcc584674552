//! A prefill request as it comes in.

use millrace_engine::SamplingParams;
use millrace_model::blocks::BLOCK_TOKENS;
use millrace_proto::worker::v1 as wire;
use millrace_transfer::Grant;
use millrace_worker::{
    Compatibility,
    wire::{InvalidField, Problem, at_most, sampling_from_wire},
};

/// What to compute and where its pages go, with every value checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    pub request_id: String,
    pub tokens: Vec<u32>,
    pub prompt_tokens: usize,
    pub sampling: SamplingParams,
    pub cache_salt: String,
    pub grant: Grant,
    /// Pages before this one are there already.
    pub first_page: usize,
    pub compatibility: Compatibility,
}

impl Job {
    /// What only the engine can judge (lengths, token ids) it judges when it is submitted.
    pub fn from_wire(
        request: wire::PrefillRequest,
        vocab_size: usize,
    ) -> Result<Job, InvalidField> {
        let sampling = request.sampling.ok_or(InvalidField::missing("sampling"))?;
        let compatibility = request
            .compatibility
            .ok_or(InvalidField::missing("compatibility"))?;
        let grant = request.grant.ok_or(InvalidField::missing("grant"))?;
        let tokens = request.token_ids;
        let pages = tokens.len().div_ceil(BLOCK_TOKENS);
        let first_page = at_most("first_page", request.first_page, pages.saturating_sub(1))?;
        Ok(Job {
            request_id: request.request_id,
            prompt_tokens: at_most("prompt_tokens", request.prompt_tokens, tokens.len())?,
            sampling: sampling_from_wire(sampling, vocab_size)?,
            cache_salt: request.cache_salt,
            grant: read_grant(&grant.descriptor, pages - first_page)?,
            first_page,
            compatibility: compatibility.into(),
            tokens,
        })
    }
}

/// A grant of another number of pages would fail after all the work is done.
fn read_grant(descriptor: &[u8], pages: usize) -> Result<Grant, InvalidField> {
    let invalid = |problem| InvalidField {
        field: "grant.descriptor",
        problem: Problem::Malformed(problem),
    };
    let grant = Grant::from_bytes(descriptor).map_err(|error| invalid(error.to_string()))?;
    let granted = grant.pages().len();
    if granted != pages {
        return Err(invalid(format!("it grants {granted} pages for {pages}")));
    }
    Ok(grant)
}

#[cfg(test)]
mod tests;
