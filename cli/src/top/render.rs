//! From what a router says to text. Pure.

use std::{collections::BTreeMap, fmt::Write};

use millrace_router::experts::view::{GroupState, Summary};
use millrace_router::fleet::Role;
use millrace_router::overview::view::{FleetAnswer, FleetView, WorkerView};

use super::window::{Quantiles, Rates};
use crate::style::Style;

/// At most `rows` lines, of which workers get what is left.
pub fn text(
    address: &str,
    answer: &FleetAnswer,
    rates: &Rates,
    style: Style,
    rows: usize,
) -> String {
    let fleet = &answer.fleet;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{}{}{} at {address}, up {}",
        style.bold(),
        fleet.model,
        style.reset(),
        duration(answer.traffic.seconds)
    );
    traffic(&mut out, fleet, rates, style);
    pools(&mut out, fleet, style);
    groups(&mut out, &fleet.groups, style);
    refused(&mut out, fleet);
    let left = rows.saturating_sub(out.lines().count());
    workers(&mut out, &fleet.workers, style, left);
    out
}

fn traffic(out: &mut String, fleet: &FleetView, rates: &Rates, style: Style) {
    let decoding: u32 = fleet
        .workers
        .iter()
        .filter(|worker| worker.role == Role::Decode)
        .map(|worker| worker.running)
        .sum();
    let (dim, reset) = (style.dim(), style.reset());
    let _ = writeln!(out, "{dim}of the last {}{reset}\n", duration(rates.seconds));
    let _ = writeln!(
        out,
        "  requests   {:>8}/s in      {:>8}/s refused   {:>8} wait here   {decoding} decode",
        number(rates.arrived),
        number(rates.refused),
        fleet.waiting,
    );
    let _ = writeln!(
        out,
        "  tokens     {:>8}/s prompt  {:>8} cached      {:>8}/s generated {} an update",
        number(rates.prompt_tokens),
        percent(rates.cached),
        number(rates.generated_tokens),
        optional(rates.tokens_an_update),
    );
    let _ = writeln!(
        out,
        "  mean       {:>8} prompt    {:>8} answer",
        optional(rates.prompt_length),
        optional(rates.generation_length),
    );
    let _ = writeln!(
        out,
        "\n  {dim}{:<20} {:>9} {:>9} {:>9}{reset}",
        "", "p50", "p95", "p99"
    );
    for (what, times) in [
        ("queue", rates.queue),
        ("time to first token", rates.first_token),
        ("inter-token latency", rates.inter_token),
    ] {
        let [p50, p95, p99] = seconds(times);
        let _ = writeln!(out, "  {what:<20} {p50:>9} {p95:>9} {p99:>9}");
    }
}

#[derive(Default)]
struct Pool {
    workers: usize,
    available: usize,
    draining: usize,
    running: u32,
    slots: u32,
    waiting: u32,
    waiting_tokens: u64,
    pages: u64,
    free: u64,
}

fn pools(out: &mut String, fleet: &FleetView, style: Style) {
    let mut pools: BTreeMap<(&str, Role), Pool> = BTreeMap::new();
    for worker in &fleet.workers {
        let pool = pools.entry((&worker.revision, worker.role)).or_default();
        pool.workers += 1;
        pool.available += usize::from(worker.unavailable.is_none());
        pool.draining += usize::from(worker.draining);
        pool.running += worker.running;
        pool.slots += worker.max_running;
        pool.waiting += worker.waiting;
        pool.waiting_tokens += worker.waiting_tokens;
        pool.pages += worker.kv_pages;
        pool.free += worker.free_pages;
    }
    if pools.is_empty() {
        out.push_str("\n  No worker is attached.\n");
        return;
    }
    let (dim, reset) = (style.dim(), style.reset());
    let _ = writeln!(
        out,
        "\n  {dim}{:<20} {:>8} {:>9} {:>8} {:>13} {:>8} {:>13} {:>7}{reset}",
        "pool", "workers", "available", "draining", "running", "waiting", "prompt tokens", "KV"
    );
    for ((revision, role), pool) in pools {
        let name = match revision {
            "" => role.to_string(),
            revision => format!("{role} {revision}"),
        };
        let _ = writeln!(
            out,
            "  {name:<20} {:>8} {:>9} {:>8} {:>13} {:>8} {:>13} {:>7}",
            pool.workers,
            pool.available,
            pool.draining,
            format!("{} of {}", pool.running, pool.slots),
            pool.waiting,
            number(pool.waiting_tokens as f64),
            used(pool.pages, pool.free),
        );
    }
}

fn groups(out: &mut String, groups: &[Summary], style: Style) {
    if groups.is_empty() {
        return;
    }
    let (dim, reset) = (style.dim(), style.reset());
    let _ = writeln!(
        out,
        "\n  {dim}{:<20} {:>10} {:>8} {:>9} {:>14} {:>13}{reset}",
        "group", "state", "epoch", "ranks", "redundant", "balancedness"
    );
    for group in groups {
        let state = match group.state {
            GroupState::Forming => "forming",
            GroupState::Whole => "whole",
            GroupState::Degraded => "degraded",
            GroupState::Recovering => "recovering",
        };
        let _ = writeln!(
            out,
            "  {:<20} {state:>10} {:>8} {:>9} {:>14} {:>13}",
            group.group,
            group
                .epoch
                .map_or_else(|| "-".to_owned(), |epoch| epoch.to_string()),
            format!("{} of {}", group.members, group.ranks),
            group.redundant_slots,
            optional(group.balancedness),
        );
    }
}

fn refused(out: &mut String, fleet: &FleetView) {
    for worker in &fleet.refused {
        let _ = writeln!(out, "\n  refused {}: {}", worker.worker_id, worker.reason);
    }
}

fn workers(out: &mut String, workers: &[WorkerView], style: Style, rows: usize) {
    // A blank line, a head, and a line that says how many are left out.
    let Some(fit) = rows.checked_sub(3).filter(|fit| *fit > 0) else {
        return;
    };
    if workers.is_empty() {
        return;
    }
    let mut sorted: Vec<&WorkerView> = workers.iter().collect();
    // Those that need looking at, then the busiest.
    sorted.sort_by_key(|worker| {
        let troubled = worker.unavailable.is_some() && !worker.draining;
        (
            !troubled,
            std::cmp::Reverse(worker.running + worker.waiting),
            &worker.worker_id,
        )
    });
    let (dim, reset) = (style.dim(), style.reset());
    let _ = writeln!(
        out,
        "\n  {dim}{:<28} {:<8} {:>13} {:>8} {:>7}  state{reset}",
        "worker", "role", "running", "waiting", "KV"
    );
    for worker in sorted.iter().take(fit) {
        let state = match &worker.unavailable {
            None => "available",
            Some(why) => why,
        };
        let _ = writeln!(
            out,
            "  {:<28} {:<8} {:>13} {:>8} {:>7}  {state}",
            worker.worker_id,
            worker.role.as_str(),
            format!("{} of {}", worker.running, worker.max_running),
            worker.waiting,
            used(worker.kv_pages, worker.free_pages),
        );
    }
    if sorted.len() > fit {
        let _ = writeln!(out, "  {dim}and {} more{reset}", sorted.len() - fit);
    }
}

fn used(pages: u64, free: u64) -> String {
    percent((pages > 0).then(|| pages.saturating_sub(free) as f64 / pages as f64))
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0))
}

fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), number)
}

/// Three digits or so.
fn number(value: f64) -> String {
    match value {
        v if v >= 999_500.0 => format!("{:.2}M", v / 1e6),
        v if v >= 9_995.0 => format!("{:.1}k", v / 1e3),
        v if v >= 99.95 || v == 0.0 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn seconds(times: Quantiles) -> [String; 3] {
    match times {
        None => [(); 3].map(|()| "-".to_owned()),
        Some(times) => times.map(|time| match time {
            t if t.is_infinite() => "> 100 s".to_owned(),
            t if t >= 9.995 => format!("{t:.0} s"),
            t if t >= 0.9995 => format!("{t:.2} s"),
            t if t >= 0.00995 => format!("{:.0} ms", t * 1e3),
            t => format!("{:.1} ms", t * 1e3),
        }),
    }
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..=119 => format!("{whole} s"),
        120..=7199 => format!("{} min", whole / 60),
        7200..=172_799 => format!("{} h", whole / 3600),
        _ => format!("{} d", whole / 86_400),
    }
}

#[cfg(test)]
mod tests;
