//! Reports in files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use millrace_sim::Report;

/// All or nothing: whoever is cut off in the middle leaves no half file that `--compare` would stumble over.
pub fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    std::fs::write(&part, text).with_context(|| part.display().to_string())?;
    std::fs::rename(&part, file).with_context(|| file.display().to_string())
}

/// The reports that `--json` wrote into folders. The same run may be in several of them; it counts once.
pub fn read(folders: &[PathBuf]) -> anyhow::Result<Vec<Report>> {
    let mut runs: BTreeMap<_, (PathBuf, Report)> = BTreeMap::new();
    for file in list(folders)? {
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let report = Report::parse(&text).with_context(|| file.display().to_string())?;
        let run = (
            report.scenario.clone(),
            report.gpus,
            report.policy,
            report.seed,
        );
        match runs.get(&run) {
            Some((other, same)) if *same != report => bail!(
                "{} and {} are the same run with different results: of two builds or profiles, say; compare one",
                other.display(),
                file.display()
            ),
            _ => drop(runs.insert(run, (file, report))),
        }
    }
    Ok(runs.into_values().map(|(_, report)| report).collect())
}

fn list(folders: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for folder in folders {
        let before = files.len();
        let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
        for entry in entries {
            let file = entry?.path();
            if file.extension().is_some_and(|ending| ending == "json") {
                files.push(file);
            }
        }
        if files.len() == before {
            bail!("{}: no JSON of a run", folder.display());
        }
    }
    files.sort();
    Ok(files)
}
