use super::*;
use proptest::prelude::*;

fn tensor(datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: "x".into(),
        datatype: datatype.into(),
        shape: shape.to_vec(),
        ..Default::default()
    }
}

fn raw<'a>(tensor: &'a InferInputTensor, raw: &'a [u8]) -> Input<'a> {
    Input {
        tensor,
        raw: Some(raw),
    }
}

#[test]
fn raw_text() {
    let one = tensor("BYTES", &[1]);
    assert_eq!(raw(&one, b"\x02\0\0\0hi").text().unwrap(), "hi");
    assert_eq!(
        raw(&tensor("BYTES", &[1, 1]), b"\0\0\0\0").text().unwrap(),
        ""
    );
    let problem = |bytes: &[u8]| raw(&one, bytes).text().unwrap_err();
    assert_eq!(
        problem(b"\x02\0\0"),
        TensorProblem::CutOff { element: 0, at: 0 }
    );
    assert_eq!(
        problem(b"\x03\0\0\0hi"),
        TensorProblem::CutOff { element: 0, at: 0 }
    );
    assert_eq!(
        problem(b"\xff\xff\xff\xffhi"),
        TensorProblem::CutOff { element: 0, at: 0 }
    );
    assert_eq!(
        problem(b"\x01\0\0\0hi"),
        TensorProblem::Trailing { extra: 1 }
    );
    assert_eq!(
        problem(b"\x02\0\0\0h\xff"),
        TensorProblem::NotUtf8 { at: 1 }
    );
    assert_eq!(problem(b""), TensorProblem::CutOff { element: 0, at: 0 });
}

#[test]
fn shapes_and_datatypes() {
    let problem = |datatype: &str, shape: &[i64]| {
        raw(&tensor(datatype, shape), b"\x02\0\0\0hi")
            .text()
            .unwrap_err()
    };
    assert_eq!(
        problem("INT32", &[1]),
        TensorProblem::Datatype {
            got: "INT32".into(),
            expected: "BYTES"
        }
    );
    assert_eq!(
        problem("BYTES", &[2]),
        TensorProblem::Rank {
            shape: vec![2],
            expected: "[1]"
        }
    );
    assert_eq!(problem("BYTES", &[-1]), TensorProblem::Shape(vec![-1]));
    assert_eq!(
        problem("BYTES", &[i64::MAX, i64::MAX]),
        TensorProblem::Shape(vec![i64::MAX, i64::MAX])
    );
    // No dimensions: one element, a scalar.
    assert_eq!(
        raw(&tensor("BYTES", &[]), b"\x02\0\0\0hi").text().unwrap(),
        "hi"
    );
    let ids = |shape: &[i64]| raw(&tensor("INT64", shape), &[0; 8]).token_ids();
    assert_eq!(ids(&[1]).unwrap(), [0]);
    assert_eq!(ids(&[1, 1]).unwrap(), [0]);
    assert!(matches!(ids(&[]).unwrap_err(), TensorProblem::Rank { .. }));
    assert!(matches!(
        ids(&[2, 1]).unwrap_err(),
        TensorProblem::Rank { .. }
    ));
    assert_eq!(
        ids(&[2]).unwrap_err(),
        TensorProblem::Bytes {
            expected: 16,
            got: 8
        }
    );
}

#[test]
fn integers() {
    let narrow: Vec<u8> = [5_i32, 7].iter().flat_map(|it| it.to_le_bytes()).collect();
    assert_eq!(
        raw(&tensor("INT32", &[2]), &narrow).token_ids().unwrap(),
        [5, 7]
    );
    assert_eq!(
        raw(&tensor("INT64", &[1, 2]), &encode_ids(&[5, 7]))
            .token_ids()
            .unwrap(),
        [5, 7]
    );
    let negative = (-1_i64).to_le_bytes();
    assert_eq!(
        raw(&tensor("INT64", &[1]), &negative)
            .token_ids()
            .unwrap_err(),
        TensorProblem::NotTokenId {
            element: 0,
            value: -1
        }
    );
    assert_eq!(
        raw(&tensor("INT32", &[1]), &[1, 2, 3])
            .token_ids()
            .unwrap_err(),
        TensorProblem::Bytes {
            expected: 4,
            got: 3
        }
    );
}

#[test]
fn typed_contents() {
    let mut ids = tensor("INT64", &[2]);
    ids.contents = Some(InferTensorContents {
        int64_contents: vec![1, 2],
        ..Default::default()
    });
    assert_eq!(
        Input {
            tensor: &ids,
            raw: None
        }
        .token_ids()
        .unwrap(),
        [1, 2]
    );
    assert_eq!(
        raw(&ids, &[0; 16]).token_ids().unwrap_err(),
        TensorProblem::BothForms
    );
    // The values are in the field of another datatype.
    ids.datatype = "INT32".into();
    let problem = Input {
        tensor: &ids,
        raw: None,
    }
    .token_ids()
    .unwrap_err();
    assert_eq!(
        problem,
        TensorProblem::Count {
            expected: 2,
            got: 0,
            field: "int_contents"
        }
    );
    let empty = tensor("BYTES", &[1]);
    let problem = Input {
        tensor: &empty,
        raw: None,
    }
    .text()
    .unwrap_err();
    assert_eq!(
        problem,
        TensorProblem::Count {
            expected: 1,
            got: 0,
            field: "bytes_contents"
        }
    );
}

#[test]
fn flags() {
    let flag = tensor("BOOL", &[1]);
    assert!(raw(&flag, &[1]).flag().unwrap() && !raw(&flag, &[0]).flag().unwrap());
    assert_eq!(
        raw(&flag, &[2]).flag().unwrap_err(),
        TensorProblem::NotBool {
            element: 0,
            value: 2
        }
    );
    assert_eq!(
        raw(&flag, &[]).flag().unwrap_err(),
        TensorProblem::Bytes {
            expected: 1,
            got: 0
        }
    );
}

proptest! {
    #[test]
    fn any_tensor_is_read_or_refused(
        datatype in prop_oneof![Just("BYTES"), Just("BOOL"), Just("INT32"), Just("INT64"), Just("FP8")],
        shape in prop::collection::vec(prop_oneof![Just(1_i64), -2..5_i64, any::<i64>()], 0..3),
        bytes: Vec<u8>,
    ) {
        let tensor = tensor(datatype, &shape);
        let input = raw(&tensor, &bytes);
        let _ = (input.text(), input.flag(), input.token_ids());
    }

    #[test]
    fn bytes_survive(values: Vec<String>) {
        let raw = encode_bytes(values.iter().map(String::as_str));
        let found = raw_bytes(&raw, values.len()).unwrap();
        prop_assert!(found.iter().zip(&values).all(|(found, value)| *found == value.as_bytes()));
        // Cut anywhere, it is refused.
        for cut in 0..raw.len() {
            prop_assert!(raw_bytes(&raw[..cut], values.len()).is_err());
        }
    }

    #[test]
    fn ids_survive(ids: Vec<i32>) {
        let ids: Vec<u32> = ids.into_iter().map(i32::unsigned_abs).collect();
        let tensor = tensor("INT64", &[ids.len() as i64]);
        prop_assert_eq!(raw(&tensor, &encode_ids(&ids)).token_ids().unwrap(), ids);
    }
}
