//! Compares our planner with DeepSeek's EPLB: `cargo run --release -p millrace-experts --example planner`.

mod contest;
mod drift;
mod recorded;

use contest::{Balancer, Score};
use drift::Drift;
use millrace_experts::eplb::Hierarchy;
use millrace_experts::{Loads, Shape};

const HEADER: &str = "\
Expert placement: balancedness, experts moved and planning time, millrace's planner against DeepSeek's EPLB.

Balancedness is the sum over layers of the ranks' mean load by the sum over layers of their maximum.
  planned   under the loads that the plan was made for; tokens choose replicas as millrace's do
            (local first, then in parts that load ranks most evenly), whoever made the placement
  even      the same with every replica taking an even part of its expert's tokens, as EPLB assumes
  next      under the loads of the window after, tokens choosing as in `planned`
first: experts to load from the initial placement; moved: in all later windows together. An expert that
stays on its rank is no move, whatever its slot.
Times are of one thread, for all layers; the first plan, from the initial placement, takes longest.
";

fn main() {
    println!("{HEADER}");
    match recorded::read() {
        Ok(domains) => recorded(&domains),
        Err(why) => println!("tiny-r1's recorded loads: left out, {why}\n"),
    }
    println!(
        "V3's size, 58 layers x 256 experts: zipf loads over 20 windows, drifting (popularity scaled by about\n\
         10 % and 2 % of the experts trade places a window; 65536 tokens x 8 choices a window and layer)"
    );
    for (ranks, redundant) in [(32, 32), (144, 32), (320, 64)] {
        let shape = Shape::new(58, 256, ranks, redundant).expect("V3 fits");
        for exponent in [0.4, 0.8, 1.2] {
            let mut drift = Drift::new(7, shape.layers, shape.experts, exponent);
            let windows: Vec<Loads> = (0..20).map(|_| drift.window()).collect();
            println!(
                "\n{ranks} ranks of {} slots, zipf exponent {exponent}",
                shape.slots
            );
            table(shape, &windows);
        }
    }
}

/// tiny-r1's loads: each domain from the initial placement, then from one domain to the next.
fn recorded(domains: &[(String, Loads)]) {
    println!("tiny-r1, loads recorded by domain of text; K redundant experts a layer on R ranks");
    for ranks in [2, 4, 8] {
        let (layers, experts) = (domains[0].1.layers(), domains[0].1.experts);
        let shape = |redundant| Shape::new(layers, experts, ranks, redundant).expect("it fits");
        println!(
            "\nR = {ranks}, one domain from the initial placement: balancedness and experts moved"
        );
        println!(
            "  {:<8} {:>12} {:>14} {:>18} {:>18}",
            "", "initial, K=0", "initial, K=R", "EPLB global, K=R", "millrace, K=R"
        );
        for (domain, loads) in domains {
            let score = |balancer, redundant| {
                contest::run(balancer, shape(redundant), std::slice::from_ref(loads))
            };
            let bare = score(Balancer::Unmoved, 0).planned;
            let initial = score(Balancer::Unmoved, ranks).planned;
            let eplb = score(Balancer::Global, ranks);
            let ours = score(Balancer::Ours, ranks);
            println!(
                "  {domain:<8} {bare:>12.4} {initial:>14.4} {:>12.4} {:>5} {:>12.4} {:>5}",
                eplb.planned, eplb.first, ours.planned, ours.first
            );
        }
        println!("\nR = {ranks}, K = {ranks}: from domain to domain, five times round");
        let windows = domains.iter().map(|(_, loads)| loads.clone());
        let windows: Vec<Loads> = windows.cycle().take(5 * domains.len()).collect();
        table(shape(ranks), &windows);
    }
    println!();
}

/// All balancers over the same windows.
fn table(shape: Shape, windows: &[Loads]) {
    println!(
        "  {:<18} {:>8} {:>8} {:>8} {:>8} {:>8} {:>10} {:>9}",
        "", "planned", "even", "next", "first", "moved", "median ms", "max ms"
    );
    let nodes = Hierarchy {
        groups: 8,
        nodes: shape.ranks / 8,
    };
    // Groups must divide over nodes of eight ranks; on more nodes than groups EPLB itself goes global.
    let nodes = Hierarchy {
        nodes: nodes.nodes.clamp(1, 8),
        ..nodes
    };
    for balancer in [
        Balancer::Unmoved,
        Balancer::Global,
        Balancer::Hierarchical(nodes),
        Balancer::Ours,
    ] {
        let Score {
            planned,
            even,
            next,
            first,
            moved,
            times,
            ..
        } = contest::run(balancer, shape, windows);
        let ms = |at: usize| times[at].as_secs_f64() * 1e3;
        println!(
            "  {:<18} {planned:>8.4} {even:>8.4} {next:>8.4} {first:>8} {moved:>8} {:>10.2} {:>9.2}",
            balancer.name(),
            ms(times.len() / 2),
            ms(times.len() - 1),
        );
    }
}
