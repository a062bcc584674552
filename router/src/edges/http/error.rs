//! Errors with OpenAI's body: `{"error": {"message", "type", "param", "code"}}`.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::super::auth::Refused;
use crate::api::RequestError;

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

/// Why a request was not answered, as an HTTP client sees it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(super) struct ApiError {
    status: StatusCode,
    /// `error.type`: the class, by which clients decide whether to try again.
    kind: &'static str,
    code: Option<&'static str>,
    /// The field to blame.
    param: Option<Cow<'static, str>>,
    message: String,
    retry_after_seconds: Option<u32>,
}

#[derive(Serialize)]
pub(super) struct ErrorBody<'a> {
    error: ErrorObject<'a>,
}

#[derive(Serialize)]
struct ErrorObject<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

impl ApiError {
    fn new(
        status: StatusCode,
        kind: &'static str,
        code: Option<&'static str>,
        message: impl Into<String>,
    ) -> ApiError {
        ApiError {
            status,
            kind,
            code,
            param: None,
            message: message.into(),
            retry_after_seconds: None,
        }
    }

    /// 400: the field `param` holds something unusable.
    pub(super) fn invalid(
        param: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> ApiError {
        ApiError {
            param: Some(param.into()),
            ..ApiError::malformed(message)
        }
    }

    /// 400: the body as a whole is unusable.
    pub(super) fn malformed(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, INVALID, None, message)
    }

    /// 400: `param` asks for something this server does not do.
    pub(super) fn unsupported(param: impl Into<Cow<'static, str>>) -> ApiError {
        let param = param.into();
        let message = format!("`{param}` is not supported by this server; leave it out");
        ApiError {
            code: Some("unsupported_parameter"),
            ..ApiError::invalid(param, message)
        }
    }

    /// 401, with the codes that OpenAI's server has.
    pub(super) fn unauthorized(refused: Refused) -> ApiError {
        let code = match refused {
            Refused::Missing => None,
            Refused::Malformed | Refused::Unknown => Some("invalid_api_key"),
        };
        let message = refused.to_string();
        ApiError::new(StatusCode::UNAUTHORIZED, INVALID, code, message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, INVALID, Some("unknown_url"), message)
    }

    pub(super) fn method_not_allowed(message: impl Into<String>) -> ApiError {
        ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            INVALID,
            Some("method_not_supported"),
            message,
        )
    }

    pub(super) fn body_too_slow() -> ApiError {
        let message = "the request's body did not arrive in time";
        ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            INVALID,
            Some("request_timeout"),
            message,
        )
    }

    pub(super) fn body_too_large(limit: usize) -> ApiError {
        let message =
            format!("the request's body is larger than the {limit} bytes this server accepts");
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            INVALID,
            Some("request_too_large"),
            message,
        )
    }

    pub(super) fn not_json(content_type: Option<&str>) -> ApiError {
        let got = content_type.map_or("the request has none".to_owned(), |it| {
            format!("not {it:?}")
        });
        let message = format!("the Content-Type must be application/json; {got}");
        ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            INVALID,
            Some("unsupported_media_type"),
            message,
        )
    }

    pub(super) fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            SERVER,
            Some("internal_error"),
            message,
        )
    }

    /// What clients get to read, in a body of its own or as an event in a stream.
    pub(super) fn body(&self) -> ErrorBody<'_> {
        let param = self.param.as_deref();
        ErrorBody {
            error: ErrorObject {
                message: &self.message,
                r#type: self.kind,
                param,
                code: self.code,
            },
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> ApiError {
        let message = error.to_string();
        match error {
            RequestError::Invalid { param, .. } => ApiError {
                param: param.map(Cow::Borrowed),
                ..ApiError::malformed(message)
            },
            RequestError::UnknownModel { .. } => ApiError {
                param: Some("model".into()),
                ..ApiError::new(
                    StatusCode::NOT_FOUND,
                    INVALID,
                    Some("model_not_found"),
                    message,
                )
            },
            RequestError::Overloaded {
                retry_after_seconds,
                ..
            } => ApiError {
                retry_after_seconds: Some(retry_after_seconds),
                ..ApiError::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "rate_limit_error",
                    Some("rate_limit_exceeded"),
                    message,
                )
            },
            RequestError::Unavailable { .. } => ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                SERVER,
                Some("service_unavailable"),
                message,
            ),
            RequestError::Deadline { .. } => ApiError::new(
                StatusCode::GATEWAY_TIMEOUT,
                SERVER,
                Some("deadline_exceeded"),
                message,
            ),
            RequestError::Internal { .. } => ApiError::internal(message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_openais() {
        let error: ApiError = RequestError::Invalid {
            message: "temperature must be at least 0".into(),
            param: Some("temperature"),
        }
        .into();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        assert_eq!(
            serde_json::to_string(&error.body()).unwrap(),
            r#"{"error":{"message":"temperature must be at least 0","type":"invalid_request_error","param":"temperature","code":null}}"#
        );
        let error: ApiError = RequestError::UnknownModel {
            model: "x".into(),
            served: "tiny-r1".into(),
        }
        .into();
        assert_eq!(error.status, StatusCode::NOT_FOUND);
        assert_eq!(
            serde_json::to_string(&error.body()).unwrap(),
            r#"{"error":{"message":"the model `x` is not served here; served: tiny-r1","type":"invalid_request_error","param":"model","code":"model_not_found"}}"#
        );
    }

    #[test]
    fn every_error_has_its_status() {
        let table = [
            (
                RequestError::Overloaded {
                    what: "the queue is full",
                    retry_after_seconds: 3,
                },
                429,
            ),
            (
                RequestError::Unavailable {
                    message: "no workers".into(),
                },
                503,
            ),
            (
                RequestError::Deadline {
                    stage: "in the queue",
                },
                504,
            ),
            (
                RequestError::Internal {
                    message: "x".into(),
                },
                500,
            ),
        ];
        for (error, status) in table {
            let response = ApiError::from(error).into_response();
            assert_eq!(response.status().as_u16(), status);
            let retry = response.headers().get(header::RETRY_AFTER);
            assert_eq!(
                retry.map(|it| it.to_str().unwrap()),
                (status == 429).then_some("3")
            );
        }
    }
}
