//! SHA-256 checksums and how they are written.

use std::{fmt, str::FromStr};

use ring::digest;

/// A SHA-256, written as `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Checksum([u8; 32]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no checksum: give sha256: and 64 hexadecimal digits, as `sha256sum SHA256SUMS` prints them"
)]
pub struct ChecksumError(String);

impl Checksum {
    pub fn of(bytes: &[u8]) -> Checksum {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.checksum()
    }

    /// From 64 hexadecimal digits of either case.
    pub fn from_hex(text: &str) -> Option<Checksum> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16)?;
            let low = char::from(pair[1]).to_digit(16)?;
            *byte = (high * 16 + low) as u8;
        }
        Some(Checksum(bytes))
    }

    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl FromStr for Checksum {
    type Err = ChecksumError;

    fn from_str(text: &str) -> Result<Checksum, ChecksumError> {
        text.strip_prefix("sha256:")
            .and_then(Checksum::from_hex)
            .ok_or_else(|| ChecksumError(text.to_owned()))
    }
}

/// A checksum in the making.
#[derive(Clone)]
pub(crate) struct Hasher(digest::Context);

impl Default for Hasher {
    fn default() -> Hasher {
        Hasher(digest::Context::new(&digest::SHA256))
    }
}

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Of all that came so far; more may come.
    pub fn checksum(&self) -> Checksum {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.clone().finish().as_ref());
        Checksum(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_what_sha256sum_prints() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Checksum::of(b"abc").hex(), abc);
        let parsed: Checksum = format!("sha256:{abc}").parse().unwrap();
        assert_eq!(parsed, Checksum::of(b"abc"));
        assert_eq!(Checksum::from_hex(&abc.to_uppercase()), Some(parsed));
    }

    #[test]
    fn what_is_no_checksum_is_refused() {
        for text in [
            "",
            "sha256:",
            "md5:0",
            &"0".repeat(64),
            &format!("sha256:{}", "g".repeat(64)),
        ] {
            assert!(text.parse::<Checksum>().is_err(), "{text}");
        }
        assert_eq!(Checksum::from_hex(&"é".repeat(32)), None);
    }
}
