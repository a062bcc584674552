//! A chat message as clients send it (OpenAI's form).

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::ChatError;

/// One message. Whatever else a client sends with it (`name`, `tool_calls`, ...) is kept for the
/// template in `extra`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Message {
    pub role: String,
    #[serde(default)]
    pub content: Option<Content>,
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Text, or a list of parts.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of a message's content.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Part {
    #[serde(rename = "type")]
    pub kind: String,
    pub text: Option<String>,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: impl Into<String>, text: impl Into<String>) -> Message {
        Message {
            role: role.into(),
            content: Some(Content::Text(text.into())),
            extra: Map::new(),
        }
    }

    /// The text of all parts joined without a separator; `None` if there is no content. `index`
    /// is the message's place, for the error.
    pub fn text(&self, index: usize) -> Result<Option<String>, ChatError> {
        match &self.content {
            None => Ok(None),
            Some(Content::Text(text)) => Ok(Some(text.clone())),
            Some(Content::Parts(parts)) => {
                let text = |part: &Part| match (part.kind.as_str(), &part.text) {
                    ("text", Some(text)) => Ok(text.clone()),
                    _ => Err(ChatError::Part {
                        index,
                        kind: part.kind.clone(),
                    }),
                };
                parts
                    .iter()
                    .map(text)
                    .collect::<Result<String, _>>()
                    .map(Some)
            }
        }
    }

    /// The message as a template sees it.
    pub(super) fn to_value(&self, index: usize) -> Result<Value, ChatError> {
        let mut map = Map::new();
        map.insert("role".to_string(), Value::String(self.role.clone()));
        // Templates test `content is none`, which an absent key is not.
        map.insert(
            "content".to_string(),
            self.text(index)?.map_or(Value::Null, Value::String),
        );
        for (key, value) in &self.extra {
            map.entry(key.clone()).or_insert_with(|| value.clone());
        }
        Ok(Value::Object(map))
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Content, D::Error> {
        // By hand rather than an untagged enum, whose errors do not say what is wrong.
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Content::Text(text)),
            Value::Array(parts) => parts
                .into_iter()
                .map(|part| {
                    Part::deserialize(part)
                        .map_err(|e| D::Error::custom(format_args!("content part: {e}")))
                })
                .collect::<Result<_, _>>()
                .map(Content::Parts),
            _ => Err(D::Error::custom(
                "content must be a string, null, or a list of parts with a type",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Message, String> {
        serde_json::from_str(json).map_err(|e| e.to_string())
    }

    #[test]
    fn both_forms_of_content() {
        assert_eq!(
            parse(r#"{"role":"user","content":"hi"}"#).unwrap(),
            Message::new("user", "hi")
        );
        let parts = parse(
            r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}"#,
        )
        .unwrap();
        assert_eq!(parts.text(0).unwrap().as_deref(), Some("ab"));
        let none = parse(r#"{"role":"assistant","content":null,"tool_calls":[1]}"#).unwrap();
        assert_eq!(none.text(0).unwrap(), None);
        assert_eq!(
            none.to_value(0).unwrap().to_string(),
            r#"{"role":"assistant","content":null,"tool_calls":[1]}"#
        );
        assert_eq!(parse(r#"{"role":"assistant"}"#).unwrap().content, None);
    }

    #[test]
    fn other_parts_are_refused_by_name() {
        let image =
            parse(r#"{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}"#)
                .unwrap();
        let error = image.text(3).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"message 3 has a content part of type "image_url"; this model takes text only"#
        );
        assert!(error.is_clients_fault());
    }

    #[test]
    fn errors_say_what_is_wrong() {
        assert!(
            parse(r#"{"content":"x"}"#)
                .unwrap_err()
                .contains("missing field `role`")
        );
        assert!(
            parse(r#"{"role":"user","content":5}"#)
                .unwrap_err()
                .contains("content must be a string")
        );
        assert!(
            parse(r#"{"role":"user","content":[{"text":"x"}]}"#)
                .unwrap_err()
                .contains("missing field `type`")
        );
    }
}
