use serde_json::json;

use super::*;

const PLAIN: Look = Look {
    style: Style::Plain,
    width: 80,
};

fn member(rank: usize) -> serde_json::Value {
    json!({
        "rank": rank,
        "incarnation": format!("{:016x}", 0xabc + rank),
        "exchange": format!("127.0.0.1:{}", 40000 + rank),
        "grpc": format!("127.0.0.1:{}", 50000 + rank),
    })
}

fn rank(rank: usize, with: serde_json::Value) -> serde_json::Value {
    let mut view = member(rank);
    let more = json!({
        "worker": format!("decode-{rank}{rank}"),
        "adopted": 7, "linked": [1 - rank], "lost": [], "staging_error": null,
    });
    for part in [more, with] {
        view.as_object_mut()
            .unwrap()
            .extend(part.as_object().unwrap().clone());
    }
    view
}

/// Two layers of four experts on two ranks with three slots each; as a router would send it.
fn group() -> serde_json::Value {
    json!({
        "group": "decode-0",
        "state": "whole",
        "shape": {"layers": 2, "experts": 4, "ranks": 2, "slots": 3, "expert_bytes": 101_376},
        "epoch": {"number": 7, "reset": 4, "members": [member(0), member(1)]},
        "plan": null,
        "ranks": [rank(0, json!({})), rank(1, json!({}))],
        "placement": [[[0, 2, 1], [1, 3, 0]], [[0, 2, 3], [1, 3, 2]]],
        "replicas": [4, 4, 0, 0],
        "load": {
            "seconds": 5.0,
            "chosen": [[600, 300, 100, 0], [10, 20, 30, 40]],
            "computed": [[500, 55], [500, 45]],
            "balancedness": [1.0, 0.909],
            "overall": 0.991,
            "hottest": [],
        },
        "history": [
            {"at": 1_795_546_390, "kind": "planned", "epoch": 7, "reason": "balancedness 0.71 -> 0.99, 6 slots move"},
            {"at": 1_795_546_391, "kind": "committed", "epoch": 7, "reason": "every rank has staged it"},
        ],
    })
}

fn view(groups: &[serde_json::Value]) -> ExpertsView {
    serde_json::from_value(json!({
        "store": {"kind": "memory", "id": "a", "up": true, "leading": true},
        "groups": groups,
    }))
    .unwrap()
}

#[test]
fn a_whole_group() {
    let expected = "\
Epochs are in this router's memory: this router decides

decode-0: whole
  2 MoE layers of 4 experts and 2 replicas, on 2 ranks of 3 slots; 101.4 KB an expert
  epoch 7 of ranks 0,1; last reset at 4
  live replicas: 4 experts have 1, 4 have 2, 0 have 3, 0 have more

  rank  epoch  links     exchange               worker
     0      7  1         127.0.0.1:40000        decode-00
     1      7  0         127.0.0.1:40001        decode-11

  Load of 5.0 s: balancedness over ranks 0.991 (mean over highest; 1 is even)
  layer  balancedness  hottest experts (share of choices, live replicas)
      0         1.000  0 (60.0 %, 2)  1 (30.0 %, 2)  2 (10.0 %, 1)
      1         0.909  3 (40.0 %, 2)  2 (30.0 %, 2)  1 (20.0 %, 1)

  Rows computed, a row a layer, a column a rank; 9 is its layer's highest
  0  99
  1  98

  Choices of gates, a column an expert
  0  9520
  1  3579

  What was decided (UTC)
  18:53:10  planned    epoch 7      balancedness 0.71 -> 0.99, 6 slots move
  18:53:11  committed  epoch 7      every rank has staged it
";
    assert_eq!(text(&view(&[group()]), PLAIN), expected);
}

#[test]
fn a_group_in_trouble() {
    let mut group = group();
    group["state"] = json!("recovering");
    group["paused"] = json!("layer 1: no live rank has expert 3");
    group["epoch"] = json!({"number": 8, "reset": 8, "members": [member(0)]});
    group["plan"] =
        json!({"id": "c0ffee", "base": 8, "number": 9, "moved": 5, "staged": [0], "waiting": [1]});
    group["ranks"] = json!([rank(
        0,
        json!({"adopted": 8, "linked": [], "lost": [1], "staging_error": "layer 1, expert 2: wrong checksum"})
    )]);
    group["load"] = json!(null);
    group["history"] = json!([]);
    let expected = "\
Epochs are in this router's memory: this router decides

decode-0: recovering
  2 MoE layers of 4 experts and 2 replicas, on 2 ranks of 3 slots; 101.4 KB an expert
  epoch 8 of ranks 0; last reset at 8
  live replicas: 4 experts have 1, 4 have 2, 0 have 3, 0 have more
  no step can be taken: layer 1: no live rank has expert 3
  plan for epoch 9: 5 slots change; staged by ranks 0, awaited from 1

  rank  epoch  links     exchange               worker
     0      8  -         127.0.0.1:40000        decode-00; lost ranks 1; could not stage: layer 1, expert 2: wrong checksum
     1      -  not attached

  Nothing was counted yet.
";
    assert_eq!(text(&view(&[group]), PLAIN), expected);
}

#[test]
fn only_live_replicas_count() {
    let mut group = group();
    group["epoch"]["members"] = json!([member(1)]);
    let text = text(&view(&[group]), PLAIN);
    assert!(
        text.contains("0 (60.0 %, 1)  1 (30.0 %, 1)  2 (10.0 %, 0)"),
        "{text}"
    );
}

#[test]
fn without_groups_it_says_how_to_start_one() {
    let text = text(&view(&[]), PLAIN);
    assert!(text.contains("--decode-ranks 2"), "{text}");
}

#[test]
fn stores_are_told_apart() {
    let mut view = view(&[]);
    view.store.kind = StoreKind::Etcd;
    view.store.leading = false;
    assert!(text(&view, PLAIN).starts_with("Epochs are in etcd: another router decides\n"));
    view.store.up = false;
    assert!(text(&view, PLAIN).contains("out of reach; groups serve on"));
}

#[test]
fn hundreds_of_ranks_are_listed_as_ranges() {
    assert_eq!(list(&[0, 1, 2, 3, 7, 9, 10]), "0-3,7,9,10");
    assert_eq!(list(&[]), "-");
}

#[test]
fn a_terminal_gets_colours_and_plain_text_none() {
    let look = Look {
        style: Style::Ansi,
        ..PLAIN
    };
    assert!(text(&view(&[group()]), look).contains('█'));
    assert!(!text(&view(&[group()]), PLAIN).contains('\x1b'));
}
