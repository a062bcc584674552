//! The header of a safetensors file: 8 bytes of length (little-endian), then JSON that names every
//! tensor's type, shape and place in the rest of the file.
//!
//! Parsed here rather than by the `safetensors` crate so that an error names the tensor and says
//! what is wrong with it, and so that a name given twice is an error; the tests check that whatever is
//! accepted here is accepted there.

use std::collections::HashMap;
use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The format's own limit; the headers of a 700 GB checkpoint's shards are below 1 MB each.
const MAX_HEADER: u64 = 100_000_000;
const LENGTH: usize = 8;

/// Element types of the format. Those that Millrace reads are floats; others may be present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[allow(non_camel_case_types, reason = "the names are the format's")]
pub enum Dtype {
    BOOL,
    F4,
    F6_E2M3,
    F6_E3M2,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

impl Dtype {
    pub fn bits(self) -> usize {
        use Dtype::*;
        match self {
            F4 => 4,
            F6_E2M3 | F6_E3M2 => 6,
            BOOL | U8 | I8 | F8_E5M2 | F8_E4M3 | F8_E8M0 | F8_E4M3FNUZ | F8_E5M2FNUZ => 8,
            I16 | U16 | F16 | BF16 => 16,
            I32 | U32 | F32 => 32,
            C64 | F64 | I64 | U64 => 64,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A tensor of one file.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// First byte in the file.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// What a header says, checked against the file's length.
#[derive(Debug)]
pub(super) struct Header {
    pub tensors: HashMap<String, TensorInfo>,
    /// Length of the header with its 8 length bytes: where data begins.
    pub bytes: usize,
}

/// Why a header is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("{0}")]
    Header(String),
    #[error("tensor {tensor}: {reason}")]
    Tensor { tensor: String, reason: String },
}

/// Parses the header of `file`, the whole file's bytes; touches nothing past the header.
///
/// Accepted headers have tensors that lie one after the other, without gap or overlap, up to the
/// end of the file, each as long as its type and shape need.
pub(super) fn parse(file: &[u8]) -> Result<Header, HeaderError> {
    let broken = |reason: String| HeaderError::Header(reason);
    let Some((length, rest)) = file.split_first_chunk::<LENGTH>() else {
        return Err(broken(format!(
            "the file has {} bytes and not even a header length",
            file.len()
        )));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(broken(format!(
            "it claims {length} bytes, more than the format's limit of {MAX_HEADER}"
        )));
    }
    let Some(json) = rest.get(..length as usize) else {
        return Err(broken(format!(
            "it claims {length} bytes but only {} follow: the file is cut off",
            rest.len()
        )));
    };
    let json = std::str::from_utf8(json).map_err(|e| broken(format!("it is not UTF-8: {e}")))?;
    let entries: Entries = serde_json::from_str(json).map_err(|e| broken(e.to_string()))?;
    place(entries.0, LENGTH + length as usize, file.len())
}

/// Checks where the tensors lie and makes their offsets relative to the file.
fn place(
    mut entries: Vec<(String, Entry)>,
    data: usize,
    file_length: usize,
) -> Result<Header, HeaderError> {
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let available = (file_length - data) as u64;
    let mut end_of_last = 0;
    let mut tensors = HashMap::with_capacity(entries.len());
    for (
        name,
        Entry {
            dtype,
            shape,
            data_offsets: (start, end),
        },
    ) in entries
    {
        let wrong = |reason: String| HeaderError::Tensor {
            tensor: name.clone(),
            reason,
        };
        if end < start || end > available {
            let reason = format!(
                "data_offsets [{start}, {end}] do not lie in the {available} bytes of data"
            );
            return Err(wrong(format!(
                "{reason}: the file is cut off or its header lies"
            )));
        }
        if start != end_of_last {
            let what = if start < end_of_last {
                "overlap the tensor before"
            } else {
                "leave a gap"
            };
            return Err(wrong(format!(
                "data_offsets [{start}, {end}] {what} (expected to start at {end_of_last})"
            )));
        }
        let needed = byte_size(dtype, &shape).ok_or_else(|| {
            wrong(format!(
                "shape {shape:?} of {dtype} has no whole or sane number of bytes"
            ))
        })?;
        if end - start != needed {
            return Err(wrong(format!(
                "{dtype} of shape {shape:?} needs {needed} bytes, data_offsets span {}",
                end - start
            )));
        }
        end_of_last = end;
        let Ok(shape) = shape.iter().map(|&n| usize::try_from(n)).collect() else {
            return Err(wrong(format!("shape {shape:?} does not fit this machine")));
        };
        // In range: `end` is at most the file's length less `data`.
        let info = TensorInfo {
            dtype,
            shape,
            start: data + start as usize,
            end: data + end as usize,
        };
        if tensors.insert(name.clone(), info).is_some() {
            return Err(HeaderError::Tensor {
                tensor: name,
                reason: "is there twice".to_string(),
            });
        }
    }
    if end_of_last != available {
        return Err(HeaderError::Header(format!(
            "tensors cover {end_of_last} of the {available} bytes of data"
        )));
    }
    Ok(Header {
        tensors,
        bytes: data,
    })
}

fn byte_size(dtype: Dtype, shape: &[u64]) -> Option<u64> {
    let elements = shape
        .iter()
        .try_fold(1u64, |n, &side| n.checked_mul(side))?;
    let bits = elements.checked_mul(dtype.bits() as u64)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

#[derive(Deserialize)]
struct Entry {
    dtype: Dtype,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The JSON object's entries in their order; a map would hide a name given twice.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entries, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else {
                let entry = map.next_value_seed(Named(&name))?;
                entries.push((name, entry));
            }
        }
        Ok(Entries(entries))
    }
}

/// An [`Entry`] whose errors name the tensor.
struct Named<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Named<'_> {
    type Value = Entry;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Entry, D::Error> {
        Entry::deserialize(deserializer)
            .map_err(|e| serde::de::Error::custom(format_args!("tensor {}: {e}", self.0)))
    }
}
