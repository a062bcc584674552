//! From the flags of `up` to the processes it starts. Pure: no clock, no sockets.

use std::{ffi::OsString, net::SocketAddr, path::Path};

use super::{UpArgs, child::Spec};
use crate::args::Flags;

/// What the flags leave open.
pub struct Resolved<'a> {
    pub model: &'a Path,
    pub names: &'a [String],
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
    // One core a process at least; the router's share is small next to a forward pass.
    let threads = (resolved.cores / args.workers()).max(1);
    let roles = [
        ("prefill", prefill, args.prefill_ranks),
        ("decode", decode, args.decode_ranks),
    ];
    for (role, count, ranks) in roles {
        for index in 0..count {
            for rank in 0..ranks {
                let group = format!("{role}-{index}");
                let metrics = resolved.metrics[specs.len()];
                let mut flags = worker(role, metrics, threads, args, resolved);
                // A worker of one rank is no group: it holds every expert itself.
                let name = if ranks == 1 {
                    group
                } else {
                    flags.extend(place(&group, rank, ranks, args));
                    format!("{group}.{rank}")
                };
                specs.push(spec(name, flags));
            }
        }
    }
    specs
}

/// A restarted process gets the same ones, and so comes back as the same rank.
fn place(group: &str, rank: usize, ranks: usize, args: &UpArgs) -> Vec<OsString> {
    let mut flags = Flags::default();
    flags.value("--group", Some(group));
    flags.number("--rank", Some(rank));
    flags.number("--ranks", Some(ranks));
    flags.0.extend(args.replicas.to_flags());
    flags.0
}

fn router(args: &UpArgs, resolved: &Resolved<'_>) -> Vec<OsString> {
    let mut flags = Flags(vec!["router".into()]);
    flags.value("--http", Some(&resolved.http.to_string()));
    flags.value("--grpc", Some(&resolved.grpc.to_string()));
    flags.value("--workers", Some(&resolved.workers.to_string()));
    flags.number("--drain-seconds", Some(args.drain_seconds as usize));
    flags
        .0
        .extend(args.model.to_flags(resolved.model, resolved.names));
    flags.0.extend(args.epochs.to_flags());
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
        .extend(args.model.to_flags(resolved.model, resolved.names));
    flags.number("--drain-seconds", Some(args.drain_seconds as usize));
    flags.0.extend(args.engine.to_flags(threads));
    flags.0
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{Cli, Command};

    fn specs(flags: &[&str], cores: usize) -> Vec<Spec> {
        let line = ["millrace", "up"].iter().chain(flags);
        let Command::Up(args) = Cli::try_parse_from(line).unwrap().command else {
            panic!("`up` was parsed as something else");
        };
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let names = ["name", "other"].map(str::to_owned);
        let metrics: Vec<SocketAddr> = (100..120).map(address).collect();
        let resolved = Resolved {
            model: Path::new("a model"),
            names: &names,
            http: address(1),
            grpc: address(2),
            workers: address(3),
            metrics: &metrics,
            log_filter: "warn",
            cores,
        };
        plan(&args, &resolved)
    }

    fn parsed(spec: &Spec) -> Command {
        let line = [OsString::from("millrace")]
            .into_iter()
            .chain(spec.args.clone());
        Cli::try_parse_from(line).unwrap().command
    }

    #[test]
    fn every_child_understands_what_it_is_given() {
        let flags = [
            "--prefill=2",
            "--decode=3",
            "--max-model-len=64",
            "--kv-pages=9",
            "--kv-dtype=f32",
            "--max-batch-tokens=7",
            "--max-running=5",
            "--local-prefill-tokens=0",
            "--no-mtp",
            "--no-prefix-cache",
            "--transfer=tcp",
            "--drain-seconds=4",
        ];
        let specs = specs(&flags, 16);
        let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "router",
                "prefill-0",
                "prefill-1",
                "decode-0",
                "decode-1",
                "decode-2"
            ]
        );

        let Command::Router(router) = parsed(&specs[0]) else {
            panic!("not a router")
        };
        assert_eq!(
            (
                router.http.port(),
                router.grpc.port(),
                router.workers.port()
            ),
            (1, 2, 3)
        );
        assert_eq!(router.process.drain_seconds, 4);
        let Command::Prefill(prefill) = parsed(&specs[1]) else {
            panic!("not a prefill worker")
        };
        assert!(prefill.notices && prefill.engine.no_mtp && prefill.engine.no_prefix_cache);
        let Command::Decode(decode) = parsed(&specs[5]) else {
            panic!("not a decode worker")
        };
        assert_eq!(decode.worker.routers, ["127.0.0.1:3"]);
        assert_eq!(decode.worker.metrics.port(), 105);
        assert_eq!(
            decode.worker.model.model.as_deref(),
            Some(Path::new("a model"))
        );
        assert_eq!(decode.worker.model.served_model_name, ["name", "other"]);
        assert_eq!(decode.worker.engine.kv_pages, Some(9));
        assert_eq!(decode.worker.engine.max_running, Some(5));
    }

    #[test]
    fn cores_are_shared_out_and_nobody_gets_none() {
        let threads = |flags: &[&str], cores| match parsed(specs(flags, cores).last().unwrap()) {
            Command::Decode(decode) => decode.worker.engine.threads,
            _ => panic!("not a decode worker"),
        };
        assert_eq!(threads(&[], 16), Some(8));
        assert_eq!(threads(&["--aggregated"], 16), Some(16));
        assert_eq!(threads(&["--prefill=2", "--decode=2"], 2), Some(1));
        assert_eq!(threads(&["--threads=3"], 2), Some(3));
    }

    #[test]
    fn aggregated_has_no_prefill_workers() {
        let names: Vec<String> = specs(&["--aggregated", "--prefill=4"], 1)
            .into_iter()
            .map(|spec| spec.name)
            .collect();
        assert_eq!(names, ["router", "decode-0"]);
    }

    #[test]
    fn a_worker_of_several_ranks_is_a_group_of_processes() {
        let flags = [
            "--prefill=1",
            "--prefill-ranks=2",
            "--decode=2",
            "--decode-ranks=2",
            "--redundant-experts=3",
            "--stage-bandwidth=5M",
            "--etcd=a:1,b:2",
            "--etcd-prefix=/here",
            "--balance-min-gain=0",
            "--balance-interval-seconds=0.25",
        ];
        let specs = specs(&flags, 12);
        let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "router",
                "prefill-0.0",
                "prefill-0.1",
                "decode-0.0",
                "decode-0.1",
                "decode-1.0",
                "decode-1.1"
            ]
        );
        let Command::Router(router) = parsed(&specs[0]) else {
            panic!("not a router")
        };
        assert_eq!(router.epochs.etcd, ["a:1", "b:2"]);
        let interval = router.epochs.balance_interval_seconds.unwrap().0;
        assert_eq!(interval, std::time::Duration::from_millis(250));
        assert_eq!(router.epochs.etcd_prefix.as_deref(), Some("/here"));
        assert_eq!(router.epochs.balance_min_gain, Some(0.0));
        let Command::Prefill(prefill) = parsed(&specs[2]) else {
            panic!("not a prefill worker")
        };
        let group = prefill.group.config().unwrap().unwrap();
        assert_eq!((group.group.as_str(), group.rank), ("prefill-0", 1));
        let Command::Decode(decode) = parsed(&specs[5]) else {
            panic!("not a decode worker")
        };
        let group = decode.worker.group.config().unwrap().unwrap();
        assert_eq!((group.group.as_str(), group.rank), ("decode-1", 0));
        assert_eq!((group.ranks, group.redundant_experts), (2, 3));
        assert_eq!(group.stage_bandwidth, 5_000_000);
        assert_eq!(decode.worker.metrics.port(), 105);
        assert_eq!(decode.worker.engine.threads, Some(2));
    }

    #[test]
    fn a_worker_of_one_rank_is_told_of_no_group() {
        let args: Vec<OsString> = specs(&["--prefill=2"], 4)
            .into_iter()
            .flat_map(|spec| spec.args)
            .collect();
        for flag in ["--group", "--rank", "--etcd", "--redundant-experts"] {
            assert!(!args.iter().any(|arg| arg == flag), "{flag}");
        }
    }
}
