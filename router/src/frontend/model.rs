//! The model that is served, as text needs it: no weights.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use millrace_model::chat::{ChatError, ChatTemplate};
use millrace_model::checkpoint::{Checkpoint, CheckpointError};
use millrace_model::config::SamplingDefaults;
use millrace_model::tokenizer::{TextError, Tokenizer};

use crate::api::{ModelCard, RequestError};

/// Tokenizer, template and limits of a checkpoint.
#[derive(Debug)]
pub struct ServedModel {
    /// What answers call it.
    pub name: String,
    /// What clients may call it besides.
    pub aliases: Vec<String>,
    pub architecture: String,
    /// Hash of the checkpoint: what workers of no deployment's revision must have, too.
    pub revision: String,
    /// Of what text depends on: what workers must have, whatever their weights.
    pub text_revision: String,
    /// Prompt plus output, in tokens.
    pub max_model_len: u32,
    /// Token ids are below this.
    pub vocab_size: u32,
    pub tokenizer: Tokenizer,
    /// `None`: the model completes text but does not chat.
    pub template: Option<ChatTemplate>,
    pub defaults: SamplingDefaults,
    /// Bytes of the longest token: bounds from below how many tokens a text has.
    pub longest_token: usize,
    /// Seconds since the Unix epoch.
    pub created: u64,
}

/// Why a checkpoint folder cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Tokenizer(#[from] TextError),
    #[error(transparent)]
    Template(#[from] ChatError),
    #[error("max_model_len is {asked}, but the checkpoint can do {can} tokens; ask for 1 to {can}")]
    ModelLen { asked: u32, can: usize },
    #[error("{0} has no folder name to serve the model under; give it one (served_model_names)")]
    Name(PathBuf),
}

impl ServedModel {
    /// Reads a checkpoint folder. The first of `names` is the one that answers carry; without any, it
    /// is the folder's. Weights are hashed (see [`Checkpoint::revision`]), so this may take a moment:
    /// not for async code.
    pub fn load(
        dir: &Path,
        names: &[String],
        max_model_len: Option<u32>,
    ) -> Result<ServedModel, LoadError> {
        let checkpoint = Checkpoint::open(dir)?;
        let common = &checkpoint.config().common;
        let can = common.max_position_embeddings;
        let max_model_len = max_model_len.unwrap_or(u32::try_from(can).unwrap_or(u32::MAX));
        if max_model_len == 0 || max_model_len as usize > can {
            return Err(LoadError::ModelLen {
                asked: max_model_len,
                can,
            });
        }
        let mut names = distinct(names);
        let name = match names.next() {
            Some(name) => name,
            None => folder_name(dir).ok_or_else(|| LoadError::Name(dir.to_owned()))?,
        };
        let tokenizer = Tokenizer::from_dir(dir)?;
        let ids = 0..tokenizer.vocab_size() as u32;
        let longest = ids
            .filter_map(|id| tokenizer.token_bytes(id))
            .map(<[u8]>::len)
            .max();
        Ok(ServedModel {
            name,
            aliases: names.collect(),
            architecture: common.architecture.clone(),
            revision: checkpoint.revision(),
            text_revision: millrace_model::text::revision(dir, common)?,
            max_model_len,
            vocab_size: u32::try_from(common.vocab_size).unwrap_or(u32::MAX),
            template: ChatTemplate::from_dir(dir)?,
            defaults: common.sampling_defaults,
            longest_token: longest.unwrap_or(1).max(1),
            tokenizer,
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
        })
    }

    /// # Errors
    /// `UnknownModel` if clients ask for another one. An empty name asks for the only one.
    pub fn check_name(&self, asked: &str) -> Result<(), RequestError> {
        if asked.is_empty() || self.names().any(|name| name == asked) {
            return Ok(());
        }
        let names: Vec<&str> = self.names().collect();
        Err(RequestError::UnknownModel {
            model: asked.to_owned(),
            served: names.join(", "),
        })
    }

    /// All names that clients may ask for, the one that answers carry first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.name)
            .chain(&self.aliases)
            .map(String::as_str)
    }

    pub fn card(&self, ready: bool) -> ModelCard {
        ModelCard {
            name: self.name.clone(),
            architecture: self.architecture.clone(),
            revision: self.revision.clone(),
            max_model_len: self.max_model_len,
            vocab_size: self.vocab_size,
            ready,
            created: self.created,
        }
    }
}

/// In their order, each once.
fn distinct(names: &[String]) -> impl Iterator<Item = String> {
    let first = |&(at, name): &(usize, &String)| !names[..at].contains(name);
    let kept: Vec<String> = names
        .iter()
        .enumerate()
        .filter(first)
        .map(|(_, name)| name.clone())
        .collect();
    kept.into_iter()
}

/// The last part of a path that may end in `.` or a link.
fn folder_name(dir: &Path) -> Option<String> {
    let whole = dir.canonicalize().ok()?;
    Some(whole.file_name()?.to_string_lossy().into_owned())
}

/// The embedded model, loaded once for all tests.
#[cfg(test)]
pub(super) fn test_model() -> std::sync::Arc<ServedModel> {
    static MODEL: std::sync::OnceLock<std::sync::Arc<ServedModel>> = std::sync::OnceLock::new();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-r1");
    MODEL
        .get_or_init(|| ServedModel::load(&dir, &[], None).unwrap().into())
        .clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_names_are_accepted_and_the_first_is_carried() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-r1");
        let names = ["own", "org/other", "own", "third"].map(str::to_owned);
        let model = ServedModel::load(&dir, &names, None).unwrap();
        let all: Vec<&str> = model.names().collect();
        assert_eq!(all, ["own", "org/other", "third"]);
        for asked in all.into_iter().chain([""]) {
            assert!(model.check_name(asked).is_ok(), "{asked}");
        }
        assert_eq!(model.card(true).name, "own");
        let error = model.check_name("tiny-r1").unwrap_err().to_string();
        assert!(error.contains("served: own, org/other, third"), "{error}");
    }
}
