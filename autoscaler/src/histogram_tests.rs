use super::*;

fn histogram(counts: [u64; 4], sum: f64) -> Histogram {
    let told = Distribution {
        bounds: vec![0.02, 0.05, 0.1],
        counts: counts.to_vec(),
        sum,
    };
    Histogram::of(&told).expect("consistent")
}

#[test]
fn interpolation_keeps_the_exact_mean() {
    // All between 20 and 50 ms, near the lower end.
    let h = histogram([0, 100, 0, 0], 100.0 * 0.025);
    let points = h.points();
    let mean = points.iter().map(|p| p.count * p.value).sum::<f64>() / 100.0;
    assert!((mean - 0.025).abs() < 1e-9);
    assert!(h.quantile(0.5).unwrap() < 0.025);
    assert!(h.share_within(0.03).unwrap() > 0.75);
    assert_eq!(h.surely_above(0.03), 0.0, "nobody knows");
    assert_eq!(h.surely_above(0.02), 100.0);
}

#[test]
fn quantile_and_share_are_inverse() {
    let h = histogram([10, 50, 30, 10], 6.0);
    for quantile in [0.05, 0.3, 0.6, 0.8, 0.95] {
        let value = h.quantile(quantile).unwrap();
        assert!((h.share_within(value).unwrap() - quantile).abs() < 1e-9);
    }
}

#[test]
fn what_is_inconsistent_is_refused() {
    let told = |bounds: &[f64], counts: &[u64], sum| {
        Histogram::of(&Distribution {
            bounds: bounds.to_vec(),
            counts: counts.to_vec(),
            sum,
        })
    };
    assert!(told(&[1.0, 2.0], &[1, 1, 1], 3.0).is_some());
    assert!(told(&[2.0, 1.0], &[1, 1, 1], 3.0).is_none());
    assert!(told(&[1.0, 2.0], &[1, 1], 3.0).is_none());
    assert!(told(&[1.0, f64::NAN], &[1, 1, 1], 3.0).is_none());
    assert!(told(&[1.0, 2.0], &[1, 1, 1], f64::NAN).is_none());
    assert!(told(&[], &[], 0.0).is_some(), "nothing was counted yet");
}

#[test]
fn other_buckets_count_at_their_upper_bound() {
    let mut h = histogram([1, 0, 0, 0], 0.01);
    let told = Distribution {
        bounds: vec![0.03, 1.0],
        counts: vec![2, 3, 4],
        sum: 9.0,
    };
    h.add(&Histogram::of(&told).unwrap());
    assert_eq!(h.surely_above(0.02), 9.0);
    assert_eq!(h.surely_above(0.1), 7.0);
    assert_eq!(h.count(), 10.0);
}
