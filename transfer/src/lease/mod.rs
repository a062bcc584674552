//! Leases: who may write which page, and the proof that nobody can any more.

mod entry;
mod handle;
mod table;

pub use handle::{Lease, LeaseEvent, NotComplete, OnEvent, WritesEnded};
pub use table::LeaseTable;

pub(crate) use entry::{LandingPage, LeaseOver};
