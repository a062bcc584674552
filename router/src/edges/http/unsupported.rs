//! Fields that would change the answer in a way this server cannot: refused with their name rather
//! than ignored, so that nobody takes an unconstrained answer for a constrained one.

use std::fmt;

use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::body::JsonBody;
use super::error::ApiError;

/// A field's name, and which of its values ask for nothing that is not done.
type Rule = (&'static str, fn(&Value) -> bool);

const CHAT: &[Rule] = &[
    ("response_format", is_text_format),
    ("functions", is_empty),
    ("function_call", |value| value == "none"),
    ("audio", never),
    ("modalities", |value| {
        value
            .as_array()
            .is_some_and(|all| all.iter().all(|it| it == "text"))
    }),
    ("prediction", never),
    ("web_search_options", never),
    ("add_generation_prompt", |value| value == true),
    ("continue_final_message", is_false),
    ("chat_template", never),
    ("documents", is_empty),
    ("echo", is_false),
    ("best_of", |value| value == 1),
];

const COMPLETIONS: &[Rule] = &[
    ("suffix", |value| value == ""),
    ("prompt_embeds", never),
    ("response_format", is_text_format),
];

/// vLLM's, on both endpoints.
const COMMON: &[Rule] = &[
    ("use_beam_search", is_false),
    ("guided_json", never),
    ("guided_regex", never),
    ("guided_choice", never),
    ("guided_grammar", never),
    ("structured_outputs", never),
    ("structural_tag", never),
    ("logits_processors", is_empty),
    ("allowed_token_ids", never),
    ("bad_words", is_empty),
    ("truncate_prompt_tokens", never),
    ("kv_transfer_params", never),
];

fn never(_: &Value) -> bool {
    false
}

fn is_false(value: &Value) -> bool {
    value == &Value::Bool(false)
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

fn is_text_format(value: &Value) -> bool {
    value["type"] == "text"
}

/// # Errors
/// 400 naming the first field of a chat request that cannot be honoured.
pub(super) fn check_chat(body: &JsonBody) -> Result<(), ApiError> {
    check(body, CHAT)?;
    check_tools(body)
}

/// # Errors
/// As [`check_chat`], for completions.
pub(super) fn check_completions(body: &JsonBody) -> Result<(), ApiError> {
    check(body, COMPLETIONS)
}

/// Tools that may not be called are harmless; tools that may be, or a choice that demands one, are not.
fn check_tools(body: &JsonBody) -> Result<(), ApiError> {
    #[derive(serde::Deserialize)]
    struct Tools {
        tools: Option<Value>,
        tool_choice: Option<Value>,
    }
    let Tools { tools, tool_choice } = body.read()?;
    if tool_choice.as_ref().is_some_and(|choice| choice == "none") {
        return Ok(());
    }
    if tools.is_some_and(|tools| !is_empty(&tools)) {
        return Err(ApiError::unsupported("tools"));
    }
    // "auto" is what clients send by default, and without tools it asks for nothing.
    if tool_choice.is_some_and(|choice| choice != "auto") {
        return Err(ApiError::unsupported("tool_choice"));
    }
    Ok(())
}

fn check(body: &JsonBody, own: &'static [Rule]) -> Result<(), ApiError> {
    let mut json = serde_json::Deserializer::from_slice(&body.0);
    match json.deserialize_map(Scan { own }) {
        Ok(Some(name)) => Err(ApiError::unsupported(name)),
        Ok(None) => Ok(()),
        // What is no object is explained by the endpoint's own read of it, but that would skip over
        // a value of ours that cannot be read (nested too deep), and answer as if it were not there.
        Err(error) if error.is_data() => Ok(()),
        Err(error) => Err(ApiError::malformed(format!(
            "the body is not valid JSON: {error}"
        ))),
    }
}

/// Finds the first refused field of an object. The values of other fields are skipped, not built.
struct Scan {
    own: &'static [Rule],
}

impl<'de> Visitor<'de> for Scan {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            match self.own.iter().chain(COMMON).find(|(name, _)| *name == key) {
                Some((name, harmless)) => {
                    let value: Value = map.next_value()?;
                    if !value.is_null() && !harmless(&value) {
                        found = found.or(Some(*name));
                    }
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body_of(text: &str) -> JsonBody {
        JsonBody(bytes::Bytes::copy_from_slice(text.as_bytes()))
    }

    fn chat(body: &str) -> Result<(), String> {
        check_chat(&body_of(body)).map_err(|error| error.to_string())
    }

    #[test]
    fn refuses_by_name() {
        for (body, name) in [
            (r#"{"tools":[{"type":"function"}]}"#, "tools"),
            (r#"{"tool_choice":"required"}"#, "tool_choice"),
            (r#"{"tools":[{}],"tool_choice":"auto"}"#, "tools"),
            (
                r#"{"response_format":{"type":"json_object"}}"#,
                "response_format",
            ),
            (r#"{"functions":[{}]}"#, "functions"),
            (r#"{"modalities":["text","audio"]}"#, "modalities"),
            (r#"{"audio":{"voice":"x"}}"#, "audio"),
            (
                r#"{"a":{"deep":[1,2]},"guided_regex":"a+"}"#,
                "guided_regex",
            ),
            (
                r#"{"continue_final_message":true}"#,
                "continue_final_message",
            ),
        ] {
            let error = chat(body).unwrap_err();
            assert!(error.contains(&format!("`{name}`")), "{body}: {error}");
        }
    }

    #[test]
    fn lets_harmless_values_and_unknown_fields_pass() {
        for body in [
            r#"{"tools":[],"tool_choice":"none","response_format":{"type":"text"},"functions":null,"modalities":["text"]}"#,
            r#"{"tools":[{}],"tool_choice":"none"}"#,
            r#"{"tool_choice":"auto","user":"u","metadata":{"a":1},"store":false,"no_such_field":[1]}"#,
            r#"{"guided_json":null,"best_of":1,"bad_words":[]}"#,
            // What is no object is for the endpoint's own read to explain.
            "[]",
        ] {
            assert!(check(&body_of(body), CHAT).is_ok(), "{body}");
        }
        assert!(chat(r#"{"tools":[{}],"tool_choice":"none"}"#).is_ok());
        assert!(chat(r#"{"tool_choice":"auto"}"#).is_ok());
    }

    #[test]
    fn a_value_that_cannot_be_read_is_not_passed_over() {
        let deep = format!(
            r#"{{"response_format":{}{}}}"#,
            "[".repeat(200),
            "]".repeat(200)
        );
        assert!(chat(&deep).unwrap_err().contains("recursion limit"));
    }

    #[test]
    fn completions_have_their_own_list() {
        let check = |body: &str| check_completions(&body_of(body));
        assert!(
            check(r#"{"suffix":"x"}"#)
                .unwrap_err()
                .to_string()
                .contains("`suffix`")
        );
        assert!(check(r#"{"suffix":null,"echo":true,"best_of":2}"#).is_ok());
    }
}
