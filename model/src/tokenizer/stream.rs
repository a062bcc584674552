//! Incremental detokenising.

use super::Tokenizer;

/// Turns one sequence's tokens into text as they come, never showing half a character.
///
/// The pieces joined are what [`Tokenizer::decode`] makes of all tokens at once.
#[derive(Debug, Clone)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// The first bytes of a character whose rest has not come: at most 3.
    pending: Vec<u8>,
}

impl DecodeStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> DecodeStream {
        DecodeStream {
            tokenizer,
            skip_special,
            pending: Vec::new(),
        }
    }

    /// The text that `token` completes; empty while a character is incomplete, and for skipped or
    /// unknown tokens.
    pub fn push(&mut self, token: u32) -> String {
        let mut text = String::new();
        if let Some(bytes) = self.tokenizer.shown_bytes(token, self.skip_special) {
            self.pending.extend_from_slice(bytes);
            let rest = take_complete(&self.pending, &mut text);
            self.pending.drain(..rest);
        }
        text
    }

    /// Ends the sequence: U+FFFD if a character was left incomplete, else nothing.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// Appends to `text` what is decided of `bytes`: valid characters, and U+FFFD for each maximal
/// invalid part (as `String::from_utf8_lossy` does). Returns where the undecided rest begins.
fn take_complete(bytes: &[u8], text: &mut String) -> usize {
    let mut at = 0;
    loop {
        match std::str::from_utf8(&bytes[at..]) {
            Ok(valid) => {
                text.push_str(valid);
                return bytes.len();
            }
            Err(error) => {
                let valid = at + error.valid_up_to();
                // Valid by what `from_utf8` just said, so nothing is replaced here.
                text.push_str(&String::from_utf8_lossy(&bytes[at..valid]));
                let Some(invalid) = error.error_len() else {
                    return valid;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                at = valid + invalid;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `bytes` in pieces cut at `cuts` and joins what comes out.
    fn streamed(bytes: &[u8], cuts: &[usize]) -> String {
        let (mut pending, mut text, mut from) = (Vec::new(), String::new(), 0);
        for to in cuts
            .iter()
            .map(|c| c % (bytes.len() + 1))
            .chain([bytes.len()])
        {
            if to > from {
                pending.extend_from_slice(&bytes[from..to]);
                let rest = take_complete(&pending, &mut text);
                pending.drain(..rest);
                assert!(pending.len() <= 3);
                from = to;
            }
        }
        text + &String::from_utf8_lossy(&pending)
    }

    proptest! {
        #[test]
        fn any_cut_of_any_bytes_gives_the_lossy_text(
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
            cuts in proptest::collection::vec(any::<usize>(), 0..12),
        ) {
            let expected = String::from_utf8_lossy(&bytes).into_owned();
            prop_assert_eq!(streamed(&bytes, &cuts), expected.clone());
            prop_assert_eq!(streamed(&bytes, &(0..=bytes.len()).collect::<Vec<_>>()), expected);
        }

        #[test]
        fn any_cut_of_text_gives_the_text(text in ".{0,20}", cuts in proptest::collection::vec(any::<usize>(), 0..12)) {
            prop_assert_eq!(streamed(text.as_bytes(), &cuts), text);
        }
    }
}
