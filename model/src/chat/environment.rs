//! Jinja set up as transformers sets it up for chat templates.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};

use super::{json, time};

/// Work a rendering may do: about one unit an instruction and one a 64 bytes of text made, so this
/// bounds time (a second) and memory (half a gigabyte). A conversation of a thousand messages takes
/// well under a tenth.
const FUEL: u64 = 8_000_000;

/// An environment without templates.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_filter("tojson", json::tojson);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", |format: &str| time::strftime_now(format));
    Ok(env)
}

/// What a template says by `raise_exception`, carried through the engine's own error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub String);

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

/// The message given to `raise_exception`, if that is what `error` comes from.
pub(super) fn raised(error: &Error) -> Option<String> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        source = error.source();
    }
    None
}

/// Replaces transformers' `{% generation %}` tags, which mark what a model wrote for training,
/// by blocks that do nothing.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, block) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = block[2..].find("%}") else {
            rest = block;
            break;
        };
        let (block, after) = block.split_at(2 + end + 2);
        let inner = &block[2..block.len() - 2];
        let name = inner
            .trim_start_matches(['-', '+'])
            .trim_end_matches(['-', '+'])
            .trim();
        match name {
            "generation" => out.push_str(&block.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&block.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(block),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
