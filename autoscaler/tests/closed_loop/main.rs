//! The autoscaler in a loop with a fleet, hours and days of virtual time, seeded.

mod counters;
mod fleet;
mod load;
mod run;

use run::*;

/// Rates whose needs lie anywhere between two numbers of replicas.
const RATES: [f64; 6] = [0.2, 1.0, 2.7, 4.4, 6.1, 11.0];

#[test]
fn constant_load_is_left_alone() {
    for rate in RATES
        .into_iter()
        .filter(|r| std::env::var("RATE").map_or(true, |x| x.parse::<f64>().unwrap() == *r))
    {
        for seed in 0..2 {
            let mut fleet = fleet(seed, both(2, 2), rate, move |_| rate);
            let mut ours = Ours::new(policy());
            let report = run(&mut fleet, 32.0 * HOUR, &mut ours);
            let later = report.after(2.0 * HOUR);
            let missed = report.missed(2.0 * HOUR, 0.95).len();
            println!(
                "{rate:5.1}/s seed {seed}: {} changes while settling, then {:?}, at the end {:?}; TTFT {:.3} ITL {:.3}, {missed} spans below, {:.0} GPUh",
                report.changes.len() - later.len(),
                later,
                report.end,
                report.ttft,
                report.itl,
                report.gpu_hours,
            );
        }
    }
}
