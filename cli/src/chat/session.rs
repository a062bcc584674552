//! A conversation: the connection and what was said so far.

use millrace_proto::inference::v1::{
    ChatMessage, ChatRequest, SamplingParams, inference_client::InferenceClient,
};
use tonic::Status;

use super::{
    ChatArgs, View,
    answer::{self, Answer, AnswerError},
};
use crate::client::{self, Authorized, GrpcError};

#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    #[error(transparent)]
    Router(#[from] GrpcError),
    #[error("the answer could not be printed: {0}")]
    Output(std::io::Error),
}

pub struct Session {
    client: InferenceClient<Authorized>,
    grpc: String,
    model: String,
    sampling: SamplingParams,
    system: Option<String>,
    history: Vec<ChatMessage>,
}

impl Session {
    /// # Errors
    /// Nothing listens there, or not as it was told to speak.
    pub async fn connect(args: &ChatArgs) -> Result<Session, ChatError> {
        let channel = client::connect(&args.grpc, &args.client).await?;
        let mut session = Session {
            client: InferenceClient::new(channel),
            grpc: args.grpc.clone(),
            model: args.model.clone(),
            sampling: super::sampling(args),
            system: args.system.clone(),
            history: Vec::new(),
        };
        session.reset();
        Ok(session)
    }

    /// Forgets everything but the system message.
    pub fn reset(&mut self) {
        self.history = self
            .system
            .iter()
            .map(|text| message("system", text))
            .collect();
    }

    /// Asks, and prints the answer as it comes. A turn that was cancelled or failed is forgotten: the
    /// next question must not be read as a continuation of half an answer.
    pub async fn ask(&mut self, question: &str, view: View) -> Result<Answer, ChatError> {
        let turn = self.history.len();
        self.history.push(message("user", question));
        let answered = self.answer(view).await;
        match &answered {
            Ok((Answer::Complete, text)) => self.history.push(message("assistant", text)),
            _ => self.history.truncate(turn),
        }
        answered.map(|(answer, _)| answer)
    }

    async fn answer(&mut self, view: View) -> Result<(Answer, String), ChatError> {
        let request = ChatRequest {
            model: self.model.clone(),
            messages: self.history.clone(),
            sampling: Some(self.sampling.clone()),
            ..ChatRequest::default()
        };
        // Also while the request waits for its turn, Ctrl-C gives up on it.
        let stream = tokio::select! {
            answered = self.client.chat(request) => answered.map_err(|status| self.error(status))?,
            _ = tokio::signal::ctrl_c() => return Ok((Answer::Cancelled, String::new())),
        };
        answer::print(stream.into_inner(), view)
            .await
            .map_err(|error| match error {
                AnswerError::Stream(status) => self.error(status),
                AnswerError::Output(source) => ChatError::Output(source),
            })
    }

    fn error(&self, status: Status) -> ChatError {
        client::explain(&self.grpc, status).into()
    }
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage {
        role: role.into(),
        content: content.into(),
        reasoning_content: String::new(),
    }
}
