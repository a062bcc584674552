use super::*;
use crate::observation::{Distribution, Router, Traffic};

fn router(name: &str, incarnation: u64, seconds: f64, arrived: u64) -> Router {
    Router {
        name: name.to_owned(),
        waiting: 0,
        traffic: Traffic {
            incarnation,
            seconds,
            arrived,
            first_token_seconds: Distribution {
                bounds: vec![1.0],
                counts: vec![arrived, 0],
                sum: arrived as f64 / 2.0,
            },
            ..Traffic::default()
        },
    }
}

fn look(now: f64, routers: Vec<Router>) -> Observation {
    Observation {
        now,
        routers_expected: routers.len() as u32,
        routers,
        ..Observation::default()
    }
}

fn rate(window: &Window) -> f64 {
    let totals = window.totals(LONG, f64::MIN);
    totals.sums.arrived as f64 / totals.seconds
}

#[test]
fn rates_are_by_the_routers_clocks() {
    let mut window = Window::default();
    for i in 0..30 {
        // The view is up to 4 s old, differently each time.
        let late = f64::from(i * 7 % 5);
        let clock = 1000.0 + 10.0 * f64::from(i) - late;
        let seen = look(
            10.0 * f64::from(i),
            vec![router("a", 1, clock, (clock * 3.0) as u64)],
        );
        window.take(&seen).unwrap();
    }
    assert!((rate(&window) - 3.0).abs() < 0.02, "{}", rate(&window));
}

#[test]
fn a_router_that_restarts_begins_anew_and_one_that_goes_takes_nothing_back() {
    let mut window = Window::default();
    let at = |i: u32| 10.0 * f64::from(i);
    for i in 0..6 {
        let routers = vec![
            router("a", 1, 500.0 + at(i), 9000 + 20 * u64::from(i)),
            router("b", 1, 700.0 + at(i), 70 + 20 * u64::from(i)),
        ];
        window.take(&look(at(i), routers)).unwrap();
    }
    assert_eq!(rate(&window), 4.0);
    // `a` restarts and has counted 8 in its 4 s, of which 6 s before nobody knows.
    let routers = vec![router("a", 2, 4.0, 8), router("b", 1, 760.0, 190)];
    window.take(&look(60.0, routers)).unwrap();
    let arrived = window.totals(LONG, f64::MIN).sums.arrived;
    assert_eq!(arrived, 5 * 40 + 8 + 20);
    // `b` goes.
    window
        .take(&look(70.0, vec![router("a", 2, 14.0, 28)]))
        .unwrap();
    assert_eq!(window.totals(LONG, f64::MIN).sums.arrived, arrived + 20);
}

#[test]
fn a_router_that_is_new_to_us_but_old_leaves_no_half_piece() {
    let mut window = Window::default();
    window
        .take(&look(0.0, vec![router("a", 1, 50.0, 100)]))
        .unwrap();
    window
        .take(&look(10.0, vec![router("a", 1, 60.0, 120)]))
        .unwrap();
    let both = |now: f64, a, b| {
        look(
            now,
            vec![
                router("a", 1, 50.0 + now, a),
                router("b", 5, 900.0 + now, b),
            ],
        )
    };
    window.take(&both(20.0, 130, 5000)).unwrap();
    assert_eq!(
        window.covered(),
        10.0,
        "half of the traffic of the second piece is unknown"
    );
    window.take(&both(30.0, 140, 5010)).unwrap();
    assert_eq!(rate(&window), 2.0);
}

#[test]
fn a_short_gap_costs_nothing_and_a_long_one_all() {
    let told = |now: f64| vec![router("a", 1, 50.0 + now, (2.0 * now) as u64)];
    let missing = |now: f64| Observation {
        now,
        routers_expected: 1,
        ..Observation::default()
    };
    for (gap, covered) in [(10.0, 40.0), (40.0, 0.0)] {
        let mut window = Window::default();
        for now in [0.0, 10.0, 20.0] {
            window.take(&look(now, told(now))).unwrap();
        }
        let mut now = 30.0;
        while now < 30.0 + gap {
            assert_eq!(window.take(&missing(now)), Err(Frozen::MetricsGap));
            now += 10.0;
        }
        window.take(&look(now, told(now))).unwrap();
        assert_eq!(window.covered(), covered);
    }
}

#[test]
fn memory_is_bounded() {
    let mut window = Window::default();
    for i in 0..20_000 {
        let now = f64::from(i);
        window
            .take(&look(now, vec![router("a", 1, now, i as u64)]))
            .unwrap();
    }
    assert!(window.pieces.len() <= 181, "{}", window.pieces.len());
}
