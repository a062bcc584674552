//! SHA256SUMS: which files a folder has. The names come from a server, so nothing in them may lead
//! out of the folder.

use std::collections::{HashMap, HashSet};

use crate::checksum::Checksum;

/// The list's own name, in the source and in the folder.
pub(crate) const NAME: &str = "SHA256SUMS";
/// Where what is ours lies in the folder: lock, stamps, partial files.
pub(crate) const OURS: &str = ".millrace-fetch";

/// Many times what any checkpoint has.
pub(crate) const MAX_BYTES: usize = 4 << 20;
const MAX_FILES: usize = 20_000;
const MAX_NAME: usize = 1024;
const MAX_COMPONENT: usize = 255;

/// A file that belongs to the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Relative, its components separated by `/`.
    pub name: String,
    pub checksum: Checksum,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "line {line} of SHA256SUMS {what}; write it anew with `sha256sum` in the folder, and pass its new checksum"
)]
pub struct SumsError {
    pub line: usize,
    pub what: String,
}

/// The files that a SHA256SUMS lists, in its order. A line for SHA256SUMS itself is left out: it cannot
/// hold its own checksum, and is there whenever somebody wrote `sha256sum * > SHA256SUMS`.
///
/// # Errors
/// `SumsError` for what is not in `sha256sum`'s format, for names that are not plain relative paths or
/// come twice, and for too many.
pub(crate) fn parse(text: &[u8]) -> Result<Vec<Entry>, SumsError> {
    let text = std::str::from_utf8(text).map_err(|error| SumsError {
        line: 1 + text[..error.valid_up_to()]
            .iter()
            .filter(|b| **b == b'\n')
            .count(),
        what: "is not UTF-8".to_owned(),
    })?;
    let mut entries = Vec::new();
    let mut lines: HashMap<String, usize> = HashMap::new();
    let mut folders: HashSet<String> = HashSet::new();
    for (number, line) in (1..).zip(text.lines()) {
        let fail = |what: String| SumsError { line: number, what };
        if line.trim().is_empty() {
            continue;
        }
        let entry = entry(line).map_err(fail)?;
        if entry.name == NAME {
            continue;
        }
        if let Some(first) = lines.insert(entry.name.clone(), number) {
            return Err(fail(format!(
                "names `{}` again, after line {first}",
                entry.name
            )));
        }
        folders.extend(
            entry
                .name
                .match_indices('/')
                .map(|(at, _)| entry.name[..at].to_owned()),
        );
        entries.push(entry);
        if entries.len() > MAX_FILES {
            return Err(fail(format!(
                "is one file too many: at most {MAX_FILES} are taken"
            )));
        }
    }
    if let Some(entry) = entries.iter().find(|entry| folders.contains(&entry.name)) {
        return Err(SumsError {
            line: lines[&entry.name],
            what: format!(
                "names `{}`, which is also a folder of another file",
                entry.name
            ),
        });
    }
    if entries.is_empty() {
        return Err(SumsError {
            line: 1,
            what: "and all others name no file".to_owned(),
        });
    }
    Ok(entries)
}

fn entry(line: &str) -> Result<Entry, String> {
    if line.starts_with('\\') {
        return Err("has an escaped name: rename that file".to_owned());
    }
    let format = || "is not a checksum, two spaces and a name, as sha256sum prints them".to_owned();
    let (hex, rest) = line.split_once(' ').ok_or_else(format)?;
    let checksum = Checksum::from_hex(hex).ok_or_else(format)?;
    // The second character says text or binary, which are the same here.
    let name = rest.strip_prefix([' ', '*']).ok_or_else(format)?;
    let name = name.strip_prefix("./").unwrap_or(name);
    validate(name)?;
    Ok(Entry {
        name: name.to_owned(),
        checksum,
    })
}

fn validate(name: &str) -> Result<(), String> {
    let shown = || name.escape_debug().take(80).collect::<String>();
    if name.len() > MAX_NAME {
        return Err(format!(
            "has a name of {} bytes; at most {MAX_NAME} are taken",
            name.len()
        ));
    }
    if name.starts_with('/') {
        return Err(format!("names `{}`, which is absolute", shown()));
    }
    if name.chars().any(|c| c.is_control() || c == '\\') {
        return Err(format!(
            "names `{}`, which has a control character or a backslash",
            shown()
        ));
    }
    for part in name.split('/') {
        if matches!(part, "" | "." | "..") {
            return Err(format!(
                "names `{}`, which is not a plain relative path",
                shown()
            ));
        }
        if part.len() > MAX_COMPONENT {
            return Err(format!(
                "names `{}`, which no file system takes: it is too long",
                shown()
            ));
        }
    }
    if name.split('/').next() == Some(OURS) {
        return Err(format!(
            "names `{}`, but {OURS} is where the download keeps its own files",
            shown()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn names(text: &str) -> Result<Vec<String>, SumsError> {
        Ok(parse(text.as_bytes())?
            .into_iter()
            .map(|entry| entry.name)
            .collect())
    }

    #[test]
    fn takes_what_sha256sum_prints() {
        let text =
            format!("{HEX}  a.json\r\n\n{HEX} *sub/b c.bin\n{HEX}  ./ü+%.txt\n{HEX}  SHA256SUMS\n");
        assert_eq!(names(&text).unwrap(), ["a.json", "sub/b c.bin", "ü+%.txt"]);
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        for name in [
            "../a",
            "a/../../b",
            "/etc/passwd",
            "a//b",
            "a/./b",
            "a/",
            "..",
            "",
            "a\\b",
            "a\u{7f}",
            "a\0b",
            ".millrace-fetch/lock",
            ".millrace-fetch",
            "./../a",
            &"n/".repeat(600),
            &"n".repeat(256),
        ] {
            let error = names(&format!("{HEX}  ok\n{HEX}  {name}\n")).expect_err(name);
            assert_eq!(error.line, 2, "{name}");
        }
    }

    #[test]
    fn other_formats_and_contradictions_are_refused_with_their_line() {
        for (text, line) in [
            (format!("SHA256 (a) = {HEX}\n"), 1),
            (format!("{HEX}  a\n{HEX} a\n"), 2),
            (format!("{HEX}  a\n{}  b\n", &HEX[1..]), 2),
            (format!("\\{HEX}  a\\nb\n"), 1),
            (format!("{HEX}  a\n{HEX}  b\n{HEX}  a\n"), 3),
            (format!("{HEX}  a/b\n{HEX}  a\n"), 2),
            (format!("{HEX}  a\n{HEX}  a/b\n"), 1),
            (String::new(), 1),
        ] {
            assert_eq!(names(&text).expect_err(&text).line, line, "{text}");
        }
        assert_eq!(parse(b"\xff").unwrap_err().line, 1);
        let many: String = (0..=MAX_FILES).map(|n| format!("{HEX}  {n}\n")).collect();
        assert_eq!(names(&many).unwrap_err().line, MAX_FILES + 1);
    }
}
