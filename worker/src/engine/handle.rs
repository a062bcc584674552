//! The async side.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::Sender,
    },
    time::Instant,
};

use tokio::sync::{mpsc, oneshot};

use millrace_engine::{
    Kind, PageRef, Reject, Request, RequestId, SamplingParams, TokenOutput, request::Output,
};

use super::wakeup::Wakeup;

/// What the engine says of one request. `R` is what the worker makes of reserved pages.
#[derive(Debug)]
pub enum RequestEvent<R> {
    /// Its first rows were about to be computed here, at this moment.
    Started(Instant),
    /// Pages are reserved for a peer to fill; answer with [`ActiveRequest::prefilled`].
    Reserved(R),
    /// Page `index` of the sequence will not change while `page` is held.
    PageFinished { index: usize, page: PageRef },
    /// The last event of a `Kind::Prefill` request.
    Prefilled {
        first: TokenOutput,
        draft: Option<u32>,
        cached_tokens: usize,
    },
    /// The last one has `finish` set.
    Output(Output),
    /// The last event: there is no result.
    Failed { message: String },
    /// The last event: the group goes on without this rank. The request can go on at another.
    Evicted,
}

impl<R> RequestEvent<R> {
    fn is_last(&self) -> bool {
        match self {
            RequestEvent::Started(_)
            | RequestEvent::Reserved(_)
            | RequestEvent::PageFinished { .. } => false,
            RequestEvent::Prefilled { .. }
            | RequestEvent::Failed { .. }
            | RequestEvent::Evicted => true,
            RequestEvent::Output(output) => output.finish.is_some(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error(transparent)]
    Rejected(#[from] Reject),
    #[error("this worker is shutting down")]
    Stopped,
    #[error("this rank is no member of its group's epoch now; send the request to one that is")]
    Outside,
}

pub(super) enum Command<R> {
    Submit {
        request: Request,
        events: mpsc::UnboundedSender<RequestEvent<R>>,
        answer: oneshot::Sender<Result<(), SubmitError>>,
    },
    Abort(RequestId),
    Prefilled {
        id: RequestId,
        pages: Vec<PageRef>,
        first: TokenOutput,
        draft: Option<u32>,
    },
    /// What is new is found elsewhere; see [`super::Waker`].
    Wake(Wakeup),
    Stop,
}

/// The way to the thread of all that may have something for it to do. With the last of them it ends,
/// whoever else could still wake it.
struct Line<R>(Sender<Command<R>>);

impl<R> Line<R> {
    fn send(&self, command: Command<R>) -> Result<(), SubmitError> {
        self.0.send(command).map_err(|_| SubmitError::Stopped)
    }
}

impl<R> Drop for Line<R> {
    fn drop(&mut self) {
        let _ = self.send(Command::Stop);
    }
}

/// Submits requests to the engine's thread. Cheap to clone.
pub struct EngineHandle<R> {
    commands: Arc<Line<R>>,
    next_id: Arc<AtomicU64>,
}

impl<R> Clone for EngineHandle<R> {
    fn clone(&self) -> Self {
        EngineHandle {
            commands: self.commands.clone(),
            next_id: self.next_id.clone(),
        }
    }
}

impl<R: Send + 'static> EngineHandle<R> {
    pub(super) fn new(commands: Sender<Command<R>>) -> EngineHandle<R> {
        EngineHandle {
            commands: Arc::new(Line(commands)),
            next_id: Arc::default(),
        }
    }

    /// Hands a request to the engine. `tokens` are the prompt's `prompt_tokens`, followed by what
    /// was generated elsewhere before. Returns once the engine has taken or rejected it, which it
    /// does between two steps.
    pub async fn submit(
        &self,
        tokens: Vec<u32>,
        prompt_tokens: usize,
        sampling: SamplingParams,
        cache_salt: String,
        kind: Kind,
    ) -> Result<ActiveRequest<R>, SubmitError> {
        let id = RequestId(self.next_id.fetch_add(1, Relaxed));
        let request = Request {
            id,
            tokens,
            prompt_tokens,
            sampling,
            cache_salt,
            kind,
        };
        let (sender, events) = mpsc::unbounded_channel();
        let (answer, answered) = oneshot::channel();
        let submit = Command::Submit {
            request,
            events: sender,
            answer,
        };
        self.commands.send(submit)?;
        // From here on the request exists; should this future be dropped, so is the request.
        let active = ActiveRequest {
            id,
            events,
            commands: self.commands.clone(),
            ended: false,
        };
        answered.await.map_err(|_| SubmitError::Stopped)??;
        Ok(active)
    }

    /// Ends every request and the thread. Later submissions get [`SubmitError::Stopped`].
    pub fn stop(&self) {
        // An error says that it has stopped already.
        let _ = self.commands.send(Command::Stop);
    }
}

/// A request that the engine has. Dropping it aborts it, and its pages go back to the pool.
pub struct ActiveRequest<R> {
    id: RequestId,
    events: mpsc::UnboundedReceiver<RequestEvent<R>>,
    commands: Arc<Line<R>>,
    /// The engine has said its last word and forgotten the request.
    ended: bool,
}

impl<R> ActiveRequest<R> {
    /// The next event; `None` if the engine stopped before the last one.
    pub async fn next(&mut self) -> Option<RequestEvent<R>> {
        let event = self.events.recv().await;
        self.ended |= event.as_ref().is_none_or(RequestEvent::is_last);
        event
    }

    /// Gives back the pages of [`RequestEvent::Reserved`], filled, with the token that follows
    /// them. Generation goes on from there.
    pub fn prefilled(&self, pages: Vec<PageRef>, first: TokenOutput, draft: Option<u32>) {
        // If the engine has stopped, `next` says so.
        let _ = self.commands.send(Command::Prefilled {
            id: self.id,
            pages,
            first,
            draft,
        });
    }
}

impl<R> Drop for ActiveRequest<R> {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.commands.send(Command::Abort(self.id));
        }
    }
}
