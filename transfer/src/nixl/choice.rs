//! Whether a worker uses NIXL: what was asked for, against what there is.

use super::NixlConfig;
use super::probe::obstacle;
use crate::config::Transport;

/// How a worker's pages go, of all that it could do. Says in the log what it took and why.
///
/// With [`Transport::Auto`] NIXL is taken only where it means RDMA: over plain networks, TCP of our
/// own needs nothing installed. `pool_bytes` is what the worker would register.
pub fn choose(asked: Transport, config: &NixlConfig, pool_bytes: u64) -> Option<NixlConfig> {
    match asked {
        Transport::Shm | Transport::Tcp => None,
        Transport::Nixl => {
            match obstacle(config, pool_bytes) {
                None => tracing::info!("pages go by NIXL, as asked for; RDMA is usable"),
                Some(at) => tracing::warn!(
                    missing = at.name,
                    why = %at.finding,
                    "pages go by NIXL, as asked for, but RDMA is not usable"
                ),
            }
            Some(config.clone())
        }
        Transport::Auto if !cfg!(feature = "nixl") => {
            tracing::info!(
                "pages go by shared memory on this machine and by TCP to others: this build has no NIXL"
            );
            None
        }
        Transport::Auto => match obstacle(config, pool_bytes) {
            None => {
                tracing::info!(
                    "pages go by shared memory on this machine and by NIXL to others: RDMA is usable"
                );
                Some(config.clone())
            }
            Some(at) => {
                tracing::info!(
                    missing = at.name,
                    why = %at.finding,
                    "pages go by shared memory on this machine and by TCP to others: RDMA is not usable"
                );
                None
            }
        },
    }
}
