//! One rank's loop: schedule, run, postprocess. Plain synchronous code on one thread.
//!
//! | module | what it knows | what it never sees |
//! |---|---|---|
//! | [`pages`] | which page is free, used, cached or leased | tensors |
//! | [`sequence`], [`scheduler`] | what to compute next | tensors, clocks |
//! | [`sampling`] | logits to tokens | batches |
//! | [`forward`] | the forward pass of each family, once, over `Backend` | requests |
//! | [`exchange`] | that rows go to other ranks and come back | how |
//! | [`experts`] | which experts a rank has in memory, and their load | why they are here |
//! | [`engine`] | one step | sockets, gRPC, tokio |
//! | [`rank_bench`] | passes of one rank of a large group, alone | requests |
//!
//! A caller submits [`Request`]s, calls [`Engine::step`] while there is work, and reads
//! [`Event`]s. The same engine serves three kinds of requests: whole ones, the decode half of a
//! split one (its pages are reserved here and written by a peer), and the prefill half (its pages
//! leave as they are finished).

pub mod config;
pub mod engine;
pub mod exchange;
pub mod experts;
pub mod forward;
pub mod pages;
pub mod rank_bench;
pub mod request;
pub mod sampling;
pub mod scheduler;
pub mod sequence;

pub use config::{EngineConfig, EngineError, LoadProgress};
pub use engine::Engine;
pub use exchange::{ExpertExchange, Parcel, StepDropped, Work};
pub use experts::{ExpertCounts, ExpertError, ExpertPath, ExpertShelf, Exported, GroupRank};
pub use pages::{LeasedPages, PageRef};
pub use request::{
    Event, Finish, FinishReason, Kind, LocalPrefillReason, PrefillPlace, PromptLogProbs, Reject,
    Request, RequestId, TokenOutput,
};
pub use sampling::SamplingParams;
