//! `millrace operator` and `millrace crds`: what a cluster runs, not a laptop.

use std::net::SocketAddr;

use clap::Args;

#[cfg(feature = "operator")]
use millrace_operator::OperatorConfig;
use millrace_telemetry::{Registry, logs::LogFormat};
#[cfg(feature = "operator")]
use millrace_telemetry::{logs, traces::Traces};

use crate::errors::Outcome;

#[cfg_attr(not(feature = "operator"), allow(dead_code))]
#[derive(Debug, Clone, Args)]
pub struct OperatorArgs {
    /// The only namespace it looks after [default: all]
    #[arg(
        long,
        value_name = "NAMESPACE",
        env = "MILLRACE_OPERATOR_WATCH_NAMESPACE"
    )]
    pub watch_namespace: Option<String>,
    /// Its own namespace, where its Lease is
    #[arg(
        long,
        value_name = "NAMESPACE",
        default_value = "default",
        env = "MILLRACE_OPERATOR_NAMESPACE"
    )]
    pub namespace: String,
    /// Unique among its replicas, such as the name of its pod [default: the host's name and the process's number]
    #[arg(long, value_name = "NAME", env = "MILLRACE_OPERATOR_IDENTITY")]
    pub identity: Option<String>,
    /// The Millrace image of routers and workers whose ModelDeployment names none
    #[arg(long, value_name = "IMAGE", env = "MILLRACE_OPERATOR_IMAGE")]
    pub image: String,
    /// The etcd of deployments that name none; without one, their routers keep epochs in memory
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        env = "MILLRACE_OPERATOR_ETCD"
    )]
    pub etcd: Vec<String>,
    /// Where /metrics, /health and /ready listen
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:8080",
        env = "MILLRACE_OPERATOR_HTTP"
    )]
    pub http: SocketAddr,
    /// `human` or `json`; RUST_LOG chooses what is logged
    #[arg(
        long,
        value_name = "FORMAT",
        default_value_t,
        env = "MILLRACE_LOG_FORMAT"
    )]
    pub log_format: LogFormat,
}

#[cfg(feature = "operator")]
pub fn main(args: OperatorArgs) -> anyhow::Result<Outcome> {
    logs::init(args.log_format)?;
    // One of several that could be there: an etcd or an object store brings its own.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = args.config()?;
    crate::process::runtime()?.block_on(async {
        let _traces = Traces::start("millrace-operator", &config.identity)?;
        millrace_operator::run(config, crate::process::stopped()?).await?;
        Ok(Outcome::Done)
    })
}

#[cfg(feature = "operator")]
impl OperatorArgs {
    fn config(self) -> anyhow::Result<OperatorConfig> {
        let identity = match self.identity {
            Some(identity) => identity,
            None => {
                let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
                format!("{}_{}", host.trim(), std::process::id())
            }
        };
        Ok(OperatorConfig {
            watch: self.watch_namespace.filter(|name| !name.is_empty()),
            namespace: self.namespace,
            identity,
            image: self.image,
            etcd: self.etcd,
            http: self.http,
        })
    }
}

#[cfg(feature = "operator")]
pub fn crds() -> anyhow::Result<Outcome> {
    print!("{}", millrace_operator::crds::yaml()?);
    Ok(Outcome::Done)
}

/// Registers all metrics of an operator.
#[cfg(feature = "operator")]
pub fn describe(registry: &Registry) -> anyhow::Result<()> {
    Ok(millrace_operator::describe(registry)?)
}

#[cfg(not(feature = "operator"))]
mod absent {
    use super::{OperatorArgs, Outcome, Registry};

    #[derive(Debug, thiserror::Error)]
    #[error(
        "this binary was built without its operator. Build it with `cargo build --release -p millrace --features operator` (which needs protoc), or use the image"
    )]
    struct Absent;

    pub fn main(_args: OperatorArgs) -> anyhow::Result<Outcome> {
        Err(Absent.into())
    }

    pub fn crds() -> anyhow::Result<Outcome> {
        Err(Absent.into())
    }

    pub fn describe(_registry: &Registry) -> anyhow::Result<()> {
        Err(Absent.into())
    }
}

#[cfg(not(feature = "operator"))]
pub use absent::{crds, describe, main};
