//! Rotary frequencies agree with transformers 5.24's `modeling_rope_utils` (its float32 values
//! at some indexes, printed by it for these parameters).

use millrace_model::config::{Family, ModelConfig, RopeConfig, RopeScaling};
use serde_json::json;

fn rope(theta: f32, dim: usize, scaling: RopeScaling) -> RopeConfig {
    RopeConfig {
        theta,
        dim,
        interleaved: false,
        scaling,
    }
}

fn yarn(
    factor: f32,
    original_max_position: usize,
    mscale: Option<f32>,
    mscale_all_dim: Option<f32>,
) -> RopeScaling {
    let (beta_fast, beta_slow) = (32.0, 1.0);
    RopeScaling::Yarn {
        factor,
        original_max_position,
        beta_fast,
        beta_slow,
        mscale,
        mscale_all_dim,
        attention_factor: None,
    }
}

fn agrees(rope: &RopeConfig, factor: f64, values: &[(usize, f64)]) {
    let inv_freq = rope.inv_freq();
    assert_eq!(inv_freq.len(), rope.dim / 2);
    for &(index, expected) in values {
        let error = (f64::from(inv_freq[index]) - expected).abs() / expected;
        // Two units in the last place of float32: transformers itself computes in float32.
        assert!(
            error < 2.4e-7,
            "index {index}: {} is not {expected} ({error:.1e})",
            inv_freq[index]
        );
    }
    assert!(
        (f64::from(rope.cos_sin_factor()) - factor).abs() < 1e-7,
        "{}",
        rope.cos_sin_factor()
    );
}

#[test]
fn deepseek_v3() {
    let v3 = rope(1e4, 64, yarn(40.0, 4096, Some(1.0), Some(1.0)));
    let values = [
        (0, 1.0),
        (1, 7.498942018e-1),
        (3, 4.216965139e-1),
        (6, 1.778279394e-1),
        (9, 7.498941571e-2),
        (12, 2.687936090e-2),
        (16, 5.500000436e-3),
        (19, 1.370513462e-3),
        (22, 1.778279402e-4),
        (25, 1.874735426e-5),
        (28, 7.905694474e-6),
        (31, 3.333803534e-6),
    ];
    agrees(&v3, 1.0, &values);
    agrees(
        &rope(1e4, 64, yarn(40.0, 4096, Some(0.707), Some(0.707))),
        1.0,
        &values,
    );
}

#[test]
fn unequal_mscales_scale_cosines() {
    let small = rope(1e4, 16, yarn(4.0, 64, Some(0.8), Some(0.4)));
    let values = [
        (0, 1.0),
        (1, 2.371708155e-1),
        (2, 4.999999702e-2),
        (3, 7.905694656e-3),
        (4, 2.499999944e-3),
        (5, 7.905694656e-4),
        (6, 2.500000119e-4),
        (7, 7.905694656e-5),
    ];
    agrees(&small, 1.0525384255230092, &values);
}

#[test]
fn qwen3_with_yarn() {
    let values = [
        (0, 1.0),
        (1, 8.058422208e-1),
        (6, 2.738419771e-1),
        (12, 7.498941571e-2),
        (19, 1.654817164e-2),
        (25, 4.131738096e-3),
        (32, 6.029411452e-4),
        (38, 9.262301319e-5),
        (44, 1.874735608e-5),
        (51, 4.137042652e-6),
        (57, 1.132895932e-6),
        (63, 3.102344408e-7),
    ];
    agrees(
        &rope(1e6, 128, yarn(4.0, 32768, None, None)),
        1.138629436111989,
        &values,
    );
}

#[test]
fn llama_3() {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position: 8192,
    };
    let values = [
        (0, 1.0),
        (1, 8.146172166e-1),
        (6, 2.922278345e-1),
        (12, 8.539710194e-2),
        (19, 2.032910474e-2),
        (25, 5.940730684e-3),
        (32, 5.248460220e-4),
        (38, 5.165906987e-5),
        (44, 1.509621779e-5),
        (51, 3.593711881e-6),
        (57, 1.050182618e-6),
        (63, 3.068925878e-7),
    ];
    agrees(&rope(5e5, 128, scaling), 1.0, &values);
}

#[test]
fn linear_and_plain() {
    let values = [
        (0, 4.000000060e-1),
        (1, 2.999576926e-1),
        (3, 1.686786115e-1),
        (6, 7.113117725e-2),
        (9, 2.999576554e-2),
        (12, 1.264911145e-2),
        (16, 3.999999724e-3),
        (19, 1.686785952e-3),
        (22, 7.113117608e-4),
        (25, 2.999576682e-4),
        (28, 1.264911116e-4),
        (31, 5.334086018e-5),
    ];
    agrees(
        &rope(1e4, 64, RopeScaling::Linear { factor: 2.5 }),
        1.0,
        &values,
    );
    agrees(
        &rope(1e4, 4, RopeScaling::None),
        1.0,
        &[(0, 1.0), (1, 0.01)],
    );
}

#[test]
fn the_softmax_scale_has_mscale_squared() {
    let config = json!({
        "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 163840, "num_attention_heads": 1, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 8, "rope_theta": 10000,
        "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0},
    });
    let config = ModelConfig::from_json(&config, None).unwrap();
    let Family::DeepSeek(deepseek) = &config.family else {
        panic!()
    };
    let mscale = 0.1 * 40f64.ln() + 1.0;
    let expected = mscale * mscale / 192f64.sqrt();
    assert!((f64::from(deepseek.softmax_scale(&config.common.rope)) - expected).abs() < 1e-8);
    let plain = RopeConfig {
        scaling: RopeScaling::None,
        ..config.common.rope
    };
    assert!((f64::from(deepseek.softmax_scale(&plain)) - 1.0 / 192f64.sqrt()).abs() < 1e-8);
}
