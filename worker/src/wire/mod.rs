//! From wire types to the engine's, with every value checked: whoever calls a worker is not
//! trusted to have validated anything. Protobuf types stop here.

mod sampling;
mod tokens;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use millrace_engine::Reject;

pub use sampling::{sampling_from_wire, sampling_to_wire};
pub use tokens::{candidates_to_wire, token_from_wire, token_to_wire};

/// A field of a request that cannot be what it is.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct InvalidField {
    /// As the .proto names it, `sampling.top_p` for example.
    pub field: &'static str,
    pub problem: Problem,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Problem {
    #[error("is missing")]
    Missing,
    /// Also what NaN gets.
    #[error("must be {allowed}, not {value}")]
    Range { value: f64, allowed: &'static str },
    #[error("must be at most {limit}, not {value}")]
    TooLarge { value: u64, limit: u64 },
    #[error("cannot be read: {0}")]
    Malformed(String),
    #[error("cannot be served: {0}")]
    Rejected(#[from] Reject),
}

impl InvalidField {
    pub fn missing(field: &'static str) -> InvalidField {
        InvalidField {
            field,
            problem: Problem::Missing,
        }
    }
}

/// INVALID_ARGUMENT, with the field in the details for programs and in the message for people.
impl From<InvalidField> for Status {
    fn from(invalid: InvalidField) -> Status {
        let details =
            ErrorDetails::with_bad_request_violation(invalid.field, invalid.problem.to_string());
        Status::with_error_details(Code::InvalidArgument, invalid.to_string(), details)
    }
}

/// `value` if it is at most `limit`.
pub fn at_most(field: &'static str, value: u32, limit: usize) -> Result<usize, InvalidField> {
    let value = value as usize;
    if value > limit {
        let problem = Problem::TooLarge {
            value: value as u64,
            limit: limit as u64,
        };
        return Err(InvalidField { field, problem });
    }
    Ok(value)
}
