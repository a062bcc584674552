//! The engine's thread, and how async code talks to it.
//!
//! The engine is plain synchronous code on one thread of its own ([`thread`]). Requests go to it
//! over a channel; what becomes of each comes back over one channel a request. Neither side ever
//! waits for the other to make room: what a request can put into its channel is bounded by its
//! `max_tokens` (or its pages), so a slow client costs memory, never another client's time.

mod handle;
mod monitor;
mod thread;

pub use handle::{ActiveRequest, EngineHandle, RequestEvent, SubmitError};
pub use monitor::{EngineMonitor, EngineState};
pub use thread::{EngineThread, StepMetrics, start};
