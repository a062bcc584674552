//! A worker as one rank of an expert-parallel group.
//!
//! ```text
//! routers ─ GroupOrder ─▶ orders ──┬──▶ driver (the engine's thread): lockstep, exchange
//!                                  └──▶ staging ─▶ shelf of weights ─▶ weights (for other ranks)
//! routers ◀─ GroupReport ─ reports ◀── driver, staging
//! ```
//!
//! [`Group`] is what all of these share. Decisions are in `millrace-experts` (lockstep), frames in
//! `millrace-exchange`; here is what drives both.

mod background;
mod driver;
mod link;
pub(crate) mod metrics;
mod orders;
mod reports;
mod shared;
mod slowest;
mod staging;
mod start;
mod weights;
mod wire;

pub(crate) use driver::{Driver, Rank};
pub(crate) use link::GroupLink;
pub(crate) use shared::Group;
pub(crate) use start::{Beside, Joining, first_placement, join};
