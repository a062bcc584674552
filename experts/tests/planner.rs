//! The comparison of `examples/planner` in small, as assertions; times are not asserted.

// What only the example prints is not used here.
#[allow(dead_code)]
#[path = "../examples/planner/contest.rs"]
mod contest;
#[path = "../examples/planner/drift.rs"]
mod drift;
#[path = "../examples/planner/recorded.rs"]
mod recorded;

use contest::Balancer;
use drift::Drift;
use millrace_experts::eplb::Hierarchy;
use millrace_experts::{Loads, Shape};

/// As good as EPLB over all windows, and in each but for what nobody could measure; at most half as many moves.
fn beats_eplb(shape: Shape, windows: &[Loads], nodes: usize, what: &str) {
    let ours = contest::run(Balancer::Ours, shape, windows);
    let hierarchy = Hierarchy { groups: 8, nodes };
    for balancer in [Balancer::Global, Balancer::Hierarchical(hierarchy)] {
        let eplb = contest::run(balancer, shape, windows);
        let name = balancer.name();
        for (window, (ours, eplb)) in ours.each.iter().zip(&eplb.each).enumerate() {
            assert!(
                *ours >= eplb - 1e-4,
                "{what}, window {window}: {ours} < {eplb}, {name}"
            );
        }
        assert!(ours.planned >= eplb.planned - 1e-9, "{what}, {name}");
        assert!(
            ours.first <= eplb.first,
            "{what}, {name}: {} moved first",
            ours.first
        );
        assert!(
            2 * ours.moved <= eplb.moved,
            "{what}: {} moved, {} by {name}",
            ours.moved,
            eplb.moved
        );
    }
}

#[test]
fn as_even_as_eplb_with_half_its_moves_at_v3s_size() {
    for (ranks, redundant, nodes) in [(32, 32, 4), (144, 32, 8), (320, 64, 8)] {
        let shape = Shape::new(4, 256, ranks, redundant).unwrap();
        for exponent in [0.2, 0.4, 0.8, 1.2] {
            let mut drift = Drift::new(11, shape.layers, shape.experts, exponent);
            let windows: Vec<Loads> = (0..6).map(|_| drift.window()).collect();
            beats_eplb(
                shape,
                &windows,
                nodes,
                &format!("{ranks} ranks, exponent {exponent}"),
            );
        }
    }
}

#[test]
fn and_at_tiny_r1s() {
    for ranks in [2, 4, 8] {
        let shape = Shape::new(4, 32, ranks, ranks).unwrap();
        for exponent in [0.4, 0.8, 1.2] {
            let mut drift = Drift::new(5, shape.layers, shape.experts, exponent);
            let windows: Vec<Loads> = (0..12).map(|_| drift.window()).collect();
            beats_eplb(
                shape,
                &windows,
                2,
                &format!("{ranks} ranks, exponent {exponent}"),
            );
        }
    }
}

#[test]
fn recorded_loads_are_checked() {
    let read = |json: &str| recorded::parse(json.as_bytes());
    let good = r#"{"chat":{"layers":2,"experts":2,"counts":[[1,2],[3,4]]}}"#;
    assert_eq!(read(good).unwrap()[0].1.layer(1), [3, 4]);
    let short = r#"{"chat":{"layers":2,"experts":2,"counts":[[1,2]]}}"#;
    assert!(read(short).unwrap_err().contains("not 2 layers"));
    assert!(read("{}").is_err());
    assert!(read("[]").is_err());
    if let Ok(domains) = recorded::read() {
        for ranks in [2, 4, 8] {
            let loads = &domains[0].1;
            let shape = Shape::new(loads.layers(), loads.experts, ranks, ranks).unwrap();
            let windows = domains.iter().map(|(_, loads)| loads.clone());
            let windows: Vec<Loads> = windows.cycle().take(3 * domains.len()).collect();
            beats_eplb(shape, &windows, 1, &format!("tiny-r1 on {ranks} ranks"));
        }
    }
}
