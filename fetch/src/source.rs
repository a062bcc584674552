//! Where the files come from: one GET, and what its answer means.

use std::{path::PathBuf, time::Duration};

use reqwest::{Client, Response, StatusCode, Url, header, redirect};

use crate::{
    SourceConfig, address,
    error::{Failure, FetchError, Passing, chain},
    s3::{self, Bucket},
    secrets,
};

pub(crate) struct Source {
    client: Client,
    /// Ends in `/`.
    base: Url,
    access: Access,
}

enum Access {
    Open,
    /// The file is read for every request: who mounts it may replace it meanwhile.
    Token(PathBuf),
    S3(Bucket),
}

/// The answer to a GET.
pub(crate) enum Reply {
    /// Bytes from `start` on, which is where it was asked to or 0.
    Body {
        start: u64,
        total: Option<u64>,
        response: Response,
    },
    /// The file ends before the byte it was asked to start at.
    PastEnd,
}

impl Source {
    /// # Errors
    /// For URLs, tokens and certificates that cannot be used. Connects to nothing.
    pub fn new(config: &SourceConfig) -> Result<Source, FetchError> {
        // reqwest is built without a provider of its own, so that all of us use one. Whoever was first
        // chose the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let certificates = config
            .ca
            .as_ref()
            .map(|path| secrets::certificates(path))
            .transpose()?
            .unwrap_or_default();
        let (base, access) = match config.url.starts_with("s3://") {
            true => {
                let (base, bucket) = s3::open(config)?;
                (base, Access::S3(bucket))
            }
            false => {
                let access = config
                    .token_file
                    .clone()
                    .map_or(Access::Open, Access::Token);
                (address::http(&config.url)?, access)
            }
        };
        let redirects = match access {
            // A signature is for one address.
            Access::S3(_) => redirect::Policy::none(),
            _ => redirect::Policy::default(),
        };
        let client = Client::builder()
            .user_agent(concat!("millrace/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(config.stall.min(Duration::from_secs(20)))
            .read_timeout(config.stall)
            .redirect(redirects)
            // One transfer a connection: a window shared by several is slower than several windows.
            .http1_only()
            .tls_certs_merge(certificates)
            .build()?;
        Ok(Source {
            client,
            base,
            access,
        })
    }

    pub fn url(&self, name: &str) -> String {
        self.address(name).to_string()
    }

    fn address(&self, name: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{}", url.path(), address::encode(name)));
        url
    }

    /// Asks for a file from byte `offset` on.
    pub async fn get(&self, name: &str, offset: u64) -> Result<Reply, Failure> {
        let url = self.address(name);
        let mut request = self.client.get(url.clone());
        if offset > 0 {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        request = match &self.access {
            Access::Open => request,
            Access::Token(path) => request.bearer_auth(secrets::token(path)?),
            Access::S3(bucket) => request.headers(bucket.sign(&url).await?),
        };
        let response = request
            .send()
            .await
            .map_err(|error| self.broken(&url, error))?;
        self.judge(url, offset, response).await
    }

    async fn judge(&self, url: Url, offset: u64, response: Response) -> Result<Reply, Failure> {
        let status = response.status();
        let url = url.to_string();
        match status {
            StatusCode::OK => Ok(Reply::Body {
                start: 0,
                total: response.content_length(),
                response,
            }),
            StatusCode::PARTIAL_CONTENT => match content_range(&response) {
                Some((start, total)) if start == offset => Ok(Reply::Body {
                    start,
                    total,
                    response,
                }),
                _ => Err(Failure::Fatal(FetchError::Refused {
                    url,
                    status: status.as_u16(),
                    detail: format!(" with other bytes than those from {offset} on"),
                })),
            },
            StatusCode::RANGE_NOT_SATISFIABLE if offset > 0 => Ok(Reply::PastEnd),
            _ => Err(self.refusal(url, response).await),
        }
    }

    async fn refusal(&self, url: String, response: Response) -> Failure {
        let status = response.status();
        let code = status.as_u16();
        let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let region = header("x-amz-bucket-region");
        let retry_after = header("retry-after")
            .and_then(|it| it.parse().ok())
            .map(Duration::from_secs);
        let detail = match &self.access {
            Access::S3(_) => s3::detail(response).await,
            _ => String::new(),
        };
        let again = matches!(
            code,
            408 | 425 | 429 | 500 | 502 | 503 | 504 | 507 | 509 | 520..=530
        );
        Failure::Fatal(match (status, region, &self.access) {
            _ if again => {
                return Failure::Passing(Passing::Status {
                    status: code,
                    detail,
                    retry_after,
                });
            }
            (
                StatusCode::MOVED_PERMANENTLY | StatusCode::BAD_REQUEST,
                Some(region),
                Access::S3(bucket),
            ) if region != bucket.region() => FetchError::OtherRegion { url, region },
            (StatusCode::NOT_FOUND | StatusCode::GONE, ..) => {
                FetchError::NotFound { url, status: code }
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _, access) => FetchError::Denied {
                url,
                status: code,
                detail,
                check: match access {
                    Access::Open => "whether it needs a token (--token-file)",
                    Access::Token(_) => "the token in --token-file and what it may read",
                    Access::S3(bucket) => bucket.check(),
                },
            },
            _ => FetchError::Refused {
                url,
                status: code,
                detail,
            },
        })
    }

    /// What a broken connection means.
    pub fn broken(&self, url: &Url, error: reqwest::Error) -> Failure {
        if let Some(what) = refused_certificate(&error) {
            return Failure::Fatal(FetchError::Certificate {
                url: url.to_string(),
                what,
            });
        }
        if error.is_redirect() {
            return Failure::Fatal(FetchError::Refused {
                url: url.to_string(),
                status: error.status().map_or(0, |it| it.as_u16()),
                detail: ", redirected in circles".to_owned(),
            });
        }
        let (timeout, connect) = (error.is_timeout(), error.is_connect());
        let text = chain(&error.without_url());
        Failure::Passing(match (timeout, connect) {
            (true, _) => Passing::Stalled,
            (_, true) => Passing::Connect(text),
            _ => Passing::Broken(text),
        })
    }

    pub fn cut(&self, name: &str, error: reqwest::Error) -> Failure {
        self.broken(&self.address(name), error)
    }
}

/// `bytes 5-9/10` as (5, Some(10)).
fn content_range(response: &Response) -> Option<(u64, Option<u64>)> {
    let text = response
        .headers()
        .get(header::CONTENT_RANGE)?
        .to_str()
        .ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

fn refused_certificate(error: &reqwest::Error) -> Option<String> {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if let Some(rustls::Error::InvalidCertificate(why)) = cause.downcast_ref() {
            return Some(why.to_string());
        }
        // An io::Error hides what it wraps from `source`, and these are wrapped twice.
        next = match cause.downcast_ref::<std::io::Error>() {
            Some(wrapper) => wrapper
                .get_ref()
                .map(|inner| inner as &dyn std::error::Error),
            None => cause.source(),
        };
    }
    None
}
