//! How people write numbers.

use std::time::Duration;

/// A time that may be a fraction of a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seconds(pub Duration);

pub fn seconds(text: &str) -> Result<Seconds, SecondsError> {
    let seconds: f64 = text.parse().map_err(|_| SecondsError)?;
    Duration::try_from_secs_f64(seconds)
        .map(Seconds)
        .map_err(|_| SecondsError)
}

#[derive(Debug, thiserror::Error)]
#[error("expected seconds, such as 10 or 0.5")]
pub struct SecondsError;

pub fn part(text: &str) -> Result<f64, PartError> {
    let part = text.parse().map_err(|_| PartError)?;
    if (0.0..=1.0).contains(&part) {
        Ok(part)
    } else {
        Err(PartError)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("expected a number from 0 to 1, such as 0.02")]
pub struct PartError;

/// A number with K, M or G for thousands, millions and thousands of millions.
pub fn bytes(text: &str) -> Result<u64, BytesError> {
    let (digits, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) => (digits, &text[digits.len()..]),
        None => (text, ""),
    };
    let unit = match unit {
        "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => 1,
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .filter(|&bytes| bytes > 0)
        .ok_or(BytesError)
}

#[derive(Debug, thiserror::Error)]
#[error("expected bytes a second, such as 200M or 1G, and more than 0")]
pub struct BytesError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_is_written_as_people_write_it() {
        assert_eq!(bytes("200M").unwrap(), 200_000_000);
        assert_eq!(bytes("7").unwrap(), 7);
        for nonsense in [
            "",
            "M",
            "0",
            "-1",
            "1.5G",
            "99999999999999999999",
            "20000000000G",
        ] {
            assert!(bytes(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn an_interval_may_be_a_fraction() {
        assert_eq!(seconds("0.5").unwrap().0, Duration::from_millis(500));
        assert_eq!(seconds("0").unwrap().0, Duration::ZERO);
        for nonsense in ["", "x", "-1", "NaN", "inf", "1e300"] {
            assert!(seconds(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn a_gain_is_a_part_of_one() {
        assert_eq!(part("0.02").unwrap(), 0.02);
        for nonsense in ["", "x", "-0.1", "1.1", "NaN"] {
            assert!(part(nonsense).is_err(), "{nonsense}");
        }
    }
}
