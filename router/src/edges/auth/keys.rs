//! The set of API keys: a folder as Kubernetes mounts a Secret, or one file.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;

use super::super::reload::Source;

/// Longer lines are no keys: somebody mounted something else.
const LONGEST: usize = 512;

/// Why there are no usable keys. Never says what is in a file.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{path}, line {line}, is no API key: a key is 1 to 512 letters, digits and signs of ASCII, without spaces"
    )]
    Line { path: PathBuf, line: usize },
    #[error("{0} holds no API keys; write one a line, or leave --api-keys out to serve everybody")]
    Empty(PathBuf),
}

/// One key, as it is kept in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// Keyed with a secret of this process, so that neither a dump of its memory nor the time that a
    /// comparison takes tells much of a key.
    hash: blake3::Hash,
    /// The name of the file that has it.
    owner: Arc<str>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.owner)
    }
}

/// All keys that are accepted now.
pub struct ApiKeys {
    path: PathBuf,
    secret: [u8; 32],
    current: RwLock<Vec<Key>>,
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeys({})", self.path.display())
    }
}

impl ApiKeys {
    /// Reads them. Blocks.
    ///
    /// # Errors
    /// There are none, or they cannot be read.
    pub fn open(path: PathBuf) -> Result<(Arc<ApiKeys>, Vec<Key>), KeyError> {
        let keys = ApiKeys {
            path,
            secret: rand::random(),
            current: RwLock::default(),
        };
        let first = keys.load()?;
        keys.adopt(first.clone());
        Ok((Arc::new(keys), first))
    }

    /// Whose key it is. Looks at all of them, whichever it is.
    pub(super) fn owner(&self, key: &str) -> Option<Arc<str>> {
        let hash = self.hash(key);
        let keys = self.current.read();
        // Comparing two `blake3::Hash`es takes the same time wherever they differ.
        let found = keys.iter().fold(
            None,
            |found, key| {
                if key.hash == hash { Some(key) } else { found }
            },
        );
        found.map(|key| Arc::clone(&key.owner))
    }

    fn hash(&self, key: &str) -> blake3::Hash {
        blake3::keyed_hash(&self.secret, key.as_bytes())
    }

    fn read(&self, path: &Path, keys: &mut Vec<Key>) -> Result<(), KeyError> {
        let bytes = fs::read(path).map_err(|source| read_error(path, source))?;
        let name = path.file_name().unwrap_or(path.as_os_str());
        let owner: Arc<str> = name.to_string_lossy().into();
        for (at, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let key = std::str::from_utf8(line)
                .ok()
                .filter(|key| key.len() <= LONGEST && key.bytes().all(|it| it.is_ascii_graphic()))
                .ok_or_else(|| KeyError::Line {
                    path: path.to_owned(),
                    line: at + 1,
                })?;
            keys.push(Key {
                hash: self.hash(key),
                owner: Arc::clone(&owner),
            });
        }
        Ok(())
    }
}

impl Source for ApiKeys {
    type Value = Vec<Key>;
    type Error = KeyError;
    const NAME: &'static str = "api_keys";

    fn load(&self) -> Result<Vec<Key>, KeyError> {
        let mut keys = Vec::new();
        for file in files(&self.path)? {
            self.read(&file, &mut keys)?;
        }
        if keys.is_empty() {
            return Err(KeyError::Empty(self.path.clone()));
        }
        Ok(keys)
    }

    fn adopt(&self, keys: Vec<Key>) {
        *self.current.write() = keys;
    }
}

/// `path` itself, or the files in it, by name. In the volume of a Secret these are links to what
/// `..data` links to, and only they count: names with a dot in front are Kubernetes' own (or an
/// editor's).
fn files(path: &Path) -> Result<Vec<PathBuf>, KeyError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| read_error(&path, source)
    };
    if !fs::metadata(path).map_err(at(path))?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(at(path))? {
        let entry = entry.map_err(at(path))?;
        let file = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if fs::metadata(&file).map_err(at(&file))?.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn read_error(path: &Path, source: io::Error) -> KeyError {
    KeyError::Read {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn owner(keys: &ApiKeys, key: &str) -> Option<String> {
        keys.owner(key).map(|owner| owner.to_string())
    }

    #[test]
    fn a_secrets_volume_is_read_through_its_links() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("..2026_01")).unwrap();
        fs::write(
            at("..2026_01/alice"),
            "# of the laptop\nfirst\r\n\n  second  \n",
        )
        .unwrap();
        fs::write(at("..2026_01/bob"), "third").unwrap();
        symlink("..2026_01", at("..data")).unwrap();
        symlink("..data/alice", at("alice")).unwrap();
        symlink("..data/bob", at("bob")).unwrap();
        fs::write(at(".alice.swp"), "hidden").unwrap();
        fs::create_dir(at("folder")).unwrap();

        let (keys, first) = ApiKeys::open(dir.path().to_owned()).unwrap();
        assert_eq!(owner(&keys, "first").as_deref(), Some("alice"));
        assert_eq!(owner(&keys, "second").as_deref(), Some("alice"));
        assert_eq!(owner(&keys, "third").as_deref(), Some("bob"));
        for other in ["", "firs", "first ", "hidden", "# of the laptop"] {
            assert_eq!(owner(&keys, other), None, "{other}");
        }
        assert!(keys.load().unwrap() == first, "nothing has changed");

        // As the kubelet updates it.
        fs::create_dir(at("..2026_02")).unwrap();
        fs::write(at("..2026_02/alice"), "fourth").unwrap();
        fs::write(at("..2026_02/bob"), "third").unwrap();
        symlink("..2026_02", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        let second = keys.load().unwrap();
        assert!(second != first);
        keys.adopt(second);
        assert_eq!(owner(&keys, "first"), None);
        assert_eq!(owner(&keys, "fourth").as_deref(), Some("alice"));
        assert_eq!(owner(&keys, "third").as_deref(), Some("bob"));
    }

    #[test]
    fn what_is_no_set_of_keys_is_named_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let error = ApiKeys::open(dir.path().join("none")).unwrap_err();
        assert!(matches!(error, KeyError::Read { .. }), "{error}");
        let error = ApiKeys::open(dir.path().to_owned()).unwrap_err();
        assert!(matches!(error, KeyError::Empty(_)), "{error}");
        let file = dir.path().join("keys");
        fs::write(&file, "\n# none yet\n").unwrap();
        let error = ApiKeys::open(file.clone()).unwrap_err();
        assert!(matches!(error, KeyError::Empty(_)), "{error}");
        for bad in ["two words", "schlüssel", &"k".repeat(513)] {
            fs::write(&file, format!("good\n{bad}\n")).unwrap();
            let error = ApiKeys::open(file.clone()).unwrap_err().to_string();
            assert!(error.contains("line 2") && !error.contains(bad), "{error}");
        }
        fs::write(&file, "good\n").unwrap();
        let (keys, _) = ApiKeys::open(file).unwrap();
        assert_eq!(owner(&keys, "good").as_deref(), Some("keys"));
        assert!(!format!("{keys:?}").contains("good"));
    }
}
