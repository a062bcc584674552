//! Rows of hidden states between the ranks of an expert-parallel group, over TCP.
//!
//! A [`Mesh`] keeps one link with every other life of the group and re-dials the broken ones. Over
//! it go each step's [`Start`](millrace_experts::group::Start)s and, in a [`StepExchange`], the rows
//! of its MoE layers.
//!
//! ```text
//! engine thread ─▶ announce, dispatch, respond ─▶ socket ─▶ reader thread ─▶ inbox ─▶ collect, combine
//!                                 keeper thread ─▶ heartbeats, silence, new connections
//! ```
//!
//! * A reader always drains its socket, so that ranks that all send large parcels at once cannot
//!   wait for each other in a circle. What waits in an inbox is bounded by the lockstep: a rank
//!   gets no further than one phase ahead of another.
//! * An inbox belongs to one connection and dies with it: nothing of an old connection is ever read
//!   after a new one was made.
//! * A rank that is slow is waited for without limit as long as its heartbeats come, which do not
//!   depend on its engine. One that is silent or gone breaks its link, and with it the step.
//!
//! | module | what it is |
//! |---|---|
//! | `mesh` | the interface |
//! | `roster` | who is listed, and who is linked with whom |
//! | `step` | one step's exchange, as the forward pass sees it |
//! | `link` | one connection: sending, the inbox, the reader |
//! | `wire` | headers and greetings, as bytes |
//! | `dialer`, `greeter` | how links come about, from both ends |
//! | `keeper` | how they are kept and given up |

mod config;
mod dialer;
mod error;
mod greeter;
mod keeper;
mod link;
mod mesh;
mod roster;
mod socket;
mod stats;
mod step;
mod wire;

pub use config::{FrameLimits, MeshConfig};
pub use error::{FrameError, LinkError, MeshError, Refusal};
pub use mesh::Mesh;
pub use stats::PeerStats;
pub use step::StepExchange;
