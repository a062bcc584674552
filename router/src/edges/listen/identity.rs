//! The certificate that this router proves itself with, which may be renewed while it runs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::super::reload::Source;
use crate::config::TlsFiles;

/// Why clients cannot be spoken to over TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    /// Without a cause: that quotes the file, which may hold the key.
    #[error("{0} is not valid PEM; it needs its line breaks, as `openssl` writes them")]
    Pem(PathBuf),
    #[error("{0} has no certificate; it must begin with the server's own, in PEM")]
    NoCertificate(PathBuf),
    #[error("{0} has no private key; it must have one in PEM, without a passphrase")]
    NoKey(PathBuf),
    /// Also where they do not belong together.
    #[error("{cert} and {key} cannot be used: {source}")]
    Unusable {
        cert: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
    #[error("TLS cannot be set up: {0}")]
    Config(rustls::Error),
}

/// What connections that begin now are served with.
#[derive(Debug)]
pub struct Identity {
    files: TlsFiles,
    provider: Arc<CryptoProvider>,
    current: RwLock<Arc<CertifiedKey>>,
}

/// A certificate and its key, as they were in the files.
#[derive(Debug, Clone)]
pub struct Pair {
    key: Arc<CertifiedKey>,
    /// Of both files.
    digest: blake3::Hash,
}

impl PartialEq for Pair {
    fn eq(&self, other: &Pair) -> bool {
        self.digest == other.digest
    }
}

impl Identity {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// They cannot be read or used.
    pub fn open(files: TlsFiles) -> Result<(Arc<Identity>, Pair), TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pair = read(&files, &provider)?;
        let identity = Identity {
            files,
            provider,
            current: RwLock::new(Arc::clone(&pair.key)),
        };
        Ok((Arc::new(identity), pair))
    }

    /// TLS 1.2 and 1.3 with this identity, for a port that speaks `protocols` (ALPN).
    ///
    /// # Errors
    /// `Config`, which a test rules out.
    pub fn server(self: &Arc<Identity>, protocols: &[&str]) -> Result<Arc<ServerConfig>, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Config)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read()))
    }
}

impl Source for Identity {
    type Value = Pair;
    type Error = TlsError;
    const NAME: &'static str = "certificates";

    fn load(&self) -> Result<Pair, TlsError> {
        read(&self.files, &self.provider)
    }

    fn adopt(&self, pair: Pair) {
        *self.current.write() = pair.key;
    }
}

fn read(files: &TlsFiles, provider: &CryptoProvider) -> Result<Pair, TlsError> {
    let TlsFiles { cert, key } = files;
    let (chain_pem, key_pem) = (bytes(cert)?, bytes(key)?);
    let digest = blake3::Hasher::new()
        .update(&(chain_pem.len() as u64).to_le_bytes())
        .update(&chain_pem)
        .update(&key_pem)
        .finalize();
    let chain = CertificateDer::pem_slice_iter(&chain_pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| TlsError::Pem(cert.clone()))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate(cert.clone()));
    }
    let private = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey(key.clone()),
        _ => TlsError::Pem(key.clone()),
    })?;
    let certified =
        CertifiedKey::from_der(chain, private, provider).map_err(|source| TlsError::Unusable {
            cert: cert.clone(),
            key: key.clone(),
            source,
        })?;
    Ok(Pair {
        key: Arc::new(certified),
        digest,
    })
}

fn bytes(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}
