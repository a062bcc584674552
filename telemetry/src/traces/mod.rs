//! Traces of requests: OpenTelemetry's spans, sent by OTLP over gRPC.
//!
//! They are on where `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or `OTEL_EXPORTER_OTLP_ENDPOINT` says where
//! to send them, as in any other program that knows OpenTelemetry, and its other variables hold, too
//! (`OTEL_TRACES_SAMPLER`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_EXPORTER_OTLP_HEADERS`, ...). Elsewhere a
//! [`Span`] is empty, and everything one does with it costs a comparison.

mod span;

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;

pub use opentelemetry::{StringValue, Value};
pub use span::{Parent, Span};

/// Where traces go, in order of preference.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];
const PROTOCOLS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
];
/// A collector that does not answer keeps no process from ending for longer.
const FLUSH: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error(
        "{variable} is `{protocol}`, and traces are sent by `grpc` alone: unset it, and name the collector's port for gRPC (4317 as a rule)"
    )]
    Protocol {
        variable: &'static str,
        protocol: String,
    },
    #[error(
        "traces cannot be sent as OTEL_EXPORTER_OTLP_* say: {0}; an example of an endpoint: http://collector:4317"
    )]
    Exporter(#[from] ExporterBuildError),
    #[error("traces were already set up in this process")]
    Twice,
}

/// Sends what spans tell. Dropped, it sends what is left; spans from then on go nowhere.
#[must_use = "traces end with it"]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// For a process of this name (`millrace-router`), of which this is one. `None`: nothing says where
    /// to. Needs a runtime that lives on until this is dropped.
    ///
    /// # Errors
    /// [`TraceError`]: of settings that cannot be followed.
    pub fn start(service: &'static str, instance: &str) -> Result<Option<Traces>, TraceError> {
        if first_set(ENDPOINTS).is_none() {
            return Ok(None);
        }
        if let Some((variable, protocol)) = first_set(PROTOCOLS)
            && protocol != "grpc"
        {
            return Err(TraceError::Protocol { variable, protocol });
        }
        let exporter = SpanExporter::builder().with_tonic().build()?;
        let mut resource = Resource::builder().with_attributes([
            KeyValue::new("service.namespace", "millrace"),
            KeyValue::new("service.instance.id", instance.to_owned()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ]);
        if first_set(["OTEL_SERVICE_NAME"]).is_none() {
            resource = resource.with_service_name(service);
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        span::record(&provider)?;
        Ok(Some(Traces(provider)))
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// The first of some variables that says something.
fn first_set<const N: usize>(variables: [&'static str; N]) -> Option<(&'static str, String)> {
    variables.into_iter().find_map(|variable| {
        let value = std::env::var(variable).ok()?;
        (!value.trim().is_empty()).then_some((variable, value))
    })
}
