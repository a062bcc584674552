//! The front door: takes requests in three dialects, pairs workers, and hides their failures.
//!
//! ```text
//! edges/      http (OpenAI), grpc (millrace.inference.v1), kserve     wire types stop here
//!    | api::{CompletionRequest, ChatRequest} -> stream of api::Event
//! frontend/   validate, template, tokenise, fan out n, detokenise, stop strings, reasoning
//!    | dispatch::Job -> stream of token updates
//! dispatch/   admission, pairing, call the decode worker, retry and replay
//!    | reads
//! fleet/      who is attached, their load, which prefix each of them caches
//! ```

pub mod api;
pub mod edges;
pub mod frontend;

pub use frontend::Frontend;
