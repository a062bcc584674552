//! The embedded checkpoint opens, and every tensor has the type and shape its card promises.

use std::path::Path;

use millrace_model::checkpoint::Checkpoint;
use millrace_model::config::{Family, Fp8Config, Scoring, TopkMethod};
use millrace_model::matrix::MatrixData;

fn tiny_r1() -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-r1")).unwrap()
}

#[test]
fn the_configuration_is_v3s() {
    let checkpoint = tiny_r1();
    let config = checkpoint.config();
    let Family::DeepSeek(deepseek) = &config.family else {
        panic!("not DeepSeek: {config:?}")
    };
    let moe = deepseek.moe.as_ref().unwrap();
    assert_eq!(
        (
            moe.num_experts,
            moe.num_shared_experts,
            moe.experts_per_token
        ),
        (32, 1, 4)
    );
    assert_eq!((moe.gate.n_group, moe.gate.topk_group), (4, 2));
    assert_eq!(
        (moe.gate.scoring, moe.gate.topk_method),
        (Scoring::Sigmoid, TopkMethod::NoauxTc)
    );
    assert_eq!(
        (0..5).map(|i| moe.is_moe_layer(i)).collect::<Vec<_>>(),
        [false, true, true, true, true]
    );
    assert_eq!((deepseek.latent_dim(), deepseek.num_mtp_layers), (576, 1));
    let fp8 = config.common.quantization.unwrap();
    assert!(matches!(
        fp8,
        Fp8Config {
            block_rows: 128,
            block_cols: 128,
            ..
        }
    ));
    assert_eq!(config.common.eos_token_ids, [1]);
    assert_eq!(config.common.sampling_defaults.top_p, Some(0.95));
}

#[test]
fn weights_are_found_and_finite() {
    let checkpoint = tiny_r1();
    for (name, rows, cols) in [
        ("model.embed_tokens", 2048, 256),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa", 576, 256),
        ("model.layers.0.self_attn.q_b_proj", 1536, 128),
        ("model.layers.3.mlp.experts.31.down_proj", 256, 128),
        ("model.layers.3.mlp.gate", 32, 256),
        ("model.layers.4.eh_proj", 256, 512),
        ("lm_head", 2048, 256),
    ] {
        let matrix = checkpoint.matrix(name, rows, cols).unwrap();
        checkpoint.check_finite(name, &matrix).unwrap();
        let values = matrix.to_f32();
        assert!(values.iter().any(|&v| v != 0.0));
        assert!(values.iter().all(|&v| v.abs() < 100.0), "{name}");
    }
    assert_eq!(
        checkpoint.vector("model.norm.weight", 256).unwrap().len(),
        256
    );
    let bias = checkpoint
        .vector("model.layers.1.mlp.gate.e_score_correction_bias", 32)
        .unwrap();
    assert!(bias.iter().any(|&b| b != 0.0));
    let kv_a = checkpoint
        .matrix("model.layers.0.self_attn.kv_a_proj_with_mqa", 576, 256)
        .unwrap();
    assert!(matches!(kv_a.data, MatrixData::Fp8 { .. }));
    assert!(checkpoint.has("model.layers.4.enorm.weight"));
    assert!(!checkpoint.has("model.layers.5.enorm.weight"));
    assert!(checkpoint.total_bytes() > 26_000_000);
}

#[test]
fn the_revision_is_short_and_stable() {
    let revision = tiny_r1().revision();
    assert_eq!(revision.len(), 16);
    assert_eq!(revision, tiny_r1().revision());
}

#[test]
fn a_wrong_expectation_is_a_named_error() {
    let checkpoint = tiny_r1();
    let error = checkpoint
        .matrix("lm_head", 2048, 512)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "tensor lm_head.weight has shape [2048, 256] but config.json implies [2048, 512]"
    );
    let error = checkpoint
        .matrix("model.layers.9.mlp.gate", 1, 1)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no tensor model.layers.9.mlp.gate.weight"),
        "{error}"
    );
    let error = checkpoint
        .vector("model.layers.0.self_attn.q_b_proj.weight", 7)
        .unwrap_err()
        .to_string();
    assert!(error.contains("shape"), "{error}");
}
