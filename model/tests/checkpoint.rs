//! Folders that are broken in every way a download or a disk can break them.

use std::os::unix::fs::FileExt;
use std::path::Path;

use millrace_model::checkpoint::{Checkpoint, CheckpointError};
use proptest::prelude::*;
use serde_json::{Value, json};

const CONFIG: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64, "num_attention_heads": 2, "intermediate_size": 8, "rope_theta": 10000
}"#;

const FP8: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64, "num_attention_heads": 2, "intermediate_size": 8, "rope_theta": 10000,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 3]}
}"#;

/// A safetensors file with this header and `data` zero bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes()[..],
        header.as_bytes(),
        &vec![0; data],
    ]
    .concat()
}

fn tensor(dtype: &str, shape: Value, start: u64, end: u64) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]})
}

/// Two matrices and a vector, as the format has them.
fn good() -> Vec<u8> {
    let header = json!({
        "__metadata__": {"format": "pt"},
        "a.weight": tensor("F32", json!([2, 3]), 0, 24),
        "b.weight": tensor("BF16", json!([2, 2]), 24, 32),
        "n.weight": tensor("F16", json!([5]), 32, 42),
    });
    file(&header.to_string(), 42)
}

fn folder(config: &str, files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn open_single(bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
    let dir = folder(CONFIG, &[("model.safetensors", bytes)]);
    // The map outlives the folder.
    Checkpoint::open(dir.path())
}

#[test]
fn a_good_file_opens() {
    let checkpoint = open_single(&good()).unwrap();
    assert_eq!(checkpoint.total_bytes(), 42);
    assert_eq!(checkpoint.matrix("a", 2, 3).unwrap().to_f32(), [0.0; 6]);
    assert_eq!(checkpoint.vector("n.weight", 5).unwrap(), [0.0; 5]);
    let mut names: Vec<&str> = checkpoint.names().collect();
    names.sort_unstable();
    assert_eq!(names, ["a.weight", "b.weight", "n.weight"]);
}

#[test]
fn headers_that_lie() {
    let one = |dtype: &str, shape: Value, start, end, data| {
        file(
            &json!({"a.weight": tensor(dtype, shape, start, end)}).to_string(),
            data,
        )
    };
    let two = |a: Value, b: Value, data| file(&json!({"a": a, "b": b}).to_string(), data);
    for (bytes, says) in [
        (vec![], "not even a header length"),
        (vec![1, 2, 3], "3 bytes and not even"),
        (
            u64::MAX.to_le_bytes().to_vec(),
            "more than the format's limit",
        ),
        (
            100u64.to_le_bytes().to_vec(),
            "only 0 follow: the file is cut off",
        ),
        (file("{", 0), "EOF"),
        (file("[]", 0), "expected an object of tensors"),
        (
            [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat(),
            "not UTF-8",
        ),
        (file("{} x", 0), "trailing characters"),
        (
            file(r#"{"a":{"dtype":"F32","shape":[1]}}"#, 4),
            "tensor a: missing field `data_offsets`",
        ),
        (
            one("F33", json!([1]), 0, 4, 4),
            "tensor a.weight: unknown variant `F33`",
        ),
        (
            one("F32", json!([-1]), 0, 4, 4),
            "tensor a.weight: invalid value",
        ),
        (
            one("F32", json!([2]), 0, 4, 4),
            "F32 of shape [2] needs 8 bytes, data_offsets span 4",
        ),
        (
            one("F32", json!([1u64 << 40, 1u64 << 40]), 0, 4, 4),
            "no whole or sane number of bytes",
        ),
        (
            one("F4", json!([3]), 0, 2, 2),
            "no whole or sane number of bytes",
        ),
        (one("F32", json!([1]), 4, 0, 4), "do not lie in the 4 bytes"),
        (
            one("F32", json!([2]), 0, 8, 4),
            "do not lie in the 4 bytes of data: the file is cut off",
        ),
        (one("F32", json!([1]), 0, u64::MAX, 4), "do not lie"),
        (
            one("F32", json!([1]), 0, 4, 9),
            "tensors cover 4 of the 9 bytes",
        ),
        (
            two(
                tensor("U8", json!([4]), 0, 4),
                tensor("U8", json!([4]), 2, 6),
                6,
            ),
            "overlap the tensor before",
        ),
        (
            two(
                tensor("U8", json!([4]), 0, 4),
                tensor("U8", json!([4]), 6, 10),
                10,
            ),
            "leave a gap",
        ),
        (
            file(
                r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                2,
            ),
            "tensor a: is there twice",
        ),
    ] {
        let error = open_single(&bytes).unwrap_err().to_string();
        assert!(error.contains(says), "expected {says:?} in {error}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    let whole = good();
    for length in 0..whole.len() {
        assert!(
            open_single(&whole[..length]).is_err(),
            "{length} of {} bytes were accepted",
            whole.len()
        );
    }
}

#[test]
fn wrong_tensors_are_named() {
    let checkpoint = open_single(&good()).unwrap();
    let error = checkpoint.matrix("missing", 1, 1).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::MissingTensor { tensor } if tensor == "missing.weight")
    );
    assert!(matches!(
        checkpoint.matrix("a", 3, 2),
        Err(CheckpointError::Shape { .. })
    ));
    assert!(matches!(
        checkpoint.vector("a.weight", 6),
        Err(CheckpointError::Shape { .. })
    ));
    let integers = file(
        &json!({"a.weight": tensor("I32", json!([1, 1]), 0, 4)}).to_string(),
        4,
    );
    let error = open_single(&integers)
        .unwrap()
        .matrix("a", 1, 1)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "tensor a.weight is stored as I32; supported here: F32, F16, BF16, F8_E4M3"
    );
}

#[test]
fn nan_is_found_and_placed() {
    let mut bytes = good();
    let data = bytes.len() - 42;
    bytes[data + 16..data + 20].copy_from_slice(&f32::NAN.to_le_bytes());
    bytes[data + 34..data + 36].copy_from_slice(&0x7c00u16.to_le_bytes());
    let checkpoint = open_single(&bytes).unwrap();
    let error = checkpoint
        .check_finite("a", &checkpoint.matrix("a", 2, 3).unwrap())
        .unwrap_err();
    assert!(
        matches!(error, CheckpointError::NotFinite { row: 1, col: 1, .. }),
        "{error}"
    );
    assert!(matches!(
        checkpoint.vector("n.weight", 5),
        Err(CheckpointError::NotFinite { row: 0, col: 1, .. })
    ));
}

/// A 3 x 4 FP8 weight in blocks of 2 x 3, with scales of this type and shape.
fn fp8(config: &str, scales: Option<(&str, Value, u64)>) -> Result<Vec<f32>, String> {
    let mut header = json!({"w.weight": tensor("F8_E4M3", json!([3, 4]), 0, 12)});
    let mut data = 12;
    if let Some((dtype, shape, bytes)) = scales {
        header["w.weight_scale_inv"] = tensor(dtype, shape, 12, 12 + bytes);
        data += bytes as usize;
    }
    let mut bytes = file(&header.to_string(), data);
    let start = bytes.len() - data;
    bytes[start..].fill(0x38); // 1.0 in e4m3
    let dir = folder(config, &[("model.safetensors", &bytes)]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    checkpoint
        .matrix("w", 3, 4)
        .map(|m| m.to_f32())
        .map_err(|e| e.to_string())
}

#[test]
fn fp8_needs_its_scales() {
    assert_eq!(
        fp8(FP8, Some(("F8_E8M0", json!([2, 2]), 4))).unwrap(),
        [2f32.powi(0x38 - 127); 12]
    );
    assert_eq!(
        fp8(FP8, Some(("F32", json!([2, 2]), 16))).unwrap(),
        [f32::from_bits(0x3838_3838); 12]
    );
    for (config, scales, says) in [
        (FP8, None, "no weight_scale_inv"),
        (
            CONFIG,
            Some(("F32", json!([2, 2]), 16)),
            "config.json has no quantization_config",
        ),
        (
            FP8,
            Some(("F32", json!([2, 1]), 8)),
            "has shape [2, 1] but config.json implies [2, 2]",
        ),
        (
            FP8,
            Some(("BF16", json!([2, 2]), 8)),
            "w.weight_scale_inv is stored as BF16; supported here: F32, F8_E8M0",
        ),
    ] {
        let error = fp8(config, scales).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

fn index(map: Value) -> Vec<u8> {
    json!({"metadata": {"total_size": 1}, "weight_map": map})
        .to_string()
        .into_bytes()
}

#[test]
fn shards_are_joined() {
    let other = file(
        &json!({"c.weight": tensor("F32", json!([1, 1]), 0, 4)}).to_string(),
        4,
    );
    let map = json!({"a.weight": "one.safetensors", "n.weight": "one.safetensors", "c.weight": "two.safetensors"});
    let files = [
        ("one.safetensors", &good()[..]),
        ("two.safetensors", &other),
        ("model.safetensors.index.json", &index(map)),
    ];
    let dir = folder(CONFIG, &files);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(checkpoint.matrix("a", 2, 3).is_ok() && checkpoint.matrix("c", 1, 1).is_ok());
    assert!(!checkpoint.has("b.weight"), "the index does not name it");
    assert_eq!(checkpoint.total_bytes(), 24 + 10 + 4);
}

#[test]
fn bad_indexes_and_shards() {
    let good = good();
    let (good, a) = (&good[..], "a.weight");
    for (json, says) in [
        (b"{".to_vec(), "broken shard index"),
        (b"{}".to_vec(), "missing field `weight_map`"),
        (index(json!({})), "names no tensors"),
        (index(json!({a: 5})), "invalid type"),
        (
            index(json!({a: "../one.safetensors"})),
            "not a .safetensors file name",
        ),
        (
            index(json!({a: "/etc/one.safetensors"})),
            "not a .safetensors file name",
        ),
        (
            index(json!({a: "sub/one.safetensors"})),
            "not a .safetensors file name",
        ),
        (
            index(json!({a: "./one.safetensors"})),
            "not a .safetensors file name",
        ),
        (index(json!({a: "one.bin"})), "not a .safetensors file name"),
        (index(json!({a: ""})), "not a .safetensors file name"),
        (
            index(json!({a: "absent.safetensors"})),
            "named in the index but missing",
        ),
        (
            index(json!({"z.weight": "one.safetensors"})),
            "tensor z.weight should be in",
        ),
    ] {
        let dir = folder(
            CONFIG,
            &[
                ("one.safetensors", good),
                ("model.safetensors.index.json", &json),
            ],
        );
        let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(says), "expected {says:?} in {error}");
    }
    let error = Checkpoint::open(folder(CONFIG, &[]).path())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("has neither model.safetensors nor"),
        "{error}"
    );
    assert!(matches!(
        Checkpoint::open(Path::new("/nonexistent")),
        Err(CheckpointError::Config(_))
    ));
}

#[test]
fn the_revision_follows_the_contents() {
    let revision = |config: &str, bytes: &[u8]| {
        let dir = folder(config, &[("model.safetensors", bytes)]);
        Checkpoint::open(dir.path()).unwrap().revision()
    };
    let bytes = good();
    let mut other = bytes.clone();
    *other.last_mut().unwrap() = 1;
    assert_eq!(revision(CONFIG, &bytes), revision(CONFIG, &bytes));
    assert_ne!(revision(CONFIG, &bytes), revision(CONFIG, &other));
    assert_ne!(revision(CONFIG, &bytes), revision(FP8, &bytes));
}

#[test]
fn large_shards_are_sampled() {
    let length = 80 << 20;
    let header = json!({"a.weight": tensor("U8", json!([length]), 0, length)}).to_string();
    let revision = |change: Option<u64>| {
        let dir = folder(CONFIG, &[("model.safetensors", &file(&header, 0))]);
        let path = dir.path().join("model.safetensors");
        let shard = std::fs::File::options().write(true).open(path).unwrap();
        shard.set_len(8 + header.len() as u64 + length).unwrap();
        if let Some(at) = change {
            shard
                .write_all_at(&[1], 8 + header.len() as u64 + at)
                .unwrap();
        }
        Checkpoint::open(dir.path()).unwrap().revision()
    };
    assert_eq!(revision(None), revision(None));
    assert_ne!(revision(None), revision(Some(0)));
    assert_ne!(revision(None), revision(Some(length - 1)));
}

/// Reads every tensor of an opened checkpoint; what was accepted must be readable.
fn read_all(checkpoint: &Checkpoint) {
    for name in checkpoint.names() {
        let shape = &checkpoint.info(name).unwrap().shape;
        match (shape.as_slice(), name.strip_suffix(".weight")) {
            (&[rows, cols], Some(base)) => {
                if let Ok(matrix) = checkpoint.matrix(base, rows, cols) {
                    let _ = matrix.first_non_finite();
                    assert_eq!(matrix.to_f32().len(), rows * cols);
                }
            }
            (&[len], _) => drop(checkpoint.vector(name, len)),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever is accepted here, the format's own library accepts too.
    #[test]
    fn mutated_files_never_panic(edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in 0usize..3) {
        let mut bytes = good();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - cut);
        if let Ok(checkpoint) = open_single(&bytes) {
            prop_assert!(safetensors::SafeTensors::deserialize(&bytes).is_ok());
            read_all(&checkpoint);
        }
    }

    #[test]
    fn digits_changed_in_a_header_never_panic(edits in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..10), 1..4)) {
        let mut bytes = good();
        let digits: Vec<usize> = (8..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
        for (at, digit) in edits {
            bytes[*at.get(&digits)] = b'0' + digit;
        }
        if let Ok(checkpoint) = open_single(&bytes) {
            prop_assert!(safetensors::SafeTensors::deserialize(&bytes).is_ok());
            read_all(&checkpoint);
        }
    }

    #[test]
    fn arbitrary_files_never_panic(header in "[\\[\\]{}\":,0-9a-z_]{0,60}", bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let _ = open_single(&bytes);
        let _ = open_single(&file(&header, bytes.len()));
    }

    #[test]
    fn arbitrary_indexes_never_panic(name in ".{0,12}", bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        for json in [index(json!({"a.weight": name})), bytes] {
            let dir = folder(CONFIG, &[("model.safetensors.index.json", &json)]);
            prop_assert!(Checkpoint::open(dir.path()).is_err());
        }
    }
}
