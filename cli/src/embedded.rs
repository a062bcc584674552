//! The default model, tiny-r1, carried inside the binary.
//!
//! A path relative to the repository would work for a clone only; 26 MB in the binary also work for
//! `cargo install` and for a container image that holds nothing but the binary, and model and binary
//! cannot drift apart. Workers map checkpoints from files, so the bytes are unpacked once into a cache
//! folder named after their hash.

use std::{
    io,
    path::{Path, PathBuf},
};

/// The name clients ask for when the embedded model is served.
pub const NAME: &str = "tiny-r1";

macro_rules! file {
    ($name:literal) => {
        (
            $name,
            include_bytes!(concat!("../../models/tiny-r1/", $name)),
        )
    };
}

const FILES: [(&str, &[u8]); 5] = [
    file!("config.json"),
    file!("generation_config.json"),
    file!("tokenizer.json"),
    file!("tokenizer_config.json"),
    file!("model.safetensors"),
];

#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    #[error(
        "cannot unpack the embedded model into {}: {source}; set XDG_CACHE_HOME to a writable folder or pass --model DIR",
        dir.display()
    )]
    Unpack { dir: PathBuf, source: io::Error },
}

/// The folder of the embedded model, unpacked if it is not there yet: under `$XDG_CACHE_HOME`, else
/// `~/.cache`, else the temporary folder (containers often have no home).
///
/// # Errors
/// `Unpack` where none of them can be written.
pub fn unpack() -> Result<PathBuf, EmbeddedError> {
    let name = format!("{NAME}-{}", &digest()[..16]);
    let mut failed = None;
    for base in cache_folders() {
        let dir = base.join("millrace").join(&name);
        match unpack_into(&dir) {
            Ok(()) => return Ok(dir),
            Err(source) => failed.get_or_insert(EmbeddedError::Unpack { dir, source }),
        };
    }
    // There is always the temporary folder, so a failure was recorded.
    Err(failed.unwrap_or_else(|| EmbeddedError::Unpack {
        dir: std::env::temp_dir(),
        source: io::ErrorKind::NotFound.into(),
    }))
}

fn cache_folders() -> impl Iterator<Item = PathBuf> {
    let xdg = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|p| p.is_absolute());
    let home = std::env::var_os("HOME")
        .filter(|h| !h.is_empty())
        .map(|h| PathBuf::from(h).join(".cache"));
    xdg.or(home).into_iter().chain([std::env::temp_dir()])
}

fn digest() -> String {
    let mut hash = blake3::Hasher::new();
    for (name, bytes) in FILES {
        hash.update(name.as_bytes())
            .update(&(bytes.len() as u64).to_le_bytes())
            .update(bytes);
    }
    hash.finalize().to_hex().to_string()
}

/// Written beside and renamed into place, so that `dir` is whole whenever it exists, also when two
/// processes unpack at once or one is killed half-way.
fn unpack_into(dir: &Path) -> io::Result<()> {
    if complete(dir) {
        return Ok(());
    }
    if dir.exists() {
        std::fs::remove_dir_all(dir)?; // damaged; who has it mapped keeps what was mapped
    }
    let staging = dir.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::create_dir_all(&staging)?;
    let written = FILES
        .iter()
        .try_for_each(|(name, bytes)| std::fs::write(staging.join(name), bytes));
    let renamed = written.and_then(|()| std::fs::rename(&staging, dir));
    if renamed.is_err() {
        // The error at hand says more than one about the clean-up would.
        let _ = std::fs::remove_dir_all(&staging);
    }
    // Another process may have been first; a folder of the same name has the same content.
    if complete(dir) { Ok(()) } else { renamed }
}

/// Compares every byte: 26 MB are read in milliseconds, and a cache folder may be damaged, or lie in a
/// temporary folder that others write too.
fn complete(dir: &Path) -> bool {
    FILES
        .iter()
        .all(|(name, bytes)| std::fs::read(dir.join(name)).is_ok_and(|found| found == *bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacks_once_and_replaces_what_is_damaged() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("tiny");
        unpack_into(&dir).unwrap();
        assert!(complete(&dir));
        let before = std::fs::metadata(dir.join("model.safetensors"))
            .unwrap()
            .modified()
            .unwrap();
        unpack_into(&dir).unwrap();
        assert_eq!(
            before,
            std::fs::metadata(dir.join("model.safetensors"))
                .unwrap()
                .modified()
                .unwrap()
        );
        std::fs::write(dir.join("config.json"), b"{}").unwrap();
        unpack_into(&dir).unwrap();
        assert!(complete(&dir));
        assert_eq!(
            std::fs::read_dir(base.path()).unwrap().count(),
            1,
            "no staging folder is left"
        );
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(unpack_into(&file.join("tiny")).is_err());
    }
}
