use millrace_proto::worker::v1 as wire;

use super::*;

fn pod(up: bool) -> PodView {
    let status = if up { "True" } else { "False" };
    let pod = serde_json::json!({
        "metadata": {"name": "r", "namespace": "n", "uid": "u"},
        "status": {"conditions": [{"type": "ContainersReady", "status": status}]},
    });
    PodView::of(&serde_json::from_value(pod).unwrap())
}

fn view(arrived: u64) -> FleetView {
    FleetView {
        waiting: 2,
        traffic: Some(wire::Traffic {
            arrived,
            ..wire::Traffic::default()
        }),
        ..FleetView::default()
    }
}

fn seen(fleet: &Fleet) -> (Vec<u64>, usize) {
    let traffic = fleet.traffic("n", "m");
    let arrived = traffic.counted.iter().map(|c| c.traffic.arrived).collect();
    (arrived, traffic.unheard.len())
}

#[test]
fn a_router_that_clients_reach_and_that_is_not_heard_is_a_gap() {
    let streams = IntGauge::new("streams", "for a test").unwrap();
    let (fleet, key) = (Fleet::new(streams, |_| {}), Key::new("n", "m"));
    assert_eq!(seen(&fleet), (vec![], 0));
    fleet.router(&key, &pod(false));
    assert_eq!(seen(&fleet), (vec![], 0), "nobody reaches it yet");
    fleet.heard(&key, "r", "u", Some(view(5)));
    assert_eq!(seen(&fleet), (vec![5], 0), "it is asleep, and heard");
    fleet.router(&key, &pod(true));
    assert_eq!(seen(&fleet), (vec![5], 0));
    fleet.heard(&key, "r", "u", None);
    assert_eq!(seen(&fleet), (vec![], 1));
    // One of before that there was traffic in a view.
    fleet.heard(&key, "r", "u", Some(FleetView::default()));
    assert_eq!(seen(&fleet), (vec![], 1));
    fleet.heard(&key, "r", "of another life", Some(view(6)));
    assert_eq!(seen(&fleet), (vec![], 1));
    fleet.router_gone(&key, "r");
    assert_eq!(seen(&fleet), (vec![], 0));
}
