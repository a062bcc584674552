//! What a scrape is answered with: Prometheus' text format, as ever, unless the scraper asks for one
//! that says more. OpenMetrics' text has exemplars; Prometheus' protobuf has these and native
//! histograms.

mod openmetrics;
mod protobuf;

use axum::{
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use prometheus::{TextEncoder, proto::MetricFamily};

use crate::{Registry, histogram::Snapshot};

/// All metrics of a name.
pub(crate) struct Family {
    pub inner: MetricFamily,
    /// Of a family of histograms, its metrics with all that is known of them.
    pub histograms: Vec<Snapshot>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    OpenMetrics,
    Protobuf,
}

impl Format {
    /// The one that a scraper likes best, of several the first. What is not understood counts as not
    /// said, so that whoever asks for none of ours gets the plain one.
    fn accepted(headers: &HeaderMap) -> Format {
        let values = headers.get_all(header::ACCEPT).into_iter();
        let ranges = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','));
        let mut best = (0.0, Format::Text);
        for (preference, format) in ranges.filter_map(range) {
            if preference > best.0 {
                best = (preference, format);
            }
        }
        best.1
    }
}

/// `application/openmetrics-text; version=1.0.0; q=0.5`: how much it is liked, and what it is to us.
fn range(text: &str) -> Option<(f64, Format)> {
    let mut parts = text.split(';').map(str::trim);
    let media = parts.next()?;
    let parameters: Vec<(&str, &str)> = parts
        .filter_map(|part| part.split_once('='))
        .map(|(name, value)| (name.trim(), value.trim().trim_matches('"')))
        .collect();
    let parameter = |name: &str| {
        let found = parameters
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| *value)
    };
    let format = match media.to_ascii_lowercase().as_str() {
        "text/plain" | "text/*" | "*/*" => Format::Text,
        "application/openmetrics-text" if parameter("version").is_none_or(|v| v == "1.0.0") => {
            Format::OpenMetrics
        }
        "application/vnd.google.protobuf"
            if parameter("proto") == Some("io.prometheus.client.MetricFamily")
                && parameter("encoding") == Some("delimited") =>
        {
            Format::Protobuf
        }
        _ => return None,
    };
    let preference = parameter("q").map_or(Ok(1.0), str::parse).ok()?;
    Some((preference, format))
}

/// The answer to a scrape with these headers.
///
/// # Errors
/// Of metrics that are none, such as a family without series; a registry gathers no such.
pub fn scrape(registry: &Registry, headers: &HeaderMap) -> Result<Response, prometheus::Error> {
    let (content, body) = match Format::accepted(headers) {
        Format::Text => {
            let text = TextEncoder::new().encode_to_string(&registry.gather())?;
            (prometheus::TEXT_FORMAT, text.into_bytes())
        }
        Format::OpenMetrics => {
            let text = openmetrics::encode(&registry.families());
            (openmetrics::CONTENT_TYPE, text.into_bytes())
        }
        Format::Protobuf => {
            let messages = protobuf::encode(&registry.families());
            (protobuf::CONTENT_TYPE, messages)
        }
    };
    Ok(([(header::CONTENT_TYPE, content)], body).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(accept: &str) -> Format {
        let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
        Format::accepted(&headers)
    }

    #[test]
    fn a_scraper_gets_what_it_likes_best() {
        // As Prometheus 2 and 3 ask, without and with native histograms.
        let text = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(accepted(text), Format::OpenMetrics);
        let text = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(accepted(text), Format::OpenMetrics);
        let protobuf = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
        assert_eq!(
            accepted(&format!("{text},{protobuf};q=0.7")),
            Format::Protobuf
        );
        assert_eq!(accepted(&format!("{protobuf},*/*")), Format::Protobuf);
    }

    #[test]
    fn whoever_asks_for_neither_gets_the_text_format() {
        assert_eq!(Format::accepted(&HeaderMap::new()), Format::Text);
        for accept in [
            "*/*",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "text/plain;version=0.0.4;q=0.5,application/openmetrics-text;q=0.2",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=0",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
            "image/png",
            ",;;q=x",
        ] {
            assert_eq!(accepted(accept), Format::Text, "{accept}");
        }
    }
}
