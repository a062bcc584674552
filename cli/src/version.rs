//! Which Millrace this is: what `--version` prints.

/// The commit that was built.
pub const REVISION: &str = env!("MILLRACE_REVISION");

/// On one line, for `-V`.
pub const SHORT: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("MILLRACE_REVISION"),
    ")"
);

/// One fact a line, the revision being the commit that was built, `-dirty` if a source was changed, or
/// `unknown` if neither git nor MILLRACE_GIT_REVISION told; for people and for scripts; `image/labels` reads it.
pub const LONG: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\nrevision: ",
    env!("MILLRACE_REVISION"),
    "\nfeatures: ",
    env!("MILLRACE_FEATURES"),
    "\ntarget: ",
    env!("MILLRACE_TARGET")
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_it_was_built_from() {
        let facts: Vec<&str> = LONG.lines().collect();
        assert_eq!(facts.len(), 4);
        assert_eq!(facts[0], env!("CARGO_PKG_VERSION"));
        let revision = facts[1].strip_prefix("revision: ").unwrap();
        assert!(!revision.is_empty() && !revision.contains(char::is_whitespace));
        assert_eq!(facts[2].contains("etcd"), cfg!(feature = "etcd"));
        assert!(SHORT.contains(revision));
    }
}
