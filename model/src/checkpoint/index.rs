//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::error::CheckpointError;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Tensor names by shard file name, both in order.
pub(super) type Shards = BTreeMap<String, Vec<String>>;

/// Parses an index. Shard names must be plain names of `.safetensors` files: an index must not
/// reach outside its folder.
pub(super) fn parse(path: &Path, json: &[u8]) -> Result<Shards, CheckpointError> {
    let broken = |reason: String| CheckpointError::Index {
        path: PathBuf::from(path),
        reason,
    };
    let index: Index = serde_json::from_slice(json).map_err(|e| broken(e.to_string()))?;
    let mut shards = Shards::new();
    for (tensor, file) in index.weight_map {
        if !is_plain_name(&file) {
            return Err(broken(format!(
                "tensor {tensor} is said to be in {file:?}, which is not a .safetensors file name"
            )));
        }
        shards.entry(file).or_default().push(tensor);
    }
    if shards.is_empty() {
        return Err(broken("weight_map names no tensors".to_string()));
    }
    Ok(shards)
}

fn is_plain_name(file: &str) -> bool {
    let mut components = Path::new(file).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(name)), None) if name == file);
    plain && file.ends_with(".safetensors") && !file.contains(['\\', '\0'])
}
