//! Files that are given to a pod: a token, certificates.

use std::path::Path;

use crate::error::{FetchError, chain};

/// The bearer token in a file.
pub(crate) fn token(path: &Path) -> Result<String, FetchError> {
    let fail = |source| FetchError::Token {
        path: path.to_owned(),
        source,
    };
    let token = std::fs::read_to_string(path)
        .map_err(fail)?
        .trim()
        .to_owned();
    let plain = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    plain.then_some(token).ok_or_else(|| {
        fail(std::io::Error::other(
            "it is empty or has characters that no header takes",
        ))
    })
}

/// The certificates in a PEM file, at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<reqwest::Certificate>, FetchError> {
    let fail = |what: String| FetchError::Ca {
        path: path.to_owned(),
        what,
    };
    let text = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
    let found =
        reqwest::Certificate::from_pem_bundle(&text).map_err(|error| fail(chain(&error)))?;
    if found.is_empty() {
        return Err(fail("there are none in it".to_owned()));
    }
    Ok(found)
}
