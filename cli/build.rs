//! Finds out which commit is being built, for `millrace --version` and the labels of the image.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// What goes into the binary, relative to the workspace: changes elsewhere do not make it dirty.
const SOURCES: [&str; 5] = ["*.rs", "*.toml", "*.lock", "*.proto", "models/tiny-r1"];
const OPTIONAL: [&str; 5] = ["cuda", "etcd", "fetch", "nixl", "operator"];

fn main() {
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("..");
    println!("cargo:rerun-if-env-changed=MILLRACE_GIT_REVISION");
    println!("cargo:rerun-if-changed=build.rs");
    let revision = git_revision(&workspace)
        .or_else(|| std::env::var("MILLRACE_GIT_REVISION").ok())
        .map(|revision| revision.trim().to_owned())
        .filter(|revision| !revision.is_empty())
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=MILLRACE_REVISION={revision}");

    let features: Vec<&str> = OPTIONAL
        .into_iter()
        .filter(|name| std::env::var_os(format!("CARGO_FEATURE_{}", name.to_uppercase())).is_some())
        .collect();
    let features = match features.as_slice() {
        [] => "none".to_owned(),
        features => features.join(", "),
    };
    println!("cargo:rustc-env=MILLRACE_FEATURES={features}");
    println!("cargo:rustc-env=MILLRACE_TARGET={}", variable("TARGET"));
}

fn variable(name: &str) -> String {
    // Cargo sets it for every build script.
    std::env::var(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The commit in 12 digits, with `-dirty` where a source differs from it. None without git, or where
/// the workspace is only a part of somebody else's repository.
fn git_revision(workspace: &Path) -> Option<String> {
    let top = PathBuf::from(git(workspace, &["rev-parse", "--show-toplevel"])?);
    if top.canonicalize().ok()? != workspace.canonicalize().ok()? {
        return None;
    }
    watch(workspace, &top);
    let mut revision = git(workspace, &["rev-parse", "--short=12", "HEAD"])?;
    let status = ["status", "--porcelain", "--untracked-files=no", "--"];
    if !git(workspace, &[&status[..], &SOURCES].concat())?.is_empty() {
        revision += "-dirty";
    }
    Some(revision)
}

/// Looks again once the commit changes, and once a source does (this crate is compiled again then
/// anyway, because it depends on all others). Only what exists may be named: cargo takes what is missing
/// for changed, each time.
fn watch(workspace: &Path, top: &Path) {
    let mut paths: Vec<PathBuf> = vec!["HEAD".into(), "packed-refs".into()];
    paths.extend(git(workspace, &["symbolic-ref", "-q", "HEAD"]).map(PathBuf::from));
    let git_paths = paths.iter().filter_map(|path| {
        let found = git(workspace, &["rev-parse", "--git-path", path.to_str()?])?;
        Some(workspace.join(found))
    });
    let members = std::fs::read_dir(top).into_iter().flatten().flatten();
    let sources =
        members.flat_map(|member| ["src", "Cargo.toml"].map(|name| member.path().join(name)));
    for path in git_paths.chain(sources).filter(|path| path.exists()) {
        println!("cargo:rerun-if-changed={}", path.display());
    }
}

fn git(workspace: &Path, arguments: &[&str]) -> Option<String> {
    // Without optional locks: `git status` would write the index under the feet of others.
    let output = Command::new("git")
        .arg("--no-optional-locks")
        .args(arguments)
        .current_dir(workspace)
        .stderr(std::process::Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
