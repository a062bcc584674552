//! Tensors as the protocol sends them: typed contents or raw little-endian bytes, both checked
//! against datatype and shape before a value is believed.

use millrace_proto::kserve::InferTensorContents;
use millrace_proto::kserve::model_infer_request::InferInputTensor;

use super::error::TensorProblem;

/// One input, with its raw bytes where the request has them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) tensor: &'a InferInputTensor,
    pub(super) raw: Option<&'a [u8]>,
}

impl<'a> Input<'a> {
    /// The elements that its shape announces.
    fn elements(&self) -> Result<usize, TensorProblem> {
        let wrong = || TensorProblem::Shape(self.tensor.shape.clone());
        self.tensor
            .shape
            .iter()
            .try_fold(1_usize, |product, &size| {
                let size = usize::try_from(size).map_err(|_| wrong())?;
                product.checked_mul(size).ok_or_else(wrong)
            })
    }

    fn check(&self, expected: &'static str, datatypes: &[&str]) -> Result<usize, TensorProblem> {
        if self.tensor.parameters.contains_key("shared_memory_region") {
            return Err(TensorProblem::SharedMemory);
        }
        if !datatypes.contains(&self.tensor.datatype.as_str()) {
            return Err(TensorProblem::Datatype {
                got: self.tensor.datatype.clone(),
                expected,
            });
        }
        if self.raw.is_some() && self.tensor.contents.is_some() {
            return Err(TensorProblem::BothForms);
        }
        self.elements()
    }

    fn contents(&self) -> Option<&'a InferTensorContents> {
        self.tensor.contents.as_ref()
    }

    fn one(&self, elements: usize) -> Result<(), TensorProblem> {
        let shape = || self.tensor.shape.clone();
        if elements == 1 {
            Ok(())
        } else {
            Err(TensorProblem::Rank {
                shape: shape(),
                expected: "[1]",
            })
        }
    }

    /// The only element of a BYTES tensor.
    pub(super) fn text(&self) -> Result<&'a str, TensorProblem> {
        let elements = self.check("BYTES", &["BYTES"])?;
        self.one(elements)?;
        let bytes = match self.raw {
            Some(raw) => raw_bytes(raw, elements)?[0],
            None => typed(
                self.contents().map(|it| it.bytes_contents.as_slice()),
                elements,
                "bytes_contents",
            )?[0]
                .as_slice(),
        };
        std::str::from_utf8(bytes).map_err(|error| TensorProblem::NotUtf8 {
            at: error.valid_up_to(),
        })
    }

    /// The only element of a BOOL tensor.
    pub(super) fn flag(&self) -> Result<bool, TensorProblem> {
        let elements = self.check("BOOL", &["BOOL"])?;
        self.one(elements)?;
        match self.raw {
            Some([0]) => Ok(false),
            Some([1]) => Ok(true),
            Some([value]) => Err(TensorProblem::NotBool {
                element: 0,
                value: *value,
            }),
            Some(raw) => Err(TensorProblem::Bytes {
                expected: 1,
                got: raw.len(),
            }),
            None => Ok(typed(
                self.contents().map(|it| it.bool_contents.as_slice()),
                elements,
                "bool_contents",
            )?[0]),
        }
    }

    /// All elements of an integer vector, or of a matrix of one row.
    pub(super) fn token_ids(&self) -> Result<Vec<u32>, TensorProblem> {
        let elements = self.check("INT32 or INT64", &["INT32", "INT64"])?;
        if !matches!(self.tensor.shape.as_slice(), [_] | [1, _]) {
            return Err(TensorProblem::Rank {
                shape: self.tensor.shape.clone(),
                expected: "[n] or [1, n]",
            });
        }
        let wide = self.tensor.datatype == "INT64";
        match (self.raw, wide) {
            (Some(raw), true) => raw_integers(raw, elements, i64::from_le_bytes),
            (Some(raw), false) => {
                raw_integers(raw, elements, |bytes| i32::from_le_bytes(bytes).into())
            }
            (None, true) => {
                let values = typed(
                    self.contents().map(|it| it.int64_contents.as_slice()),
                    elements,
                    "int64_contents",
                )?;
                values.iter().copied().enumerate().map(token_id).collect()
            }
            (None, false) => {
                let values = typed(
                    self.contents().map(|it| it.int_contents.as_slice()),
                    elements,
                    "int_contents",
                )?;
                values
                    .iter()
                    .map(|&value| value.into())
                    .enumerate()
                    .map(token_id)
                    .collect()
            }
        }
    }
}

fn token_id((element, value): (usize, i64)) -> Result<u32, TensorProblem> {
    u32::try_from(value).map_err(|_| TensorProblem::NotTokenId { element, value })
}

/// Typed contents, if there are as many as the shape announces.
fn typed<'a, T>(
    values: Option<&'a [T]>,
    expected: usize,
    field: &'static str,
) -> Result<&'a [T], TensorProblem> {
    let values = values.unwrap_or_default();
    if values.len() == expected {
        Ok(values)
    } else {
        Err(TensorProblem::Count {
            expected,
            got: values.len(),
            field,
        })
    }
}

fn raw_integers<const N: usize>(
    raw: &[u8],
    elements: usize,
    read: fn([u8; N]) -> i64,
) -> Result<Vec<u32>, TensorProblem> {
    let (values, rest) = raw.as_chunks::<N>();
    if values.len() != elements || !rest.is_empty() {
        return Err(TensorProblem::Bytes {
            expected: elements.saturating_mul(N),
            got: raw.len(),
        });
    }
    values
        .iter()
        .map(|&bytes| read(bytes))
        .enumerate()
        .map(token_id)
        .collect()
}

/// BYTES elements: each a 4-byte little-endian length and that many bytes.
fn raw_bytes(raw: &[u8], elements: usize) -> Result<Vec<&[u8]>, TensorProblem> {
    let mut found = Vec::new();
    let mut rest = raw;
    for element in 0..elements {
        let cut_off = |rest: &[u8]| TensorProblem::CutOff {
            element,
            at: raw.len() - rest.len(),
        };
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(|| cut_off(rest))?;
        let length = u32::from_le_bytes(*length) as usize;
        let (value, after) = after
            .split_at_checked(length)
            .ok_or_else(|| cut_off(rest))?;
        found.push(value);
        rest = after;
    }
    if rest.is_empty() {
        Ok(found)
    } else {
        Err(TensorProblem::Trailing { extra: rest.len() })
    }
}

/// Raw BYTES contents of `values`.
pub(super) fn encode_bytes<'a>(values: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut raw = Vec::new();
    for value in values {
        // A message is limited to far less than 4 GiB.
        raw.extend((value.len() as u32).to_le_bytes());
        raw.extend(value.as_bytes());
    }
    raw
}

/// Raw INT64 contents of token ids.
pub(super) fn encode_ids(ids: &[u32]) -> Vec<u8> {
    ids.iter()
        .flat_map(|&id| i64::from(id).to_le_bytes())
        .collect()
}

/// Raw UINT32 contents.
pub(super) fn encode_u32(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
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
}
