//! `ModelStreamInfer`: many requests on one stream, answered as they get on, each with its id.
//!
//! A request that fails is answered with an `error_message` and the stream goes on, as Triton's does.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::stream::{BoxStream, SelectAll};
use futures::{Stream, StreamExt as _};
use millrace_proto::kserve::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};
use tonic::Status;

use super::answer::{Answer, Head, final_mark};
use super::error::InferError;

/// All responses to one request.
pub(super) type Responses = BoxStream<'static, ModelStreamInferResponse>;

/// Takes requests in as they come and gives their responses out as they come. Dropping it cancels
/// them all.
pub(super) struct Multiplexer<S, F> {
    /// `None` once the client has sent its last.
    requests: Option<S>,
    respond: F,
    active: SelectAll<Responses>,
    /// With this many requests under way, more wait unread, which holds the client back.
    limit: usize,
}

impl<S, F> Multiplexer<S, F>
where
    S: Stream<Item = Result<ModelInferRequest, Status>> + Unpin,
    F: FnMut(ModelInferRequest) -> Responses,
{
    pub(super) fn new(requests: S, limit: usize, respond: F) -> Multiplexer<S, F> {
        Multiplexer {
            requests: Some(requests),
            respond,
            active: SelectAll::new(),
            limit: limit.max(1),
        }
    }

    /// Reads requests until there are none, or too many.
    fn take_in(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        while self.active.len() < self.limit
            && let Some(requests) = &mut self.requests
        {
            match requests.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(request))) => self.active.push((self.respond)(request)),
                Poll::Ready(Some(Err(status))) => {
                    self.requests = None;
                    return Err(status);
                }
                Poll::Ready(None) => self.requests = None,
                Poll::Pending => break,
            }
        }
        Ok(())
    }
}

impl<S, F> Stream for Multiplexer<S, F>
where
    S: Stream<Item = Result<ModelInferRequest, Status>> + Unpin,
    F: FnMut(ModelInferRequest) -> Responses + Unpin,
{
    type Item = Result<ModelStreamInferResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Err(status) = this.take_in(cx) {
                return Poll::Ready(Some(Err(status)));
            }
            let full = this.active.len() >= this.limit;
            match this.active.poll_next_unpin(cx) {
                Poll::Ready(Some(response)) => return Poll::Ready(Some(Ok(response))),
                Poll::Ready(None) if this.requests.is_none() => return Poll::Ready(None),
                // Requests have ended just now, so that others may be read; nobody else would wake us for them.
                Poll::Ready(None) | Poll::Pending if full && this.active.len() < this.limit => {}
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// The responses of an answer, one a step or (`whole`) one in all.
pub(super) fn steps(answer: Answer, whole: bool, head: Head) -> Responses {
    if whole {
        return futures::stream::once(async move {
            match answer.whole().await {
                Ok(response) => mark(response, true),
                Err(error) => failure(head, &error.into()),
            }
        })
        .boxed();
    }
    futures::stream::unfold(Some((answer, head)), |state| async move {
        let (mut answer, head) = state?;
        match answer.next().await? {
            Ok(response) => {
                let last = answer.complete();
                Some((mark(response, last), Some((answer, head))))
            }
            Err(error) => Some((failure(head, &error.into()), None)),
        }
    })
    .boxed()
}

fn mark(mut response: ModelInferResponse, last: bool) -> ModelStreamInferResponse {
    response.parameters = final_mark(last);
    ModelStreamInferResponse {
        error_message: String::new(),
        infer_response: Some(response),
    }
}

/// The one response to a request that failed: what went wrong, and whose it is.
pub(super) fn failure(head: Head, error: &InferError) -> ModelStreamInferResponse {
    let Head { model, version, id } = head;
    let response = ModelInferResponse {
        model_name: model,
        model_version: version,
        id,
        parameters: final_mark(true),
        ..Default::default()
    };
    ModelStreamInferResponse {
        error_message: error.to_string(),
        infer_response: Some(response),
    }
}

#[cfg(test)]
mod tests {
    use super::super::answer::tests::{answer, finish, text};
    use super::super::request::Outputs;
    use super::*;
    use crate::api::RequestError;
    use futures::channel::mpsc;

    fn ids(responses: &[Result<ModelStreamInferResponse, Status>]) -> Vec<String> {
        responses
            .iter()
            .map(|it| {
                it.as_ref()
                    .unwrap()
                    .infer_response
                    .as_ref()
                    .unwrap()
                    .id
                    .clone()
            })
            .collect()
    }

    fn request(id: &str) -> Result<ModelInferRequest, Status> {
        Ok(ModelInferRequest {
            id: id.into(),
            ..Default::default()
        })
    }

    /// Two responses a request.
    fn twice(request: ModelInferRequest) -> Responses {
        let one = failure(
            Head {
                id: request.id,
                ..Head::default()
            },
            &InferError::NoPrompt,
        );
        futures::stream::iter([one.clone(), one]).boxed()
    }

    #[tokio::test]
    async fn every_request_is_answered_however_few_run_at_once() {
        for limit in [1, 2, 10] {
            let requests = futures::stream::iter(["a", "b", "c"].map(request));
            let responses: Vec<_> = Multiplexer::new(requests, limit, twice).collect().await;
            let mut ids = ids(&responses);
            ids.sort();
            assert_eq!(ids, ["a", "a", "b", "b", "c", "c"]);
        }
    }

    #[tokio::test]
    async fn a_stream_outlives_its_quiet_times() {
        let (sender, requests) = mpsc::unbounded();
        let mut responses = Multiplexer::new(requests, 1, twice);
        assert!(futures::poll!(responses.next()).is_pending());
        for id in ["a", "b"] {
            sender.unbounded_send(request(id)).unwrap();
            for _ in 0..2 {
                assert_eq!(ids(&[responses.next().await.unwrap()]), [id]);
            }
            assert!(futures::poll!(responses.next()).is_pending());
        }
        drop(sender);
        assert!(responses.next().await.is_none());
    }

    #[tokio::test]
    async fn a_broken_stream_ends() {
        let requests = futures::stream::iter([request("a"), Err(Status::cancelled("gone"))]);
        let responses: Vec<_> = Multiplexer::new(requests, 2, twice).collect().await;
        assert!(
            responses
                .iter()
                .any(|it| it.as_ref().is_err_and(|status| status.message() == "gone"))
        );
    }

    fn marks(responses: &[ModelStreamInferResponse]) -> Vec<(bool, String)> {
        let last = |it: &ModelStreamInferResponse| {
            it.infer_response.as_ref().unwrap().parameters == final_mark(true)
        };
        responses
            .iter()
            .map(|it| (last(it), it.error_message.clone()))
            .collect()
    }

    #[tokio::test]
    async fn the_last_response_is_marked() {
        let outputs = Outputs {
            text: true,
            ..Outputs::default()
        };
        let steps_of = |events, whole| {
            steps(answer(events, outputs, 1), whole, Head::default()).collect::<Vec<_>>()
        };
        let none = String::new;
        let responses = steps_of(vec![text(0, "a"), finish(0)], false).await;
        assert_eq!(marks(&responses), [(false, none()), (true, none())]);
        let responses = steps_of(vec![text(0, "a"), finish(0)], true).await;
        assert_eq!(marks(&responses), [(true, none())]);
        let failed = || {
            Err(RequestError::Unavailable {
                message: "no workers".into(),
            })
        };
        let responses = steps_of(vec![text(0, "a"), failed(), text(0, "b")], false).await;
        assert_eq!(
            marks(&responses),
            [(false, none()), (true, "no workers".into())]
        );
        assert_eq!(
            marks(&steps_of(vec![failed()], true).await),
            [(true, "no workers".into())]
        );
    }
}
