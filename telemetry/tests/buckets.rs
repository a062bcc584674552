//! How far quantiles that Prometheus reads off our buckets are from those of the observations.

use millrace_telemetry::buckets::{SECONDS, SHORT_SECONDS, TOKENS};

/// As `histogram_quantile` has it: even within a bucket.
fn estimate(bounds: &[f64], sorted: &[f64], q: f64) -> f64 {
    let rank = q * sorted.len() as f64;
    let below = |bound: f64| sorted.partition_point(|&x| x <= bound) as f64;
    let at = bounds.iter().position(|&bound| below(bound) >= rank);
    let Some(at) = at else {
        return *bounds.last().unwrap();
    };
    let (low, before) = match at {
        0 => (0.0, 0.0),
        _ => (bounds[at - 1], below(bounds[at - 1])),
    };
    low + (bounds[at] - low) * (rank - before) / (below(bounds[at]) - before)
}

/// Observations around `median` whose logarithm is normal: its quantiles, without chance.
fn log_normal(median: f64, sigma: f64) -> Vec<f64> {
    (1..20_000)
        .map(|i| median * (sigma * normal_quantile(f64::from(i) / 20_000.0)).exp())
        .collect()
}

/// Abramowitz and Stegun 26.2.23, within 4.5e-4.
fn normal_quantile(p: f64) -> f64 {
    let tail = p.min(1.0 - p);
    let t = (-2.0 * tail.ln()).sqrt();
    let top = 2.515517 + t * (0.802853 + t * 0.010328);
    let bottom = 1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308));
    (t - top / bottom).copysign(p - 0.5)
}

/// The largest relative error of p50, p90 and p99 that lie within `range`, over distributions of
/// all medians and several widths.
fn worst(bounds: &[f64], range: std::ops::Range<f64>) -> f64 {
    let mut worst: f64 = 0.0;
    let mut median = range.start / 3.0;
    while median < range.end {
        for sigma in [0.2, 0.4, 0.8] {
            let sorted = log_normal(median, sigma);
            for q in [0.5, 0.9, 0.99] {
                let exact = sorted[(q * sorted.len() as f64) as usize];
                if range.contains(&exact) {
                    let error = estimate(bounds, &sorted, q) / exact - 1.0;
                    worst = worst.max(error.abs());
                }
            }
        }
        median *= 1.03;
    }
    worst
}

#[test]
fn quantiles_are_near_where_objectives_lie() {
    let coarse = [
        0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
    ];
    let first = worst(&SECONDS, 0.2..5.0);
    let between = worst(&SHORT_SECONDS, 0.003..0.1);
    let three_a_decade = worst(&coarse, 0.2..5.0).max(worst(&coarse, 0.003..0.1));
    println!(
        "first token {first:.3}, between tokens {between:.3}, three buckets a decade {three_a_decade:.3}"
    );
    assert!(first < 0.13, "{first}");
    assert!(between < 0.13, "{between}");
    assert!(
        three_a_decade > 2.0 * first.max(between),
        "finer buckets are for nothing: {three_a_decade}"
    );
}

#[test]
fn objectives_that_people_choose_are_bounds() {
    for seconds in [0.1, 0.2, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0] {
        assert!(SECONDS.contains(&seconds), "{seconds}");
    }
    for seconds in [0.01, 0.015, 0.02, 0.025, 0.03, 0.05, 0.1, 0.2] {
        assert!(SHORT_SECONDS.contains(&seconds), "{seconds}");
    }
    for bounds in [&SECONDS[..], &SHORT_SECONDS, &TOKENS] {
        assert!(bounds.is_sorted_by(|a, b| a < b));
    }
}
