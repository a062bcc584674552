//! Which build of the binary this process is.

use std::sync::OnceLock;

use prometheus::{IntGaugeVec, Opts};

/// A process is of one build, as it has one log. Set by the binary alone.
static REVISION: OnceLock<&str> = OnceLock::new();

/// Says which commit the binary was built from, before any registry is made. Later calls change
/// nothing.
pub fn set_revision(revision: &'static str) {
    let _ = REVISION.set(revision);
}

/// `millrace_build_info`.
pub(crate) fn info() -> Result<IntGaugeVec, prometheus::Error> {
    let info = IntGaugeVec::new(
        Opts::new(
            "millrace_build_info",
            "1, with the version and the commit that the process was built from",
        ),
        &["version", "revision"],
    )?;
    let revision = REVISION.get().copied().unwrap_or("unknown");
    info.with_label_values(&[env!("CARGO_PKG_VERSION"), revision])
        .set(1);
    Ok(info)
}
