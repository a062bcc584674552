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
//! membership  workers attach to it: their streams feed fleet and experts
//! watch       an operator watches what they say
//! experts/    what groups of decode ranks compute under: epochs, their store, the balancer
//! ```
//!
//! [`server::run`] puts them together and listens.

pub mod api;
pub mod assemble;
pub mod config;
pub mod dispatch;
pub mod edges;
pub mod experts;
pub mod fleet;
pub mod frontend;
pub mod membership;
pub mod metrics;
pub mod overview;
pub mod server;
pub mod watch;

pub use config::RouterConfig;
pub use frontend::Frontend;
pub use server::{BoundAddresses, ServeError, run};
