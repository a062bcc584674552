use super::*;
use millrace_proto::kserve::infer_parameter::ParameterChoice;
use millrace_proto::kserve::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use millrace_proto::kserve::{InferParameter, InferTensorContents};
use proptest::prelude::*;
use tonic::metadata::MetadataMap;

fn caller() -> Caller {
    Caller::of(&MetadataMap::new())
}

fn input(name: &str, datatype: &str, contents: InferTensorContents) -> InferInputTensor {
    InferInputTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: vec![1],
        contents: Some(contents),
        ..Default::default()
    }
}

fn text(name: &str, value: &str) -> InferInputTensor {
    input(
        name,
        "BYTES",
        InferTensorContents {
            bytes_contents: vec![value.into()],
            ..Default::default()
        },
    )
}

fn flag(name: &str, value: bool) -> InferInputTensor {
    input(
        name,
        "BOOL",
        InferTensorContents {
            bool_contents: vec![value],
            ..Default::default()
        },
    )
}

fn request(inputs: Vec<InferInputTensor>) -> ModelInferRequest {
    ModelInferRequest {
        model_name: "tiny-r1".into(),
        id: "7".into(),
        inputs,
        ..Default::default()
    }
}

fn refused(request: &ModelInferRequest, rpc: Rpc) -> String {
    let status = read(request, &caller(), rpc).unwrap_err().into_status();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    status.message().to_owned()
}

#[test]
fn text_and_parameters() {
    let mut wire = request(vec![
        text("text_input", "hi"),
        text("sampling_parameters", r#"{"temperature":"0.5"}"#),
    ]);
    let parameter = |choice| InferParameter {
        parameter_choice: Some(choice),
    };
    wire.parameters.insert(
        "max_tokens".into(),
        parameter(ParameterChoice::Int64Param(9)),
    );
    wire.parameters.insert(
        "temperature".into(),
        parameter(ParameterChoice::DoubleParam(0.1)),
    );
    wire.parameters.insert(
        "timeout".into(),
        parameter(ParameterChoice::Int64Param(1_000_000)),
    );
    wire.parameters.insert(
        "priority".into(),
        parameter(ParameterChoice::Uint64Param(1)),
    );
    let infer = read(&wire, &caller(), Rpc::Unary).unwrap();
    assert_eq!(infer.request.prompt, Prompt::Text("hi".into()));
    assert_eq!(infer.request.options.request_id, "7");
    assert!(infer.request.options.deadline.is_some() && infer.request.echo && !infer.stream);
    // The tensor wins over the map.
    assert_eq!(infer.request.sampling.temperature, Some(0.5));
    assert_eq!(infer.request.sampling.max_tokens, Some(9));
    assert_eq!(infer.request.default_max_tokens, Some(16));
    let expected = Outputs {
        text: true,
        token_ids: true,
        finish_reason: true,
        ..Outputs::default()
    };
    assert_eq!((infer.choices, infer.outputs), (1, expected));
}

#[test]
fn streams_leave_the_prompt_out() {
    let streamed = |exclude: Option<bool>| {
        let mut inputs = vec![text("text_input", "hi"), flag("stream", true)];
        inputs.extend(exclude.map(|it| flag("exclude_input_in_output", it)));
        request(inputs)
    };
    assert!(
        !read(&streamed(None), &caller(), Rpc::Stream)
            .unwrap()
            .request
            .echo
    );
    assert!(
        !read(&streamed(Some(true)), &caller(), Rpc::Stream)
            .unwrap()
            .request
            .echo
    );
    assert!(refused(&streamed(Some(false)), Rpc::Stream).contains("cannot be false"));
    assert!(refused(&streamed(None), Rpc::Unary).contains("ModelStreamInfer"));
    let whole = request(vec![
        text("text_input", "hi"),
        flag("exclude_input_in_output", true),
    ]);
    assert!(!read(&whole, &caller(), Rpc::Unary).unwrap().request.echo);
}

#[test]
fn outputs_by_name_and_by_flag() {
    let mut wire = request(vec![
        text("text_input", "hi"),
        flag("return_num_output_tokens", true),
    ]);
    let output = |name: &str| InferRequestedOutputTensor {
        name: name.into(),
        ..Default::default()
    };
    wire.outputs = vec![output("text_output")];
    let expected = Outputs {
        text: true,
        num_output_tokens: true,
        ..Outputs::default()
    };
    assert_eq!(
        read(&wire, &caller(), Rpc::Unary).unwrap().outputs,
        expected
    );
    wire.outputs = vec![output("logits")];
    assert!(refused(&wire, Rpc::Unary).contains("`logits`"));
    wire.outputs = vec![output("token_ids")];
    wire.inputs.push(text("sampling_parameters", r#"{"n":2}"#));
    assert!(refused(&wire, Rpc::Unary).contains("`n` is 2"));
}

#[test]
fn what_is_wrong_is_named() {
    assert!(refused(&request(vec![]), Rpc::Unary).contains("no prompt"));
    assert!(
        refused(
            &request(vec![text("text_input", "a"), text("text_input", "b")]),
            Rpc::Unary
        )
        .contains("twice")
    );
    assert!(
        refused(
            &request(vec![text("text_input", "a"), text("txet", "b")]),
            Rpc::Unary
        )
        .contains("`txet`")
    );
    assert!(
        refused(
            &request(vec![text("text_input", "a"), text("image", "b")]),
            Rpc::Unary
        )
        .contains("not supported")
    );
    assert!(
        refused(
            &request(vec![
                text("text_input", "a"),
                text("sampling_parameters", "[]")
            ]),
            Rpc::Unary
        )
        .contains("JSON object")
    );
    let mut wire = request(vec![text("text_input", "a")]);
    wire.raw_input_contents = vec![vec![], vec![]];
    assert!(refused(&wire, Rpc::Unary).contains("2 raw_input_contents for 1 inputs"));
    wire.raw_input_contents = vec![b"\x01\0\0\0a".to_vec()];
    assert!(refused(&wire, Rpc::Unary).contains("`contents` beside raw_input_contents"));
    let mut wire = request(vec![text("text_input", "a")]);
    let parameter = InferParameter {
        parameter_choice: Some(ParameterChoice::Int64Param(3)),
    };
    wire.parameters.insert("sequence_id".into(), parameter);
    assert!(refused(&wire, Rpc::Unary).contains("sequences are not supported"));
}

fn arbitrary_input() -> impl Strategy<Value = (InferInputTensor, Vec<u8>)> {
    let name = prop::sample::select(vec![
        "text_input",
        "input_ids",
        "stream",
        "sampling_parameters",
        "other",
    ]);
    let datatype = prop::sample::select(vec!["BYTES", "BOOL", "INT32", "INT64", ""]);
    let shape = prop::collection::vec(prop_oneof![Just(1_i64), any::<i64>()], 0..3);
    (name, datatype, shape, any::<Vec<u8>>(), any::<bool>()).prop_map(
        |(name, datatype, shape, raw, typed)| {
            let contents = typed.then(|| InferTensorContents {
                bytes_contents: vec![raw.clone()],
                ..Default::default()
            });
            (
                InferInputTensor {
                    name: name.into(),
                    datatype: datatype.into(),
                    shape,
                    contents,
                    ..Default::default()
                },
                raw,
            )
        },
    )
}

proptest! {
    #[test]
    fn any_request_is_read_or_refused(inputs in prop::collection::vec(arbitrary_input(), 0..4), with_raw: bool) {
        let (inputs, raw): (Vec<_>, Vec<_>) = inputs.into_iter().unzip();
        let mut wire = request(inputs);
        if with_raw {
            wire.raw_input_contents = raw;
        }
        let _ = read(&wire, &caller(), Rpc::Stream).map_err(InferError::into_status);
    }
}
