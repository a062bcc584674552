//! Where we stand: GPU-hours and attainment next to two baselines, over the same arrivals.

use crate::baselines::{Interpolated, QueueLength};
use crate::fleet::Fleet;
use crate::load::Arrivals;
use crate::run::*;

/// Of a day, hours.
const DAY: f64 = 24.0;

struct Scenario {
    name: &'static str,
    most: f64,
    rate: fn(f64) -> f64,
    /// What workers take over what the model says.
    wrong: f64,
}

const SCENARIOS: [Scenario; 6] = [
    Scenario {
        name: "constant 6/s",
        most: 6.0,
        rate: |_| 6.0,
        wrong: 1.0,
    },
    Scenario {
        name: "day and night 1-15/s",
        most: 15.0,
        rate: |now| 8.0 - 7.0 * (std::f64::consts::TAU * now / (DAY * HOUR)).cos(),
        wrong: 1.0,
    },
    Scenario {
        name: "the same, twice as slow",
        most: 15.0,
        rate: |now| 8.0 - 7.0 * (std::f64::consts::TAU * now / (DAY * HOUR)).cos(),
        wrong: 2.0,
    },
    Scenario {
        name: "the same, twice as fast",
        most: 15.0,
        rate: |now| 8.0 - 7.0 * (std::f64::consts::TAU * now / (DAY * HOUR)).cos(),
        wrong: 0.5,
    },
    Scenario {
        name: "steps 3, 9, 3/s, 4 h each",
        most: 9.0,
        rate: |now| {
            if now % (8.0 * HOUR) < 4.0 * HOUR {
                3.0
            } else {
                9.0
            }
        },
        wrong: 1.0,
    },
    Scenario {
        name: "bursts of 2 min, 3 to 9/s",
        most: 9.0,
        rate: |now| if now % 1800.0 < 120.0 { 9.0 } else { 3.0 },
        wrong: 1.0,
    },
];

#[test]
fn against_two_baselines() {
    println!(
        "{:28} {:16} {:>10} {:>8} {:>8} {:>9}",
        "a day of", "scaled by", "GPU-hours", "TTFT ok", "ITL ok", "changes"
    );
    for scenario in &SCENARIOS {
        let mut scalers: [(&str, Box<dyn Scaler>); 4] = [
            ("ours", Box::new(Ours::new(policy()))),
            ("queue length", Box::new(QueueLength::new(2.0, 48.0))),
            ("interpolation", Box::new(Interpolated::new(model(), 1.0))),
            ("the same at 70%", Box::new(Interpolated::new(model(), 0.7))),
        ];
        let mut rows = Vec::new();
        for (name, scaler) in &mut scalers {
            let arrivals = Arrivals::new(41, scenario.most, 100.0 * HOUR, scenario.rate);
            let mut fleet = Fleet::new(truth(scenario.wrong, scenario.wrong), arrivals, both(2, 2));
            let report = run(&mut fleet, DAY * HOUR, scaler.as_mut());
            println!(
                "{:28} {:16} {:10.1} {:8.4} {:8.4} {:9}",
                scenario.name,
                name,
                report.gpu_hours,
                report.ttft,
                report.itl,
                report.changes.len()
            );
            rows.push(report);
        }
        let ours = &rows[0];
        // Bursts are shorter than a cold start: only standing capacity would serve them.
        if !scenario.name.starts_with("bursts") {
            assert!(ours.ttft >= 0.93, "{}: {}", scenario.name, ours.ttft);
        }
        assert!(ours.itl >= 0.95, "{}: {}", scenario.name, ours.itl);
        let fewer = rows[1..].iter().map(|row| row.changes.len()).max();
        assert!(
            ours.changes.len() <= fewer.unwrap_or(0).max(1),
            "{}",
            scenario.name
        );
    }
}
