//! S3: where a bucket is, who asks, and the signature of a request.

use object_store::{
    Certificate, ClientOptions, RetryConfig,
    aws::{AmazonS3Builder, AwsAuthorizer, AwsCredentialProvider},
    client::{HttpRequest, HttpRequestBody},
};
use reqwest::{Response, Url, header::HeaderMap};

use crate::{
    SourceConfig,
    address::encode,
    error::{Failure, FetchError, Passing, chain},
};

pub(crate) struct Bucket {
    region: String,
    /// None: the bucket is public, or nobody said who asks.
    credentials: Option<AwsCredentialProvider>,
}

/// The folder's address, and who reads it.
///
/// Credentials are those of the environment: a key, a web identity (IRSA), or what EKS and ECS give to
/// pods. A node's own role is not used: it is not the pod's.
pub(crate) fn open(config: &SourceConfig) -> Result<(Url, Bucket), FetchError> {
    let fail = |what| FetchError::Url {
        url: config.url.clone(),
        what,
    };
    let (name, prefix) = config
        .url
        .strip_prefix("s3://")
        .and_then(|rest| rest.split_once('/'))
        .filter(|(name, prefix)| !name.is_empty() && !prefix.trim_matches('/').is_empty())
        .ok_or_else(|| fail("names no folder: give s3://BUCKET/PREFIX"))?;
    if !name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    {
        return Err(fail(
            "has a bucket whose name no bucket can have: give s3://BUCKET/PREFIX",
        ));
    }
    let region = config
        .s3_region
        .clone()
        .unwrap_or_else(|| "us-east-1".to_owned());
    if !region
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        || region.is_empty()
    {
        return Err(fail(
            "cannot be asked for with this --s3-region: it is no region's name",
        ));
    }
    let folder = format!("{}/", encode(prefix.trim_end_matches('/')));
    let address = match &config.s3_endpoint {
        Some(endpoint) => format!("{}/{name}/{folder}", endpoint.trim_end_matches('/')),
        // A dot in a bucket's name is a level more than the certificate of the others has.
        None if name.contains(['.', '_']) || name.bytes().any(|b| b.is_ascii_uppercase()) => {
            format!("https://s3.{region}.{}/{name}/{folder}", domain(&region))
        }
        None => format!("https://{name}.s3.{region}.{}/{folder}", domain(&region)),
    };
    let url = Url::parse(&address)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"))
        .ok_or_else(|| {
            fail("cannot be asked for at this --s3-endpoint: give http:// or https:// and a host")
        })?;

    let given = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let identity = [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    let credentials = match identity.into_iter().any(given) {
        true => Some(provider(config, name, &region)?),
        false => None,
    };
    Ok((
        url,
        Bucket {
            region,
            credentials,
        },
    ))
}

fn domain(region: &str) -> &'static str {
    match region.starts_with("cn-") {
        true => "amazonaws.com.cn",
        false => "amazonaws.com",
    }
}

fn provider(
    config: &SourceConfig,
    bucket: &str,
    region: &str,
) -> Result<AwsCredentialProvider, FetchError> {
    let mut options = ClientOptions::new();
    if let Some(path) = &config.ca {
        let fail = |what: String| FetchError::Ca {
            path: path.clone(),
            what,
        };
        let text = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
        for certificate in
            Certificate::from_pem_bundle(&text).map_err(|error| fail(error.to_string()))?
        {
            options = options.with_root_certificate(certificate);
        }
    }
    let store = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_region(region)
        .with_client_options(options)
        // Our own attempts are around this.
        .with_retry(RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        })
        .build()?;
    Ok(store.credentials().clone())
}

impl Bucket {
    pub fn region(&self) -> &str {
        &self.region
    }

    pub fn check(&self) -> &'static str {
        match self.credentials {
            Some(_) => {
                "the credentials, and that they may do s3:GetObject (S3 says 403 for missing files too, without s3:ListBucket)"
            }
            None => {
                "whether it needs credentials: none were given (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a pod's identity)"
            }
        }
    }

    /// The headers that prove who asks. The range needs no proof.
    pub async fn sign(&self, url: &Url) -> Result<HeaderMap, Failure> {
        let Some(credentials) = &self.credentials else {
            return Ok(HeaderMap::new());
        };
        let credential = credentials
            .get_credential()
            .await
            .map_err(|error| Failure::Passing(Passing::Credentials(chain(&error))))?;
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.as_str().parse().map_err(|_| FetchError::Url {
            url: url.to_string(),
            what: "cannot be written as a request",
        })?;
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .try_authorize(&mut request, None)
            .map_err(FetchError::Credentials)?;
        Ok(std::mem::take(request.headers_mut()))
    }
}

/// S3's own word on a refusal, such as `, AccessDenied: Access Denied`.
pub(crate) async fn detail(mut response: Response) -> String {
    let mut body = Vec::new();
    // An error's body is small; who sends more is not S3.
    while body.len() < 4096 {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            _ => break,
        }
    }
    let body = String::from_utf8_lossy(&body);
    let tag = |name: &str| {
        let (_, rest) = body.split_once(&format!("<{name}>"))?;
        let (text, _) = rest.split_once(&format!("</{name}>"))?;
        Some(
            text.chars()
                .filter(|c| !c.is_control())
                .take(200)
                .collect::<String>(),
        )
    };
    match (tag("Code"), tag("Message")) {
        (Some(code), Some(message)) => format!(", {code}: {message}"),
        (Some(code), None) => format!(", {code}"),
        _ => String::new(),
    }
}
