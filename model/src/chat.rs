//! The checkpoint's chat template: messages to the prompt that the model was trained on.
//!
//! A template is trusted as the weights beside it are. What bounds its work is there for mistakes and
//! for long conversations: one written to do harm can still exhaust the stack (by nesting a list a
//! million deep). Messages cannot: their JSON is at most 128 deep.

mod environment;
mod error;
mod json;
mod message;
mod time;

use std::path::Path;
use std::sync::Arc;

use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value};

use crate::text::TextConfig;
pub use error::ChatError;
pub use message::{Content, Message, Part};

/// The template used unless the checkpoint has one for tools and tools are given.
const DEFAULT: &str = "default";
const WITH_TOOLS: &str = "tool_use";

/// A compiled chat template. Clones share it.
#[derive(Debug, Clone)]
pub struct ChatTemplate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    env: Environment<'static>,
    /// `bos_token` and the like, as variables.
    special_tokens: Map<String, Value>,
    has_tool_template: bool,
}

impl ChatTemplate {
    /// The template in `chat_template.jinja` or, failing that, in tokenizer_config.json; `None` if
    /// the checkpoint has none.
    pub fn from_dir(dir: &Path) -> Result<Option<ChatTemplate>, ChatError> {
        let config = TextConfig::from_dir(dir)?;
        let special_tokens = config
            .special_tokens
            .into_iter()
            .map(|(key, text)| (key.to_string(), Value::String(text)))
            .collect();
        config
            .chat_template
            .map(|template| ChatTemplate::new(&template, special_tokens))
            .transpose()
    }

    /// `template` is what `chat_template` holds: one template's source, or a list of objects with
    /// `name` and `template`. `special_tokens` are variables it sees (`bos_token`, ...).
    pub fn new(
        template: &Value,
        special_tokens: Map<String, Value>,
    ) -> Result<ChatTemplate, ChatError> {
        let mut env = environment::environment().map_err(|e| broken(DEFAULT, &e))?;
        let mut add = |name: &str, source: &str| {
            let source = environment::without_generation_tags(source);
            env.add_template_owned(name.to_string(), source)
                .map_err(|e| broken(name, &e))
        };
        match template {
            Value::String(source) => add(DEFAULT, source)?,
            Value::Array(list) => {
                for named in list {
                    let field = |key: &str| {
                        named
                            .get(key)
                            .and_then(Value::as_str)
                            .ok_or(ChatError::Form)
                    };
                    add(field("name")?, field("template")?)?;
                }
            }
            _ => return Err(ChatError::Form),
        }
        if env.get_template(DEFAULT).is_err() {
            return Err(ChatError::Form);
        }
        let has_tool_template = env.get_template(WITH_TOOLS).is_ok();
        Ok(ChatTemplate(Arc::new(Inner {
            env,
            special_tokens,
            has_tool_template,
        })))
    }

    /// The prompt for `messages`. With `add_generation_prompt` it ends where the model's turn begins.
    ///
    /// `tools` is OpenAI's list of tools; `kwargs` are further variables (`enable_thinking`, ...),
    /// which cannot replace the messages. The prompt holds its own special tokens: encode it
    /// without adding any.
    pub fn render(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        add_generation_prompt: bool,
        kwargs: &Map<String, Value>,
    ) -> Result<String, ChatError> {
        let inner = &*self.0;
        let messages: Vec<Value> = messages
            .iter()
            .enumerate()
            .map(|(i, m)| m.to_value(i))
            .collect::<Result<_, _>>()?;
        let mut context = inner.special_tokens.clone();
        context.extend(kwargs.iter().map(|(k, v)| (k.clone(), v.clone())));
        context.insert("messages".to_string(), Value::Array(messages));
        context.insert("tools".to_string(), tools.cloned().unwrap_or(Value::Null));
        context.entry("documents").or_insert(Value::Null);
        context.insert(
            "add_generation_prompt".to_string(),
            Value::Bool(add_generation_prompt),
        );
        let name = if tools.is_some() && inner.has_tool_template {
            WITH_TOOLS
        } else {
            DEFAULT
        };
        let render = inner
            .env
            .get_template(name)
            .and_then(|template| template.render(Serde(context)));
        render.map_err(|error| match environment::raised(&error) {
            Some(message) => ChatError::Refused { message },
            None if error.kind() == ErrorKind::OutOfFuel => ChatError::TooMuchWork,
            None => ChatError::Failed {
                line: error.line().unwrap_or(0),
                reason: reason(&error),
            },
        })
    }
}

fn broken(template: &str, error: &minijinja::Error) -> ChatError {
    ChatError::Broken {
        template: template.to_string(),
        line: error.line().unwrap_or(0),
        reason: reason(error),
    }
}

/// The engine's message without the place, which is given apart.
fn reason(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}
