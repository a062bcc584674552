//! What can go wrong, in words that name the file and say what to do next.

use std::{io, path::PathBuf};

use crate::{checksum::Checksum, sums::SumsError};

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("the URL {url} {what}")]
    Url { url: String, what: &'static str },
    #[error("cannot use the certificates in {}: {what}; give a file of PEM certificates", path.display())]
    Ca { path: PathBuf, what: String },
    #[error("cannot read the token in {}: {source}; give a file that holds the bearer token", path.display())]
    Token { path: PathBuf, source: io::Error },
    #[error("cannot set up the HTTP client: {0}")]
    Client(#[from] reqwest::Error),
    #[error(
        "cannot get credentials for S3: {0}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or check the pod's identity"
    )]
    Credentials(#[from] object_store::Error),
    #[error(
        "{url} does not exist (HTTP {status}): check --url; every file of SHA256SUMS, and SHA256SUMS itself, must be there"
    )]
    NotFound { url: String, status: u16 },
    #[error("{url} may not be read (HTTP {status}{detail}): check {check}")]
    Denied {
        url: String,
        status: u16,
        detail: String,
        check: &'static str,
    },
    #[error(
        "{url} was answered with HTTP {status}{detail}: this is not a server of files, or not their folder; check --url"
    )]
    Refused {
        url: String,
        status: u16,
        detail: String,
    },
    #[error("{url} is in region {region}: pass --s3-region {region}")]
    OtherRegion { url: String, region: String },
    #[error(
        "the certificate of {url} was refused: {what}; pass the certificate authority with --ca"
    )]
    Certificate { url: String, what: String },
    #[error(
        "gave up on {url} after {attempts} attempts that brought it no further, at byte {at}; the last one: {last}. What is there is kept: run it again to go on"
    )]
    GaveUp {
        url: String,
        attempts: u32,
        at: u64,
        last: String,
    },
    #[error(
        "{url} has {found} and not {expected}: the folder was changed; if that was meant, pass the new checksum"
    )]
    OtherSums {
        url: String,
        expected: Checksum,
        found: Checksum,
    },
    #[error("{url} has more than {most} bytes: this is no list of checksums; check --url")]
    HugeSums { url: String, most: usize },
    #[error(transparent)]
    Sums(#[from] SumsError),
    #[error(
        "{url} has {bytes} bytes with {found}, but SHA256SUMS says {expected}: it is damaged at its source; upload it again"
    )]
    WrongChecksum {
        url: String,
        bytes: u64,
        expected: Checksum,
        found: Checksum,
    },
    #[error("no space is left for {name} in {}: {free} bytes are free{}; make the volume larger", dir.display(), needed.map(|n| format!(" and {n} more are needed")).unwrap_or_default())]
    DiskFull {
        dir: PathBuf,
        name: String,
        needed: Option<u64>,
        free: u64,
    },
    #[error("cannot {doing} {}: {source}; check that it is a folder in a writable volume", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// What another attempt may get past.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Passing {
    #[error("HTTP {status}{detail}")]
    Status {
        status: u16,
        detail: String,
        retry_after: Option<std::time::Duration>,
    },
    #[error("nothing came for a while")]
    Stalled,
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("the body ended at byte {at} of {total}")]
    Cut { at: u64, total: u64 },
    #[error("cannot get credentials: {0}")]
    Credentials(String),
}

/// An attempt's failure.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No attempt would get past it.
    Fatal(FetchError),
    Passing(Passing),
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Failure {
        Failure::Fatal(error)
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        next = source.source();
    }
    text
}
