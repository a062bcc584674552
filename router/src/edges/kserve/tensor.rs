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
mod tests;
