//! Where experts live and how a group of ranks changes its mind about it. Pure: no clocks, no
//! sockets, no threads. Time is an argument; the same calls give the same answers, here and in a
//! simulation.
//!
//! ```text
//! gates count ─▶ load ─▶ planner ─▶ placement ─▶ group::Coordinator ─▶ epoch ─▶ group::Lockstep
//!                                                                         └──▶ choice
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`placement`] | which logical expert is in which physical slot |
//! | [`load`] | how many tokens chose each expert, and how evenly ranks are loaded |
//! | [`eplb`] | DeepSeek's balancer, as published: the yardstick |
//! | [`planner`] | ours: fewer moves, two failure domains, history |
//! | [`choice`] | which replica a token takes |
//! | [`epoch`] | a numbered membership and placement, and a plan for the next |
//! | [`group`] | the protocol: who decides on epochs, and how ranks adopt them together |

pub mod choice;
pub mod eplb;
pub mod epoch;
pub mod group;
pub mod load;
pub mod placement;
pub mod planner;

pub use choice::{Choice, LayerChoice};
pub use epoch::{Epoch, Member, Plan, RankId};
pub use load::{Balance, Loads};
pub use placement::{Placement, PlacementError, Shape};
