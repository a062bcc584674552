//! Whom a client trusts.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("--ca {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("--ca {0}: it has no certificates in PEM")]
    NoCertificates(PathBuf),
    #[error("this system lists no certificates to trust; pass the router's with --ca FILE")]
    NoRoots,
    #[error("TLS cannot be set up: {0}")]
    Config(#[from] rustls::Error),
}

/// The certificates of a file, as they are in it.
pub fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let bytes = std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })?;
    match certificates(&bytes) {
        Some(found) if !found.is_empty() => Ok(bytes),
        _ => Err(TlsError::NoCertificates(path.to_owned())),
    }
}

fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .ok()
}

/// For HTTP/1.
pub fn client(ca: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            roots.add_parsable_certificates(certificates(&read(path)?).unwrap_or_default());
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(match ca {
            Some(path) => TlsError::NoCertificates(path.to_owned()),
            None => TlsError::NoRoots,
        });
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
