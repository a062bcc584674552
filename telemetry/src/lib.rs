//! What every Millrace process shows of itself: logs, metrics, traces, and whether it is alive and
//! ready.
//!
//! Nothing here knows what a worker or a router is. A process calls [`logs::init`] once, keeps one
//! [`Registry`], flips its [`Readiness`], and serves both with [`http::serve`].

pub mod buckets;
pub mod build;
mod exposition;
mod histogram;
pub mod http;
pub mod logs;
mod process;
mod readiness;
mod registry;
pub mod traces;

pub use exposition::scrape;
pub use histogram::{Histogram, HistogramVec};
pub use process::ProcessCollector;
pub use readiness::Readiness;
pub use registry::{Described, Kind, Registry};
