//! The addresses of a deployment, chosen before anything is started.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error(
        "{flag} {address} is in use, perhaps by another `millrace up`; stop that or pass another address"
    )]
    InUse {
        flag: &'static str,
        address: SocketAddr,
    },
    #[error("{flag} {address} cannot be listened on: {source}")]
    Unusable {
        flag: &'static str,
        address: SocketAddr,
        source: io::Error,
    },
}

/// Ports that are kept from each other until all are chosen.
///
/// Dropping it gives them back for the children to take, so another process can still be faster; the
/// child then says so itself. What this gives is one clear line in the usual case.
#[derive(Default)]
pub struct Claims(Vec<TcpListener>);

impl Claims {
    /// The address to pass on: itself if it is free, with a port of the system's choice if it has port 0.
    pub fn claim(
        &mut self,
        flag: &'static str,
        address: SocketAddr,
    ) -> Result<SocketAddr, PortError> {
        let listener = TcpListener::bind(address).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => PortError::InUse { flag, address },
            _ => PortError::Unusable {
                flag,
                address,
                source,
            },
        })?;
        let claimed = listener
            .local_addr()
            .map_err(|source| PortError::Unusable {
                flag,
                address,
                source,
            })?;
        self.0.push(listener);
        Ok(claimed)
    }

    /// A loopback address with a port of the system's choice, for traffic inside the deployment.
    pub fn any_free(&mut self) -> Result<SocketAddr, PortError> {
        self.claim("a port on", SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }
}

/// How a client on this machine reaches a listener on `address`: 0.0.0.0 is no destination.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        std::net::IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_its_flag() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = Claims::default()
            .claim("--http", address)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(&format!("--http {address} is in use")),
            "{error}"
        );
    }

    #[test]
    fn port_zero_becomes_a_real_one_never_twice_the_same() {
        let mut claims = Claims::default();
        let (one, two) = (claims.any_free().unwrap(), claims.any_free().unwrap());
        assert!(one.port() != 0 && two.port() != 0 && one != two);
    }

    #[test]
    fn every_address_is_reached_over_loopback() {
        assert_eq!(
            reachable("0.0.0.0:1".parse().unwrap()),
            "127.0.0.1:1".parse().unwrap()
        );
        assert_eq!(
            reachable("[::]:1".parse().unwrap()),
            "[::1]:1".parse().unwrap()
        );
        assert_eq!(
            reachable("10.0.0.1:1".parse().unwrap()),
            "10.0.0.1:1".parse().unwrap()
        );
    }
}
