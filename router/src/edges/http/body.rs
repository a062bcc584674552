//! A request's body: its media type, its size, how long it takes, and what its JSON says.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use serde::Deserialize;

use super::Edge;
use super::error::ApiError;

/// A JSON document that has arrived whole but was not looked into.
///
/// Handlers read from it more than once, each time another group of fields: the groups stay plain
/// structs, and errors keep the field's name and position, which serde's `flatten` loses.
pub(super) struct JsonBody(pub(super) Bytes);

impl JsonBody {
    /// Reads the fields of `T`; others are skipped.
    ///
    /// # Errors
    /// 400 with line and column, and the path of the field where one is to blame.
    pub(super) fn read<'de, T: Deserialize<'de>>(&'de self) -> Result<T, ApiError> {
        let mut json = serde_json::Deserializer::from_slice(&self.0);
        let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            let inner = error.into_inner();
            if !inner.is_data() {
                return ApiError::malformed(format!("the body is not valid JSON: {inner}"));
            }
            // The path of the whole document is ".".
            if path == "." {
                return ApiError::malformed(format!("the body does not fit: {inner}"));
            }
            ApiError::invalid(path.clone(), format!("`{path}`: {inner}"))
        })?;
        json.end()
            .map_err(|error| ApiError::malformed(format!("the body is not valid JSON: {error}")))?;
        Ok(value)
    }
}

impl FromRequest<Arc<Edge>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, edge: &Arc<Edge>) -> Result<JsonBody, ApiError> {
        let limit = edge.options.body_limit;
        check_media_type(request.headers())?;
        // A client that announces too much is told so before it sends it.
        let announced = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|it| it.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|bytes| bytes > limit as u64) {
            return Err(ApiError::body_too_large(limit));
        }
        let body = tokio::time::timeout(
            edge.options.body_timeout,
            Bytes::from_request(request, edge),
        )
        .await;
        match body {
            Ok(Ok(bytes)) => Ok(JsonBody(bytes)),
            Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(ApiError::body_too_large(limit))
            }
            Ok(Err(rejection)) => Err(ApiError::malformed(format!(
                "the body could not be read: {rejection}"
            ))),
            Err(_elapsed) => Err(ApiError::body_too_slow()),
        }
    }
}

/// `application/json` and the like of `application/problem+json`, with any parameters.
fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let value = headers
        .get(header::CONTENT_TYPE)
        .map(|it| String::from_utf8_lossy(it.as_bytes()));
    let essence = value
        .as_deref()
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    let json = essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"));
    if json {
        Ok(())
    } else {
        Err(ApiError::not_json(value.as_deref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize, Debug)]
    #[allow(dead_code)] // What is read does not matter here.
    struct Sample {
        temperature: Option<f32>,
        items: Option<Vec<Item>>,
    }

    #[derive(Deserialize, Debug)]
    #[allow(dead_code)] // As above.
    struct Item {
        role: String,
    }

    fn error_of(body: &str) -> String {
        let error = JsonBody(Bytes::copy_from_slice(body.as_bytes()))
            .read::<Sample>()
            .unwrap_err();
        serde_json::to_string(&error.body()).unwrap()
    }

    #[test]
    fn errors_say_where() {
        let error = error_of("{\"temperature\": 1,\n \"items\": [}");
        assert!(
            error.contains("not valid JSON")
                && error.contains("line 2 column 12")
                && error.contains(r#""param":null"#),
            "{error}"
        );
        let error = error_of(r#"{"temperature": "hot"}"#);
        assert!(
            error.contains("expected f32 at line 1 column")
                && error.contains(r#""param":"temperature""#),
            "{error}"
        );
        let error = error_of(r#"{"items": [{"role": "user"}, {"role": 3}]}"#);
        assert!(error.contains(r#""param":"items[1].role""#), "{error}");
        assert!(error_of("").contains("EOF while parsing"));
        assert!(error_of("{} x").contains("trailing characters at line 1 column 4"));
        assert!(error_of("[1").contains("not fit") || error_of("[1").contains("not valid JSON"));
    }

    #[test]
    fn media_types() {
        let check = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            check_media_type(&headers).is_ok()
        };
        assert!(
            check("application/json")
                && check("Application/JSON; charset=utf-8")
                && check("application/x+json")
        );
        assert!(!check("text/plain") && !check("application/x-www-form-urlencoded") && !check(""));
        assert!(check_media_type(&HeaderMap::new()).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = JsonBody(bytes.into()).read::<Sample>();
        }
    }
}
