//! A Hugging Face folder opened for reading: `config.json` and safetensors, one file or sharded.
//!
//! Weights are memory-mapped and never copied here: a [`Matrix`] borrows the file's bytes. Headers
//! and the index are checked in full when the folder is opened, so that a lookup later fails only
//! if a tensor is absent or of another shape or type than the model needs.
//!
//! **Do not write into or shorten the files of an open checkpoint**: the kernel answers a read
//! past a mapped file's new end with SIGBUS, which ends the process. Replacing files (writing
//! beside them and renaming, as download tools do) is safe.

mod error;
mod header;
mod index;
mod random;
mod revision;
mod shard;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub use error::CheckpointError;
pub use header::{Dtype, TensorInfo};

use crate::config::{ConfigError, ModelConfig};
use crate::files::{MAX_TEXT_FILE, read_bounded, read_optional};
use crate::matrix::{BlockScales, Matrix, MatrixData, ScaleValues};
use random::Random;
use shard::Shard;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An open checkpoint; see the module's documentation.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: ModelConfig,
    config_bytes: Vec<u8>,
    /// Ordered by file name.
    shards: Vec<(String, Shard)>,
    /// Tensor name to index into `shards`.
    tensors: HashMap<String, usize>,
    /// Instead of shards: whatever is asked for.
    random: Option<Random>,
    revision: OnceLock<String>,
}

impl Checkpoint {
    /// Opens the folder `dir`, reading configuration, index and headers but no weights.
    pub fn open(dir: &Path) -> Result<Checkpoint, CheckpointError> {
        let config = ModelConfig::from_dir(dir)?;
        let path = dir.join("config.json");
        let config_bytes = read_bounded(&path, MAX_TEXT_FILE)
            .map_err(|source| ConfigError::Read { path, source })?;
        let (shards, tensors) = open_shards(dir)?;
        Ok(Checkpoint {
            dir: dir.to_path_buf(),
            config,
            config_bytes,
            shards,
            tensors,
            random: None,
            revision: OnceLock::new(),
        })
    }

    /// A model of this `config.json` with random weights, for measurements: every tensor is there in
    /// whatever shape it is asked for, in 8 bits where the configuration says that weights are. Numbers
    /// are of a trained model's size, so that what is computed stays finite. Tensors share memory.
    pub fn random(config_json: &[u8]) -> Result<Checkpoint, CheckpointError> {
        let json = serde_json::from_slice(config_json).map_err(|source| ConfigError::Json {
            file: "config.json",
            source,
        })?;
        let config = ModelConfig::from_json(&json, None)?;
        Ok(Checkpoint {
            dir: PathBuf::from("(random)"),
            random: Some(Random::new(config.common.quantization)),
            config,
            config_bytes: config_json.to_vec(),
            shards: Vec::new(),
            tensors: HashMap::new(),
            revision: OnceLock::new(),
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Whether there is a tensor of this full name.
    pub fn has(&self, tensor: &str) -> bool {
        match &self.random {
            Some(random) => random.has(tensor),
            None => self.tensors.contains_key(tensor),
        }
    }

    /// Full names of all tensors, in no particular order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Type, shape and place of a tensor.
    pub fn info(&self, tensor: &str) -> Option<&TensorInfo> {
        self.tensors
            .get(tensor)
            .and_then(|&shard| self.shards[shard].1.header.tensors.get(tensor))
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.names()
            .filter_map(|name| self.info(name))
            .map(|info| (info.end - info.start) as u64)
            .sum()
    }

    /// 16 hexadecimal digits that name these weights under this configuration: a hash of
    /// config.json and of every shard's name, length, header and data. Of the data of shards above
    /// 64 MiB only 32 pages are read, so a change of a few values there may go unseen. The tokenizer
    /// is not part of it. Computed at the first call.
    pub fn revision(&self) -> String {
        let shards = self
            .shards
            .iter()
            .map(|(name, shard)| (name.as_str(), shard));
        self.revision
            .get_or_init(|| revision::revision(&self.config_bytes, shards))
            .clone()
    }

    /// The weight `name` (without `.weight`) as `rows x cols` (outputs x inputs), stored as float32,
    /// float16, bfloat16, or FP8 with its `weight_scale_inv`.
    ///
    /// Values are not read: see [`Checkpoint::check_finite`].
    pub fn matrix(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Matrix<'_>, CheckpointError> {
        let tensor = format!("{name}.weight");
        let (dtype, bytes) = self.tensor(&tensor, &[rows, cols])?;
        let data = match dtype {
            Dtype::F32 => MatrixData::F32(bytes),
            Dtype::F16 => MatrixData::F16(bytes),
            Dtype::BF16 => MatrixData::Bf16(bytes),
            Dtype::F8_E4M3 => MatrixData::Fp8 {
                bytes,
                scales: self.scales(tensor, rows, cols)?,
            },
            found => {
                return Err(CheckpointError::Dtype {
                    tensor,
                    found,
                    expected: "F32, F16, BF16, F8_E4M3",
                });
            }
        };
        Ok(Matrix { rows, cols, data })
    }

    /// The one-dimensional tensor of this full name (norms, biases) as float32, checked to be finite.
    pub fn vector(&self, tensor: &str, len: usize) -> Result<Vec<f32>, CheckpointError> {
        let (dtype, bytes) = self.tensor(tensor, &[len])?;
        let data = match dtype {
            Dtype::F32 => MatrixData::F32(bytes),
            Dtype::F16 => MatrixData::F16(bytes),
            Dtype::BF16 => MatrixData::Bf16(bytes),
            found => {
                let tensor = tensor.to_string();
                return Err(CheckpointError::Dtype {
                    tensor,
                    found,
                    expected: "F32, F16, BF16",
                });
            }
        };
        let row = Matrix {
            rows: 1,
            cols: len,
            data,
        };
        self.check_finite(tensor, &row)?;
        Ok(row.to_f32())
    }

    /// An error that names `tensor` if `matrix` has a NaN or an infinity. Reads the whole matrix; a
    /// loader calls it once a matrix, where it reads the values anyway.
    pub fn check_finite(&self, tensor: &str, matrix: &Matrix) -> Result<(), CheckpointError> {
        match matrix.first_non_finite() {
            None => Ok(()),
            Some((row, col)) => Err(CheckpointError::NotFinite {
                tensor: tensor.to_string(),
                row,
                col,
            }),
        }
    }

    /// The scales of the FP8 weight `tensor`.
    fn scales(
        &self,
        tensor: String,
        rows: usize,
        cols: usize,
    ) -> Result<BlockScales<'_>, CheckpointError> {
        let Some(fp8) = self.config.common.quantization else {
            return Err(CheckpointError::Fp8 {
                tensor,
                reason: "config.json has no quantization_config",
            });
        };
        let name = format!("{tensor}_scale_inv");
        if !self.has(&name) {
            return Err(CheckpointError::Fp8 {
                tensor,
                reason: "there is no weight_scale_inv beside it",
            });
        }
        let shape = [rows.div_ceil(fp8.block_rows), cols.div_ceil(fp8.block_cols)];
        let (dtype, bytes) = self.tensor(&name, &shape)?;
        let values = match dtype {
            Dtype::F32 => ScaleValues::F32(bytes),
            Dtype::F8_E8M0 => ScaleValues::Ue8m0(bytes),
            found => {
                return Err(CheckpointError::Dtype {
                    tensor: name,
                    found,
                    expected: "F32, F8_E8M0",
                });
            }
        };
        Ok(BlockScales {
            values,
            block_rows: fp8.block_rows,
            block_cols: fp8.block_cols,
        })
    }

    fn tensor(&self, tensor: &str, shape: &[usize]) -> Result<(Dtype, &[u8]), CheckpointError> {
        if let Some(random) = &self.random {
            return Ok(random.tensor(tensor, shape));
        }
        let missing = || CheckpointError::MissingTensor {
            tensor: tensor.to_string(),
        };
        let shard = &self.shards[*self.tensors.get(tensor).ok_or_else(missing)?].1;
        let info = shard.header.tensors.get(tensor).ok_or_else(missing)?;
        if info.shape != shape {
            let (found, expected) = (info.shape.clone(), shape.to_vec());
            return Err(CheckpointError::Shape {
                tensor: tensor.to_string(),
                found,
                expected,
            });
        }
        Ok((info.dtype, &shard.bytes()[info.start..info.end]))
    }
}

type Opened = (Vec<(String, Shard)>, HashMap<String, usize>);

/// The single file if there is one, else what the index names (transformers' order).
fn open_shards(dir: &Path) -> Result<Opened, CheckpointError> {
    let single = dir.join(SINGLE);
    if single.exists() {
        let shard = Shard::open(&single)?;
        let tensors = shard
            .header
            .tensors
            .keys()
            .map(|name| (name.clone(), 0))
            .collect();
        return Ok((vec![(SINGLE.to_string(), shard)], tensors));
    }
    let path = dir.join(INDEX);
    let json = read_optional(&path, MAX_TEXT_FILE)
        .map_err(|source| CheckpointError::Read {
            path: path.clone(),
            source,
        })?
        .ok_or_else(|| CheckpointError::NoWeights {
            dir: dir.to_path_buf(),
        })?;
    let mut shards = Vec::new();
    let mut tensors = HashMap::new();
    for (file, names) in index::parse(&path, &json)? {
        let path = dir.join(&file);
        let shard = Shard::open(&path).map_err(|e| match e {
            CheckpointError::Read { path, source }
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                CheckpointError::MissingShard { path, source }
            }
            other => other,
        })?;
        for tensor in names {
            if !shard.header.tensors.contains_key(&tensor) {
                return Err(CheckpointError::NotInShard { tensor, path });
            }
            tensors.insert(tensor, shards.len());
        }
        shards.push((file, shard));
    }
    Ok((shards, tensors))
}
