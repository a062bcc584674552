//! Flags of a router's front: TLS, API keys, probes.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;
use millrace_router::config::{AccessConfig, TlsFiles};

/// Who may reach a router, and how.
#[derive(Debug, Clone, Default, Args)]
pub struct AccessArgs {
    /// Speak TLS on the HTTP and gRPC ports with this certificate (PEM, its chain after it); a renewed one is taken without a restart
    #[arg(
        long,
        value_name = "FILE",
        env = "MILLRACE_TLS_CERT",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(
        long,
        value_name = "FILE",
        env = "MILLRACE_TLS_KEY",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,
    /// Ask clients for an API key: a file of keys, one a line, or a folder of such files (a mounted Secret); read again when it changes [default: everybody is served]
    #[arg(long, value_name = "PATH", env = "MILLRACE_API_KEYS")]
    pub api_keys: Option<PathBuf>,
    /// Where /health, /ready and /metrics are also served, always plain and without a key [default: on the HTTP port alone]
    #[arg(long, value_name = "ADDR", env = "MILLRACE_PROBE")]
    pub probe: Option<SocketAddr>,
}

impl AccessArgs {
    pub fn config(&self) -> AccessConfig {
        let pair = self.tls_cert.clone().zip(self.tls_key.clone());
        AccessConfig {
            tls: pair.map(|(cert, key)| TlsFiles { cert, key }),
            api_keys: self.api_keys.clone(),
            probe_addr: self.probe,
            ..AccessConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        access: AccessArgs,
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let parse = |flags: &[&str]| Line::try_parse_from([&["x"], flags].concat());
        assert_eq!(parse(&[]).unwrap().access.config().tls, None);
        let both = parse(&["--tls-cert=c", "--tls-key=k"]).unwrap();
        let files = TlsFiles {
            cert: "c".into(),
            key: "k".into(),
        };
        assert_eq!(both.access.config().tls, Some(files));
        for alone in ["--tls-cert=c", "--tls-key=k"] {
            assert!(parse(&[alone]).is_err(), "{alone}");
        }
    }
}
