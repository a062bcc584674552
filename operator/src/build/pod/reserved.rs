//! Names in pods that are the operator's.

/// Variables, and what to do instead of setting them (a half sentence, or nothing).
pub const ENV: [(&str, &str); 8] = [
    ("MILLRACE_WORKER_ID", ""),
    ("MILLRACE_ROUTER", ""),
    ("MILLRACE_REVISION", ""),
    ("MILLRACE_GROUP", ""),
    ("MILLRACE_RANK", ""),
    ("MILLRACE_RANKS", ", and set ranks"),
    (
        "MILLRACE_DRAIN_SECONDS",
        ", and set spec.drain.deadlineSeconds",
    ),
    ("MILLRACE_AGGREGATED", ", and leave out spec.prefill"),
];

pub const VOLUMES: [&str; 7] = [
    "tmp", "cache", "model", "download", "source", "tls", "api-keys",
];

pub const FOLDERS: [&str; 4] = ["/tmp", "/cache", "/model", "/etc/millrace"];
