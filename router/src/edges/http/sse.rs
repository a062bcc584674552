//! Server-sent events: each chunk is `data: {...}` and an empty line; `data: [DONE]` ends a good stream.
//!
//! This is the path of every streamed token, so it allocates little and hops to no task: hyper polls
//! the body, the body polls the events, and what they become is written into one buffer. Events that
//! are ready together leave in one piece, which saves system calls when many streams are busy.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::Stream;
use serde::Serialize;

use super::answer::{EVENT_STREAM, Envelope, StreamOptions};
use super::error::ApiError;
use super::usage::UsageMeter;
use crate::api::{Event, EventStream, RequestError};

/// A piece is sent when it is this large, even if more events are ready: 16 KiB.
const PIECE: usize = 16 << 10;

/// How an endpoint writes its events.
pub(super) trait Chunks: Send + Unpin + 'static {
    /// Appends the chunks of one event: none where it has nothing to tell.
    fn event(&mut self, event: &Event, out: &mut BytesMut);

    /// Appends what comes after the last event.
    ///
    /// # Errors
    /// A choice has not finished.
    fn end(&mut self, out: &mut BytesMut) -> Result<(), RequestError>;
}

/// Answers with `first` and then the rest of its stream. A client that goes away drops the body and
/// with it the stream, which cancels the request.
pub(super) fn response(first: Event, rest: EventStream, chunks: impl Chunks) -> Response {
    let stream = SseStream {
        first: Some(first),
        rest: Some(rest),
        chunks,
        buffer: BytesMut::new(),
    };
    (EVENT_STREAM, Body::from_stream(stream)).into_response()
}

struct SseStream<C> {
    first: Option<Event>,
    /// `None` once it has ended.
    rest: Option<EventStream>,
    chunks: C,
    buffer: BytesMut,
}

impl<C: Chunks> SseStream<C> {
    fn end(&mut self, result: Result<(), RequestError>) {
        self.rest = None;
        match result.and_then(|()| self.chunks.end(&mut self.buffer)) {
            Ok(()) => self.buffer.put_slice(b"data: [DONE]\n\n"),
            Err(error) => {
                tracing::info!(%error, "an answer ended in an error after it had begun");
                write_data(&mut self.buffer, &ApiError::from(error).body());
            }
        }
    }
}

impl<C: Chunks> Stream for SseStream<C> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            this.chunks.event(&first, &mut this.buffer);
        }
        while this.buffer.len() < PIECE {
            let Some(rest) = &mut this.rest else { break };
            match rest.as_mut().poll_next(cx) {
                Poll::Ready(Some(Ok(event))) => this.chunks.event(&event, &mut this.buffer),
                Poll::Ready(Some(Err(error))) => this.end(Err(error)),
                Poll::Ready(None) => this.end(Ok(())),
                Poll::Pending if this.buffer.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        let piece = this.buffer.split().freeze();
        Poll::Ready((!piece.is_empty()).then_some(Ok(piece)))
    }
}

/// Writes chunks that differ in their choice and their usage alone.
pub(super) struct Frames {
    /// `data: {"id":...,"choices":[`
    head: Vec<u8>,
    options: StreamOptions,
}

impl Frames {
    pub(super) fn new(envelope: &Envelope, object: &'static str, options: StreamOptions) -> Frames {
        #[derive(Serialize)]
        struct Head<'a> {
            id: &'a str,
            object: &'static str,
            created: u64,
            model: &'a str,
        }
        let mut head = b"data: ".to_vec();
        let fields = Head {
            id: &envelope.id,
            object,
            created: envelope.created,
            model: &envelope.model,
        };
        write_json(&mut head, &fields);
        // The object stays open for what differs.
        head.pop();
        head.extend_from_slice(b",\"choices\":[");
        Frames { head, options }
    }

    /// A chunk of one choice.
    pub(super) fn chunk(&self, out: &mut BytesMut, choice: &impl Serialize, meter: &UsageMeter) {
        out.put_slice(&self.head);
        write_json(&mut out.writer(), choice);
        if self.options.continuous_usage_stats {
            out.put_slice(b"],\"usage\":");
            write_json(&mut out.writer(), &meter.so_far());
            out.put_slice(b"}\n\n");
        } else if self.options.include_usage {
            out.put_slice(b"],\"usage\":null}\n\n");
        } else {
            out.put_slice(b"]}\n\n");
        }
    }

    /// The chunk without choices that reports the usage, where it was asked for.
    pub(super) fn usage(&self, out: &mut BytesMut, meter: &UsageMeter) {
        if self.options.include_usage {
            out.put_slice(&self.head);
            out.put_slice(b"],\"usage\":");
            write_json(&mut out.writer(), &meter.total());
            out.put_slice(b"}\n\n");
        }
    }
}

fn write_data(out: &mut BytesMut, value: &impl Serialize) {
    out.put_slice(b"data: ");
    write_json(&mut out.writer(), value);
    out.put_slice(b"\n\n");
}

/// JSON escapes line breaks inside strings, so that what is written is always one line.
fn write_json(out: &mut impl std::io::Write, value: &impl Serialize) {
    // Memory does not fail, and these types have no keys that JSON cannot write.
    serde_json::to_writer(out, value).expect("an answer serialises");
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use futures::StreamExt as _;

    /// All that a client would receive, split into events.
    pub(in super::super) async fn received(
        first: Event,
        rest: Vec<Result<Event, RequestError>>,
        chunks: impl Chunks,
    ) -> Vec<String> {
        let response = response(first, Box::pin(futures::stream::iter(rest)), chunks);
        assert_eq!(
            response.headers()["content-type"],
            "text/event-stream; charset=utf-8"
        );
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX)
            .await
            .unwrap();
        split(std::str::from_utf8(&bytes).unwrap())
    }

    /// Undoes the framing, as a strict client would.
    fn split(text: &str) -> Vec<String> {
        assert!(text.ends_with("\n\n"), "{text:?}");
        let events = text.trim_end_matches("\n\n").split("\n\n");
        events
            .map(|event| {
                assert!(!event.contains('\n'), "{event:?}");
                event
                    .strip_prefix("data: ")
                    .expect("only data lines")
                    .to_owned()
            })
            .collect()
    }

    /// One chunk with the event's text.
    struct Plain(Frames, UsageMeter);

    impl Chunks for Plain {
        fn event(&mut self, event: &Event, out: &mut BytesMut) {
            self.0.chunk(out, &event.text, &self.1);
        }
        fn end(&mut self, _: &mut BytesMut) -> Result<(), RequestError> {
            Ok(())
        }
    }

    fn plain() -> Plain {
        let envelope = Envelope {
            id: "x".into(),
            created: 1,
            model: "a\"b".into(),
        };
        Plain(
            Frames::new(&envelope, "o", StreamOptions::default()),
            UsageMeter::new(1, 1),
        )
    }

    fn text(text: &str) -> Event {
        Event {
            text: text.into(),
            ..Event::default()
        }
    }

    #[tokio::test]
    async fn an_error_replaces_the_end() {
        let failed = Err(RequestError::Unavailable {
            message: "no workers".into(),
        });
        let events = received(text("a"), vec![Ok(text("b")), failed], plain()).await;
        assert_eq!(events.len(), 3);
        assert_eq!(
            events[0],
            r#"{"id":"x","object":"o","created":1,"model":"a\"b","choices":["a"]}"#
        );
        assert_eq!(
            events[2],
            r#"{"error":{"message":"no workers","type":"server_error","param":null,"code":"service_unavailable"}}"#
        );
    }

    #[tokio::test]
    async fn pieces_flow_while_events_are_awaited() {
        let (sender, receiver) = futures::channel::mpsc::unbounded();
        let mut stream = SseStream {
            first: Some(text("a")),
            rest: Some(Box::pin(receiver)),
            chunks: plain(),
            buffer: BytesMut::new(),
        };
        let piece = stream.next().await.unwrap().unwrap();
        assert!(piece.starts_with(b"data: {"));
        for _ in 0..3 {
            sender.unbounded_send(Ok(text("b"))).unwrap();
        }
        let piece = stream.next().await.unwrap().unwrap();
        assert_eq!(split(std::str::from_utf8(&piece).unwrap()).len(), 3);
        assert!(futures::poll!(stream.next()).is_pending());
        drop(sender);
        assert_eq!(
            &stream.next().await.unwrap().unwrap()[..],
            b"data: [DONE]\n\n"
        );
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn a_client_that_goes_away_drops_the_events() {
        let (sender, receiver) = futures::channel::mpsc::unbounded();
        let response = response(text("a"), Box::pin(receiver), plain());
        assert!(!sender.is_closed());
        drop(response);
        assert!(sender.is_closed());
    }

    proptest::proptest! {
        #[test]
        fn any_text_survives_the_framing(texts: Vec<String>) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let rest = texts.iter().map(|it| Ok(text(it))).collect();
            let events = runtime.block_on(received(text("first"), rest, plain()));
            assert_eq!(events.len(), texts.len() + 2);
            for (event, expected) in events[1..].iter().zip(&texts) {
                let event: serde_json::Value = serde_json::from_str(event).unwrap();
                assert_eq!(&event["choices"][0], expected.as_str());
            }
            assert_eq!(events.last().unwrap(), "[DONE]");
        }
    }
}
