//! From a ModelDeployment to the objects that carry it out. Everything here is a function of its
//! arguments: no client, no clock, and the same input gives the same bytes.
//!
//! Objects are applied server-side, so they contain what the operator has an opinion on, and nothing
//! that others (defaults, autoscalers, people) decide.

mod child;
pub mod group;
pub mod kinds;
mod meta;
pub mod names;
mod pod;
pub mod pool;
pub mod ports;
mod resolve;
mod revision;
pub mod router;

pub use child::Child;
pub use resolve::{Defaults, EtcdPlace, Invalid, PoolShape, Resolved, resolve};
pub use revision::revision;
