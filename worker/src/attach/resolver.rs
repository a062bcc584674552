//! How the name of a router becomes addresses.

use std::{fmt, future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

/// Routers come and go within seconds.
const EVERY: Duration = Duration::from_secs(2);

type Answer = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Asked for a router's `host:port`, again and again.
#[derive(Clone)]
pub struct Resolver {
    lookup: Arc<dyn Fn(String) -> Answer + Send + Sync>,
    every: Duration,
}

impl Resolver {
    /// Asks `lookup`, and again `every` so often.
    pub fn new<F>(every: Duration, lookup: impl Fn(String) -> F + Send + Sync + 'static) -> Resolver
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        let lookup = Arc::new(move |router| Box::pin(lookup(router)) as Answer);
        Resolver { lookup, every }
    }

    pub(super) async fn lookup(&self, router: &str) -> io::Result<Vec<SocketAddr>> {
        let addresses = (self.lookup)(router.to_owned()).await?;
        Ok(of_one_family(addresses))
    }

    pub(super) fn every(&self) -> Duration {
        self.every
    }
}

/// The system's: `/etc/hosts` and DNS.
impl Default for Resolver {
    fn default() -> Resolver {
        Resolver::new(EVERY, |router| async move {
            Ok(tokio::net::lookup_host(router).await?.collect())
        })
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("every", &self.every)
            .finish_non_exhaustive()
    }
}

/// Sorted, each once. Where a name has addresses of both families they are two for each router, and a
/// router takes a second stream of a worker for its next life: IPv4 then counts alone.
fn of_one_family(mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    if addresses.iter().any(SocketAddr::is_ipv4) {
        addresses.retain(SocketAddr::is_ipv4);
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_with_addresses_of_both_families_is_one_router() {
        let addresses = |list: &[&str]| -> Vec<SocketAddr> {
            list.iter()
                .map(|address| address.parse().unwrap())
                .collect()
        };
        let both = addresses(&["[::1]:9", "127.0.0.2:9", "127.0.0.1:9", "127.0.0.2:9"]);
        assert_eq!(
            of_one_family(both),
            addresses(&["127.0.0.1:9", "127.0.0.2:9"])
        );
        let one = addresses(&["[::2]:9", "[::1]:9"]);
        assert_eq!(of_one_family(one), addresses(&["[::1]:9", "[::2]:9"]));
    }

    #[tokio::test]
    async fn the_systems_resolver_knows_this_machine_and_refuses_what_is_no_name() {
        let resolver = Resolver::default();
        let found = resolver.lookup("localhost:7").await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()));
        assert_eq!(found[0].port(), 7);
        for wrong in ["localhost", "localhost:port"] {
            assert!(resolver.lookup(wrong).await.is_err(), "{wrong}");
        }
    }
}
