//! tiny-r1's tokenizer: decoding agrees with the library and with itself, piece by piece.

use std::path::{Path, PathBuf};

use millrace_model::tokenizer::{TextError, Tokenizer};
use proptest::prelude::*;
use std::sync::LazyLock;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-r1")
}

static TINY: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::from_dir(&dir()).unwrap());
static LIBRARY: LazyLock<tokenizers::Tokenizer> =
    LazyLock::new(|| tokenizers::Tokenizer::from_file(dir().join("tokenizer.json")).unwrap());

fn streamed(ids: &[u32], skip: bool) -> String {
    let mut stream = TINY.decode_stream(skip);
    let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
    text.push_str(&stream.finish());
    text
}

#[test]
fn special_ids_are_the_cards() {
    assert_eq!((TINY.special().bos, TINY.special().eos), (Some(0), Some(1)));
    assert_eq!(TINY.vocab_size(), 2048);
    assert_eq!(TINY.token_id("<think>"), Some(2046));
    assert!(TINY.is_special(2044) && !TINY.is_special(2046));
    assert_eq!(TINY.token_text(2047), "</think>");
    assert_eq!(TINY.token_bytes(2048), None);
}

#[test]
fn add_bos_token_is_obeyed() {
    let plain = TINY.encode("Hello", false).unwrap();
    let framed = TINY.encode("Hello", true).unwrap();
    assert_eq!(framed, [&[0], plain.as_slice()].concat());
    assert_eq!(TINY.encode("", true).unwrap(), [0]);
    assert!(TINY.encode("", false).unwrap().is_empty());
    assert_eq!(TINY.count("Hello").unwrap(), plain.len());
}

#[test]
fn characters_of_several_tokens_come_whole() {
    let text = "né 😀 中文 <think>x</think>";
    let ids = TINY.encode(text, false).unwrap();
    let mut stream = TINY.decode_stream(false);
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    assert!(
        pieces.iter().any(String::is_empty),
        "an emoji is several tokens here"
    );
    assert!(pieces.iter().all(|p| !p.contains('\u{fffd}')));
    assert_eq!(pieces.concat(), text);
    assert_eq!(stream.finish(), "");
}

#[test]
fn an_incomplete_end_is_replaced_once() {
    let ids = TINY.encode("a😀", false).unwrap();
    let cut = &ids[..ids.len() - 1];
    assert_eq!(streamed(cut, false), "a\u{fffd}");
    assert_eq!(TINY.decode(cut, false), "a\u{fffd}");
}

#[test]
fn special_tokens_are_skipped_on_request() {
    let ids = [0, 2044, TINY.encode("x", false).unwrap()[0], 2046, 1, 5_000];
    assert_eq!(TINY.decode(&ids, true), "x<think>");
    assert_eq!(
        TINY.decode(&ids, false),
        "<｜begin▁of▁sentence｜><｜User｜>x<think><｜end▁of▁sentence｜>"
    );
}

proptest! {
    #[test]
    fn decoding_any_tokens_agrees_with_the_library(ids in proptest::collection::vec(0u32..2060, 0..40), skip in any::<bool>()) {
        let expected = LIBRARY.decode(&ids, skip).unwrap();
        prop_assert_eq!(TINY.decode(&ids, skip), expected.clone());
        prop_assert_eq!(streamed(&ids, skip), expected);
    }

    #[test]
    fn text_survives_the_round_trip(text in "\\PC{0,40}|[a-z \\n\u{1f600}-\u{1f64f}\u{4e00}-\u{4e20}]{0,40}") {
        let ids = TINY.encode(&text, false).unwrap();
        prop_assert_eq!(TINY.decode(&ids, false), text.clone());
        prop_assert_eq!(streamed(&ids, false), text.as_str());
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| TINY.token_bytes(id).unwrap()).copied().collect();
        prop_assert_eq!(bytes, text.as_bytes());
    }
}

/// tiny-r1's tokenizer files in a new folder, the JSON changed by `change`.
fn changed(
    change: impl FnOnce(&mut serde_json::Value, &mut serde_json::Value),
) -> Result<Tokenizer, TextError> {
    let read =
        |name: &str| serde_json::from_slice(&std::fs::read(dir().join(name)).unwrap()).unwrap();
    let (mut tokenizer, mut config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    change(&mut tokenizer, &mut config);
    let to = tempfile::tempdir().unwrap();
    std::fs::write(to.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(to.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::from_dir(to.path())
}

#[test]
fn without_flags_the_post_processor_decides() {
    let t = changed(|tokenizer, config| {
        config.as_object_mut().unwrap().retain(|key, _| !key.starts_with("add_"));
        tokenizer["post_processor"] = serde_json::json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        });
        tokenizer["truncation"] = serde_json::json!({"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
    })
    .unwrap();
    let plain = TINY.encode("Hello world, how are you?", false).unwrap();
    assert_eq!(
        t.encode("Hello world, how are you?", true).unwrap(),
        [&[0], plain.as_slice()].concat()
    );
}

#[test]
fn unusable_tokenizers_are_refused() {
    let sentencepiece =
        changed(|t, _| t["decoder"] = serde_json::json!({"type": "Metaspace", "replacement": "▁"}));
    assert!(matches!(sentencepiece, Err(TextError::Unsupported { .. })));
    let unigram = changed(|t, _| t["model"]["type"] = "Unigram".into());
    assert!(
        unigram
            .unwrap_err()
            .to_string()
            .contains("only byte-level BPE")
    );
    let no_model = changed(|t, _| t["model"] = serde_json::json!({"type": "BPE"}));
    assert!(matches!(no_model, Err(TextError::Tokenizer { .. })));
    let huge_id = changed(|t, _| t["model"]["vocab"]["zz"] = u32::MAX.into());
    assert!(huge_id.is_err());
    let unknown = changed(|_, c| c["bos_token"] = "<nope>".into());
    assert!(
        unknown
            .unwrap_err()
            .to_string()
            .contains("bos_token is \"<nope>\"")
    );
    let flag = changed(|_, c| c["add_bos_token"] = 1.into());
    assert!(
        flag.unwrap_err()
            .to_string()
            .contains("`add_bos_token` must be true or false")
    );
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(
        Tokenizer::from_dir(empty.path()),
        Err(TextError::Read { .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Half of the edits fall on the file's beginning, where its structure is.
    #[test]
    fn mutated_tokenizer_files_never_panic(edits in proptest::collection::vec((0usize..5_000, any::<prop::sample::Index>(), any::<bool>(), 0x20u8..0x7f), 1..4)) {
        let mut bytes = std::fs::read(dir().join("tokenizer.json")).unwrap();
        for (near, anywhere, is_near, byte) in edits {
            let at = if is_near { near } else { anywhere.index(bytes.len()) };
            bytes[at] = byte;
        }
        let to = tempfile::tempdir().unwrap();
        std::fs::write(to.path().join("tokenizer.json"), &bytes).unwrap();
        if let Ok(tokenizer) = Tokenizer::from_dir(to.path()) {
            let ids = tokenizer.encode("Hello <think> 12 中文", true).unwrap_or_default();
            let _ = tokenizer.decode(&ids, false);
        }
    }
}
