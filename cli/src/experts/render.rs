//! From the router's view to text. Pure.

use std::fmt::Write;

use millrace_router::experts::view::{
    EventKind, EventView, ExpertsView, GroupState, GroupView, LoadView, RankView, StoreKind,
    StoreView,
};

use super::heat::{self, Look};
use crate::style::Style;

/// Of a group's decisions, how many are shown.
const EVENTS: usize = 8;
/// Of a layer's experts, how many are named.
const HOTTEST: usize = 3;

pub fn text(view: &ExpertsView, look: Look) -> String {
    let mut out = store(&view.store);
    if view.groups.is_empty() {
        out.push_str(
            "\nNo group of ranks is attached: every worker holds all experts. `millrace up --decode-ranks 2` starts one.\n",
        );
    }
    for group in &view.groups {
        out.push('\n');
        head(&mut out, group, look.style);
        ranks(&mut out, group);
        match &group.load {
            Some(load) => loads(&mut out, group, load, look),
            None => out.push_str("\n  Nothing was counted yet.\n"),
        }
        history(&mut out, &group.history);
    }
    out
}

fn store(store: &StoreView) -> String {
    let kind = match store.kind {
        StoreKind::Memory => "this router's memory",
        StoreKind::Etcd => "etcd",
    };
    let state = match (store.up, store.leading) {
        (false, _) => "out of reach; groups serve on, changes wait",
        (true, true) => "this router decides",
        (true, false) => "another router decides",
    };
    format!("Epochs are in {kind}: {state}\n")
}

fn head(out: &mut String, group: &GroupView, style: Style) {
    let shape = &group.shape;
    let state = match group.state {
        GroupState::Forming => "forming, ranks are still to come",
        GroupState::Whole => "whole",
        GroupState::Degraded => "degraded, ranks are missing",
        GroupState::Recovering => "recovering",
    };
    let _ = writeln!(
        out,
        "{}{}{}: {state}",
        style.bold(),
        group.group,
        style.reset()
    );
    let redundant = (shape.ranks * shape.slots).saturating_sub(shape.experts);
    let _ = writeln!(
        out,
        "  {} MoE layers of {} experts and {redundant} replicas, on {} ranks of {} slots; {} an expert",
        shape.layers,
        shape.experts,
        shape.ranks,
        shape.slots,
        bytes(shape.expert_bytes),
    );
    if let Some(epoch) = &group.epoch {
        let members: Vec<usize> = epoch.members.iter().map(|member| member.rank).collect();
        let _ = writeln!(
            out,
            "  epoch {} of ranks {}; last reset at {}",
            epoch.number,
            list(&members),
            epoch.reset,
        );
        let [one, two, three, more] = group.replicas;
        let _ = writeln!(
            out,
            "  live replicas: {one} experts have 1, {two} have 2, {three} have 3, {more} have more"
        );
    }
    if let Some(why) = &group.paused {
        let _ = writeln!(out, "  no step can be taken: {why}");
    }
    if let Some(plan) = &group.plan {
        let _ = writeln!(
            out,
            "  plan for epoch {}: {} slots change; staged by ranks {}, awaited from {}",
            plan.number,
            plan.moved,
            list(&plan.staged),
            list(&plan.waiting),
        );
    }
}

fn ranks(out: &mut String, group: &GroupView) {
    let _ = writeln!(
        out,
        "\n  {:>4}  {:>5}  {:<8}  {:<21}  worker",
        "rank", "epoch", "links", "exchange"
    );
    for rank in 0..group.shape.ranks {
        match group.ranks.iter().find(|view| view.member.rank == rank) {
            Some(view) => attached(out, view),
            None => {
                let _ = writeln!(out, "  {rank:>4}  {:>5}  not attached", "-");
            }
        }
    }
}

fn attached(out: &mut String, view: &RankView) {
    let epoch = view.adopted.map_or("-".into(), |epoch| epoch.to_string());
    let _ = write!(
        out,
        "  {:>4}  {epoch:>5}  {:<8}  {:<21}  {}",
        view.member.rank,
        list(&view.linked),
        view.member.exchange,
        view.worker,
    );
    if !view.lost.is_empty() {
        let _ = write!(out, "; lost ranks {}", list(&view.lost));
    }
    if let Some(error) = &view.staging_error {
        let _ = write!(out, "; could not stage: {error}");
    }
    out.push('\n');
}

fn loads(out: &mut String, group: &GroupView, load: &LoadView, look: Look) {
    let _ = writeln!(
        out,
        "\n  Load of {:.1} s: balancedness over ranks {:.3} (mean over highest; 1 is even)",
        load.seconds, load.overall
    );
    let _ = writeln!(
        out,
        "  {:>5}  {:>12}  hottest experts (share of choices, live replicas)",
        "layer", "balancedness"
    );
    for (layer, balancedness) in load.balancedness.iter().enumerate() {
        let _ = writeln!(
            out,
            "  {layer:>5}  {balancedness:>12.3}  {}",
            hottest(group, load, layer)
        );
    }
    // The view counts by rank; a map has a row a layer.
    let by_layer: Vec<Vec<u64>> = (0..group.shape.layers)
        .map(|layer| {
            let of_rank = |rank: &Vec<u64>| rank.get(layer).copied().unwrap_or(0);
            load.computed.iter().map(of_rank).collect()
        })
        .collect();
    let scale = match look.style {
        Style::Plain => "9 is its layer's highest",
        Style::Ansi => "a full block is its layer's highest",
    };
    let _ = writeln!(
        out,
        "\n  Rows computed, a row a layer, a column a rank{}; {scale}",
        few(&by_layer, look)
    );
    out.push_str(&heat::map(&by_layer, INDENT, look));
    let _ = writeln!(
        out,
        "\n  Choices of gates, a column an expert{}",
        few(&load.chosen, look)
    );
    out.push_str(&heat::map(&load.chosen, INDENT, look));
}

const INDENT: &str = "  ";

/// Says so where a column stands for several.
fn few(rows: &[Vec<u64>], look: Look) -> String {
    let count = rows.first().map_or(0, Vec::len);
    match heat::together(count, rows.len(), INDENT, look) {
        1 => String::new(),
        each => format!(" (the highest of {each})"),
    }
}

fn hottest(group: &GroupView, load: &LoadView, layer: usize) -> String {
    let Some(chosen) = load.chosen.get(layer) else {
        return String::new();
    };
    let total: u64 = chosen.iter().sum();
    let mut order: Vec<usize> = (0..chosen.len()).filter(|&e| chosen[e] > 0).collect();
    order.sort_by_key(|&expert| (std::cmp::Reverse(chosen[expert]), expert));
    order
        .into_iter()
        .take(HOTTEST)
        .map(|expert| {
            format!(
                "{expert} ({:.1} %, {})",
                100.0 * chosen[expert] as f64 / total as f64,
                replicas(group, layer, expert)
            )
        })
        .collect::<Vec<_>>()
        .join("  ")
}

/// Live ones.
fn replicas(group: &GroupView, layer: usize, expert: usize) -> usize {
    let (Some(ranks), Some(epoch)) = (group.placement.get(layer), &group.epoch) else {
        return 0;
    };
    let live = |rank: usize| epoch.members.iter().any(|member| member.rank == rank);
    ranks
        .iter()
        .enumerate()
        .filter(|&(rank, _)| live(rank))
        .flat_map(|(_, slots)| slots)
        .filter(|&&slot| slot as usize == expert)
        .count()
}

fn history(out: &mut String, events: &[EventView]) {
    if events.is_empty() {
        return;
    }
    out.push_str("\n  What was decided (UTC)\n");
    for event in &events[events.len().saturating_sub(EVENTS)..] {
        let kind = match event.kind {
            EventKind::Planned => "planned",
            EventKind::Committed => "committed",
            EventKind::Withdrawn => "withdrawn",
            EventKind::Kept => "kept",
            EventKind::Failed => "failed",
        };
        let _ = writeln!(
            out,
            "  {}  {kind:<9}  epoch {:<5}  {}",
            clock(event.at),
            event.epoch,
            event.reason
        );
    }
}

fn clock(seconds: u64) -> String {
    let day = seconds % 86_400;
    format!("{:02}:{:02}:{:02}", day / 3600, day / 60 % 60, day % 60)
}

fn list(numbers: &[usize]) -> String {
    if numbers.is_empty() {
        return "-".into();
    }
    // Groups may have hundreds of ranks: neighbours are one range.
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => parts.push((number, number)),
        }
    }
    parts
        .into_iter()
        .map(|(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        })
        .collect::<Vec<_>>()
        .join(",")
}

fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{:.1} KB", count as f64 / 1e3),
        _ => format!("{:.1} MB", count as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests;
