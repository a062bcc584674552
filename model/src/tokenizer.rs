//! Text to token ids and back.
//!
//! Encoding is the `tokenizers` library's. Decoding is ours and byte-exact: all supported families
//! use byte-level BPE, where a token is a run of bytes, so a sequence of tokens decodes to the
//! concatenation of their bytes and nothing depends on neighbours. Other kinds of tokenizer are
//! refused at load.

mod stream;
mod vocabulary;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

pub use crate::text::TextError;
use crate::text::{TextConfig, read_json};
pub use stream::DecodeStream;
use vocabulary::{Spelling, Vocabulary};

/// Ids above this are refused: the tables are indexed by id.
const MAX_VOCAB: u32 = 1 << 24;

/// A checkpoint's tokenizer. Clones share everything.
#[derive(Debug, Clone)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    library: tokenizers::Tokenizer,
    vocabulary: Vocabulary,
    special: SpecialIds,
    /// Ids put around a text when special tokens are asked for; `None`: as the library's
    /// post-processor has it.
    framing: Option<(Vec<u32>, Vec<u32>)>,
}

/// Ids of the tokens that tokenizer_config.json gives a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpecialIds {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub pad: Option<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, if there, `tokenizer_config.json`.
    pub fn from_dir(dir: &Path) -> Result<Tokenizer, TextError> {
        let path = dir.join("tokenizer.json");
        let (json, bytes) = read_json(&path)?;
        require_byte_level(&json, &path)?;
        let broken = |source| TextError::Tokenizer {
            path: path.clone(),
            source,
        };
        let mut library = tokenizers::Tokenizer::from_bytes(&bytes).map_err(broken)?;
        // Some published files truncate or pad, which a server must never do silently.
        library
            .with_truncation(None)
            .map_err(broken)?
            .with_padding(None);
        let vocabulary = vocabulary(&library, &path)?;
        let config = TextConfig::from_dir(dir)?;
        let id = |key: &'static str| match config.special(key) {
            None => Ok(None),
            Some(token) => match library.token_to_id(token) {
                Some(id) => Ok(Some(id)),
                None => Err(TextError::UnknownSpecial {
                    key,
                    token: token.to_string(),
                }),
            },
        };
        let special = SpecialIds {
            bos: id("bos_token")?,
            eos: id("eos_token")?,
            pad: id("pad_token")?,
        };
        let frame = |flag: Option<bool>, id: Option<u32>| {
            id.filter(|_| flag == Some(true)).into_iter().collect()
        };
        let framing =
            (config.add_bos_token.is_some() || config.add_eos_token.is_some()).then(|| {
                (
                    frame(config.add_bos_token, special.bos),
                    frame(config.add_eos_token, special.eos),
                )
            });
        Ok(Tokenizer(Arc::new(Inner {
            library,
            vocabulary,
            special,
            framing,
        })))
    }

    /// Token ids of `text`. Special tokens written out in the text are recognised as such.
    ///
    /// `add_special` frames it by what the checkpoint says (`add_bos_token` and `add_eos_token`, or
    /// tokenizer.json's post-processor): for raw prompts, not for rendered chat templates, which
    /// write their own.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let by_library = add_special && self.0.framing.is_none();
        let encoding = self
            .0
            .library
            .encode_fast(text, by_library)
            .map_err(|source| TextError::Encode { source })?;
        match &self.0.framing {
            Some((before, after)) if add_special => {
                Ok([before, encoding.get_ids(), after].concat())
            }
            _ => Ok(encoding.get_ids().to_vec()),
        }
    }

    /// How many tokens `text` has, framing apart.
    pub fn count(&self, text: &str) -> Result<usize, TextError> {
        let encoding = self
            .0
            .library
            .encode_fast(text, false)
            .map_err(|source| TextError::Encode { source })?;
        Ok(encoding.len())
    }

    /// The text of `ids`; bytes that are not UTF-8 become U+FFFD, and ids without a token nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let bytes: Vec<u8> = ids
            .iter()
            .filter_map(|&id| self.shown_bytes(id, skip_special))
            .flatten()
            .copied()
            .collect();
        // Keeps the allocation where the bytes are valid, which is nearly always.
        String::from_utf8(bytes)
            .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }

    /// Decodes one sequence's tokens as they come.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream {
        DecodeStream::new(self.clone(), skip_special)
    }

    /// The bytes of one token, which may be part of a character; `None` if there is no such token.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.0.vocabulary.bytes(id)
    }

    /// The text of one token, with U+FFFD for parts of characters; empty if there is no such token.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.token_bytes(id).unwrap_or_default()).into_owned()
    }

    /// The id of the token written exactly `token`, added tokens included.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.0.library.token_to_id(token)
    }

    /// One more than the largest id. The model's `vocab_size` may be larger: it is often padded.
    pub fn vocab_size(&self) -> usize {
        self.0.vocabulary.len()
    }

    /// Whether `id` is a control token, left out of decoded text when special tokens are skipped.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.vocabulary.is_special(id)
    }

    pub fn special(&self) -> SpecialIds {
        self.0.special
    }

    fn shown_bytes(&self, id: u32, skip_special: bool) -> Option<&[u8]> {
        if skip_special && self.is_special(id) {
            None
        } else {
            self.token_bytes(id)
        }
    }
}

/// Refuses tokenizers whose tokens are not plain runs of bytes.
fn require_byte_level(json: &Value, path: &Path) -> Result<(), TextError> {
    let refuse = |found: String| TextError::Unsupported {
        path: PathBuf::from(path),
        found,
        reason: "only byte-level BPE is (DeepSeek, Qwen, Llama 3); convert the tokenizer with transformers",
    };
    let kind = |value: &Value| {
        value
            .get("type")
            .and_then(Value::as_str)
            .map(str::to_string)
    };
    // Older files leave the model's type out.
    let model = kind(&json["model"]).unwrap_or_else(|| "BPE".to_string());
    if model != "BPE" || json["model"]["byte_fallback"] == Value::Bool(true) {
        return Err(refuse(format!(
            "a {model} model (byte_fallback {})",
            json["model"]["byte_fallback"]
        )));
    }
    let decoder = &json["decoder"];
    let kinds: Vec<Option<String>> = match kind(decoder).as_deref() {
        Some("Sequence") => decoder["decoders"]
            .as_array()
            .into_iter()
            .flatten()
            .map(kind)
            .collect(),
        _ => vec![kind(decoder)],
    };
    if kinds
        .iter()
        .all(|k| matches!(k.as_deref(), Some("ByteLevel" | "Fuse")))
        && kinds.contains(&Some("ByteLevel".into()))
    {
        Ok(())
    } else {
        Err(refuse(format!("a decoder of {kinds:?}")))
    }
}

fn vocabulary(library: &tokenizers::Tokenizer, path: &Path) -> Result<Vocabulary, TextError> {
    let base = library.get_vocab(false);
    let added = library.get_added_tokens_decoder();
    let largest = base.values().chain(added.keys()).max().copied();
    let refuse = |found: String| TextError::Unsupported {
        path: PathBuf::from(path),
        found,
        reason: "the vocabulary must have 1 to 16777216 ids and less than 4 GiB of text",
    };
    let size = match largest {
        Some(id) if id < MAX_VOCAB => id as usize + 1,
        other => return Err(refuse(format!("a largest token id of {other:?}"))),
    };
    let base = base
        .iter()
        .map(|(text, &id)| (id, Spelling::ByteLevel(text)));
    let added = added.iter().map(|(&id, t)| {
        (
            id,
            Spelling::Literal {
                text: &t.content,
                special: t.special,
            },
        )
    });
    Vocabulary::new(size, base.chain(added)).ok_or_else(|| refuse("its size".to_string()))
}
