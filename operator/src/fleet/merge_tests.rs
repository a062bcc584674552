use super::*;

fn worker(id: &str, available: bool) -> wire::FleetWorker {
    wire::FleetWorker {
        worker_id: id.to_owned(),
        role: wire::Role::Decode.into(),
        revision: "aaaa".to_owned(),
        available,
        unavailable_reason: if available { "" } else { "it loads" }.to_owned(),
        running: 3,
        ..wire::FleetWorker::default()
    }
}

fn has(workers: &[(&str, bool)]) -> wire::FleetView {
    wire::FleetView {
        workers: workers.iter().map(|(id, open)| worker(id, *open)).collect(),
        ..wire::FleetView::default()
    }
}

fn refuses(id: &str) -> wire::FleetView {
    wire::FleetView {
        refused: vec![wire::RefusedWorker {
            worker_id: id.to_owned(),
            role: wire::Role::Decode.into(),
            reason: "text_revision is x, not y".to_owned(),
        }],
        ..wire::FleetView::default()
    }
}

fn routable(views: &[(&wire::FleetView, u64)]) -> Routable {
    let said: Vec<_> = views
        .iter()
        .map(|(view, seconds)| Said {
            router: "r",
            heard_for: Duration::from_secs(*seconds),
            view,
        })
        .collect();
    merge(&said, said.len()).unwrap().routable("w")
}

const OLD: u64 = 60;
const NEW: u64 = 1;

#[test]
fn nobody_knows_while_no_router_is_heard() {
    assert_eq!(merge(&[], 2), None);
}

#[test]
fn every_router_has_to_have_it() {
    let (open, closed, without) = (has(&[("w", true)]), has(&[("w", false)]), has(&[]));
    assert_eq!(routable(&[(&open, OLD)]), Routable::Yes);
    assert_eq!(routable(&[(&open, OLD), (&open, NEW)]), Routable::Yes);
    for other in [&closed, &without] {
        assert!(matches!(
            routable(&[(&open, OLD), (other, OLD)]),
            Routable::No(_)
        ));
        assert!(matches!(routable(&[(other, OLD)]), Routable::No(_)));
    }
    let Routable::No(why) = routable(&[(&closed, OLD)]) else {
        panic!("it is not available")
    };
    assert_eq!(why, "router r: it loads");
}

#[test]
fn a_router_of_another_text_may_refuse_it() {
    let (open, refused) = (has(&[("w", true)]), refuses("w"));
    assert_eq!(routable(&[(&open, OLD), (&refused, OLD)]), Routable::Yes);
    let Routable::No(why) = routable(&[(&refused, OLD), (&refused, OLD)]) else {
        panic!("nobody has it")
    };
    assert!(why.contains("text_revision is x, not y"), "{why}");
}

#[test]
fn a_new_router_closes_nothing_but_opens_nothing_alone() {
    let (open, without) = (has(&[("w", true)]), has(&[]));
    assert_eq!(
        routable(&[(&open, OLD), (&without, NEW)]),
        Routable::Unsettled
    );
    assert!(matches!(routable(&[(&without, NEW)]), Routable::No(_)));
}

#[test]
fn groups_are_as_the_leader_sees_them() {
    let group = |epoch, state: &str, leading| wire::FleetView {
        leading,
        groups: vec![wire::FleetGroup {
            group: "g".to_owned(),
            epoch,
            state: state.to_owned(),
            ..wire::FleetGroup::default()
        }],
        ..wire::FleetView::default()
    };
    let (leader, other) = (group(4, "degraded", true), group(4, "healthy", false));
    let said = [&leader, &other].map(|view| Said {
        router: "r",
        heard_for: Duration::ZERO,
        view,
    });
    let view = merge(&said, 2).unwrap();
    assert_eq!(view.groups["g"].state, "degraded");
    assert_eq!(view.groups["g"].epoch, Some(4));
}

#[test]
fn load_is_counted_once() {
    let open = has(&[("w", true), ("v", true)]);
    let said = [&open, &open].map(|view| Said {
        router: "r",
        heard_for: Duration::ZERO,
        view,
    });
    let view = merge(&said, 2).unwrap();
    assert_eq!(view.workers["w"].running, 3);
    assert_eq!(view.workers.len(), 2);
}

#[test]
fn the_busier_of_two_views_counts() {
    let view = |running, waiting_tokens, free_pages| wire::FleetView {
        workers: vec![wire::FleetWorker {
            running,
            waiting_tokens,
            free_pages,
            kv_pages: 100,
            max_running: 8,
            ..worker("w", true)
        }],
        ..refuses("v")
    };
    let (one, other) = (view(3, 500, 60), view(4, 100, 70));
    let said = [&one, &other].map(|view| Said {
        router: "r",
        heard_for: Duration::ZERO,
        view,
    });
    let view = merge(&said, 2).unwrap();
    let w = &view.workers["w"];
    assert_eq!((w.running, w.waiting_tokens, w.free_pages), (4, 500, 60));
    assert_eq!((w.kv_pages, w.max_running), (100, 8));
    assert_eq!(view.workers["v"].free_pages, 0, "nobody has it");
}
