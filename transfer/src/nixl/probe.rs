//! What keeps NIXL, and RDMA under it, from being used here.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::agent::Agent;
use super::{NixlConfig, NixlError};
use crate::machine;

/// What was looked at, one thing after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub checks: Vec<Check>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub finding: Finding,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// As it should be; what was found.
    Fine(String),
    /// Why not, and what to do about it.
    Missing { why: String, remedy: String },
}

impl Finding {
    pub fn is_fine(&self) -> bool {
        matches!(self, Finding::Fine(_))
    }

    fn missing(why: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding::Missing {
            why: why.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Fine(what) => f.write_str(what),
            Finding::Missing { why, remedy } => write!(f, "{why}; {remedy}"),
        }
    }
}

const NIXL: &str = "NIXL";
const RDMA_DEVICE: &str = "RDMA device";
const PERMISSION: &str = "permission";
const LOCKED_MEMORY: &str = "locked memory";

impl Probe {
    /// Whether pages can go by NIXL, over whatever network it finds.
    pub fn has_nixl(&self) -> bool {
        self.is_fine(NIXL)
    }

    /// Whether they would go by RDMA.
    pub fn has_rdma(&self) -> bool {
        self.checks.iter().all(|check| check.finding.is_fine())
    }

    fn is_fine(&self, name: &str) -> bool {
        let check = self.checks.iter().find(|check| check.name == name);
        check.is_some_and(|check| check.finding.is_fine())
    }
}

/// Looks whether workers on this machine can use NIXL and RDMA. `pool_bytes` is what a worker will
/// register, where that is known.
pub fn probe(config: &NixlConfig, pool_bytes: u64) -> Probe {
    Probe {
        checks: checks(config, pool_bytes).collect(),
    }
}

/// What is missing for RDMA first of all. NIXL is loaded only if nothing else is.
pub(super) fn obstacle(config: &NixlConfig, pool_bytes: u64) -> Option<Check> {
    checks(config, pool_bytes).find(|check| !check.finding.is_fine())
}

/// The checks, each made when it is asked for.
fn checks(config: &NixlConfig, pool_bytes: u64) -> impl Iterator<Item = Check> {
    let names = [RDMA_DEVICE, PERMISSION, LOCKED_MEMORY, NIXL];
    names.into_iter().map(move |name| {
        let system = System::default();
        let finding = match name {
            RDMA_DEVICE => system.devices(&config.devices),
            PERMISSION => system.permission(),
            LOCKED_MEMORY => locked_memory(machine::memlock_bytes(), pool_bytes),
            _ => nixl(Agent::new(config).map(drop)),
        };
        Check { name, finding }
    })
}

fn nixl(started: Result<(), NixlError>) -> Finding {
    let Err(error) = started else {
        return Finding::Fine("loads, and has UCX".into());
    };
    let text = error.to_string();
    match text.split_once("; ") {
        Some((why, remedy)) => Finding::missing(why, remedy),
        None => Finding::missing(text, "see what it printed on standard error"),
    }
}

/// Where the kernel shows what it has.
struct System {
    class: PathBuf,
    dev: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        System {
            class: "/sys/class/infiniband".into(),
            dev: "/dev/infiniband".into(),
        }
    }
}

impl System {
    /// Ports that are up, of the devices asked for.
    fn devices(&self, wanted: &[String]) -> Finding {
        let devices = names(&self.class);
        if devices.is_empty() {
            return Finding::missing(
                format!("the kernel has no RDMA device ({})", self.class.display()),
                "load the card's driver (mlx5_ib for NVIDIA ConnectX, rdma_rxe for Soft-RoCE); in a pod ask the RDMA device plugin for a device",
            );
        }
        if let Some(unknown) = wanted.iter().find(|name| !devices.contains(name)) {
            return Finding::missing(
                format!("there is no RDMA device {unknown}"),
                format!("choose from: {}", devices.join(", ")),
            );
        }
        let used = devices
            .iter()
            .filter(|name| wanted.is_empty() || wanted.contains(name));
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for device in used {
            let ports = self.class.join(device).join("ports");
            for port in names(&ports) {
                let state = fs::read_to_string(ports.join(&port).join("state")).unwrap_or_default();
                let list = match state.contains("ACTIVE") {
                    true => &mut up,
                    false => &mut down,
                };
                list.push(format!("{device}:{port}"));
            }
        }
        if up.is_empty() {
            return Finding::missing(
                format!("no port is active ({} are down)", down.join(", ")),
                "connect the cable and bring the interface up; InfiniBand also needs a subnet manager",
            );
        }
        Finding::Fine(format!("{} active", up.join(", ")))
    }

    /// Whether this process may open the devices.
    fn permission(&self) -> Finding {
        let nodes: Vec<PathBuf> = names(&self.dev)
            .into_iter()
            .filter(|name| name.starts_with("uverbs"))
            .map(|name| self.dev.join(name))
            .collect();
        if nodes.is_empty() {
            return Finding::missing(
                format!("{} has no uverbs device", self.dev.display()),
                "load ib_uverbs; in a container pass the devices in (docker: --device /dev/infiniband; Kubernetes: the RDMA device plugin)",
            );
        }
        let refused = nodes.iter().find_map(|node| {
            let opened = fs::OpenOptions::new().read(true).write(true).open(node);
            opened.err().map(|error| (node, error))
        });
        match refused {
            Some((node, error)) => Finding::missing(
                format!("cannot open {}: {error}", node.display()),
                "run as a user who may, or change the device's mode or group (udev)",
            ),
            None => Finding::Fine(format!("may open {}", self.dev.display())),
        }
    }
}

fn locked_memory(limit: Option<u64>, pool_bytes: u64) -> Finding {
    match limit {
        None => Finding::Fine("no limit".into()),
        Some(limit) if limit > pool_bytes.max(LITTLE) => {
            Finding::Fine(format!("limited to {} MiB", limit >> 20))
        }
        Some(limit) => Finding::missing(
            format!(
                "limited to {} KiB, and cards need theirs locked",
                limit >> 10
            ),
            "raise it: `ulimit -l unlimited`, LimitMEMLOCK=infinity for a service, or CAP_IPC_LOCK for a pod",
        ),
    }
}

/// Less than this is not enough for the rings of a few peers.
const LITTLE: u64 = 256 << 20;

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(name: &str) -> System {
        let root =
            std::env::temp_dir().join(format!("millrace-probe-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        System {
            class: root.join("class"),
            dev: root.join("dev"),
        }
    }

    fn port(system: &System, device: &str, state: &str) {
        let port = system.class.join(device).join("ports/1");
        fs::create_dir_all(&port).unwrap();
        fs::write(port.join("state"), state).unwrap();
    }

    fn text(finding: &Finding) -> String {
        finding.to_string()
    }

    #[test]
    fn says_what_is_missing_step_by_step() {
        let system = system("steps");
        assert!(text(&system.devices(&[])).contains("no RDMA device"));
        port(&system, "mlx5_0", "1: DOWN\n");
        assert!(text(&system.devices(&[])).contains("mlx5_0:1 are down"));
        port(&system, "mlx5_1", "4: ACTIVE\n");
        assert_eq!(system.devices(&[]), Finding::Fine("mlx5_1:1 active".into()));
        let wanted = |name: &str| system.devices(&[name.to_owned()]);
        assert!(!wanted("mlx5_0").is_fine(), "that one is down");
        assert!(wanted("mlx5_1").is_fine());
        assert!(text(&wanted("mlx5_9")).contains("choose from: mlx5_0, mlx5_1"));

        assert!(text(&system.permission()).contains("no uverbs device"));
        fs::create_dir_all(&system.dev).unwrap();
        fs::write(system.dev.join("uverbs0"), "").unwrap();
        assert!(system.permission().is_fine());
        fs::create_dir(system.dev.join("uverbs1")).unwrap();
        assert!(
            text(&system.permission()).contains("uverbs1"),
            "cannot be opened"
        );
    }

    #[test]
    fn locked_memory_has_to_hold_the_pool() {
        assert!(locked_memory(None, u64::MAX).is_fine());
        assert!(!locked_memory(Some(64 << 10), 0).is_fine());
        assert!(locked_memory(Some(1 << 30), 512 << 20).is_fine());
        assert!(!locked_memory(Some(1 << 30), 2 << 30).is_fine());
    }
}
