//! Folders as Kubernetes mounts Secrets.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// The volume of a Secret: files are links to `..data/NAME`, and `..data` is a link to a folder, which is
/// replaced as a whole.
pub struct Volume {
    dir: tempfile::TempDir,
    versions: usize,
}

impl Volume {
    pub fn new(files: &[(&str, &str)]) -> Volume {
        let mut volume = Volume {
            dir: tempfile::tempdir().unwrap(),
            versions: 0,
        };
        volume.replace(files);
        for (name, _) in files {
            symlink(Path::new("..data").join(name), volume.at(name)).unwrap();
        }
        volume
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// As the kubelet does: a new folder, and then the link, in one step.
    pub fn replace(&mut self, files: &[(&str, &str)]) {
        self.versions += 1;
        let version = format!("..version_{}", self.versions);
        fs::create_dir(self.at(&version)).unwrap();
        for (name, content) in files {
            fs::write(self.at(&version).join(name), content).unwrap();
        }
        symlink(&version, self.at("..data_tmp")).unwrap();
        fs::rename(self.at("..data_tmp"), self.at("..data")).unwrap();
    }
}
