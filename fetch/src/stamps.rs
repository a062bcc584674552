//! Which files were found right, and how they looked then: a file that still looks so is not read again.

use std::{
    collections::HashMap,
    fs::{File, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::Path,
};

use crate::checksum::Checksum;

/// How a file looked when its bytes were checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub checksum: Checksum,
    size: u64,
    /// Seconds and nanoseconds since the epoch.
    modified: (i64, i64),
}

impl Stamp {
    pub fn of(file: &Metadata, checksum: Checksum) -> Stamp {
        Stamp {
            checksum,
            size: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
        }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the file looks as it did.
    pub fn fits(&self, path: &Path) -> bool {
        path.metadata().is_ok_and(|file| {
            file.is_file()
                && file.len() == self.size
                && (file.mtime(), file.mtime_nsec()) == self.modified
        })
    }
}

/// The stamps in a file that is only ever appended to, a line each: name, size, time, checksum. The last
/// line of a name counts. A line that was cut off is none: the checksum is last, and its length is known.
pub(crate) struct Stamps {
    file: File,
    known: HashMap<String, Stamp>,
}

impl Stamps {
    /// What was written so far, without the right to write.
    pub fn read(path: &Path) -> io::Result<HashMap<String, Stamp>> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
            Err(error) => return Err(error),
        };
        let text = String::from_utf8_lossy(&text);
        Ok(text.lines().filter_map(parse).collect())
    }

    pub fn open(path: &Path) -> io::Result<Stamps> {
        let known = Stamps::read(path)?;
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        // Ends a line that was cut off.
        file.write_all(b"\n")?;
        Ok(Stamps { file, known })
    }

    pub fn known(&self) -> &HashMap<String, Stamp> {
        &self.known
    }

    pub fn add(&mut self, name: &str, stamp: Stamp) -> io::Result<()> {
        let (seconds, nanoseconds) = stamp.modified;
        let (size, checksum) = (stamp.size, stamp.checksum.hex());
        let line = format!("{name}\t{size}\t{seconds}.{nanoseconds}\t{checksum}\n");
        self.file.write_all(line.as_bytes())?;
        self.known.insert(name.to_owned(), stamp);
        Ok(())
    }

    /// Starts the file anew with what `keep` says, so that it does not grow with every list.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) -> io::Result<()> {
        let known = std::mem::take(&mut self.known);
        self.file.set_len(0)?;
        for (name, stamp) in known.into_iter().filter(|(name, _)| keep(name)) {
            self.add(&name, stamp)?;
        }
        Ok(())
    }
}

fn parse(line: &str) -> Option<(String, Stamp)> {
    // No name has a tab in it.
    let mut fields = line.split('\t');
    let name = fields.next()?.to_owned();
    let size = fields.next()?.parse().ok()?;
    let (seconds, nanoseconds) = fields.next()?.split_once('.')?;
    let modified = (seconds.parse().ok()?, nanoseconds.parse().ok()?);
    let checksum = Checksum::from_hex(fields.next()?)?;
    let stamp = Stamp {
        checksum,
        size,
        modified,
    };
    Some((name, stamp))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_line_of_a_name_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (path, file) = (dir.path().join("stamps"), dir.path().join("a b"));
        std::fs::write(&file, b"abc").unwrap();
        let stamp = |bytes: &[u8]| Stamp::of(&file.metadata().unwrap(), Checksum::of(bytes));
        let mut stamps = Stamps::open(&path).unwrap();
        stamps.add("a b", stamp(b"old")).unwrap();
        stamps.add("gone", stamp(b"x")).unwrap();
        stamps.add("a b", stamp(b"abc")).unwrap();
        stamps.retain(|name| name != "gone").unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], &whole[..whole.len() - 2]].concat()).unwrap();

        let mut stamps = Stamps::open(&path).unwrap();
        assert_eq!(stamps.known().keys().collect::<Vec<_>>(), ["a b"]);
        assert!(stamps.known()["a b"].fits(&file));
        assert_eq!(stamps.known()["a b"].checksum, Checksum::of(b"abc"));
        stamps.add("after a cut", stamp(b"abc")).unwrap();
        assert_eq!(Stamps::read(&path).unwrap().len(), 2);

        std::fs::write(&file, b"abcd").unwrap();
        assert!(!stamps.known()["a b"].fits(&file));
    }
}
