//! What a router shows to people, as JSON.

use std::time::Duration;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;

use super::{HttpArgs, get};

/// How long a router may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the router answers to a GET of `path`.
pub async fn look(router: &HttpArgs, path: &str) -> anyhow::Result<Vec<u8>> {
    let address = &router.http;
    let answer = tokio::time::timeout(PATIENCE, get(address, path, &router.client))
        .await
        .with_context(|| {
            format!(
                "{address} did not answer within {} s; is it a router's --http address?",
                PATIENCE.as_secs()
            )
        })??;
    if answer.status == 401 {
        bail!("{address} asks for an API key: pass one that it knows with --api-key KEY");
    }
    if answer.status != 200 {
        bail!(
            "{address} answered {} to {path}; pass a router's --http HOST:PORT",
            answer.status
        );
    }
    Ok(answer.body)
}

/// Of what [`look`] brought.
pub fn read<T: DeserializeOwned>(address: &str, body: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(body)
        .with_context(|| format!("what {address} answered is not of this version of Millrace"))
}
