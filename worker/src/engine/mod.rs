//! The engine's thread, and how async code talks to it.
//!
//! The engine is plain synchronous code on one thread of its own ([`thread`]), either alone
//! ([`lone`]) or in step with the other ranks of a group ([`crate::group::Driver`]). Requests go to it
//! over a channel; what becomes of each comes back over one channel a request. Neither side ever
//! waits for the other to make room: what a request can put into its channel is bounded by its
//! `max_tokens` (or its pages), so a slow client costs memory, never another client's time.

mod handle;
mod lone;
mod monitor;
pub(crate) mod runner;
mod thread;
mod wakeup;
mod watchdog;

pub use handle::{ActiveRequest, EngineHandle, RequestEvent, SubmitError};
pub use monitor::{EngineMonitor, EngineState};
pub use runner::StepMetrics;
pub use thread::{EngineThread, start};
pub(crate) use thread::{Mailbox, start_in};
pub(crate) use wakeup::Waker;
