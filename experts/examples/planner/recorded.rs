//! Loads recorded from tiny-r1 by domain of its text: `tests/data/tiny_r1_loads.json`,
//! `{domain: {"layers": l, "experts": e, "counts": [[tokens; e]; l]}}`.

use std::collections::BTreeMap;

use millrace_experts::Loads;
use serde::Deserialize;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny_r1_loads.json");

#[derive(Deserialize)]
struct Domain {
    layers: usize,
    experts: usize,
    counts: Vec<Vec<u64>>,
}

/// Every domain's loads, by name.
///
/// # Errors
/// Why there is nothing to compare.
pub fn read() -> Result<Vec<(String, Loads)>, String> {
    let json = std::fs::read(PATH)
        .map_err(|error| format!("{PATH}: {error}; record them from a running tiny-r1"))?;
    parse(&json).map_err(|error| format!("{PATH}: {error}; record it anew"))
}

pub fn parse(json: &[u8]) -> Result<Vec<(String, Loads)>, String> {
    let domains: BTreeMap<String, Domain> =
        serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let mut size = None;
    let mut all = Vec::new();
    for (name, domain) in domains {
        let Domain {
            layers,
            experts,
            counts,
        } = domain;
        if counts.len() != layers || counts.iter().any(|layer| layer.len() != experts) {
            return Err(format!(
                "{name}: counts are not {layers} layers of {experts} experts"
            ));
        }
        if *size.get_or_insert((layers, experts)) != (layers, experts) {
            return Err(format!("{name}: another size than the domains before it"));
        }
        let counts = counts.concat();
        all.push((name, Loads { experts, counts }));
    }
    if size.is_none_or(|(layers, experts)| layers == 0 || experts == 0) {
        return Err("no domain has any experts".into());
    }
    Ok(all)
}
