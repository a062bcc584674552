//! Every numerical op of the served models, behind one [`Backend`] trait.
//!
//! A forward pass (in `engine`) is a list of calls on a `Backend`; what a tensor is and where it
//! lives is the backend's business. [`cpu`] is the plain form and the reference for every other.
//!
//! **Batch invariance.** For every op, a row of the output depends on the same row of the input
//! (and, for attention, on the pages of its own sequence) *bit for bit*: never on how many other
//! rows are in the batch, on how a prompt was cut into chunks, or on the number of threads. Every
//! reduction has one order, fixed by the shapes of the weights alone. That is what makes a seeded
//! request reproducible and lets a replayed, preempted or split request continue with the very
//! same tokens.

mod backend;
mod batch;
mod choice;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod pages;

pub use backend::{
    Backend, DeviceMemory, ExchangeShape, GateParams, KernelError, MOST_OFFER, Pace, ReplicaTable,
    RopeTable, Stacked, Work,
};
pub use batch::{Batch, Segment};
pub use choice::{Draw, Edits, LogProbs, Scored, Seen};
pub use pages::{
    CopyPart, FP8_BLOCK, KvDtype, PAGE_TOKENS, PageCopier, PageCopy, PageLayout, PageMemory,
    RingMemory,
};
