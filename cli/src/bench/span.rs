//! A number, or any of several.

use std::{fmt, str::FromStr};

use rand::{Rng, rngs::SmallRng};

/// From `least` to `most`, both of them included; at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub least: usize,
    pub most: usize,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a number of at least 1, or A-B with A no larger than B")]
pub struct NoSpan;

impl Span {
    pub const fn of(number: usize) -> Span {
        Span {
            least: number,
            most: number,
        }
    }

    pub fn draw(self, rng: &mut SmallRng) -> usize {
        rng.random_range(self.least..=self.most)
    }
}

impl FromStr for Span {
    type Err = NoSpan;

    fn from_str(text: &str) -> Result<Span, NoSpan> {
        let (least, most) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.parse().map_err(|_| NoSpan);
        let span = Span {
            least: number(least)?,
            most: number(most)?,
        };
        match 1 <= span.least && span.least <= span.most {
            true => Ok(span),
            false => Err(NoSpan),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.least == self.most {
            true => write!(f, "{}", self.least),
            false => write!(f, "{}-{}", self.least, self.most),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_they_are_written() {
        for (text, least, most) in [("512", 512, 512), ("1-9", 1, 9)] {
            let span = Span { least, most };
            assert_eq!(text.parse(), Ok(span));
            assert_eq!(span.to_string(), text);
        }
        for text in ["", "0", "-1", "0-3", "9-1", "1-2-3", "x", "1-"] {
            assert_eq!(text.parse::<Span>(), Err(NoSpan), "{text}");
        }
    }
}
