//! Forgetting a deployment's epochs, once nothing of it runs any more.

use crate::build::EtcdPlace;

#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    #[cfg(feature = "etcd")]
    #[error(
        "could not delete the keys below {prefix} in etcd at {endpoints}: {source}. Make it reachable, or remove the finalizer {} by hand, which leaves them there",
        crate::api::labels::FINALIZER
    )]
    Etcd {
        prefix: String,
        endpoints: String,
        source: Box<etcd_client::Error>,
    },
    #[cfg(not(feature = "etcd"))]
    #[error(
        "this operator was built without etcd and cannot delete the keys below {prefix}; start one with the feature etcd, or remove the finalizer {} by hand",
        crate::api::labels::FINALIZER
    )]
    NoClient { prefix: String },
}

/// Whether [`forget`] can do anything.
pub const CAN_FORGET: bool = cfg!(feature = "etcd");

/// Deletes all keys of a deployment, and of no other whose name begins like its own.
#[cfg(feature = "etcd")]
pub async fn forget(place: &EtcdPlace) -> Result<i64, ForgetError> {
    use std::time::Duration;

    use etcd_client::{Client, ConnectOptions, DeleteOptions};

    const CALL: Duration = Duration::from_secs(5);

    let forget = async {
        let options = ConnectOptions::new()
            .with_connect_timeout(CALL)
            .with_timeout(CALL);
        let mut client = Client::connect(&place.endpoints, Some(options)).await?;
        let below = format!("{}/", place.prefix);
        let options = DeleteOptions::new().with_prefix();
        client.delete(below, Some(options)).await
    };
    let deleted = forget.await.map_err(|source| ForgetError::Etcd {
        prefix: place.prefix.clone(),
        endpoints: place.endpoints.join(","),
        source: Box::new(source),
    })?;
    Ok(deleted.deleted())
}

#[cfg(not(feature = "etcd"))]
pub async fn forget(place: &EtcdPlace) -> Result<i64, ForgetError> {
    Err(ForgetError::NoClient {
        prefix: place.prefix.clone(),
    })
}
