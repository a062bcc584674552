//! `millrace probe`: whether workers on this machine can move pages by RDMA, and what is missing if not.

use clap::Args;
use millrace_transfer::{Finding, NixlConfig, Probe, probe};

use crate::errors::Outcome;

/// When RDMA is not usable; errors are 1.
const NOT_USABLE: u8 = 3;

#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// Network devices that workers are to use, such as mlx5_0 [default: what UCX finds]
    #[arg(
        long,
        value_name = "NAME,..",
        env = "MILLRACE_TRANSFER_DEVICES",
        value_delimiter = ','
    )]
    transfer_devices: Vec<String>,
}

pub fn main(args: ProbeArgs) -> anyhow::Result<Outcome> {
    let config = NixlConfig {
        devices: args.transfer_devices,
        ..NixlConfig::default()
    };
    let probe = probe(&config, 0);
    print!("{}", report(&probe));
    Ok(match probe.has_rdma() {
        true => Outcome::Done,
        false => Outcome::Code(NOT_USABLE),
    })
}

fn report(probe: &Probe) -> String {
    let mut text = String::new();
    for check in &probe.checks {
        let (state, rest) = match &check.finding {
            Finding::Fine(what) => ("ok", what.clone()),
            Finding::Missing { why, remedy } => ("missing", format!("{why}\n{:24}{remedy}", "")),
        };
        text += &format!("{:<14}  {state:<7} {rest}\n", check.name);
    }
    let verdict = match (probe.has_rdma(), probe.has_nixl()) {
        (true, _) => "RDMA is usable: `--transfer auto` takes NIXL between machines.",
        (false, true) => {
            "RDMA is not usable: `--transfer auto` takes TCP between machines; `--transfer nixl` works, over TCP, too."
        }
        (false, false) => "RDMA is not usable: `--transfer auto` takes TCP between machines.",
    };
    text + verdict + "\n"
}

#[cfg(test)]
mod tests {
    use millrace_transfer::Check;

    use super::*;

    #[test]
    fn what_is_missing_comes_with_a_remedy() {
        let check = |name, finding| Check { name, finding };
        let probe = Probe {
            checks: vec![
                check("NIXL", Finding::Fine("loads".into())),
                check(
                    "RDMA device",
                    Finding::Missing {
                        why: "none".into(),
                        remedy: "get one".into(),
                    },
                ),
            ],
        };
        let text = report(&probe);
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        assert_eq!(lines[0], "NIXL            ok      loads");
        assert_eq!(lines[1..3], ["RDMA device     missing none", "get one"]);
        assert!(lines[3].contains("`--transfer nixl` works"), "{}", lines[3]);
    }
}
