//! Every checkpoint of the repository opens, and has exactly the tensors its configuration implies:
//! tiny-r1 and the random ones in tests/golden, which cover all families, types and forms.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use millrace_model::checkpoint::Checkpoint;
use millrace_model::config::{
    DeepSeekConfig, DenseConfig, Family, ModelConfig, SUPPORTED, TopkMethod,
};

/// A tensor a loader asks for: a weight's name without `.weight` and its sides, or a full name and
/// a length.
enum Wanted {
    Matrix(String, usize, usize),
    Vector(String, usize),
}
use Wanted::{Matrix, Vector};

fn wanted(config: &ModelConfig) -> Vec<Wanted> {
    let c = &config.common;
    let mut all = vec![
        Matrix("model.embed_tokens".into(), c.vocab_size, c.hidden_size),
        Vector("model.norm.weight".into(), c.hidden_size),
    ];
    if !c.tie_word_embeddings {
        all.push(Matrix("lm_head".into(), c.vocab_size, c.hidden_size));
    }
    let mtp = match &config.family {
        Family::DeepSeek(d) => d.num_mtp_layers,
        Family::Dense(_) => 0,
    };
    for i in 0..c.num_layers + mtp {
        let layer = format!("model.layers.{i}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            all.push(Vector(format!("{layer}.{norm}.weight"), c.hidden_size));
        }
        match &config.family {
            Family::DeepSeek(d) => deepseek_layer(&mut all, &layer, i, c.hidden_size, d),
            Family::Dense(d) => dense_layer(&mut all, &layer, c.hidden_size, d),
        }
        if i >= c.num_layers {
            for norm in ["enorm", "hnorm", "shared_head.norm"] {
                all.push(Vector(format!("{layer}.{norm}.weight"), c.hidden_size));
            }
            all.push(Matrix(
                format!("{layer}.eh_proj"),
                c.hidden_size,
                2 * c.hidden_size,
            ));
            all.push(Matrix(
                format!("{layer}.embed_tokens"),
                c.vocab_size,
                c.hidden_size,
            ));
            all.push(Matrix(
                format!("{layer}.shared_head.head"),
                c.vocab_size,
                c.hidden_size,
            ));
        }
    }
    all
}

fn deepseek_layer(
    all: &mut Vec<Wanted>,
    layer: &str,
    index: usize,
    hidden: usize,
    d: &DeepSeekConfig,
) {
    let attn = format!("{layer}.self_attn");
    let q_rows = d.num_heads * d.qk_head_dim();
    match d.q_lora_rank {
        None => all.push(Matrix(format!("{attn}.q_proj"), q_rows, hidden)),
        Some(rank) => {
            all.push(Matrix(format!("{attn}.q_a_proj"), rank, hidden));
            all.push(Vector(format!("{attn}.q_a_layernorm.weight"), rank));
            all.push(Matrix(format!("{attn}.q_b_proj"), q_rows, rank));
        }
    }
    all.push(Matrix(
        format!("{attn}.kv_a_proj_with_mqa"),
        d.latent_dim(),
        hidden,
    ));
    all.push(Vector(
        format!("{attn}.kv_a_layernorm.weight"),
        d.kv_lora_rank,
    ));
    let kv_rows = d.num_heads * (d.qk_nope_head_dim + d.v_head_dim);
    all.push(Matrix(format!("{attn}.kv_b_proj"), kv_rows, d.kv_lora_rank));
    all.push(Matrix(
        format!("{attn}.o_proj"),
        hidden,
        d.num_heads * d.v_head_dim,
    ));
    let Some(moe) = d.moe.as_ref().filter(|moe| moe.is_moe_layer(index)) else {
        return swiglu(all, &format!("{layer}.mlp"), hidden, d.intermediate_size);
    };
    all.push(Matrix(format!("{layer}.mlp.gate"), moe.num_experts, hidden));
    if moe.gate.topk_method == TopkMethod::NoauxTc {
        all.push(Vector(
            format!("{layer}.mlp.gate.e_score_correction_bias"),
            moe.num_experts,
        ));
    }
    for expert in 0..moe.num_experts {
        swiglu(
            all,
            &format!("{layer}.mlp.experts.{expert}"),
            hidden,
            moe.intermediate_size,
        );
    }
    if moe.num_shared_experts > 0 {
        let width = moe.num_shared_experts * moe.intermediate_size;
        swiglu(all, &format!("{layer}.mlp.shared_experts"), hidden, width);
    }
}

fn dense_layer(all: &mut Vec<Wanted>, layer: &str, hidden: usize, d: &DenseConfig) {
    let attn = format!("{layer}.self_attn");
    let (q, kv) = (d.num_heads * d.head_dim, d.num_kv_heads * d.head_dim);
    for (name, rows) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
        all.push(Matrix(format!("{attn}.{name}"), rows, hidden));
        if d.qkv_bias {
            all.push(Vector(format!("{attn}.{name}.bias"), rows));
        }
    }
    all.push(Matrix(format!("{attn}.o_proj"), hidden, q));
    if d.o_bias {
        all.push(Vector(format!("{attn}.o_proj.bias"), hidden));
    }
    if d.qk_norm {
        all.push(Vector(format!("{attn}.q_norm.weight"), d.head_dim));
        all.push(Vector(format!("{attn}.k_norm.weight"), d.head_dim));
    }
    swiglu(all, &format!("{layer}.mlp"), hidden, d.intermediate_size);
}

fn swiglu(all: &mut Vec<Wanted>, mlp: &str, hidden: usize, width: usize) {
    all.push(Matrix(format!("{mlp}.gate_proj"), width, hidden));
    all.push(Matrix(format!("{mlp}.up_proj"), width, hidden));
    all.push(Matrix(format!("{mlp}.down_proj"), hidden, width));
}

/// tiny-r1 and the golden checkpoints.
fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let golden = std::fs::read_dir(root.join("tests/golden"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path());
    let has_weights = |dir: &PathBuf| {
        dir.join("config.json").exists()
            && (dir.join("model.safetensors").exists()
                || dir.join("model.safetensors.index.json").exists())
    };
    golden
        .filter(has_weights)
        .chain([root.join("models/tiny-r1")])
        .collect()
}

#[test]
fn checkpoints_have_what_their_configurations_imply() {
    let (mut revisions, mut architectures) = (BTreeSet::new(), BTreeSet::new());
    let folders = folders();
    for dir in &folders {
        let checkpoint = Checkpoint::open(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let mut left: BTreeSet<&str> = checkpoint.names().collect();
        for tensor in wanted(checkpoint.config()) {
            let name = match tensor {
                Matrix(name, rows, cols) => {
                    let matrix = checkpoint
                        .matrix(&name, rows, cols)
                        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
                    checkpoint.check_finite(&name, &matrix).unwrap();
                    left.remove(format!("{name}.weight_scale_inv").as_str());
                    format!("{name}.weight")
                }
                Vector(name, len) => {
                    checkpoint
                        .vector(&name, len)
                        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
                    name
                }
            };
            assert!(left.remove(name.as_str()), "{name} is asked for twice");
        }
        assert!(
            left.is_empty(),
            "{}: nobody asks for {left:?}",
            dir.display()
        );
        revisions.insert(checkpoint.revision());
        architectures.insert(checkpoint.config().common.architecture.clone());
    }
    assert_eq!(revisions.len(), folders.len(), "revisions differ");
    assert_eq!(
        architectures,
        SUPPORTED.map(str::to_string).into(),
        "every architecture has a golden checkpoint"
    );
}
