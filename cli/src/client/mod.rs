//! How commands that are clients reach a router: address, TLS, API key.

mod grpc;
mod http;
mod tls;
mod view;

use std::{fmt, path::PathBuf};

use clap::Args;

pub use self::{
    grpc::{Authorized, GrpcError, connect, explain},
    http::{get, get_plain},
    tls::TlsError,
    view::{look, read},
};

/// What a router may ask of its clients.
#[derive(Clone, Default, Args)]
pub struct ClientArgs {
    /// An API key, where the router asks for one
    #[arg(
        long,
        value_name = "KEY",
        env = "MILLRACE_API_KEY",
        hide_env_values = true
    )]
    pub api_key: Option<String>,
    /// Trust the certificates that these ones (PEM) vouch for [default: those the system trusts]
    #[arg(long, value_name = "FILE", env = "MILLRACE_CA")]
    pub ca: Option<PathBuf>,
}

/// A router's HTTP port.
#[derive(Debug, Clone, Args)]
pub struct HttpArgs {
    /// Where the router's HTTP API listens
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:8000",
        env = "MILLRACE_HTTP"
    )]
    pub http: String,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Arguments are printed in errors and logs; keys are not.
impl fmt::Debug for ClientArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.api_key.as_ref().map(|_| "***");
        f.debug_struct("ClientArgs")
            .field("api_key", &key)
            .field("ca", &self.ca)
            .finish()
    }
}

/// Where a router listens, as users write it: `HOST:PORT`, `http://HOST:PORT` or `https://HOST:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address<'a> {
    pub tls: bool,
    pub authority: &'a str,
}

impl<'a> Address<'a> {
    pub fn of(text: &'a str) -> Address<'a> {
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => (false, text),
        };
        Address {
            tls,
            authority: rest.trim_end_matches('/'),
        }
    }

    /// Without the port: what the certificate must be for.
    pub fn host(&self) -> &'a str {
        let host = match self.authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|it| it.is_ascii_digit()) => host,
            _ => self.authority,
        };
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

/// What every client is told when nothing can be heard.
const HINT: &str =
    "start one with `millrace up`, or pass its address (https:// in front if it speaks TLS)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_users_write_them() {
        for (text, tls, authority, host) in [
            ("h:1", false, "h:1", "h"),
            ("http://h:1/", false, "h:1", "h"),
            ("https://h.example:443", true, "h.example:443", "h.example"),
            ("https://[::1]:9", true, "[::1]:9", "::1"),
            ("https://h", true, "h", "h"),
        ] {
            let address = Address::of(text);
            assert_eq!(address, Address { tls, authority }, "{text}");
            assert_eq!(address.host(), host, "{text}");
        }
    }

    #[test]
    fn keys_are_not_printed() {
        let args = ClientArgs {
            api_key: Some("secret".into()),
            ca: None,
        };
        assert!(!format!("{args:?}").contains("secret"));
    }
}
