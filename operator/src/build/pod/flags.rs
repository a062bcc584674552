//! Flags that the operator sets, and the fields they come from.

use crate::api::Role;

/// A flag that nobody else may pass: a command takes each once.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    pub flag: &'static str,
    /// What to do instead of passing it.
    pub instead: &'static str,
}

const fn flag(flag: &'static str, instead: &'static str) -> Flag {
    Flag { flag, instead }
}

const BOTH: [Flag; 4] = [
    flag("--model", "set spec.model.source"),
    flag("--served-model-name", "set spec.model.servedNames"),
    flag("--max-model-len", "set spec.model.maxModelLen"),
    flag("--drain-seconds", "set spec.drain.deadlineSeconds"),
];

const ROUTER: [Flag; 13] = [
    flag("--http", "port 8000 is a Service's"),
    flag("--grpc", "port 9000 is a Service's"),
    flag("--workers", "port 9001 is a Service's"),
    flag("--probe", "port 8001 is where kubelets ask"),
    flag("--tls-cert", "set spec.router.tls.secretName"),
    flag("--tls-key", "set spec.router.tls.secretName"),
    flag("--api-keys", "set spec.router.auth.secretName"),
    flag("--max-sequences", "set spec.router.maxSequences"),
    flag("--max-waiting", "set spec.router.maxWaiting"),
    flag("--request-timeout", "set spec.router.requestTimeoutSeconds"),
    flag(
        "--balance-interval-seconds",
        "set spec.router.balanceIntervalSeconds",
    ),
    flag("--etcd", "set spec.etcd.endpoints"),
    flag("--etcd-prefix", "it follows from the deployment's name"),
];

const WORKER: [Flag; 21] = [
    flag("--device", "set device"),
    flag("--kv-pages", "set engine.kvPages"),
    flag("--kv-dtype", "set engine.kvDtype"),
    flag("--max-running", "set engine.maxRunning"),
    flag("--max-batch-tokens", "set engine.maxBatchTokens"),
    flag("--no-mtp", "set engine.mtp to false"),
    flag("--no-prefix-cache", "set engine.prefixCache to false"),
    flag("--threads", "set engine.threads"),
    flag("--transfer", "set spec.transfer.transport"),
    flag("--transfer-devices", "set spec.transfer.devices"),
    flag("--listen", "port 9100 is where routers look"),
    flag("--metrics", "port 9102 is where kubelets ask"),
    flag("--advertise-host", "set MILLRACE_ADVERTISE_HOST under env"),
    flag("--router", "it follows from the deployment's name"),
    flag("--worker-id", "it is the pod's name"),
    flag("--revision", "it follows from the spec"),
    flag("--group", "it is the StatefulSet's name"),
    flag("--rank", "it is the pod's ordinal"),
    flag("--ranks", "set ranks"),
    flag("--group-listen", "port 9104 is where other ranks look"),
    flag("--redundant-experts", "set redundantExperts"),
];

const DECODE: [Flag; 3] = [
    flag("--local-prefill-tokens", "set engine.localPrefillTokens"),
    flag(
        "--transfer-listen",
        "port 9103 is where prefill workers look",
    ),
    flag("--aggregated", "leave out spec.prefill"),
];

pub fn router() -> Vec<Flag> {
    [&BOTH[..], &ROUTER].concat()
}

pub fn worker(role: Role) -> Vec<Flag> {
    let all = [&BOTH[..], &WORKER, &DECODE];
    match role {
        Role::Prefill => all[..2].concat(),
        Role::Decode => all.concat(),
    }
}

/// An argument list under construction.
#[derive(Debug, Default)]
pub struct Args(Vec<String>);

impl Args {
    pub fn new(command: &str) -> Args {
        Args(vec![command.to_owned()])
    }

    pub fn set(&mut self, flag: &str, value: impl ToString) -> &mut Args {
        // What looks like a variable would be replaced by the kubelet.
        let value = value.to_string().replace("$(", "$$(");
        self.0.push(format!("{flag}={value}"));
        self
    }

    pub fn maybe(&mut self, flag: &str, value: Option<impl ToString>) -> &mut Args {
        if let Some(value) = value {
            self.set(flag, value);
        }
        self
    }

    pub fn switch(&mut self, flag: &str, on: bool) -> &mut Args {
        if on {
            self.0.push(flag.to_owned());
        }
        self
    }

    /// Arguments of others, as they are.
    pub fn and(mut self, more: &[String]) -> Vec<String> {
        self.0.extend_from_slice(more);
        self.0
    }
}
