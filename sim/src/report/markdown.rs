//! Reports as tables.

use std::fmt::Write;

use super::Report;
use crate::policy::PolicyName;

/// One row a run, and after them for how many scenarios and sizes ours is ahead.
pub fn comparison(reports: &[Report]) -> String {
    let mut out = String::from(
        "| scenario | GPUs | policy | attained | TTFT p99 s | ITL p99 ms | GPU hours | changes | refused | failed |\n\
         |---|---:|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for report in reports {
        let (ups, downs) = (report.ups, report.downs);
        let _ = writeln!(
            out,
            "| {} | {} | {} | {:.2} % | {:.2} | {:.1} | {:.1} | {} | {} | {} |",
            report.scenario,
            report.gpus,
            report.policy.as_str(),
            100.0 * report.attainment,
            report.ttft.p99 / 1e3,
            report.itl.p99,
            report.gpu_hours,
            ups.prefill + ups.decode + downs.prefill + downs.decode,
            report.refused,
            report.failed
        );
    }
    out.push('\n');
    out.push_str(&verdicts(reports));
    out
}

/// Attainments that differ by less than this, and GPU hours that differ by less than this part, are equal.
const SAME_ATTAINMENT: f64 = 0.001;
const SAME_HOURS: f64 = 0.005;

/// Ours against each baseline that scales.
fn verdicts(reports: &[Report]) -> String {
    let of = |ours: &Report, policy| {
        reports.iter().find(move |r| {
            (r.policy, r.gpus, r.seed) == (policy, ours.gpus, ours.seed)
                && r.scenario == ours.scenario
        })
    };
    let mut out = String::from(
        "| scenario | GPUs | against hpa | against planner | both on both |\n|---|---:|---|---|---|\n",
    );
    let (mut ahead, mut all) = (0, 0);
    for ours in reports.iter().filter(|r| r.policy == PolicyName::Millrace) {
        let baselines = [PolicyName::Hpa, PolicyName::Planner].map(|policy| of(ours, policy));
        let [Some(hpa), Some(planner)] = baselines else {
            continue;
        };
        let wins = [hpa, planner].map(|other| is_ahead(ours, other));
        let both = wins.iter().all(|&win| win);
        all += 1;
        ahead += u32::from(both);
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} |",
            ours.scenario,
            ours.gpus,
            against(ours, hpa),
            against(ours, planner),
            if both { "yes" } else { "no" }
        );
    }
    let _ = write!(
        out,
        "\nAhead of both baselines: {ahead} of {all}. Ahead is: no worse in attainment (to {:.1} points) and in GPU hours (to {:.1} %), and \
         better in at least one of them.\n",
        100.0 * SAME_ATTAINMENT,
        100.0 * SAME_HOURS
    );
    out
}

fn is_ahead(ours: &Report, other: &Report) -> bool {
    let attainment = ours.attainment - other.attainment;
    let hours = ours.gpu_hours / other.gpu_hours - 1.0;
    let no_worse = attainment >= -SAME_ATTAINMENT && hours <= SAME_HOURS;
    no_worse && (attainment > SAME_ATTAINMENT || hours < -SAME_HOURS)
}

fn against(ours: &Report, other: &Report) -> String {
    format!(
        "{:+.2} points, {:+.1} % GPU hours",
        100.0 * (ours.attainment - other.attainment),
        100.0 * (ours.gpu_hours / other.gpu_hours - 1.0)
    )
}
