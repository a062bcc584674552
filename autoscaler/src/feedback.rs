//! Objectives as measured: whether one is surely violated, and whether more replicas would help.

use crate::decision::Objective;
use crate::histogram::Histogram;
use crate::predict::{Bound, Bounds};
use crate::window::{LONG, MIDDLE, SHORT, Sums, Window};
use crate::{ByRole, Role};

/// Standard errors.
const SURE: f64 = 3.0;
/// So few samples prove nothing.
const FEW: f64 = 20.0;
/// Samples of neighbouring pieces go together: a long wait is that of many sequences.
const TOGETHER: f64 = 2.0;
/// Share of sequences that may be turned away.
const REFUSED: f64 = 0.01;
/// Times get better where a minute's mean is below such a part of the minute's before.
const BETTER: f64 = 0.9;

/// A histogram of those that a router keeps.
type Kept = fn(&Sums) -> &Histogram;

/// The histogram of an objective, and its bound. `None`: nobody asked.
fn of(objective: Objective, bounds: &Bounds) -> Option<(Kept, Bound)> {
    let (histogram, bound): (Kept, _) = match objective {
        Objective::Ttft => (|sums| &sums.ttft, bounds.ttft),
        Objective::Itl => (|sums| &sums.itl, bounds.itl),
        Objective::Queue => (|sums| &sums.queue, bounds.queue),
        Objective::PrefillUtilization | Objective::DecodeUtilization => return None,
    };
    bound.map(|bound| (histogram, bound))
}

const MEASURED: [Objective; 3] = [Objective::Itl, Objective::Queue, Objective::Ttft];

/// An objective that is surely violated since `from`, still is, and does not get better by itself.
pub fn violated(window: &Window, bounds: &Bounds, from: f64) -> Option<Objective> {
    if refused(window, SHORT, from) && refused(window, MIDDLE, from) {
        return Some(Objective::Ttft);
    }
    MEASURED.into_iter().find(|&objective| {
        of(objective, bounds).is_some_and(|(histogram, bound)| {
            let surely = |seconds| surely(window, histogram, &bound, seconds, from);
            (surely(MIDDLE) || surely(LONG)) && !gets_better(window, histogram, from)
        })
    })
}

/// Sequences that were turned away are in no histogram: their first token never comes.
fn refused(window: &Window, seconds: f64, from: f64) -> bool {
    let sums = window.totals(seconds, from).sums;
    sums.refused as f64 > (REFUSED * sums.arrived as f64).max(FEW)
}

/// No objective is violated, as far as so many seconds from `from` on show.
pub fn attained(window: &Window, bounds: &Bounds, seconds: f64, from: f64) -> bool {
    let sums = window.totals(seconds, from).sums;
    if sums.refused > 0 {
        return false;
    }
    MEASURED.into_iter().all(|objective| {
        of(objective, bounds).is_none_or(|(histogram, bound)| {
            let above = histogram(&sums).surely_above(bound.value);
            above < 3.0 || above <= histogram(&sums).count() * bound.late
        })
    })
}

fn surely(window: &Window, histogram: Kept, bound: &Bound, seconds: f64, from: f64) -> bool {
    let Bound {
        value: bound,
        late: allowed,
        ..
    } = *bound;
    let latest = window.totals(SHORT, from).sums;
    let latest = histogram(&latest);
    let pieces = || {
        window
            .recent(seconds, from)
            .map(|piece| histogram(&piece.sums))
    };
    let all: f64 = pieces().map(Histogram::count).sum();
    if all < FEW || latest.count() == 0.0 {
        return false;
    }
    let mean = pieces()
        .map(|h| h.count() * h.mean().unwrap_or(0.0))
        .sum::<f64>()
        / all;
    if mean > bound && latest.mean().is_some_and(|mean| mean > bound) {
        return true;
    }
    let above: f64 = pieces().map(|h| h.surely_above(bound)).sum();
    let share = above / all;
    let spread = pieces().map(|h| (h.surely_above(bound) - share * h.count()).powi(2));
    let error = (TOGETHER * spread.sum::<f64>()).max(all * allowed * (1.0 - allowed));
    above - allowed * all > SURE * error.sqrt()
        && latest.surely_above(bound) > allowed * latest.count()
}

fn gets_better(window: &Window, histogram: Kept, from: f64) -> bool {
    let two = window.totals(2.0 * SHORT, from).sums;
    let latest = window.totals(SHORT, from).sums;
    let before = histogram(&two).since(histogram(&latest));
    let mean = |h: Option<&Histogram>| h.and_then(Histogram::mean);
    match (mean(before.as_ref()), mean(Some(histogram(&latest)))) {
        (Some(before), Some(latest)) => latest < BETTER * before,
        _ => false,
    }
}

/// One so far above 1 says nothing, whatever the correction.
const MOST: f64 = 4.0;
/// Forgotten so slowly: by two thirds in a week.
const FORGET: f64 = 7.0 * 86_400.0;
/// Below the utilisation at which an objective was violated.
const BELOW: f64 = 0.95;
/// No pool is taught to stay emptier than this.
const LEAST: f64 = 0.1;

/// The most that pools are used before objectives are violated, as violations taught, by the uncorrected
/// model: its correction changes. `None`: there were none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lessons {
    pub most: ByRole<Option<f64>>,
}

impl Lessons {
    /// An objective was violated at such a utilisation, by the uncorrected model, whatever was predicted.
    pub fn learn(&mut self, role: Role, utilization: f64) {
        let most = self.most.of_mut(role);
        let taught = (BELOW * utilization).max(LEAST);
        *most = Some(most.map_or(taught, |most| most.min(taught)));
    }

    pub fn forget(&mut self, seconds: f64) {
        let share = 1.0 - (-seconds.max(0.0) / FORGET).exp();
        for role in [Role::Prefill, Role::Decode] {
            let most: &mut Option<f64> = self.most.of_mut(role);
            *most = most.map(|m| m * (1.0 + share)).filter(|m| *m < MOST);
        }
    }
}
