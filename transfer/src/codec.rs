//! Little-endian reading and writing of grants and frames: strict, bounded, no allocation before a
//! length has been checked against what is there.

use crate::error::DecodeError;

/// Longest name, value or refusal text on the wire.
pub(crate) const MAX_TEXT: usize = 1024;

pub(crate) struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { left: bytes }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self
            .left
            .split_at_checked(count)
            .ok_or(DecodeError::Truncated)?;
        self.left = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self
            .left
            .split_first_chunk()
            .ok_or(DecodeError::Truncated)?;
        self.left = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn u128(&mut self) -> Result<u128, DecodeError> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    /// A flag: 0 or 1, nothing else.
    pub(crate) fn flag(&mut self, what: &'static str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::BadValue {
                what,
                value: other.into(),
            }),
        }
    }

    /// A list length, refused above `limit`.
    pub(crate) fn count(&mut self, what: &'static str, limit: usize) -> Result<usize, DecodeError> {
        let count = self.u32()? as usize;
        if count > limit {
            return Err(DecodeError::TooLong {
                what,
                length: count,
                limit,
            });
        }
        Ok(count)
    }

    pub(crate) fn text(&mut self, what: &'static str) -> Result<String, DecodeError> {
        let length = self.u16()? as usize;
        if length > MAX_TEXT {
            return Err(DecodeError::TooLong {
                what,
                length,
                limit: MAX_TEXT,
            });
        }
        let bytes = self.bytes(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| DecodeError::NotText { what })?;
        Ok(text.to_owned())
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.left)
    }

    /// Refuses bytes that nothing has read.
    pub(crate) fn end(self) -> Result<(), DecodeError> {
        if self.left.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing(self.left.len()))
        }
    }
}

pub(crate) struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(out: &'a mut Vec<u8>) -> Self {
        Writer { out }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u128(&mut self, value: u128) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Cut at [`MAX_TEXT`] bytes (at a character), so that what is written can always be read.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        let end = text.floor_char_boundary(MAX_TEXT.min(text.len()));
        self.u16(end as u16).bytes(&text.as_bytes()[..end])
    }
}
