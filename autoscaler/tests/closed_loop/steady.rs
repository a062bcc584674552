//! Load that does not change. Others went from one replica to two and back under it, and up without any.

use millrace_autoscaler::Memory;

use crate::run::*;

/// 30 hours after settling. Rates whose needs lie anywhere between two numbers of replicas.
fn constant(rates: &[f64], seeds: u64) {
    for &rate in rates {
        for seed in 0..seeds {
            let mut fleet = fleet(seed, both(2, 2), rate, move |_| rate);
            let report = run(&mut fleet, 32.0 * HOUR, &mut Ours::new(policy()));
            let later = report.after(2.0 * HOUR);
            println!(
                "{rate:5.1}/s seed {seed}: {} changes while settling, {} later, at the end {:?}; in time {:.3} {:.3}, {:.0} GPU-hours",
                report.changes.len() - later.len(),
                later.len(),
                report.end,
                report.ttft,
                report.itl,
                report.gpu_hours,
            );
            assert!(later.len() <= 1, "{rate}/s seed {seed}: {later:?}");
            assert!(
                report.ttft >= 0.95 && report.itl >= 0.95,
                "{rate}/s seed {seed}"
            );
        }
    }
}

#[test]
fn little_constant_load_is_left_alone() {
    constant(&[0.02, 0.2, 1.0, 2.7, 3.2], 2);
}

#[test]
fn more_constant_load_is_left_alone() {
    constant(&[4.4, 6.1, 7.0], 2);
}

#[test]
fn much_constant_load_is_left_alone() {
    constant(&[11.0, 25.0], 1);
}

#[test]
fn nothing_is_added_for_no_load() {
    for start in [both(1, 1), both(4, 3)] {
        let mut fleet = fleet(1, start, 0.0, |_| 0.0);
        let report = run(&mut fleet, 24.0 * HOUR, &mut Ours::new(policy()));
        for change in &report.changes {
            let fewer = |from: u32, to: u32| to <= from;
            assert!(fewer(change.from.prefill, change.to.prefill), "{change:?}");
            assert!(fewer(change.from.decode, change.to.decode), "{change:?}");
        }
        assert_eq!(report.end, both(1, 1));
    }
}

#[test]
fn nothing_is_added_when_load_ends() {
    let mut fleet = fleet(1, both(2, 2), 5.0, |now| if now < HOUR { 5.0 } else { 0.0 });
    let report = run(&mut fleet, 24.0 * HOUR, &mut Ours::new(policy()));
    for change in report.after(HOUR) {
        assert!(change.to.prefill <= change.from.prefill, "{change:?}");
        assert!(change.to.decode <= change.from.decode, "{change:?}");
    }
    assert_eq!(report.end, both(1, 1));
}

/// An operator that restarts every 40 minutes and remembers nothing. What was settled stays as it is, with
/// a model that is wrong too.
#[test]
fn a_lost_memory_changes_nothing() {
    for (rate, wrong) in [(2.7, 1.0), (6.1, 1.0), (6.1, 0.6), (3.7, 1.6)] {
        let mut fleet = crate::fleet::Fleet::new(
            truth(wrong, wrong),
            crate::load::Arrivals::new(3, rate, 100.0 * HOUR, move |_| rate),
            both(2, 2),
        );
        let mut ours = Ours::new(policy());
        run(&mut fleet, 4.0 * HOUR, &mut ours);
        let mut changes = Vec::new();
        for restart in 0..36 {
            ours.memory = Memory::default();
            let until = 4.0 * HOUR + f64::from(restart + 1) * 2400.0;
            changes.extend(run(&mut fleet, until, &mut ours).changes);
        }
        println!("{rate}/s, times {wrong}: {changes:?}");
        assert!(changes.len() <= 1, "{rate}/s, times {wrong}: {changes:?}");
    }
}
