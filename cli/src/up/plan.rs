//! From the flags of `up` to the processes it starts. Pure: no clock, no sockets.

use std::{ffi::OsString, net::SocketAddr, path::Path};

use super::{UpArgs, child::Spec};
use crate::args::Flags;

/// What the flags leave open.
pub struct Resolved<'a> {
    pub model: &'a Path,
    pub name: &'a str,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    /// Where workers attach to the router.
    pub workers: SocketAddr,
    /// Where each process serves /metrics, the router first.
    pub metrics: &'a [SocketAddr],
    pub log_filter: &'a str,
    /// Cores of this machine.
    pub cores: usize,
}

/// The router first, then prefill workers, then decode workers.
pub fn plan(args: &UpArgs, resolved: &Resolved<'_>) -> Vec<Spec> {
    let (prefill, decode) = (args.prefill_workers(), args.decode);
    let spec = |name: String, args: Vec<OsString>| Spec {
        name,
        args,
        log_filter: resolved.log_filter.to_owned(),
    };

    let mut specs = vec![spec("router".into(), router(args, resolved))];
    // One core a worker at least; the router's share is small next to a forward pass.
    let threads = (resolved.cores / (prefill + decode)).max(1);
    for (role, count) in [("prefill", prefill), ("decode", decode)] {
        for index in 0..count {
            let id = format!("{role}-{index}");
            let metrics = resolved.metrics[specs.len()];
            specs.push(spec(id, worker(role, metrics, threads, args, resolved)));
        }
    }
    specs
}

fn router(args: &UpArgs, resolved: &Resolved<'_>) -> Vec<OsString> {
    let mut flags = Flags(vec!["router".into()]);
    flags.value("--http", Some(&resolved.http.to_string()));
    flags.value("--grpc", Some(&resolved.grpc.to_string()));
    flags.value("--workers", Some(&resolved.workers.to_string()));
    flags.number("--drain-seconds", Some(args.drain_seconds as usize));
    flags
        .0
        .extend(args.model.to_flags(resolved.model, resolved.name));
    flags.0
}

fn worker(
    role: &str,
    metrics: SocketAddr,
    threads: usize,
    args: &UpArgs,
    resolved: &Resolved<'_>,
) -> Vec<OsString> {
    let mut flags = Flags(vec![role.into(), "--notices".into()]);
    flags.value("--metrics", Some(&metrics.to_string()));
    flags.value("--router", Some(&resolved.workers.to_string()));
    flags
        .0
        .extend(args.model.to_flags(resolved.model, resolved.name));
    flags.number("--drain-seconds", Some(args.drain_seconds as usize));
    flags.0.extend(args.engine.to_flags(threads));
    flags.0
}
