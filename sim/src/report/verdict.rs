//! Who is ahead of whom.

use super::Report;

/// Attainments that differ by less than this, and GPU hours that differ by less than this part, are equal.
const SAME_ATTAINMENT: f64 = 0.001;
const SAME_HOURS: f64 = 0.005;

/// The quantile that objectives are meant for, in the autoscaler's defaults: what attains it attains enough.
const QUANTILE: f64 = 0.95;

/// What a run attained and what it took: all that verdicts are about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// A share.
    pub attainment: f64,
    pub gpu_hours: f64,
}

impl From<&Report> for Figures {
    fn from(report: &Report) -> Figures {
        Figures {
            attainment: report.attainment,
            gpu_hours: report.gpu_hours,
        }
    }
}

/// No worse in either, and better in one.
pub fn is_ahead(ours: Figures, other: Figures) -> bool {
    let attainment = ours.attainment - other.attainment;
    let hours = ours.gpu_hours / other.gpu_hours - 1.0;
    let no_worse = attainment >= -SAME_ATTAINMENT && hours <= SAME_HOURS;
    no_worse && (attainment > SAME_ATTAINMENT || hours < -SAME_HOURS)
}

/// Who attains enough is not beaten by more of it, and who serves little does not win by taking little.
pub fn is_ahead_by_objective(ours: Figures, other: Figures) -> bool {
    let attainment = ours.attainment - other.attainment;
    let enough = |figures: Figures| figures.attainment >= QUANTILE - SAME_ATTAINMENT;
    if attainment.abs() <= SAME_ATTAINMENT || (enough(ours) && enough(other)) {
        ours.gpu_hours < other.gpu_hours * (1.0 - SAME_HOURS)
    } else {
        attainment > 0.0 && ours.gpu_hours * other.attainment < other.gpu_hours * ours.attainment
    }
}

/// A majority: at least one more than half.
pub fn is_won(ahead: usize, seeds: usize) -> bool {
    2 * ahead > seeds
}

/// Both rules in words, for whoever reads a table of them.
pub fn rules() -> String {
    format!(
        "Ahead is: no worse in attainment (to {:.1} points) and in GPU hours (to {:.1} %), and better in at least one \
         of them. By the objective, attainments of at least {:.1} % are equal, too, and of equal ones GPU hours \
         decide; otherwise more is attained, with fewer GPU hours for each request that attained.\n",
        100.0 * SAME_ATTAINMENT,
        100.0 * SAME_HOURS,
        100.0 * (QUANTILE - SAME_ATTAINMENT),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures on both sides of every bound.
    fn all() -> Vec<Figures> {
        let attained = [
            0.0, 0.5, 0.5005, 0.502, 0.9, 0.9485, 0.9489, 0.9491, 0.95, 0.96, 1.0,
        ];
        let hours = [5.0, 9.9, 9.96, 10.0, 10.04, 10.1, 20.0];
        let pairs = attained.into_iter().flat_map(|a| hours.map(|h| (a, h)));
        pairs
            .map(|(attainment, gpu_hours)| Figures {
                attainment,
                gpu_hours,
            })
            .collect()
    }

    #[test]
    fn of_two_at_most_one_is_ahead() {
        for ahead in [is_ahead, is_ahead_by_objective] {
            for a in all() {
                assert!(!ahead(a, a), "{a:?} of itself");
                for b in all() {
                    assert!(!(ahead(a, b) && ahead(b, a)), "{a:?} {b:?}");
                }
            }
        }
    }

    #[test]
    fn who_attains_more_with_fewer_gpu_hours_is_ahead_by_both_rules() {
        for a in all() {
            for b in all() {
                let more = a.attainment - b.attainment > 1.5 * SAME_ATTAINMENT;
                if more && a.gpu_hours < b.gpu_hours * (1.0 - 1.5 * SAME_HOURS) {
                    assert!(is_ahead(a, b), "{a:?} {b:?}");
                    assert!(is_ahead_by_objective(a, b), "{a:?} {b:?}");
                }
            }
        }
    }

    #[test]
    fn fewer_gpu_hours_never_cost_a_lead() {
        for ahead in [is_ahead, is_ahead_by_objective] {
            for a in all() {
                for b in all().into_iter().filter(|&b| ahead(a, b)) {
                    let fewer = Figures {
                        gpu_hours: a.gpu_hours * 0.9,
                        ..a
                    };
                    assert!(ahead(fewer, b), "{a:?} {b:?}");
                }
            }
        }
    }

    #[test]
    fn the_rules_differ_where_little_is_served_and_where_enough_is() {
        let figures = |attainment, gpu_hours| Figures {
            attainment,
            gpu_hours,
        };
        for (ours, other, plain, objective) in [
            // Much more attained, with more GPU hours, but fewer for each that attained.
            ((0.9, 10.0), (0.2, 5.0), false, true),
            ((0.9, 10.0), (0.6, 5.0), false, false),
            // Both attain enough, and fewer GPU hours decide.
            ((0.96, 8.0), (0.999, 10.0), false, true),
            ((0.999, 10.0), (0.96, 8.0), false, false),
            ((0.999, 10.0), (0.96, 10.0), true, false),
            // Just not enough.
            ((0.948, 8.0), (0.999, 10.0), false, false),
        ] {
            let (ours, other) = (figures(ours.0, ours.1), figures(other.0, other.1));
            assert_eq!(is_ahead(ours, other), plain, "{ours:?} {other:?}");
            let by_objective = is_ahead_by_objective(ours, other);
            assert_eq!(by_objective, objective, "{ours:?} {other:?}");
        }
    }

    #[test]
    fn half_of_the_seeds_is_no_majority() {
        let won = [(0, 0), (1, 1), (1, 2), (2, 2), (1, 3), (2, 3), (2, 4)];
        let expected = [false, true, false, true, false, true, false];
        assert_eq!(won.map(|(ahead, seeds)| is_won(ahead, seeds)), expected);
    }
}
