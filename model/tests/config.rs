//! Configurations as they are published, and what is wrong with bad ones.

use millrace_model::config::*;
use proptest::prelude::*;
use serde_json::{Value, json};

/// DeepSeek-V3's config.json, as published (keys that only training reads left out).
fn v3() -> Value {
    json!({
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "bos_token_id": 0, "eos_token_id": 1,
        "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512,
        "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256,
        "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
        "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                         "original_max_position_embeddings": 4096, "type": "yarn"},
        "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": false, "topk_group": 4,
        "topk_method": "noaux_tc", "v_head_dim": 128, "vocab_size": 129280,
    })
}

/// DeepSeek-V2-Lite's.
fn v2_lite() -> Value {
    json!({
        "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": false, "bos_token_id": 100000, "eos_token_id": 100001,
        "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 10944, "kv_lora_rank": 512,
        "max_position_embeddings": 163840, "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64,
        "n_shared_experts": 2, "norm_topk_prob": false, "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27,
        "q_lora_rank": null, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                         "original_max_position_embeddings": 4096, "type": "yarn"},
        "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax", "topk_group": 1, "topk_method": "greedy",
        "v_head_dim": 128, "vocab_size": 102400,
    })
}

/// DeepSeek-R1-Distill-Qwen-7B's.
fn qwen2() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 3584,
        "intermediate_size": 18944, "max_position_embeddings": 131072, "max_window_layers": 28, "num_attention_heads": 28,
        "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 10000, "sliding_window": 4096,
        "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 152064,
    })
}

/// DeepSeek-R1-Distill-Llama-8B's.
fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
        "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
        "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
                         "rope_type": "llama3"},
        "rope_theta": 500000.0, "vocab_size": 128256,
    })
}

/// DeepSeek-R1-0528-Qwen3-8B's.
fn qwen3() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 12288, "max_position_embeddings": 131072, "num_attention_heads": 32,
        "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
        "rope_scaling": {"attn_factor": 0.8782488562869419, "factor": 4.0, "original_max_position_embeddings": 32768, "rope_type": "yarn"},
        "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 151936,
    })
}

fn parse(config: Value) -> ModelConfig {
    ModelConfig::from_json(&config, None).unwrap()
}

fn deepseek(config: Value) -> DeepSeekConfig {
    match parse(config).family {
        Family::DeepSeek(d) => d,
        other => panic!("{other:?}"),
    }
}

fn dense(config: Value) -> DenseConfig {
    match parse(config).family {
        Family::Dense(d) => d,
        other => panic!("{other:?}"),
    }
}

#[test]
fn published_deepseek_configurations() {
    let config = parse(v3());
    let fp8 = Fp8Config {
        block_rows: 128,
        block_cols: 128,
        scale_format: ScaleFormat::Float32,
    };
    assert_eq!(config.common.quantization, Some(fp8));
    assert_eq!(
        (
            config.common.bos_token_id,
            config.common.eos_token_ids.as_slice()
        ),
        (Some(0), &[1][..])
    );
    assert!(config.common.rope.interleaved);
    let moe = deepseek(v3()).moe.unwrap();
    assert!(!moe.is_moe_layer(2) && moe.is_moe_layer(3) && moe.is_moe_layer(61));
    let mut v31 = v3();
    v31["quantization_config"]["scale_fmt"] = json!("ue8m0");
    assert_eq!(
        parse(v31).common.quantization.unwrap().scale_format,
        ScaleFormat::Ue8m0
    );

    let lite = deepseek(v2_lite());
    assert_eq!(
        (
            lite.q_lora_rank,
            lite.num_mtp_layers,
            lite.latent_dim(),
            lite.qk_head_dim()
        ),
        (None, 0, 576, 192)
    );
    let gate = lite.moe.unwrap().gate;
    assert_eq!(
        (
            gate.topk_method,
            gate.scoring,
            gate.n_group,
            gate.topk_group
        ),
        (TopkMethod::Greedy, Scoring::Softmax, 1, 1)
    );
}

#[test]
fn published_distills() {
    let qwen2 = dense(qwen2());
    assert_eq!(
        (qwen2.head_dim, qwen2.qkv_bias, qwen2.o_bias, qwen2.qk_norm),
        (128, true, false, false)
    );
    assert_eq!(
        parse(llama()).common.eos_token_ids,
        [128001, 128008, 128009]
    );
    assert_eq!(dense(llama()).num_kv_heads, 8);
    let qwen3 = parse(qwen3());
    // attn_factor is chosen so that cosines keep their size.
    assert!((qwen3.common.rope.cos_sin_factor() - 1.0).abs() < 1e-6);
    assert!(!qwen3.common.rope.interleaved);
}

#[test]
fn the_newer_form_means_the_same() {
    for config in [v3(), v2_lite(), qwen2(), llama(), qwen3()] {
        let mut newer = config.clone();
        let map = newer.as_object_mut().unwrap();
        let mut rope = map
            .remove("rope_scaling")
            .unwrap_or(json!({"rope_type": "default"}));
        rope["rope_theta"] = map.remove("rope_theta").unwrap();
        map.insert("rope_parameters".into(), rope);
        map.insert("dtype".into(), json!("bfloat16"));
        assert_eq!(parse(newer.clone()), parse(config.clone()));
        // Both at once, as some converters write, if they agree.
        newer["rope_scaling"] = config.get("rope_scaling").cloned().unwrap_or(Value::Null);
        assert_eq!(parse(newer), parse(config));
    }
}

#[test]
fn generation_config_adds_stops_and_sampling() {
    let generation = json!({"eos_token_id": [151643, 151645], "temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05});
    let config = ModelConfig::from_json(&qwen2(), Some(&generation)).unwrap();
    assert_eq!(config.common.eos_token_ids, [151643, 151645]);
    let expected = SamplingDefaults {
        temperature: Some(0.6),
        top_p: Some(0.95),
        top_k: Some(20),
        repetition_penalty: Some(1.05),
    };
    assert_eq!(config.common.sampling_defaults, expected);
    let off = ModelConfig::from_json(&qwen2(), Some(&json!({"top_k": -1}))).unwrap();
    assert_eq!(off.common.sampling_defaults, SamplingDefaults::default());
    let error = ModelConfig::from_json(&qwen2(), Some(&json!({"top_p": 1.5})))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "generation_config.json: `top_p` is 1.5; expected a number above 0 and at most 1"
    );
}

/// The error for `config` with the value at `path` (dots between keys) replaced.
fn error_with(config: Value, path: &str, value: Value) -> String {
    let mut config = config;
    let slot = path.split('.').fold(&mut config, |at, key| &mut at[key]);
    *slot = value;
    match ModelConfig::from_json(&config, None) {
        Ok(config) => panic!("{path} was accepted: {config:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_needed_key_is_missed_by_name() {
    let optional = [
        "attention_bias",
        "bos_token_id",
        "eos_token_id",
        "first_k_dense_replace",
        "hidden_act",
        "max_window_layers",
        "mlp_bias",
        "moe_layer_freq",
        "n_routed_experts",
        "n_shared_experts",
        "norm_topk_prob",
        "num_key_value_heads",
        "num_nextn_predict_layers",
        "q_lora_rank",
        "quantization_config",
        "rope_scaling",
        "routed_scaling_factor",
        "scoring_func",
        "sliding_window",
        "tie_word_embeddings",
        "topk_method",
        "use_sliding_window",
    ];
    for config in [v3(), v2_lite(), qwen2(), llama(), qwen3()] {
        for key in config.as_object().unwrap().keys() {
            let mut without = config.clone();
            without.as_object_mut().unwrap().remove(key);
            let greedy =
                config["topk_method"] == "greedy" && (key == "n_group" || key == "topk_group");
            match ModelConfig::from_json(&without, None) {
                Ok(_) => assert!(
                    optional.contains(&key.as_str()) || greedy,
                    "{key} should be missed"
                ),
                Err(error) => {
                    assert!(
                        matches!(error, ConfigError::Missing { .. }),
                        "{key}: {error}"
                    );
                    assert!(
                        error.to_string().contains(&format!("`{key}` is missing")),
                        "{key}: {error}"
                    );
                }
            }
        }
    }
    for key in ["factor", "original_max_position_embeddings"] {
        let error = error_with(v3(), &format!("rope_scaling.{key}"), Value::Null);
        assert!(
            error.contains(&format!("`rope_scaling.{key}` is missing")),
            "{error}"
        );
    }
}

#[test]
fn values_out_of_range_are_named() {
    for (config, path, value, says) in [
        (
            v3(),
            "n_routed_experts",
            json!(250),
            "a multiple of n_group (8)",
        ),
        (v3(), "topk_group", json!(9), "at most n_group (8)"),
        (v3(), "n_group", json!(256), "at most n_routed_experts / 2"),
        (
            v3(),
            "num_experts_per_tok",
            json!(257),
            "at most n_routed_experts (256)",
        ),
        (
            v3(),
            "num_experts_per_tok",
            json!(129),
            "at most the 128 experts",
        ),
        (v3(), "qk_rope_head_dim", json!(63), "an even number"),
        (
            v3(),
            "hidden_size",
            json!(0),
            "`hidden_size` is 0; expected an integer from 1",
        ),
        (v3(), "hidden_size", json!(-5), "`hidden_size` is -5"),
        (
            v3(),
            "hidden_size",
            json!(1u64 << 40),
            "expected an integer from 1 to",
        ),
        (
            v3(),
            "hidden_size",
            json!(7168.5),
            "`hidden_size` is 7168.5",
        ),
        (
            v3(),
            "hidden_size",
            json!("big"),
            "`hidden_size` is \"big\"",
        ),
        (
            v3(),
            "num_hidden_layers",
            json!(1_000_000),
            "`num_hidden_layers`",
        ),
        (v3(), "rms_norm_eps", json!(0.0), "a positive number"),
        (v3(), "rms_norm_eps", json!(1e-300), "a positive number"),
        (v3(), "rope_theta", json!(1e300), "a positive number"),
        (v3(), "rope_theta", json!(1.0), "above 1"),
        (
            v3(),
            "rope_scaling",
            json!("yarn"),
            "`rope_scaling` is \"yarn\"; expected an object",
        ),
        (v3(), "rope_scaling.factor", json!(0.5), "1 or more"),
        (
            v3(),
            "rope_scaling.beta_fast",
            json!(0.5),
            "at least beta_slow",
        ),
        (
            v3(),
            "eos_token_id",
            json!(129280),
            "a token id below vocab_size (129280)",
        ),
        (v3(), "eos_token_id", json!([1, -1]), "a token id below"),
        (v3(), "tie_word_embeddings", json!("no"), "true or false"),
        (
            v3(),
            "architectures",
            json!([]),
            "a list with the name of one architecture",
        ),
        (
            v3(),
            "architectures",
            json!(["GPT2LMHeadModel"]),
            "GPT2LMHeadModel is not supported; supported are DeepseekV2ForCausalLM,",
        ),
        (
            v3(),
            "quantization_config.weight_block_size",
            json!([128, 0]),
            "two positive integers",
        ),
        (
            v3(),
            "quantization_config.weight_block_size",
            Value::Null,
            "weight_block_size` is missing",
        ),
        (
            qwen2(),
            "num_key_value_heads",
            json!(5),
            "a divisor of num_attention_heads (28)",
        ),
        (
            qwen2(),
            "hidden_size",
            json!(3585),
            "a multiple of num_attention_heads (28)",
        ),
        (qwen3(), "head_dim", json!(127), "an even head size"),
        (
            llama(),
            "rope_scaling.high_freq_factor",
            json!(1.0),
            "more than low_freq_factor (1)",
        ),
        (
            llama(),
            "rope_scaling.rope_type",
            Value::Null,
            "`rope_scaling.rope_type` is missing",
        ),
    ] {
        let error = error_with(config, path, value);
        assert!(error.contains(says), "{path}: {error}");
    }
}

#[test]
fn what_is_not_implemented_is_refused() {
    for (config, path, value) in [
        (v3(), "hidden_act", json!("gelu")),
        (v3(), "scoring_func", json!("softmax")),
        (v3(), "topk_method", json!("greedy")),
        (v2_lite(), "norm_topk_prob", json!(true)),
        (v2_lite(), "topk_method", json!("noaux_tc")),
        (v3(), "quantization_config.quant_method", json!("awq")),
        (v3(), "quantization_config.fmt", json!("e5m2")),
        (
            v3(),
            "quantization_config.activation_scheme",
            json!("static"),
        ),
        (v3(), "quantization_config.scale_fmt", json!("mx")),
        (v3(), "rope_scaling.type", json!("dynamic")),
        (v3(), "rope_scaling.truncate", json!(false)),
        (qwen2(), "use_sliding_window", json!(true)),
        (
            qwen2(),
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
        ),
        (qwen2(), "num_experts", json!(8)),
        (llama(), "mlp_bias", json!(true)),
        (llama(), "partial_rotary_factor", json!(0.5)),
    ] {
        let error = error_with(config, path, value);
        assert!(
            error.contains(&format!("`{path}`")) && error.contains("is not supported"),
            "{path}: {error}"
        );
    }
    let mut both = v3();
    both["rope_parameters"] = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 10000});
    assert!(
        ModelConfig::from_json(&both, None)
            .unwrap_err()
            .to_string()
            .contains("only one of the two")
    );
}

#[test]
fn files_that_are_not_configurations() {
    let dir = tempfile::tempdir().unwrap();
    let error = || ModelConfig::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error().contains("config.json in it"), "{}", error());
    for (text, says) in [
        ("", "not valid JSON"),
        ("[1]", "must hold a JSON object, not [1]"),
        ("{\"a\":", "not valid JSON"),
        ("{}", "`architectures` is missing"),
    ] {
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        assert!(error().contains(says), "{}", error());
    }
    std::fs::write(dir.path().join("config.json"), qwen2().to_string()).unwrap();
    std::fs::write(dir.path().join("generation_config.json"), "nonsense").unwrap();
    assert!(
        error().starts_with("generation_config.json is not valid JSON"),
        "{}",
        error()
    );
}

/// Small JSON values, odd ones among them.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0i64..300).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z_]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::vec(("[a-z_]{1,8}", inner), 0..3)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_value_of_any_key_panics(which in 0usize..5, key in any::<prop::sample::Index>(), value in any_value(), inner in any::<bool>()) {
        let mut config = [v3(), v2_lite(), qwen2(), llama(), qwen3()][which].clone();
        let map = match config.get_mut("rope_scaling") {
            Some(Value::Object(_)) if inner => config["rope_scaling"].as_object_mut().unwrap(),
            _ => config.as_object_mut().unwrap(),
        };
        let keys: Vec<String> = map.keys().cloned().collect();
        map.insert(key.get(&keys).clone(), value.clone());
        if let Ok(config) = ModelConfig::from_json(&config, Some(&value)) {
            let finite = config.common.rope.inv_freq().iter().all(|f| f.is_finite());
            prop_assert!(finite && config.common.rope.cos_sin_factor().is_finite());
        }
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(value) = serde_json::from_slice::<Value>(&bytes) {
            let _ = ModelConfig::from_json(&value, None);
        }
    }
}
