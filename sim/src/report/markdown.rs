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

/// The quantile that objectives are meant for, in the autoscaler's defaults: what attains it attains enough.
const QUANTILE: f64 = 0.95;

/// Ours against each baseline that scales: a line each, and how often it is ahead.
fn verdicts(reports: &[Report]) -> String {
    let of = |ours: &Report, policy| {
        reports.iter().find(move |r| {
            (r.policy, r.gpus, r.seed) == (policy, ours.gpus, ours.seed)
                && r.scenario == ours.scenario
        })
    };
    let mut out = String::from(
        "| scenario | GPUs | against | attained | GPU hours | ahead | ahead by the objective |\n\
         |---|---:|---|---:|---:|---|---|\n",
    );
    let (mut plain, mut enough, mut all) = (0, 0, 0);
    for ours in reports.iter().filter(|r| r.policy == PolicyName::Millrace) {
        let baselines = [PolicyName::Hpa, PolicyName::Planner].map(|policy| of(ours, policy));
        let [Some(hpa), Some(planner)] = baselines else {
            continue;
        };
        let said = |yes: bool| if yes { "yes" } else { "no" };
        for other in [hpa, planner] {
            let _ = writeln!(
                out,
                "| {} | {} | {} | {:+.2} points | {:+.1} % | {} | {} |",
                ours.scenario,
                ours.gpus,
                other.policy.as_str(),
                100.0 * (ours.attainment - other.attainment),
                100.0 * (ours.gpu_hours / other.gpu_hours - 1.0),
                said(is_ahead(ours, other)),
                said(is_ahead_by_objective(ours, other)),
            );
        }
        let both = [hpa, planner];
        all += 1;
        plain += u32::from(both.iter().all(|other| is_ahead(ours, other)));
        enough += u32::from(both.iter().all(|other| is_ahead_by_objective(ours, other)));
    }
    let _ = write!(
        out,
        "\nAhead of both baselines: {plain} of {all}; by the objective: {enough} of {all}. Ahead is: no worse in \
         attainment (to {:.1} points) and in GPU hours (to {:.1} %), and better in at least one of them. By the \
         objective, attainments of at least {:.1} % are equal, too, and of equal ones GPU hours decide; otherwise \
         more is attained, with fewer GPU hours for each request that attained.\n",
        100.0 * SAME_ATTAINMENT,
        100.0 * SAME_HOURS,
        100.0 * (QUANTILE - SAME_ATTAINMENT),
    );
    out
}

fn is_ahead(ours: &Report, other: &Report) -> bool {
    let attainment = ours.attainment - other.attainment;
    let hours = ours.gpu_hours / other.gpu_hours - 1.0;
    let no_worse = attainment >= -SAME_ATTAINMENT && hours <= SAME_HOURS;
    no_worse && (attainment > SAME_ATTAINMENT || hours < -SAME_HOURS)
}

fn is_ahead_by_objective(ours: &Report, other: &Report) -> bool {
    let attainment = ours.attainment - other.attainment;
    let enough = |report: &Report| report.attainment >= QUANTILE - SAME_ATTAINMENT;
    if attainment.abs() <= SAME_ATTAINMENT || (enough(ours) && enough(other)) {
        ours.gpu_hours < other.gpu_hours * (1.0 - SAME_HOURS)
    } else {
        attainment > 0.0 && ours.gpu_hours * other.attainment < other.gpu_hours * ours.attainment
    }
}
