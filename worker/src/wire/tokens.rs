//! Tokens with their log-probs.

use millrace_engine::TokenOutput;
use millrace_proto::worker::v1 as wire;

pub fn token_to_wire(token: TokenOutput) -> wire::Token {
    wire::Token {
        id: token.id,
        logprob: token.logprob,
        top: candidates_to_wire(token.top),
    }
}

pub fn token_from_wire(token: wire::Token) -> TokenOutput {
    TokenOutput {
        id: token.id,
        logprob: token.logprob,
        top: token
            .top
            .into_iter()
            .map(|candidate| (candidate.id, candidate.logprob))
            .collect(),
    }
}

/// Most probable first, as the engine has them.
pub fn candidates_to_wire(top: Vec<(u32, f32)>) -> Vec<wire::CandidateToken> {
    top.into_iter()
        .map(|(id, logprob)| wire::CandidateToken { id, logprob })
        .collect()
}
