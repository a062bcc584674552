//! A run over time as a picture: load, what waits, GPUs and replicas, attainment, times to first token.
//!
//! Line plots of one shape are less code than what a plotting library wants to be told, and no dependency.

use std::fmt::Write;

use super::{Point, Report};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 150.0;
const PANEL: f64 = 150.0;
const GAP: f64 = 46.0;
const TOP: f64 = 54.0;
/// Distinct for those who see red and green alike, too (Okabe and Ito).
const COLOURS: [&str; 3] = ["#0072b2", "#d55e00", "#009e73"];

struct Line<'a> {
    name: &'a str,
    values: Vec<Option<f64>>,
    /// It stays until the next value.
    steps: bool,
}

fn line<'a>(
    report: &Report,
    name: &'a str,
    steps: bool,
    value: impl Fn(&Point) -> Option<f64>,
) -> Line<'a> {
    Line {
        name,
        values: report.series.iter().map(value).collect(),
        steps,
    }
}

/// One document, light on white, readable where it is embedded.
pub fn timeline(report: &Report) -> String {
    let panels = [
        (
            "requests a second",
            vec![line(report, "arrivals", false, |p| Some(p.arrivals))],
        ),
        // Not with the GPUs: where much waits, a shared axis would leave of them a line at zero.
        (
            "requests that wait",
            vec![line(report, "at the router", true, |p| {
                Some(p.waiting as f64)
            })],
        ),
        (
            "GPUs",
            vec![line(report, "in use", true, |p| Some(f64::from(p.gpus)))],
        ),
        (
            "replicas",
            vec![
                line(report, "prefill", true, |p| Some(p.replicas.prefill.into())),
                line(report, "decode", true, |p| Some(p.replicas.decode.into())),
            ],
        ),
        (
            "attained, %",
            vec![line(report, "both objectives", false, |p| {
                p.attainment.map(|share| 100.0 * share)
            })],
        ),
        (
            "time to first token, s",
            vec![line(report, "p90", false, |p| p.ttft_p90)],
        ),
    ];
    let height = TOP + panels.len() as f64 * (PANEL + GAP);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}: {} on {} GPUs, seed {}: {:.2} % attained, {:.1} GPU hours</text>\n",
        escaped(&report.scenario),
        report.policy.as_str(),
        report.gpus,
        report.seed,
        100.0 * report.attainment,
        report.gpu_hours
    );
    for (number, (title, lines)) in panels.iter().enumerate() {
        let top = TOP + number as f64 * (PANEL + GAP);
        panel(&mut out, report, title, lines, top);
    }
    out.push_str("</svg>\n");
    out
}

fn panel(out: &mut String, report: &Report, title: &str, lines: &[Line<'_>], top: f64) {
    let end = end(&report.series);
    let all = lines.iter().flat_map(|line| line.values.iter().flatten());
    let ceiling = round_up(all.fold(0.0, |most: f64, &value| most.max(value)));
    let x = |at: f64| LEFT + (WIDTH - LEFT - RIGHT) * at / end;
    let y = |value: f64| top + PANEL - PANEL * value / ceiling;
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{:.1}\">{title}</text>",
        top - 6.0
    );
    for part in 0..=4 {
        let value = ceiling * f64::from(part) / 4.0;
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{2:.1}\" y=\"{3:.1}\" text-anchor=\"end\">{4}</text>",
            x(end),
            y(value),
            LEFT - 6.0,
            y(value) + 4.0,
            short(value)
        );
        let at = end * f64::from(part) / 4.0;
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.0} s</text>",
            x(at),
            top + PANEL + 16.0,
            at
        );
    }
    for (number, line) in lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let mut path = String::new();
        let mut drawing = false;
        for (point, value) in report.series.iter().zip(&line.values) {
            let Some(value) = *value else {
                drawing = false;
                continue;
            };
            let (x, y) = (x(point.at), y(value));
            let _ = match (drawing, line.steps) {
                (false, _) => write!(path, "M{x:.1} {y:.1}"),
                (true, true) => write!(path, "H{x:.1}V{y:.1}"),
                (true, false) => write!(path, "L{x:.1} {y:.1}"),
            };
            drawing = true;
        }
        let _ = writeln!(
            out,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>",
            x(end) + 10.0,
            top + 14.0 + 16.0 * number as f64,
            line.name
        );
    }
}

/// Where the last part of the run ends. All are as long as the first.
fn end(series: &[Point]) -> f64 {
    let long = series.get(1).map_or(1.0, |second| second.at);
    series.last().map_or(1.0, |last| last.at + long)
}

/// Quarters of an axis as they are meant, not 0.6000000000000001.
fn short(value: f64) -> String {
    let digits = (value * 1e6).round() / 1e6;
    digits.to_string()
}

/// The next of 1, 2, 4, 5 and 8 times a power of ten: quarters of it are short numbers.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 4.0, 5.0, 8.0, 10.0];
    let step = steps.into_iter().find(|step| step * power >= value);
    step.unwrap_or(10.0) * power
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_the_next_short_number() {
        for (value, expected) in [(0.0, 1.0), (1.0, 1.0), (1.1, 2.0), (3.0, 4.0), (0.07, 0.08)] {
            assert!((round_up(value) - expected).abs() < 1e-12, "{value}");
        }
        assert_eq!(round_up(8.1), 10.0);
        assert_eq!(short(0.8 * 3.0 / 4.0), "0.6");
        assert_eq!(short(75.0), "75");
    }
}
