//! A channel to a router's gRPC port.

use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use super::{Address, ClientArgs, HINT, TlsError, tls};

#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    #[error("`{0}` is not an address: pass --grpc HOST:PORT, or --grpc https://HOST:PORT")]
    Address(String),
    #[error("no Millrace answers at {grpc}; {HINT}: {cause}")]
    Unreachable { grpc: String, cause: String },
    /// Also a port that speaks TLS to a client that does not: connecting alone does not tell.
    #[error("{grpc} does not answer as gRPC, or no more; {HINT}")]
    Lost { grpc: String },
    #[error("--api-key: a key has no spaces and no characters beyond ASCII")]
    KeyText,
    #[error("{}; pass it with --api-key KEY", .0.message())]
    Key(Box<Status>),
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A channel whose requests carry the API key, if there is one.
pub type Authorized = InterceptedService<Channel, Bearer>;

#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// # Errors
/// Nobody listens there, or not as this client was told to speak.
pub async fn connect(grpc: &str, args: &ClientArgs) -> Result<Authorized, GrpcError> {
    let bearer = match &args.api_key {
        None => None,
        Some(key) => {
            let mut value: MetadataValue<Ascii> = format!("Bearer {key}")
                .parse()
                .map_err(|_| GrpcError::KeyText)?;
            value.set_sensitive(true);
            Some(value)
        }
    };
    let address = Address::of(grpc);
    let bad = |_| GrpcError::Address(grpc.to_owned());
    let scheme = if address.tls { "https" } else { "http" };
    let mut endpoint =
        Endpoint::from_shared(format!("{scheme}://{}", address.authority)).map_err(bad)?;
    if address.tls {
        let trust = match &args.ca {
            Some(ca) => {
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(tls::read(ca)?))
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        endpoint = endpoint
            .tls_config(trust.domain_name(address.host()))
            .map_err(|error| unreachable(grpc, &error))?;
    }
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| unreachable(grpc, &error))?;
    Ok(InterceptedService::new(channel, Bearer(bearer)))
}

/// The innermost cause says what happened; tonic's own text is "transport error".
fn unreachable(grpc: &str, error: &dyn std::error::Error) -> GrpcError {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    GrpcError::Unreachable {
        grpc: grpc.to_owned(),
        cause: cause.to_string(),
    }
}

/// What a request's status means to a user.
pub fn explain(grpc: &str, status: Status) -> GrpcError {
    // A transport error has a source; an answer of the router's own has none.
    if std::error::Error::source(&status).is_some() {
        return GrpcError::Lost {
            grpc: grpc.to_owned(),
        };
    }
    match status.code() {
        Code::Unauthenticated => GrpcError::Key(Box::new(status)),
        _ => GrpcError::Refused(Box::new(status)),
    }
}
