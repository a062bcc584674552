use std::fmt::{self, Display};
use std::sync::OnceLock;
use std::time::{Instant, SystemTime};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{
    SpanBuilder, SpanKind, Status, TraceContextExt as _, TraceId, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::TraceError;

/// Absent: nothing is recorded in this process.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

pub(super) fn record(provider: &SdkTracerProvider) -> Result<(), TraceError> {
    let tracer = provider.tracer("millrace");
    TRACER.set(tracer).map_err(|_| TraceError::Twice)
}

/// The span of a caller that a new one belongs under, as W3C's `traceparent` and `tracestate` name it.
/// Empty: the new one begins a trace.
#[derive(Clone, Default)]
pub struct Parent(Option<Context>);

impl Parent {
    /// From a request's headers, or its metadata. What is malformed counts as absent.
    pub fn of(headers: &HeaderMap) -> Parent {
        if TRACER.get().is_none() {
            return Parent(None);
        }
        let context =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &Reader(headers));
        Parent(Some(context))
    }
}

impl fmt::Debug for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Parent")
    }
}

/// One piece of a request's work, from its making until its last clone is dropped.
#[derive(Clone, Default)]
pub struct Span(Option<Context>);

impl Span {
    /// Work that somebody outside this process asked for.
    pub fn server(name: impl Display, parent: &Parent) -> Span {
        let Some(tracer) = TRACER.get() else {
            return Span(None);
        };
        let parent = parent.0.clone().unwrap_or_default();
        Span::begin(tracer, name.to_string(), SpanKind::Server, &parent)
    }

    /// A call of another process as a part of this work.
    pub fn call(&self, name: &'static str) -> Span {
        match (TRACER.get(), &self.0) {
            (Some(tracer), Some(parent)) => {
                Span::begin(tracer, name.into(), SpanKind::Client, parent)
            }
            _ => Span(None),
        }
    }

    fn begin(tracer: &SdkTracer, name: String, kind: SpanKind, parent: &Context) -> Span {
        let builder = SpanBuilder::from_name(name).with_kind(kind);
        let span = tracer.build_with_context(builder, parent);
        Span(Some(parent.with_span(span)))
    }

    /// A part of this work that is over already.
    pub fn past(&self, name: &'static str, from: Instant, until: Instant) {
        let (Some(tracer), Some(parent)) = (TRACER.get(), &self.0) else {
            return;
        };
        // Spans have the time of day, and durations here are of a clock that only goes forward.
        let (now, today) = (Instant::now(), SystemTime::now());
        let time_of_day = |at: Instant| today - now.saturating_duration_since(at);
        let builder = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Internal)
            .with_start_time(time_of_day(from));
        let span = tracer.build_with_context(builder, parent);
        parent
            .with_span(span)
            .span()
            .end_with_timestamp(time_of_day(until));
    }

    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    pub fn set_text(&self, key: &'static str, value: impl Display) {
        if let Some(context) = &self.0 {
            context
                .span()
                .set_attribute(KeyValue::new(key, value.to_string()));
        }
    }

    /// It came to nothing. `kind` is one of few.
    pub fn failed(&self, kind: impl Display, error: &impl Display) {
        if let Some(context) = &self.0 {
            let span = context.span();
            span.set_attribute(KeyValue::new("error.type", kind.to_string()));
            span.set_status(Status::error(error.to_string()));
        }
    }

    /// Tells a process that is called where its spans belong.
    pub fn send(&self, headers: &mut HeaderMap) {
        if let Some(context) = &self.0 {
            TraceContextPropagator::new().inject_context(context, &mut Writer(headers));
        }
    }

    /// The trace that a collector is told of, if it is.
    pub(crate) fn recorded(&self) -> Option<TraceId> {
        let span = self.0.as_ref()?.span();
        let context = span.span_context();
        (context.is_sampled() && context.is_valid()).then(|| context.trace_id())
    }

    /// As hex digits, for lines of logs.
    pub fn trace_id(&self) -> Option<String> {
        let id = self.0.as_ref()?.span().span_context().trace_id();
        (id != TraceId::INVALID).then(|| id.to_string())
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Span").field(&self.trace_id()).finish()
    }
}

struct Reader<'a>(&'a HeaderMap);

impl Extractor for Reader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct Writer<'a>(&'a mut HeaderMap);

impl Injector for Writer<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(key, value);
        }
    }
}
