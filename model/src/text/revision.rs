//! A name for all that turns text into tokens and back.

use std::path::Path;

use super::{TextConfig, TextError};
use crate::config::CommonConfig;
use crate::files::{MAX_TEXT_FILE, read_optional};

/// Hexadecimal digits of a revision.
const DIGITS: usize = 16;

/// 16 hexadecimal digits that name what text means to the checkpoint in `dir`: its tokenizer, chat
/// template, special tokens, and the tokens that end generation. Weights have no part in it, so
/// two checkpoints of one family often share it, and a router of either can serve both.
///
/// A folder without a tokenizer has one too, which no folder with a tokenizer has.
///
/// # Errors
/// A file cannot be read or is not of its form.
pub fn revision(dir: &Path, config: &CommonConfig) -> Result<String, TextError> {
    let path = dir.join("tokenizer.json");
    let tokenizer =
        read_optional(&path, MAX_TEXT_FILE).map_err(|source| TextError::Read { path, source })?;
    let text = TextConfig::from_dir(dir)?;

    let mut hasher = blake3::Hasher::new_derive_key("millrace text revision v1");
    let mut part = |bytes: Option<&[u8]>| {
        // What is absent is told from what is empty.
        let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
        hasher.update(&length.to_le_bytes());
        hasher.update(bytes.unwrap_or_default());
    };
    part(tokenizer.as_deref());
    for flag in [text.add_bos_token, text.add_eos_token] {
        part(flag.map(u8::from).as_ref().map(std::slice::from_ref));
    }
    part(Some(&(text.special_tokens.len() as u64).to_le_bytes()));
    for (name, token) in &text.special_tokens {
        part(Some(name.as_bytes()));
        part(Some(token.as_bytes()));
    }
    let template = text.chat_template.map(|template| template.to_string());
    part(template.as_ref().map(String::as_bytes));
    for id in &config.eos_token_ids {
        part(Some(&id.to_le_bytes()));
    }
    let mut hex = hasher.finalize().to_hex().to_string();
    hex.truncate(DIGITS);
    Ok(hex)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;

    fn model(files: &[(&str, &str)], eos: &[u32]) -> String {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-r1");
        let mut config = ModelConfig::from_dir(&tiny).unwrap().common;
        config.eos_token_ids = eos.to_vec();
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        revision(dir.path(), &config).unwrap()
    }

    #[test]
    fn whatever_changes_text_changes_the_revision_and_nothing_else_does() {
        const TOKENIZER: (&str, &str) = ("tokenizer.json", "{}");
        const CONFIG: &str = "tokenizer_config.json";
        const JINJA: &str = "chat_template.jinja";
        let ends = [2, 3];
        let bare = model(&[TOKENIZER], &ends);
        assert_eq!(bare.len(), DIGITS);
        let revisions = [
            bare.clone(),
            model(&[], &ends),
            model(&[("tokenizer.json", "{ }")], &ends),
            model(&[TOKENIZER], &[2]),
            model(&[TOKENIZER, (CONFIG, r#"{"add_bos_token": true}"#)], &ends),
            model(&[TOKENIZER, (CONFIG, r#"{"add_eos_token": true}"#)], &ends),
            model(&[TOKENIZER, (CONFIG, r#"{"bos_token": "<a>"}"#)], &ends),
            model(&[TOKENIZER, (CONFIG, r#"{"eos_token": "<a>"}"#)], &ends),
            model(&[TOKENIZER, (CONFIG, r#"{"chat_template": ""}"#)], &ends),
            model(&[TOKENIZER, (JINJA, "hello")], &ends),
        ];
        for (i, one) in revisions.iter().enumerate() {
            assert!(!revisions[..i].contains(one), "{i} is as one before it");
        }

        let same = [
            model(&[TOKENIZER, (CONFIG, r#"{"model_max_length": 7}"#)], &ends),
            model(&[TOKENIZER, ("model.safetensors", "weights")], &ends),
        ];
        assert_eq!(same, [bare.clone(), bare]);
        let map = (
            "special_tokens_map.json",
            r#"{"bos_token": {"content": "<a>"}}"#,
        );
        assert_eq!(model(&[TOKENIZER, map], &ends), revisions[6]);
        let shadowed = (CONFIG, r#"{"chat_template": "outdated"}"#);
        assert_eq!(
            model(&[TOKENIZER, (JINJA, "hello"), shadowed], &ends),
            revisions[9]
        );
    }
}
