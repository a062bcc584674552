//! `millrace.inference.v1`, health and reflection.

use std::sync::atomic::Ordering;
use std::time::Duration;

use millrace_proto::inference::v1::generate_request::Prompt;
use millrace_proto::inference::v1::inference_client::InferenceClient;
use millrace_proto::inference::v1::tokenize_request::Input;
use millrace_proto::inference::v1::{
    ChatMessage, ChatRequest, DetokenizeRequest, FinishReason, GenerateRequest, ListModelsRequest,
    SamplingParams, TokenIds, TokenizeRequest,
};
use millrace_router::edges::grpc::GrpcOptions;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_types::StatusExt;

use super::common::worker::Worker;
use super::common::{Router, limits, one_at_a_time, read_tokens, request};
use super::{Grpc, SCRIPT, tokens_of, with_script, with_script_up_to};

fn generate(max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::Tokens(TokenIds { ids: vec![5, 6, 7] })),
        sampling: Some(SamplingParams {
            max_tokens: Some(max_tokens as u32),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn chat() -> ChatRequest {
    let message = ChatMessage {
        role: "user".into(),
        content: "What is 12 + 30?".into(),
        ..Default::default()
    };
    ChatRequest {
        messages: vec![message],
        ..Default::default()
    }
}

#[tokio::test]
async fn a_completion() {
    let (router, _worker) = with_script().await;
    let grpc = Grpc::start(&router).await;
    let mut client = InferenceClient::new(grpc.channel.clone());
    let mut asked = Request::new(generate(tokens_of("It is")));
    asked
        .metadata_mut()
        .insert("x-request-id", "trace-1".parse().unwrap());
    let response = client.generate(asked).await.unwrap();
    assert_eq!(response.metadata().get("x-request-id").unwrap(), "trace-1");
    let mut stream = response.into_inner();
    let (mut text, mut tokens, mut finish) = (String::new(), 0, None);
    while let Some(step) = stream.message().await.unwrap() {
        assert_eq!(step.request_id, "trace-1");
        text.push_str(&step.text);
        tokens += step.token_ids.len();
        finish = finish.or(step.finish);
    }
    assert_eq!(text, "It is");
    let finish = finish.unwrap();
    assert_eq!(finish.reason(), FinishReason::Length);
    let usage = finish.usage.unwrap();
    assert_eq!(
        (
            usage.prompt_tokens,
            usage.completion_tokens as usize,
            usage.cached_tokens
        ),
        (3, tokens, 3)
    );
}

#[tokio::test]
async fn a_chat() {
    let (router, _worker) = with_script().await;
    let grpc = Grpc::start(&router).await;
    let mut client = InferenceClient::new(grpc.channel.clone());
    let max_tokens = Some(tokens_of("It is easy.\n</think>\n\n42") as u32);
    let asked = ChatRequest {
        sampling: Some(SamplingParams {
            max_tokens,
            ..Default::default()
        }),
        ..chat()
    };
    let mut stream = client.chat(asked).await.unwrap().into_inner();
    let (mut content, mut reasoning) = (String::new(), String::new());
    while let Some(step) = stream.message().await.unwrap() {
        content.push_str(&step.content);
        reasoning.push_str(&step.reasoning_content);
    }
    assert_eq!(content.trim(), "42");
    assert!(reasoning.starts_with("It is easy."));
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_request() {
    let (router, worker) = with_script_up_to(2).await;
    let grpc = Grpc::start(&router).await;
    let mut client = InferenceClient::new(grpc.channel.clone());
    let mut stream = client.generate(generate(50)).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    drop(stream);
    worker.until_idle().await;
    assert_eq!(worker.control.cancelled.load(Ordering::SeqCst), 1);
}

async fn refused(
    client: &mut InferenceClient<tonic::transport::Channel>,
    asked: GenerateRequest,
) -> Status {
    match client.generate(asked).await {
        Err(status) => status,
        Ok(response) => {
            let mut stream = response.into_inner();
            loop {
                match stream.message().await {
                    Ok(step) => assert!(step.is_some(), "the stream ended well"),
                    Err(status) => return status,
                }
            }
        }
    }
}

#[tokio::test]
async fn errors_have_details() {
    let router = Router::start(one_at_a_time(0)).await;
    let worker = Worker::decode_with(&router, "d0", 1).await;
    let grpc = Grpc::start_with(
        &router,
        GrpcOptions {
            message_limit: 10_000,
            ..Default::default()
        },
    )
    .await;
    let mut client = InferenceClient::new(grpc.channel.clone());

    let sampling = Some(SamplingParams {
        temperature: Some(-1.0),
        ..Default::default()
    });
    let status = refused(
        &mut client,
        GenerateRequest {
            sampling,
            ..generate(1)
        },
    )
    .await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(
        status.get_details_bad_request().unwrap().field_violations[0].field,
        "temperature"
    );
    assert_eq!(
        status.get_details_error_info().unwrap().reason,
        "INVALID_REQUEST"
    );

    let status = refused(
        &mut client,
        GenerateRequest {
            model: "gpt-9".into(),
            ..generate(1)
        },
    )
    .await;
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(
        status.get_details_error_info().unwrap().metadata["served"],
        "tiny-r1"
    );

    let mut running = router.complete(request(&[1, 2], 100)).await.unwrap();
    read_tokens(&mut running, 1).await;
    let status = refused(&mut client, generate(1)).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(
        status
            .get_details_retry_info()
            .unwrap()
            .retry_delay
            .unwrap()
            > Duration::ZERO
    );
    drop(running);
    worker.until_idle().await;

    let too_large = GenerateRequest {
        prompt: Some(Prompt::Text("x".repeat(20_000))),
        ..generate(1)
    };
    let status = refused(&mut client, too_large).await;
    assert!(
        matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted),
        "{status:?}"
    );
}

#[tokio::test]
async fn a_clients_deadline_ends_its_request() {
    let (router, worker) = with_script_up_to(2).await;
    let grpc = Grpc::start(&router).await;
    let mut client = InferenceClient::new(grpc.channel.clone());
    // Without set_timeout, which would let the client give up by itself.
    let mut asked = Request::new(generate(50));
    asked
        .metadata_mut()
        .insert("grpc-timeout", "1000m".parse().unwrap());
    let mut stream = client.generate(asked).await.unwrap().into_inner();
    let status = loop {
        match stream.message().await {
            Ok(step) => assert!(step.is_some(), "the stream ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded);
    worker.until_idle().await;
}

#[tokio::test]
async fn tokens_and_models() {
    let router = Router::start(limits()).await;
    let grpc = Grpc::start(&router).await;
    let mut client = InferenceClient::new(grpc.channel.clone());
    let input = Some(Input::Text(SCRIPT.into()));
    let asked = TokenizeRequest {
        input,
        add_special_tokens: Some(false),
        ..Default::default()
    };
    let tokens = client.tokenize(asked).await.unwrap().into_inner();
    assert_eq!(tokens.max_model_len, 4096);
    let asked = DetokenizeRequest {
        model: String::new(),
        token_ids: tokens.token_ids,
    };
    assert_eq!(
        client.detokenize(asked).await.unwrap().into_inner().text,
        SCRIPT
    );
    let asked = TokenizeRequest {
        input: Some(Input::Chat(chat())),
        ..Default::default()
    };
    assert!(
        !client
            .tokenize(asked)
            .await
            .unwrap()
            .into_inner()
            .token_ids
            .is_empty()
    );
    let models = client
        .list_models(ListModelsRequest {})
        .await
        .unwrap()
        .into_inner()
        .models;
    assert_eq!((models[0].id.as_str(), models[0].ready), ("tiny-r1", false));
    assert_eq!(models[0].architecture, "DeepseekV3ForCausalLM");
}

#[tokio::test]
async fn health_follows_readiness() {
    let router = Router::start(limits()).await;
    let grpc = Grpc::start(&router).await;
    let mut client = HealthClient::new(grpc.channel.clone());
    let asked = |service: &str| HealthCheckRequest {
        service: service.into(),
    };
    let names = [
        "",
        "millrace.inference.v1.Inference",
        "inference.GRPCInferenceService",
    ];
    for name in names {
        let status = client
            .check(asked(name))
            .await
            .unwrap()
            .into_inner()
            .status();
        assert_eq!(status, ServingStatus::NotServing);
    }
    let mut watched = client.watch(asked(names[1])).await.unwrap().into_inner();
    assert_eq!(
        watched.message().await.unwrap().unwrap().status(),
        ServingStatus::NotServing
    );
    let _worker = Worker::decode(&router, "d0").await;
    assert_eq!(
        watched.message().await.unwrap().unwrap().status(),
        ServingStatus::Serving
    );
    for name in names {
        let status = client
            .check(asked(name))
            .await
            .unwrap()
            .into_inner()
            .status();
        assert_eq!(status, ServingStatus::Serving);
    }
    assert_eq!(
        client.check(asked("nothing")).await.unwrap_err().code(),
        Code::NotFound
    );
    let mut unknown = client.watch(asked("nothing")).await.unwrap().into_inner();
    assert_eq!(
        unknown.message().await.unwrap().unwrap().status(),
        ServingStatus::ServiceUnknown
    );
}

#[tokio::test]
async fn reflection_names_the_public_services() {
    let router = Router::start(limits()).await;
    let grpc = Grpc::start(&router).await;
    let mut client = ServerReflectionClient::new(grpc.channel.clone());
    let asked = |message| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(message),
    };
    let requests = [
        asked(MessageRequest::ListServices(String::new())),
        asked(MessageRequest::FileContainingSymbol(
            "millrace.inference.v1.Inference".into(),
        )),
    ];
    let stream = client
        .server_reflection_info(futures::stream::iter(requests))
        .await
        .unwrap();
    let mut answers = stream.into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services");
    };
    let mut names: Vec<String> = list.service.into_iter().map(|it| it.name).collect();
    names.sort();
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "inference.GRPCInferenceService",
        "millrace.inference.v1.Inference",
    ];
    assert_eq!(names, expected);
    let file = answers.message().await.unwrap().unwrap().message_response;
    assert!(matches!(
        file,
        Some(MessageResponse::FileDescriptorResponse(_))
    ));
}
