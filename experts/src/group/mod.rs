//! How a group of ranks agrees.
//!
//! Two state machines, driven by whoever has the sockets and the clock:
//!
//! * [`Lockstep`], one a rank: agrees with the other ranks on each step and on the step at which a
//!   committed epoch is adopted.
//! * [`Coordinator`], one a group, on the router that leads: turns what ranks report into plans and
//!   epochs, each a compare-and-swap on the epoch store.

pub mod coordinator;
pub mod lockstep;
pub mod report;

pub use coordinator::{Coordinator, StoreView, Write};
pub use lockstep::{Action, Lockstep, Step};
pub use report::{GroupShape, Order, Report, Staged, Start};
