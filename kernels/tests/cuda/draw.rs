//! Choosing tokens: where the largest is, and what is drawn.

use millrace_kernels::Draw;

use super::*;

/// What may be drawn, in order of token, by the definition and in float64; and how near the next weight comes to the
/// last one that is left, where rounding could let it in.
struct Left {
    /// Token and weight.
    tokens: Vec<(usize, f64)>,
    total: f64,
    /// Tokens that rounding could add or take away.
    doubtful: Vec<usize>,
}

fn left(logits: &[f32], draw: &Draw) -> Left {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| (f64::from((logit - most) * draw.inverse_temperature)).exp();
    let mut all: Vec<(usize, f64)> = logits
        .iter()
        .map(|logit| weight(*logit))
        .enumerate()
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.retain(|(_, weight)| *weight >= f64::from(draw.min_p) && *weight > 1e-12);
    if draw.top_k > 0 {
        all.truncate(draw.top_k as usize);
    }
    let total: f64 = all.iter().map(|one| one.1).sum();
    let mut sum = 0.0;
    let mut kept = all.len();
    if draw.top_p < 1.0 {
        let reaches = all.iter().position(|one| {
            sum += one.1;
            sum >= total * f64::from(draw.top_p)
        });
        kept = reaches.map_or(kept, |last| last + 1);
    }
    let edge = kept.saturating_sub(2)..(kept + 2).min(all.len());
    let doubtful = all[edge].iter().map(|one| one.0).collect();
    let mut tokens = all[..kept].to_vec();
    tokens.sort_by_key(|one| one.0);
    Left {
        total: tokens.iter().map(|one| one.1).sum(),
        tokens,
        doubtful,
    }
}

#[test]
#[ignore = "needs an H100 or H200"]
fn draws_are_where_their_quantiles_are() {
    let mut pair = Pair::new();
    let (rows, mut seen) = (64, 0);
    for cols in [1, 2, 31, 1000, 32_768, 129_280] {
        let logits = pair.rows_f32(rows, cols);
        let values = logits.cpu.values().to_vec();
        for (temperature, min_p, top_k, top_p) in [
            (1.0, 0.0, 0, 1.0),
            (0.6, 0.0, 0, 0.95),
            (0.6, 0.0, 50, 0.9),
            (1.5, 0.02, 0, 1.0),
            (0.3, 0.0, 7, 1.0),
            (1.0, 0.1, 3, 0.5),
            (0.05, 0.0, 1, 0.01),
        ] {
            let draws: Vec<(usize, Draw)> = (0..rows)
                .map(|row| {
                    let draw = Draw {
                        inverse_temperature: 1.0 / temperature,
                        min_p,
                        top_k,
                        top_p,
                        quantile: pair.rng.random_range(0.0..1.0),
                    };
                    (row, draw)
                })
                .collect();
            let (mut got, mut again, mut alone) = (Vec::new(), Vec::new(), Vec::new());
            pair.cuda.draw(&logits.cuda, &draws, &mut got);
            pair.cuda.draw(&logits.cuda, &draws, &mut again);
            assert_eq!(got, again);
            pair.cuda.draw(&logits.cuda, &draws[rows - 1..], &mut alone);
            assert_eq!(alone[0], got[rows - 1]);
            for ((row, draw), (token, most)) in draws.iter().zip(&got) {
                let row = &values[row * cols..][..cols];
                assert_eq!(*most, row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                let left = left(row, draw);
                let Some(at) = left.tokens.iter().position(|one| one.0 == *token as usize) else {
                    assert!(
                        left.doubtful.contains(&(*token as usize)),
                        "{cols} columns, {draw:?}: {token}"
                    );
                    continue;
                };
                let before: f64 = left.tokens[..at].iter().map(|one| one.1).sum();
                let share = |sum: f64| sum / left.total;
                // A token at the edge of what is left may move all that come after it.
                let edge = left.doubtful.iter().map(|token| {
                    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    f64::from((row[*token] - most) * draw.inverse_temperature).exp()
                });
                let slack = 1e-5 + share(edge.fold(0.0, f64::max)) * 2.0;
                assert!(
                    share(before) - slack <= draw.quantile
                        && draw.quantile <= share(before + left.tokens[at].1) + slack,
                    "{cols} columns, {draw:?}: {token} at {}..{}",
                    share(before),
                    share(before + left.tokens[at].1)
                );
                seen += 1;
            }
        }
    }
    println!("{seen} draws");
}

#[test]
#[ignore = "needs an H100 or H200"]
fn equal_values_and_what_cannot_be_compared() {
    let pair = Pair::new();
    let mut logits = pair.cuda.tensor_f32(4, 300);
    let mut values = vec![1.0f32; 4 * 300];
    values[300 + 7] = f32::NAN;
    values[600..900].fill(f32::NEG_INFINITY);
    values[900 + 250] = 2.0;
    values[900 + 251] = 2.0;
    pair.cuda.write(&values, &mut logits);
    let mut best = Vec::new();
    pair.cuda.arg_max(&logits, &mut best);
    assert_eq!(best[0], (0, 1.0));
    assert!(best[1].1.is_nan());
    assert_eq!(best[2], (0, f32::NEG_INFINITY));
    assert_eq!(best[3], (250, 2.0));
    let draw = |row, top_k, top_p, quantile| {
        let draw = Draw {
            inverse_temperature: 1.0,
            min_p: 0.0,
            top_k,
            top_p,
            quantile,
        };
        (row, draw)
    };
    let draws = [
        draw(0, 0, 1.0, 0.5),
        // Of equal ones the first are left.
        draw(0, 10, 1.0, 0.999),
        draw(0, 0, 0.25, 0.999),
        draw(0, 10, 0.5, 0.999),
        draw(1, 0, 1.0, 0.5),
        draw(2, 0, 1.0, 0.5),
        draw(3, 1, 1.0, 0.999),
        draw(3, 3, 1.0, 0.0),
    ];
    let mut got = Vec::new();
    pair.cuda.draw(&logits, &draws, &mut got);
    let tokens: Vec<u32> = got.iter().map(|one| one.0).collect();
    assert_eq!(tokens[..4], [150, 9, 74, 4]);
    assert!(got[4].1.is_nan() && got[5].1.is_nan());
    assert_eq!(tokens[6..], [250, 0]);
}
