//! The bytes each token stands for.
//!
//! Byte-level BPE (GPT-2, Llama 3, Qwen, DeepSeek) writes every byte as one printable character, so
//! that a token need not be valid UTF-8: the vocabulary is turned back into bytes once, at load.

/// All tokens' bytes, one after the other.
#[derive(Debug)]
pub(super) struct Vocabulary {
    bytes: Vec<u8>,
    /// Where each id's bytes end; an id without a token has none.
    ends: Vec<u32>,
    special: Vec<bool>,
}

/// What a token of the vocabulary is written as.
pub(super) enum Spelling<'a> {
    /// In the byte-level alphabet.
    ByteLevel(&'a str),
    /// As itself: an added token.
    Literal { text: &'a str, special: bool },
}

impl Vocabulary {
    /// Builds the table from `(id, spelling)`; where an id comes twice, the later one wins.
    ///
    /// `None` if the bytes of all tokens do not fit 32 bits.
    pub fn new<'a>(
        size: usize,
        tokens: impl Iterator<Item = (u32, Spelling<'a>)>,
    ) -> Option<Vocabulary> {
        let mut table: Vec<Vec<u8>> = vec![Vec::new(); size];
        let mut special = vec![false; size];
        for (id, spelling) in tokens {
            let (bytes, is_special) = match spelling {
                Spelling::ByteLevel(text) => (from_byte_level(text), false),
                Spelling::Literal { text, special } => (text.as_bytes().to_vec(), special),
            };
            table[id as usize] = bytes;
            special[id as usize] = is_special;
        }
        let mut bytes = Vec::with_capacity(table.iter().map(Vec::len).sum());
        let mut ends = Vec::with_capacity(size);
        for token in table {
            bytes.extend_from_slice(&token);
            ends.push(u32::try_from(bytes.len()).ok()?);
        }
        Some(Vocabulary {
            bytes,
            ends,
            special,
        })
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// `None` if there is no such token.
    pub fn bytes(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)? as usize;
        let start = if id == 0 {
            0
        } else {
            self.ends[id - 1] as usize
        };
        (start < end).then(|| &self.bytes[start..end])
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}

/// The bytes that `text` spells. A token with a character outside the alphabet (a special token
/// that is also in the base vocabulary) stands for itself.
fn from_byte_level(text: &str) -> Vec<u8> {
    text.chars()
        .map(byte_of)
        .collect::<Option<Vec<u8>>>()
        .unwrap_or_else(|| text.as_bytes().to_vec())
}

/// GPT-2's alphabet: printable Latin-1 characters are their own byte, and the 68 other bytes are,
/// in order, the characters from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8), // 0x00..=0x20
        0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8), // 0x7f..=0xa0
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_alphabet_names_every_byte_once() {
        let bytes: Vec<u8> = (0..0x400)
            .filter_map(char::from_u32)
            .filter_map(byte_of)
            .collect();
        assert_eq!(bytes.len(), 256);
        assert_eq!(bytes.iter().collect::<HashSet<_>>().len(), 256);
        assert_eq!(from_byte_level("Ġhello"), b" hello");
        assert_eq!(from_byte_level("Ċ"), b"\n");
        assert_eq!(from_byte_level("ä¸Ń"), "中".as_bytes());
    }

    #[test]
    fn agrees_with_the_library() {
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        assert_eq!(alphabet.len(), 256);
        assert!(alphabet.into_iter().all(|c| byte_of(c).is_some()));
    }

    #[test]
    fn ids_without_a_token_have_no_bytes() {
        let tokens = [
            (0, Spelling::ByteLevel("Ġa")),
            (
                2,
                Spelling::Literal {
                    text: "<x>",
                    special: true,
                },
            ),
        ];
        let vocabulary = Vocabulary::new(3, tokens.into_iter()).unwrap();
        assert_eq!(vocabulary.bytes(0), Some(&b" a"[..]));
        assert_eq!(vocabulary.bytes(1), None);
        assert_eq!(vocabulary.bytes(2), Some(&b"<x>"[..]));
        assert_eq!(vocabulary.bytes(3), None);
        assert!(vocabulary.is_special(2) && !vocabulary.is_special(0) && !vocabulary.is_special(9));
    }
}
