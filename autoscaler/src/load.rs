//! What arrives: how much of it, how surely, and of what shape.

use crate::histogram::Histogram;
use crate::observation::Observation;
use crate::policy::Policy;
use crate::window::{LONG, MIDDLE, Piece, SHORT, Totals, Window, capacity};

/// So few samples say nothing of a mean.
const FEW: f64 = 30.0;
/// Seconds. What has just begun, growth that is steep, and growth that is not.
pub const NOW: f64 = 30.0;
const STEEP: f64 = 120.0;
const RECENT: f64 = 360.0;
/// Share of the squares that a steep line explains. Of a step it explains three quarters at most.
const LINE: f64 = 0.8;
const SURE_OF_SLOPE: f64 = 5.0;
/// Pieces of traffic whose counts are compared to see how bursty arrivals are, and the most that three blocks say.
const BLOCK: usize = 3;
const MOST_DISPERSED: f64 = 30.0;

/// Prompts of about the same length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prompt {
    /// Of all prompts.
    pub share: f64,
    /// Tokens to compute.
    pub tokens: f64,
    /// Tokens found in a prefix cache.
    pub cached: f64,
}

/// All that matters of sequences but how many there are.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    pub prompts: Vec<Prompt>,
    /// Tokens, mean.
    pub generation: f64,
    /// Squared coefficient of variation of its length.
    pub generation_variation: f64,
    /// At least 1.
    pub tokens_per_update: f64,
    /// Tokens that a sequence attends to, mean over its steps.
    pub context: f64,
    /// Sequences that a decode rank has at most, by turns and by cache.
    pub turns: f64,
    pub fits: f64,
}

impl Shape {
    /// Of the long window, or of the middle one if lengths have surely changed. `None`: nothing came whose
    /// length is known.
    pub fn of(window: &Window, observation: &Observation, policy: &Policy) -> Option<Shape> {
        let (middle, long) = (
            window.totals(MIDDLE, f64::MIN),
            window.totals(LONG, f64::MIN),
        );
        let new = differs(&middle.sums.prompts, &long.sums.prompts)
            || differs(&middle.sums.generations, &long.sums.generations);
        let totals = if new { middle } else { long };
        let sums = &totals.sums;
        let count = sums.prompts.count();
        let hit_rate = ratio(sums.cached_prompt_tokens, sums.prompt_tokens)?.clamp(0.0, 1.0);
        let prompts: Vec<Prompt> = (sums.prompts.points().iter())
            .map(|point| Prompt {
                share: point.count / count,
                tokens: (point.value * (1.0 - hit_rate)).max(1.0),
                cached: point.value * hit_rate,
            })
            .collect();
        let generation = match sums.generations.mean() {
            Some(mean) => mean,
            None => sums.generated_tokens as f64 / sums.ttft.count(),
        };
        if !(generation.is_finite() && generation > 0.0) || prompts.is_empty() {
            return None;
        }
        let variation = sums.generations.variation();
        let mean_prompt = sums.prompts.mean()?;
        // Longer sequences are there for longer: half of E[length²] / E[length].
        let context = mean_prompt + generation * (1.0 + variation) / 2.0;
        let (turns, kv_tokens) = capacity(observation);
        let turns = turns
            .unwrap_or(f64::from(policy.model.max_running))
            .max(1.0);
        let kv_tokens = kv_tokens.unwrap_or(policy.model.kv_tokens as f64);
        // Pages are whole, and some wait for a peer's writes; shared prefixes take less.
        let fleet = &totals.fleet;
        let used = fleet.kv_tokens / fleet.kv_sequences;
        let each = if fleet.kv_sequences >= FEW && used > 0.0 {
            used
        } else {
            context
        };
        let shape = Shape {
            prompts,
            generation,
            generation_variation: variation,
            tokens_per_update: ratio(sums.generated_tokens, sums.updates)
                .map_or(1.0, |r| r.max(1.0)),
            context,
            turns,
            fits: (kv_tokens / each).max(1.0),
        };
        let numbers = [shape.generation, shape.context, shape.turns, shape.fits];
        numbers.iter().all(|n| n.is_finite()).then_some(shape)
    }

    /// Squared coefficient of variation of the work of a sequence, for the pool for which it is larger.
    fn variation(&self) -> f64 {
        let mean: f64 = self.prompts.iter().map(|p| p.share * p.tokens).sum();
        let square = self
            .prompts
            .iter()
            .map(|p| p.share * (p.tokens - mean).powi(2));
        (square.sum::<f64>() / (mean * mean)).max(self.generation_variation)
    }
}

/// Means differ by three standard errors, and there are enough samples to say so.
fn differs(some: &Histogram, all: &Histogram) -> bool {
    let count = some.count();
    match (some.mean(), all.mean()) {
        (Some(one), Some(other)) if count >= FEW => {
            (one - other).powi(2) > 9.0 * all.variation() * other * other / count
        }
        _ => false,
    }
}

/// Sequences a second, with what can be said of the error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Of the middle window.
    pub mean: f64,
    /// Arrivals of the middle window.
    pub count: f64,
    /// Its standard error.
    pub error: f64,
    /// It is likely no less now: after a step the mean is of what was before it.
    pub latest: f64,
    /// As `trend`, of the last two minutes. 0 unless load grows steadily and fast.
    pub steep: f64,
    /// It is surely not less: of the windows the one that says most.
    pub low: f64,
    /// It is surely not more.
    pub high: f64,
    /// Sequences a second and second, as far as likely above 0.
    pub trend: f64,
    /// It surely is above 0.
    pub rises: bool,
}

/// Standard errors that evidence takes. A look every 10 s for a month makes a quarter of a million; of a
/// minute's windows 40 thousand are apart.
const SURE_OF_MINUTE: f64 = 4.0;
const SURE_OF_MIDDLE: f64 = 3.0;

impl Rate {
    /// Errors are of the work that comes: lengths scatter too.
    pub fn of(window: &Window, shape: Option<&Shape>) -> Rate {
        let arrivals = dispersion(window);
        let dispersion = arrivals + shape.map_or(0.0, Shape::variation);
        let short = window.totals(SHORT, f64::MIN);
        let middle = window.totals(MIDDLE, f64::MIN);
        let now = window.totals(NOW, f64::MIN);
        let (low_now, _) = bounds(&now, dispersion, SURE_OF_MINUTE);
        let (low_short, high_short) = bounds(&short, dispersion, SURE_OF_MINUTE);
        let (low_middle, _) = bounds(&middle, dispersion, SURE_OF_MIDDLE);
        let (_, mut high) = bounds(&middle, dispersion, SURE_OF_MIDDLE);
        let mean = per_second(&middle);
        let long = window.totals(LONG, f64::MIN);
        let (low_long, high_long) = bounds(&long, dispersion, SURE_OF_MIDDLE);
        // The longer window is surer, unless load has just changed.
        let same = (low_middle..=high).contains(&per_second(&long));
        if same && (middle.sums.arrived as f64) < 3.0 * FEW {
            high = high_long.max(mean);
        }
        let low_long = if same { low_long } else { 0.0 };
        let count = middle.sums.arrived as f64;
        // Load that falls is seen in the last minute first.
        high = high.min(high_short);
        // What has just begun is no time to take anything away.
        high = high.max(per_second(&short));
        Rate {
            mean,
            count,
            error: (arrivals * count).sqrt() / middle.seconds.max(1.0),
            latest: latest(window, dispersion),
            steep: steep(window, arrivals),
            low: low_now.max(low_short).max(low_middle).max(low_long),
            high,
            trend: trend(window, RECENT, arrivals, 2.0).max(trend(window, LONG, arrivals, 2.0)),
            rises: trend(window, RECENT, arrivals, SURE_OF_MINUTE) > 0.0,
        }
    }

    /// What to size for: unbiased by the one noisy minute that asked for it.
    pub fn expected(&self) -> f64 {
        self.mean.max(self.low).max(self.latest)
    }
}

fn per_second(totals: &Totals) -> f64 {
    totals.sums.arrived as f64 / totals.seconds.max(1.0)
}

/// Bounds of a rate, `sure` standard errors away, that make sense for no arrivals too.
fn bounds(totals: &Totals, dispersion: f64, sure: f64) -> (f64, f64) {
    let count = totals.sums.arrived as f64;
    let middle = count + dispersion * sure * sure / 2.0;
    let away = sure * (dispersion * (count + dispersion * sure * sure / 4.0)).sqrt();
    let seconds = totals.seconds.max(1.0);
    (
        (middle - away).max(0.0) / seconds,
        (middle + away) / seconds,
    )
}

/// What surely comes now: of the last moment less two standard errors, or of the last half minute less one.
fn latest(window: &Window, dispersion: f64) -> f64 {
    let less = |seconds, errors| {
        let now = window.totals(seconds, f64::MIN);
        let error = (dispersion * now.sums.arrived as f64).sqrt() / now.seconds.max(1.0);
        per_second(&now) - errors * error
    };
    less(1.0, 2.0).max(less(NOW, 1.0)).max(0.0)
}

/// Variance over mean of arrivals, at least a Poisson process's 1. Of how far each is from the mean of its
/// neighbours, so that a slope is not taken for noise, and a step is for two of all.
fn dispersion(window: &Window) -> f64 {
    let pieces: Vec<&Piece> = window.recent(LONG, f64::MIN).collect();
    let blocks: Vec<(f64, f64)> = pieces
        .chunks_exact(BLOCK)
        .map(|block| {
            let arrived: f64 = block.iter().map(|p| p.sums.arrived as f64).sum();
            (arrived, block.iter().map(|p| p.seconds).sum())
        })
        .collect();
    let (mut sum, mut count) = (0.0, 0.0);
    for three in blocks.windows(3) {
        let [(one, s1), (two, s2), (three, s3)] = [three[0], three[1], three[2]];
        let bend = two / s2 - (one / s1 + three / s3) / 2.0;
        let variance = two / (s2 * s2) + (one / (s1 * s1) + three / (s3 * s3)) / 4.0;
        if one + two + three >= 2.0 {
            sum += (bend * bend / variance).min(MOST_DISPERSED);
            count += 1.0;
        }
    }
    if count >= 9.0 {
        (sum / count).max(1.0)
    } else {
        1.0
    }
}

/// Sequences a second and second of the last two minutes, if they are all but a straight line: a step is
/// none, and noise is none.
fn steep(window: &Window, dispersion: f64) -> f64 {
    let pieces: Vec<&Piece> = window.recent(STEEP, f64::MIN).collect();
    let line = Line::through(&pieces);
    if line.seconds < 60.0 || pieces.len() < 4 || line.arrived < FEW {
        return 0.0;
    }
    let error = line.error(dispersion);
    if line.explained > LINE && line.slope > SURE_OF_SLOPE * error {
        line.slope - error
    } else {
        0.0
    }
}

/// Growth in the last `seconds` less `sure` standard errors, but no more than either half shows: a step is in
/// one of them. 0: none is sure.
fn trend(window: &Window, seconds: f64, dispersion: f64, sure: f64) -> f64 {
    let pieces: Vec<&Piece> = window.recent(seconds, f64::MIN).collect();
    let covered: f64 = pieces.iter().map(|p| p.seconds).sum();
    if covered < 0.9 * MIDDLE || pieces.len() < 6 {
        return 0.0;
    }
    let (late, early) = pieces.split_at(pieces.len() / 2);
    slope(&pieces, dispersion, sure)
        .min(slope(late, dispersion, 0.0))
        .min(slope(early, dispersion, 0.0))
        .max(0.0)
}

/// By least squares, less `sure` standard errors.
fn slope(pieces: &[&Piece], dispersion: f64, sure: f64) -> f64 {
    let line = Line::through(pieces);
    let slope = line.slope - sure * line.error(dispersion);
    if slope.is_finite() { slope } else { 0.0 }
}

/// The rates of pieces as a line over time, by least squares. Of one piece nothing is a number.
struct Line {
    seconds: f64,
    arrived: f64,
    /// Sequences a second and second.
    slope: f64,
    /// Share of the squares that it explains.
    explained: f64,
    spread: f64,
}

impl Line {
    fn through(pieces: &[&Piece]) -> Line {
        let seconds: f64 = pieces.iter().map(|p| p.seconds).sum();
        let arrived: f64 = pieces.iter().map(|p| p.sums.arrived as f64).sum();
        let rate = arrived / seconds;
        let middle = pieces.iter().map(|p| p.at * p.seconds).sum::<f64>() / seconds;
        let (mut together, mut spread, mut all) = (0.0, 0.0, 0.0);
        for piece in pieces {
            let away = piece.at - middle;
            let more = piece.sums.arrived as f64 - rate * piece.seconds;
            together += away * more;
            spread += away * away * piece.seconds;
            all += more * more / piece.seconds;
        }
        let slope = together / spread;
        Line {
            seconds,
            arrived,
            slope,
            explained: slope * together / all,
            spread,
        }
    }

    /// The slope's, of arrivals so bursty.
    fn error(&self, dispersion: f64) -> f64 {
        (dispersion * self.arrived / self.seconds / self.spread).sqrt()
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}
