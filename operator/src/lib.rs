//! The operator: custom resources, and the controllers that make workers, routers and Services of
//! them. It is the only crate that knows Kubernetes, and it knows no inference: what it learns of
//! running workers it is told by routers.
//!
//! ```text
//! ModelDeployment ─▶ build::resolve ─▶ WorkerSpecs ─▶ revision (a hash of them)
//!                         │
//!                         ├─▶ router Deployment, Services, policies       build::router
//!                         └─▶ rollout::plan ─▶ two WorkerPools a revision  build::pool
//!                                  ▲                   │
//!    routers ── Fleet.Watch ─▶ fleet │                   ▼
//!                         └────────┴──────── StatefulSets, one a group     build::group
//!
//! PoolAutoscaler, fleet ─▶ millrace_autoscaler::decide ─▶ /scale of WorkerPools   controller::autoscaler
//! ```
//!
//! `cache` has what watches tell, `controller` decides and applies, `leader` says whether it may.

pub mod api;
mod autoscaler_metrics;
pub mod build;
mod cache;
mod config;
mod controller;
pub mod crds;
mod error;
mod etcd;
mod events;
mod fleet;
mod leader;
mod metrics;
mod requests;
pub mod rollout;
mod run;

pub use config::OperatorConfig;
pub use error::Error;
pub use run::{describe, run};
