//! When a caller stops waiting.

use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;

const HEADER: &str = "grpc-timeout";

/// The deadline that a call's `grpc-timeout` header asks for, counted from now.
///
/// tonic's server applies the header up to the response's head only; a stream that outlives its
/// caller's patience has to be ended by its producer. A malformed header is no deadline, as tonic
/// has it.
pub fn deadline(metadata: &MetadataMap) -> Option<Instant> {
    let timeout = parse(metadata.get(HEADER)?.to_str().ok()?)?;
    Instant::now().checked_add(timeout)
}

/// At most eight digits and a unit, as gRPC over HTTP/2 defines it.
fn parse(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_defines_them() {
        assert_eq!(parse("30S"), Some(Duration::from_secs(30)));
        assert_eq!(parse("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(
            parse("99999999H"),
            Some(Duration::from_secs(99999999 * 3600))
        );
        for bad in ["", "S", "5", "5x", "-5S", "123456789S", "é"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
