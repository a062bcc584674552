//! KServe v2, as Triton's clients speak it.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use millrace_proto::kserve::grpc_inference_service_client::GrpcInferenceServiceClient;
use millrace_proto::kserve::infer_parameter::ParameterChoice;
use millrace_proto::kserve::model_infer_request::InferInputTensor;
use millrace_proto::kserve::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse,
    ModelMetadataRequest, ModelReadyRequest, ServerLiveRequest, ServerMetadataRequest,
    ServerReadyRequest,
};
use millrace_router::edges::grpc::GrpcOptions;
use tonic::Code;

use super::common::{Router, limits, model};
use super::{Grpc, tokens_of, with_script, with_script_up_to};

/// A tensor with raw contents, as tritonclient sends it.
fn add_raw(
    request: &mut ModelInferRequest,
    name: &str,
    datatype: &str,
    shape: &[i64],
    raw: Vec<u8>,
) {
    let tensor = InferInputTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: shape.to_vec(),
        ..Default::default()
    };
    request.inputs.push(tensor);
    request.raw_input_contents.push(raw);
}

fn bytes(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// A completion of "x" of at most `max_tokens` tokens.
fn infer(id: &str, max_tokens: usize, stream: bool) -> ModelInferRequest {
    let mut request = ModelInferRequest {
        model_name: "tiny-r1".into(),
        id: id.into(),
        ..Default::default()
    };
    add_raw(&mut request, "text_input", "BYTES", &[1], bytes("x"));
    let sampling = format!(r#"{{"max_tokens": "{max_tokens}", "temperature": 0}}"#);
    add_raw(
        &mut request,
        "sampling_parameters",
        "BYTES",
        &[1],
        bytes(&sampling),
    );
    add_raw(
        &mut request,
        "exclude_input_in_output",
        "BOOL",
        &[1],
        vec![1],
    );
    if stream {
        add_raw(&mut request, "stream", "BOOL", &[1], vec![1]);
    }
    request
}

fn raw<'a>(response: &'a ModelInferResponse, name: &str) -> &'a [u8] {
    let at = response
        .outputs
        .iter()
        .position(|it| it.name == name)
        .unwrap();
    &response.raw_output_contents[at]
}

#[tokio::test]
async fn what_there_is() {
    let (router, _worker) = with_script().await;
    let grpc = Grpc::start(&router).await;
    let mut client = GrpcInferenceServiceClient::new(grpc.channel.clone());
    assert!(
        client
            .server_live(ServerLiveRequest {})
            .await
            .unwrap()
            .into_inner()
            .live
    );
    assert!(
        client
            .server_ready(ServerReadyRequest {})
            .await
            .unwrap()
            .into_inner()
            .ready
    );
    let revision = &model().revision;
    for (name, version, ready) in [
        ("tiny-r1", "", true),
        ("tiny-r1", revision, true),
        ("tiny-r1", "9", false),
        ("gpt", "", false),
    ] {
        let asked = ModelReadyRequest {
            name: name.into(),
            version: version.into(),
        };
        assert_eq!(
            client.model_ready(asked).await.unwrap().into_inner().ready,
            ready,
            "{name} {version}"
        );
    }
    let server = client
        .server_metadata(ServerMetadataRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (server.name.as_str(), server.extensions),
        ("millrace", vec!["parameters".to_owned()])
    );
    let asked = ModelMetadataRequest {
        name: "tiny-r1".into(),
        version: String::new(),
    };
    let metadata = client.model_metadata(asked).await.unwrap().into_inner();
    assert_eq!(metadata.versions, [revision.as_str()]);
    let text = &metadata.inputs[0];
    assert_eq!(
        (
            text.name.as_str(),
            text.datatype.as_str(),
            text.shape.as_slice()
        ),
        ("text_input", "BYTES", &[1][..])
    );
    let asked = ModelMetadataRequest {
        name: "gpt".into(),
        version: String::new(),
    };
    assert_eq!(
        client.model_metadata(asked).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn an_inference_with_raw_and_with_typed_contents() {
    let (router, worker) = with_script().await;
    let grpc = Grpc::start(&router).await;
    let mut client = GrpcInferenceServiceClient::new(grpc.channel.clone());
    let tokens = tokens_of("It is");
    let response = client
        .model_infer(infer("7", tokens, false))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (response.id.as_str(), response.model_name.as_str()),
        ("7", "tiny-r1")
    );
    assert_eq!(raw(&response, "text_output"), bytes("It is"));
    assert_eq!(raw(&response, "finish_reason"), bytes("length"));
    assert_eq!(raw(&response, "token_ids").len(), tokens * 8);

    let contents = InferTensorContents {
        int64_contents: vec![5, 6],
        ..Default::default()
    };
    let ids = InferInputTensor {
        name: "input_ids".into(),
        datatype: "INT64".into(),
        shape: vec![1, 2],
        contents: Some(contents),
        ..Default::default()
    };
    let max_tokens = InferParameter {
        parameter_choice: Some(ParameterChoice::Int64Param(tokens as i64)),
    };
    let typed = ModelInferRequest {
        model_name: "tiny-r1".into(),
        inputs: vec![ids],
        parameters: HashMap::from([("max_tokens".to_owned(), max_tokens)]),
        ..Default::default()
    };
    let response = client.model_infer(typed).await.unwrap().into_inner();
    // Unless told otherwise, the prompt comes first, as in Triton's backend.
    let text = String::from_utf8_lossy(&raw(&response, "text_output")[4..]);
    assert!(
        text.ends_with("It is") && text.len() > "It is".len(),
        "{text:?}"
    );
    assert_eq!(worker.calls()[1].prompt_token_ids, [5, 6]);
}

#[tokio::test]
async fn what_is_malformed_is_refused() {
    let router = Router::start(limits()).await;
    let grpc = Grpc::start(&router).await;
    let mut client = GrpcInferenceServiceClient::new(grpc.channel.clone());
    let mut cut_off = infer("", 1, false);
    cut_off.raw_input_contents[0].pop();
    let mut mistyped = infer("", 1, false);
    mistyped.inputs[0].datatype = "INT32".into();
    let mut misshapen = infer("", 1, false);
    misshapen.inputs[0].shape = vec![3];
    let mut no_prompt = infer("", 1, false);
    no_prompt.inputs.remove(0);
    no_prompt.raw_input_contents.remove(0);
    for (request, message) in [
        (cut_off, "`text_input`: raw element 0 is cut off"),
        (mistyped, "`text_input`: its datatype is \"INT32\""),
        (misshapen, "`text_input`: its shape [3] must be [1]"),
        (no_prompt, "no prompt"),
        (infer("", 1, true), "`stream` needs ModelStreamInfer"),
        (infer("", 100_000, false), "max_tokens"),
    ] {
        let status = client.model_infer(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(message), "{}", status.message());
    }
    let unknown = ModelInferRequest {
        model_name: "gpt".into(),
        ..infer("", 1, false)
    };
    assert_eq!(
        client.model_infer(unknown).await.unwrap_err().code(),
        Code::NotFound
    );
    let old = ModelInferRequest {
        model_version: "0".into(),
        ..infer("", 1, false)
    };
    assert_eq!(
        client.model_infer(old).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn many_requests_on_one_stream() {
    let (router, _worker) = with_script().await;
    let grpc = Grpc::start_with(
        &router,
        GrpcOptions {
            requests_per_stream: 2,
            ..Default::default()
        },
    )
    .await;
    let mut client = GrpcInferenceServiceClient::new(grpc.channel.clone());
    let tokens = tokens_of("It is");
    let mut broken = infer("broken", tokens, true);
    broken.inputs[0].datatype = "FP32".into();
    let requests = [
        infer("a", tokens, true),
        broken,
        infer("b", tokens, false),
        infer("c", tokens, true),
    ];
    let stream = client
        .model_stream_infer(futures::stream::iter(requests))
        .await
        .unwrap();
    let mut responses = stream.into_inner();
    let mut texts: HashMap<String, String> = HashMap::new();
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut finals = Vec::new();
    while let Some(step) = responses.message().await.unwrap() {
        let response = step.infer_response.unwrap();
        *counts.entry(response.id.clone()).or_default() += 1;
        let last = InferParameter {
            parameter_choice: Some(ParameterChoice::BoolParam(true)),
        };
        if response.parameters["triton_final_response"] == last {
            finals.push(response.id.clone());
        }
        if response.id == "broken" {
            assert!(step.error_message.contains("FP32"));
            continue;
        }
        assert_eq!(step.error_message, "");
        let text = String::from_utf8(raw(&response, "text_output")[4..].to_vec()).unwrap();
        texts.entry(response.id).or_default().push_str(&text);
    }
    assert!(
        ["a", "b", "c"].iter().all(|id| texts[*id] == "It is"),
        "{texts:?}"
    );
    assert!(counts["a"] > 1 && counts["b"] == 1 && counts["broken"] == 1);
    finals.sort();
    assert_eq!(finals, ["a", "b", "broken", "c"]);
}

#[tokio::test]
async fn a_stream_that_breaks_cancels_its_requests() {
    let (router, worker) = with_script_up_to(2).await;
    let grpc = Grpc::start(&router).await;
    let mut client = GrpcInferenceServiceClient::new(grpc.channel.clone());
    let (sender, requests) = futures::channel::mpsc::unbounded();
    sender.unbounded_send(infer("a", 50, true)).unwrap();
    let mut responses = client
        .model_stream_infer(requests)
        .await
        .unwrap()
        .into_inner();
    assert!(responses.message().await.unwrap().is_some());
    drop(responses);
    drop(sender);
    worker.until_idle().await;
    assert_eq!(worker.control.cancelled.load(Ordering::SeqCst), 1);
}
