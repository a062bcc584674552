//! Least squares without negative coefficients: nothing takes less time for doing more. Pure.

/// One measurement: what it did, in numbers, and how long that took.
#[derive(Debug, Clone, PartialEq)]
pub struct Point<const N: usize> {
    pub did: [f64; N],
    pub seconds: f64,
}

impl<const N: usize> Point<N> {
    pub fn predicted(&self, coefficients: &[f64; N]) -> f64 {
        self.did.iter().zip(coefficients).map(|(d, c)| d * c).sum()
    }
}

/// The coefficients whose predictions are off by least, relative to what was measured: a step of a
/// millisecond counts as much as one of a second. Every set of coefficients that may be other than 0 is
/// tried, so `N` is small.
pub fn fit<const N: usize>(points: &[Point<N>]) -> [f64; N] {
    let mut best = ([0.0; N], f64::INFINITY);
    for set in 1..1_usize << N {
        let of_set: Vec<usize> = (0..N).filter(|i| set >> i & 1 == 1).collect();
        let Some(solved) = solve(points, &of_set) else {
            continue;
        };
        if solved.iter().any(|c| *c < 0.0) {
            continue;
        }
        let mut coefficients = [0.0; N];
        for (at, c) in of_set.iter().zip(solved) {
            coefficients[*at] = c;
        }
        let off = |point: &Point<N>| (point.predicted(&coefficients) / point.seconds - 1.0).powi(2);
        let error = points.iter().map(off).sum();
        if error < best.1 {
            best = (coefficients, error);
        }
    }
    best.0
}

/// The largest deviation, as a part of what was measured.
pub fn worst<const N: usize>(points: &[Point<N>], coefficients: &[f64; N]) -> f64 {
    let off = points
        .iter()
        .map(|point| (point.predicted(coefficients) / point.seconds - 1.0).abs());
    off.fold(0.0, f64::max)
}

/// The normal equations, by elimination. `None`: the points do not tell the columns apart.
fn solve<const N: usize>(points: &[Point<N>], columns: &[usize]) -> Option<Vec<f64>> {
    let n = columns.len();
    // Columns differ by many powers of ten; each is taken in its own unit.
    let scale: Vec<f64> = columns
        .iter()
        .map(|&i| points.iter().map(|p| p.did[i].abs()).fold(0.0, f64::max))
        .collect();
    if scale.contains(&0.0) {
        return None;
    }
    let mut rows = vec![vec![0.0; n + 1]; n];
    for point in points {
        let did = |i: usize| point.did[columns[i]] / scale[i] / point.seconds;
        for (i, row) in rows.iter_mut().enumerate() {
            for (j, cell) in row.iter_mut().enumerate() {
                *cell += did(i) * if j < n { did(j) } else { 1.0 };
            }
        }
    }
    let largest = rows.iter().flatten().copied().fold(0.0, f64::max);
    for at in 0..n {
        let pivot = (at..n).max_by(|&a, &b| rows[a][at].abs().total_cmp(&rows[b][at].abs()))?;
        rows.swap(at, pivot);
        if rows[at][at].abs() < largest * 1e-12 {
            return None;
        }
        let pivot = rows[at].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != at) {
            let factor = row[at] / pivot[at];
            for (cell, by) in row.iter_mut().zip(&pivot) {
                *cell -= factor * by;
            }
        }
    }
    Some((0..n).map(|i| rows[i][n] / rows[i][i] / scale[i]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(of: impl Fn(f64, f64) -> f64) -> Vec<Point<3>> {
        let mut points = Vec::new();
        for n in [1.0, 4.0, 16.0, 64.0] {
            for c in [128.0, 2048.0, 8192.0] {
                points.push(Point {
                    did: [1.0, n, n * c],
                    seconds: of(n, c),
                });
            }
        }
        points
    }

    #[test]
    fn what_was_put_in_comes_out() {
        let exact = points(|n, c| 14e-3 + 85e-6 * n + 28e-9 * n * c);
        let [base, each, context] = fit(&exact);
        assert!((base / 14e-3 - 1.0).abs() < 1e-6);
        assert!((each / 85e-6 - 1.0).abs() < 1e-6);
        assert!((context / 28e-9 - 1.0).abs() < 1e-6);
        assert!(worst(&exact, &[base, each, context]) < 1e-6);
    }

    #[test]
    fn nothing_is_negative_and_all_is_finite() {
        // More context is faster here, which no model may say.
        let odd = points(|n, c| 1e-3 + 1e-4 * n - 1e-9 * c);
        let coefficients = fit(&odd);
        assert!(coefficients.iter().all(|c| c.is_finite() && *c >= 0.0));
        assert_eq!(coefficients[2], 0.0);
        // One point, and points that are all the same, tell no columns apart.
        for few in [&odd[..1], &vec![odd[0].clone(); 5][..]] {
            let coefficients = fit(few);
            assert!(worst(few, &coefficients) < 1e-9, "{coefficients:?}");
        }
    }
}
