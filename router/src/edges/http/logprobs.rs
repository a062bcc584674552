//! Log-probabilities in OpenAI's three shapes: chat's `content` list, the older completions' parallel
//! arrays, and vLLM's `prompt_logprobs`.

use std::borrow::Cow;

use serde::ser::{Serialize, SerializeMap as _, SerializeSeq as _, Serializer};

use crate::api::{LogProb, PromptInfo, TokenLogProbs};

/// JSON has no infinity; this is what vLLM writes for a token that cannot come.
const LEAST: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    logprob.max(LEAST)
}

/// How a token is written.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) enum TokenForm {
    /// Its bytes; those that are no whole character become U+FFFD.
    #[default]
    Text,
    /// `token_id:42` (`return_tokens_as_token_ids`): always exact.
    Id,
}

impl TokenForm {
    pub(super) fn from_flag(as_ids: Option<bool>) -> TokenForm {
        if as_ids.unwrap_or(false) {
            TokenForm::Id
        } else {
            TokenForm::Text
        }
    }

    fn write<'a>(self, id: u32, bytes: &'a [u8]) -> Cow<'a, str> {
        match self {
            TokenForm::Text => String::from_utf8_lossy(bytes),
            TokenForm::Id => Cow::Owned(format!("token_id:{id}")),
        }
    }
}

/// Chat's form: `{"content": [{token, logprob, bytes, top_logprobs}]}`.
#[derive(serde::Serialize)]
pub(super) struct ChatLogProbs<'a> {
    content: ChatTokens<'a>,
}

impl<'a> ChatLogProbs<'a> {
    /// `None` where log-probs were not asked for, or the event has no tokens.
    pub(super) fn of(tokens: &'a [TokenLogProbs], form: TokenForm) -> Option<ChatLogProbs<'a>> {
        (!tokens.is_empty()).then_some(ChatLogProbs {
            content: ChatTokens { tokens, form },
        })
    }
}

struct ChatTokens<'a> {
    tokens: &'a [TokenLogProbs],
    form: TokenForm,
}

impl Serialize for ChatTokens<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.tokens.iter().map(|token| ChatToken {
            token,
            form: self.form,
        }))
    }
}

struct ChatToken<'a> {
    token: &'a TokenLogProbs,
    form: TokenForm,
}

impl Serialize for ChatToken<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        entries::<S>(&mut map, &self.token.chosen, self.form)?;
        map.serialize_entry(
            "top_logprobs",
            &Alternatives {
                top: &self.token.top,
                form: self.form,
            },
        )?;
        map.end()
    }
}

struct Alternatives<'a> {
    top: &'a [LogProb],
    form: TokenForm,
}

impl Serialize for Alternatives<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct One<'a>(&'a LogProb, TokenForm);
        impl Serialize for One<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut map = serializer.serialize_map(Some(3))?;
                entries::<S>(&mut map, self.0, self.1)?;
                map.end()
            }
        }
        let mut seq = serializer.serialize_seq(Some(self.top.len()))?;
        for token in self.top {
            seq.serialize_element(&One(token, self.form))?;
        }
        seq.end()
    }
}

fn entries<S: Serializer>(
    map: &mut S::SerializeMap,
    token: &LogProb,
    form: TokenForm,
) -> Result<(), S::Error> {
    map.serialize_entry("token", form.write(token.token_id, &token.bytes).as_ref())?;
    map.serialize_entry("logprob", &finite(token.logprob))?;
    map.serialize_entry("bytes", &token.bytes)
}

/// The older completions' form: four arrays of one entry a token.
#[derive(Debug, Default, serde::Serialize)]
pub(super) struct CompletionLogProbs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<TopMap>>,
    /// Where each token starts, in characters from the start of the choice's text.
    text_offset: Vec<u32>,
}

/// Token to log-prob, most probable first. Tokens that read alike (parts of characters) count once.
#[derive(Debug)]
struct TopMap(Vec<(String, f32)>);

impl Serialize for TopMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}

impl CompletionLogProbs {
    /// Adds generated tokens. `offset` is where the first of them starts; it moves past the last.
    pub(super) fn extend(&mut self, tokens: &[TokenLogProbs], form: TokenForm, offset: &mut u32) {
        for token in tokens {
            self.push(token, form, offset);
        }
    }

    /// Adds an echoed prompt. Nothing predicts its first token, which has no log-prob but a text,
    /// `first`. That takes no room where `shown`, the text that the client sees, leaves it out (a
    /// special token).
    pub(super) fn extend_prompt(
        &mut self,
        prompt: &PromptInfo,
        first: &str,
        shown: &str,
        form: TokenForm,
        offset: &mut u32,
    ) {
        for (id, token) in prompt.token_ids.iter().zip(&prompt.logprobs) {
            match token {
                Some(token) => self.push(token, form, offset),
                None => {
                    self.tokens
                        .push(form.write(*id, first.as_bytes()).into_owned());
                    self.token_logprobs.push(None);
                    self.top_logprobs.push(None);
                    self.text_offset.push(*offset);
                    if shown.starts_with(first) {
                        *offset += characters(first.as_bytes());
                    }
                }
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    fn push(&mut self, token: &TokenLogProbs, form: TokenForm, offset: &mut u32) {
        let chosen = &token.chosen;
        let mut top: Vec<(String, f32)> = Vec::with_capacity(token.top.len() + 1);
        // The chosen token is always among them, as vLLM has it.
        for alternative in token.top.iter().chain([chosen]) {
            let name = form.write(alternative.token_id, &alternative.bytes);
            if !top.iter().any(|(seen, _)| *seen == name) {
                top.push((name.into_owned(), finite(alternative.logprob)));
            }
        }
        self.tokens
            .push(form.write(chosen.token_id, &chosen.bytes).into_owned());
        self.token_logprobs.push(Some(finite(chosen.logprob)));
        self.top_logprobs.push(Some(TopMap(top)));
        self.text_offset.push(*offset);
        *offset += characters(&chosen.bytes);
    }
}

/// Characters that begin in `bytes`: one that is spread over tokens counts with its first byte.
fn characters(bytes: &[u8]) -> u32 {
    bytes.iter().filter(|&&byte| byte & 0xc0 != 0x80).count() as u32
}

/// vLLM's form: for each prompt token null or `{"id": {logprob, rank, decoded_token}}`.
pub(super) struct PromptLogProbs<'a>(pub(super) &'a [Option<TokenLogProbs>]);

#[derive(serde::Serialize)]
struct PromptEntry<'a> {
    logprob: f32,
    /// From 1; null for a chosen token that is not among the alternatives.
    rank: Option<usize>,
    decoded_token: Cow<'a, str>,
}

impl Serialize for PromptLogProbs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct One<'a>(&'a TokenLogProbs);
        impl Serialize for One<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let TokenLogProbs { chosen, top } = self.0;
                let ranked = top
                    .iter()
                    .enumerate()
                    .map(|(at, token)| (token, Some(at + 1)));
                let unranked = (!top.iter().any(|it| it.token_id == chosen.token_id))
                    .then_some((chosen, None));
                serializer.collect_map(unranked.into_iter().chain(ranked).map(|(token, rank)| {
                    let decoded_token = String::from_utf8_lossy(&token.bytes);
                    (
                        token.token_id,
                        PromptEntry {
                            logprob: finite(token.logprob),
                            rank,
                            decoded_token,
                        },
                    )
                }))
            }
        }
        serializer.collect_seq(self.0.iter().map(|token| token.as_ref().map(One)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, bytes: &[u8], logprob: f32) -> LogProb {
        LogProb {
            token_id: id,
            logprob,
            bytes: bytes.to_vec(),
        }
    }

    fn sample() -> TokenLogProbs {
        TokenLogProbs {
            chosen: token(5, b"hi", -0.5),
            top: vec![
                token(5, b"hi", -0.5),
                token(6, b"\xe4\xbd", f32::NEG_INFINITY),
            ],
        }
    }

    #[test]
    fn chat_form() {
        let tokens = [sample()];
        let json = serde_json::to_string(&ChatLogProbs::of(&tokens, TokenForm::Text)).unwrap();
        assert_eq!(
            json,
            r#"{"content":[{"token":"hi","logprob":-0.5,"bytes":[104,105],"top_logprobs":[{"token":"hi","logprob":-0.5,"bytes":[104,105]},{"token":"�","logprob":-9999.0,"bytes":[228,189]}]}]}"#
        );
        let json = serde_json::to_string(&ChatLogProbs::of(&tokens, TokenForm::Id)).unwrap();
        assert!(
            json.starts_with(r#"{"content":[{"token":"token_id:5","#),
            "{json}"
        );
        assert!(ChatLogProbs::of(&[], TokenForm::Text).is_none());
    }

    #[test]
    fn completions_form() {
        let prompt = PromptInfo {
            token_ids: vec![1, 5],
            logprobs: vec![None, Some(sample())],
        };
        let mut all = CompletionLogProbs::default();
        let mut offset = 0;
        all.extend_prompt(&prompt, "é", "éhi", TokenForm::Text, &mut offset);
        let split =
            [(7, &b"\xe4\xbd"[..]), (8, b"\xa0"), (9, b"!")].map(|(id, bytes)| TokenLogProbs {
                chosen: token(id, bytes, -1.0),
                top: vec![],
            });
        all.extend(&split, TokenForm::Text, &mut offset);
        assert_eq!(
            serde_json::to_string(&all).unwrap(),
            r#"{"tokens":["é","hi","�","�","!"],"token_logprobs":[null,-0.5,-1.0,-1.0,-1.0],"top_logprobs":[null,{"hi":-0.5,"�":-9999.0},{"�":-1.0},{"�":-1.0},{"!":-1.0}],"text_offset":[0,1,3,4,4]}"#
        );
        assert_eq!(offset, 5);
    }

    #[test]
    fn prompt_form() {
        let unranked = TokenLogProbs {
            chosen: token(3, b"a", -4.0),
            top: vec![token(5, b"hi", -0.5)],
        };
        let prompt = [None, Some(sample()), Some(unranked)];
        assert_eq!(
            serde_json::to_string(&PromptLogProbs(&prompt)).unwrap(),
            r#"[null,{"5":{"logprob":-0.5,"rank":1,"decoded_token":"hi"},"6":{"logprob":-9999.0,"rank":2,"decoded_token":"�"}},{"3":{"logprob":-4.0,"rank":null,"decoded_token":"a"},"5":{"logprob":-0.5,"rank":1,"decoded_token":"hi"}}]"#
        );
    }
}
