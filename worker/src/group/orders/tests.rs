use millrace_experts::{Loads, Placement, Shape};

use super::*;

fn member(rank: usize) -> Member {
    Member {
        id: RankId {
            rank,
            incarnation: 7,
        },
        exchange: format!("10.0.0.{rank}:1"),
        grpc: format!("10.0.0.{rank}:2"),
    }
}

fn epoch(number: u64, ranks: &[usize]) -> Arc<Epoch> {
    let shape = Shape::new(1, 4, 2, 4).unwrap();
    Arc::new(Epoch {
        number,
        reset: 1,
        members: ranks.iter().map(|&rank| member(rank)).collect(),
        placement: Arc::new(Placement::initial(shape).unwrap()),
        expected: Arc::new(Loads::zero(1, 4)),
    })
}

fn plan(id: u64, base: u64) -> Arc<Plan> {
    let next = epoch(base + 1, &[0, 1]);
    Arc::new(Plan {
        id,
        base,
        next: Epoch::clone(&next),
    })
}

fn order(number: u64, plan: Option<Arc<Plan>>) -> Order {
    Order {
        peers: vec![member(1)],
        epoch: (number > 0).then(|| epoch(number, &[0, 1])),
        plan,
    }
}

const A: LinkId = LinkId(1);
const B: LinkId = LinkId(2);

#[test]
fn a_router_that_lags_takes_nothing_back() {
    let mut orders = Orders::default();
    assert_eq!(orders.take(A, "etcd", order(4, Some(plan(9, 4)))), Ok(true));
    assert_eq!(
        orders.take(B, "etcd", order(3, Some(plan(8, 3)))),
        Ok(false)
    );
    let now = orders.current();
    assert_eq!(now.epoch.as_ref().unwrap().number, 4);
    assert_eq!(now.plan.as_ref().unwrap().id, 9);

    // It catches up, and knows that the plan was given up.
    assert_eq!(orders.take(B, "etcd", order(4, None)), Ok(true));
    assert_eq!(orders.current().plan, None);
    // A plan for an epoch that is over is none.
    assert_eq!(orders.take(A, "etcd", order(5, Some(plan(9, 4)))), Ok(true));
    assert_eq!(orders.current().plan, None);
}

#[test]
fn peers_are_those_that_any_router_sees() {
    let mut orders = Orders::default();
    let seen = |ranks: &[usize]| Order {
        peers: ranks.iter().map(|&rank| member(rank)).collect(),
        ..Order::default()
    };
    orders.take(A, "etcd", seen(&[1])).unwrap();
    orders.take(B, "etcd", seen(&[0])).unwrap();
    assert_eq!(orders.current().peers, [member(0), member(1)]);
    orders.gone(A);
    assert_eq!(
        orders.current().peers,
        [member(0), member(1)],
        "until another speaks"
    );
    orders.take(B, "etcd", seen(&[0])).unwrap();
    assert_eq!(orders.current().peers, [member(0)]);
}

#[test]
fn another_store_waits_until_the_first_ones_routers_are_gone() {
    let mut orders = Orders::default();
    orders.take(A, "etcd", order(4, None)).unwrap();
    let refused = orders.take(B, "memory", order(9, None)).unwrap_err();
    assert!(matches!(refused, Refused::OtherStore { .. }), "{refused}");
    assert_eq!(orders.current().epoch.as_ref().unwrap().number, 4);

    orders.gone(A);
    assert_eq!(orders.take(B, "memory", order(1, None)), Ok(false));
    assert_eq!(
        orders.current().epoch.as_ref().unwrap().number,
        4,
        "the new store may not begin below what was committed"
    );
    assert_eq!(orders.take(B, "memory", order(5, None)), Ok(true));
    // The one router there is may move to another store.
    assert_eq!(orders.take(B, "etcd", order(6, None)), Ok(true));
}

#[test]
fn one_number_never_names_two_epochs() {
    let mut orders = Orders::default();
    orders.take(A, "etcd", order(4, None)).unwrap();
    let other = Order {
        epoch: Some(epoch(4, &[0])),
        ..Order::default()
    };
    assert_eq!(orders.take(A, "etcd", other), Err(Refused::Conflict(4)));
    assert_eq!(orders.current().epoch, order(4, None).epoch);
}
