//! Where epochs are kept, and how often placements are looked at.

use std::ffi::OsString;

use anyhow::bail;
use clap::Args;
use millrace_router::config::{CostModel, ExpertsConfig};

use super::units::{self, Seconds};
use crate::args::Flags;

/// Where epochs of groups are kept, and how often placements are looked at.
#[derive(Debug, Clone, Default, Args)]
pub struct EpochArgs {
    /// etcd servers, HOST:PORT each, that keep the groups' epochs; needed by several routers [default: in the router's memory]
    #[arg(
        long,
        value_name = "ENDPOINT,...",
        env = "MILLRACE_ETCD",
        value_delimiter = ','
    )]
    pub etcd: Vec<String>,
    /// What the keys in etcd begin with; the same on all routers of a deployment, and on no other [default: /millrace]
    #[arg(long, value_name = "PREFIX", env = "MILLRACE_ETCD_PREFIX")]
    pub etcd_prefix: Option<String>,
    /// How often a better placement of experts is looked for; 0: never [default: 30]
    #[arg(long, value_name = "SECONDS", env = "MILLRACE_BALANCE_INTERVAL_SECONDS", value_parser = units::seconds)]
    pub balance_interval_seconds: Option<Seconds>,
    /// Balancedness, from 0 to 1, that a placement must gain to be worth moving experts for [default: 0.02]
    #[arg(long, value_name = "GAIN", env = "MILLRACE_BALANCE_MIN_GAIN", value_parser = units::part)]
    pub balance_min_gain: Option<f64>,
}

impl EpochArgs {
    pub fn to_flags(&self) -> Vec<OsString> {
        let mut flags = Flags::default();
        let etcd = (!self.etcd.is_empty()).then(|| self.etcd.join(","));
        flags.value("--etcd", etcd.as_deref());
        flags.value("--etcd-prefix", self.etcd_prefix.as_deref());
        let interval = self.balance_interval_seconds.map(|s| s.0.as_secs_f64());
        flags.value(
            "--balance-interval-seconds",
            interval.map(|s| s.to_string()).as_deref(),
        );
        let gain = self.balance_min_gain.map(|gain| gain.to_string());
        flags.value("--balance-min-gain", gain.as_deref());
        flags.0
    }

    /// # Errors
    /// etcd was asked for, and this binary was built without it.
    pub fn config(&self) -> anyhow::Result<ExpertsConfig> {
        if !self.etcd.is_empty() && !cfg!(feature = "etcd") {
            bail!(
                "--etcd: this binary was built without an etcd client; build it with `--features etcd`, which needs protoc"
            );
        }
        let default = ExpertsConfig::default();
        let interval = match self.balance_interval_seconds {
            Some(Seconds(interval)) => Some(interval).filter(|interval| !interval.is_zero()),
            None => default.balance_interval,
        };
        Ok(ExpertsConfig {
            etcd: self.etcd.iter().map(|endpoint| url(endpoint)).collect(),
            etcd_prefix: self.etcd_prefix.clone().unwrap_or(default.etcd_prefix),
            balance_interval: interval,
            cost: CostModel {
                min_gain: self.balance_min_gain.unwrap_or(default.cost.min_gain),
                ..default.cost
            },
            ..default
        })
    }
}

/// People write `host:port`, as `etcdctl` lets them.
fn url(endpoint: &str) -> String {
    if endpoint.contains("://") {
        endpoint.to_owned()
    } else {
        format!("http://{endpoint}")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_interval_and_zero_are_not_the_same() {
        let every = |interval: Option<&str>| {
            let args = EpochArgs {
                balance_interval_seconds: interval.map(|text| units::seconds(text).unwrap()),
                ..EpochArgs::default()
            };
            args.config().unwrap().balance_interval
        };
        assert_eq!(every(None), ExpertsConfig::default().balance_interval);
        assert_eq!(every(Some("0")), None);
        assert_eq!(every(Some("0.5")), Some(Duration::from_millis(500)));
    }

    #[test]
    fn etcd_is_an_option_of_the_build() {
        let args = EpochArgs {
            etcd: vec!["one:2379".into(), "https://two:2379".into()],
            ..EpochArgs::default()
        };
        match args.config() {
            Ok(config) => assert_eq!(config.etcd, ["http://one:2379", "https://two:2379"]),
            Err(error) => assert!(error.to_string().contains("--features etcd"), "{error}"),
        }
    }
}
