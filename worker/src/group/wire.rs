//! Words of a group, to and from protobuf.

use std::sync::Arc;

use millrace_experts::{
    Epoch, Member, Placement, Plan, RankId, Shape,
    epoch::EpochError,
    group::{GroupShape, Order, Report},
};
use millrace_proto::worker::v1 as wire;

/// An order that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOrder {
    #[error("it does not say which epoch store it is from")]
    NoStore,
    #[error("a peer has no id, the incarnation 0, or is not one of {ranks} ranks")]
    Peer { ranks: usize },
    #[error("its {record} is bad: {error}")]
    Record {
        record: &'static str,
        error: EpochError,
    },
    #[error("its {record} places {theirs:?}, but this group is {ours:?}")]
    Shape {
        record: &'static str,
        ours: Shape,
        theirs: Shape,
    },
}

/// The store's name, and the order with all of it checked.
pub fn order_from_wire(order: wire::GroupOrder, shape: Shape) -> Result<(String, Order), BadOrder> {
    if order.store.is_empty() {
        return Err(BadOrder::NoStore);
    }
    let of_shape = |record, placement: &Placement| match placement.shape() {
        same if same == shape => Ok(()),
        theirs => Err(BadOrder::Shape {
            record,
            ours: shape,
            theirs,
        }),
    };
    let bad = |record| move |error| BadOrder::Record { record, error };
    let mut epoch = None;
    if !order.epoch.is_empty() {
        let read = Epoch::from_json(&order.epoch).map_err(bad("epoch"))?;
        of_shape("epoch", &read.placement)?;
        epoch = Some(Arc::new(read));
    }
    let mut plan = None;
    if !order.plan.is_empty() {
        let read = Plan::from_json(&order.plan).map_err(bad("plan"))?;
        of_shape("plan", &read.next.placement)?;
        plan = Some(Arc::new(read));
    }
    let peers = order
        .peers
        .into_iter()
        .map(|peer| peer_from_wire(peer).filter(|peer| peer.id.rank < shape.ranks))
        .collect::<Option<Vec<Member>>>()
        .ok_or(BadOrder::Peer { ranks: shape.ranks })?;
    Ok((order.store, Order { peers, epoch, plan }))
}

fn peer_from_wire(peer: wire::GroupPeer) -> Option<Member> {
    let id = peer.id.filter(|id| id.incarnation != 0)?;
    Some(Member {
        id: RankId {
            rank: id.rank as usize,
            incarnation: id.incarnation,
        },
        exchange: peer.exchange_address,
        grpc: peer.grpc_address,
    })
}

pub fn report_to_wire(report: &Report) -> wire::GroupReport {
    let ids = |ids: &[RankId]| ids.iter().map(|id| id_to_wire(*id)).collect();
    let staged = report.staged.as_ref();
    wire::GroupReport {
        adopted: report.adopted.as_ref().map_or(Vec::new(), |e| e.to_json()),
        linked: ids(&report.linked),
        lost: ids(&report.lost),
        known: report.known,
        staged_plan: staged.map_or(0, |staged| staged.plan),
        staging_error: staged
            .and_then(|staged| staged.outcome.clone().err())
            .unwrap_or_default(),
    }
}

fn id_to_wire(id: RankId) -> wire::RankId {
    wire::RankId {
        rank: id.rank as u32,
        incarnation: id.incarnation,
    }
}

pub fn rank_to_wire(group: &str, me: &Member, shape: GroupShape) -> wire::GroupRank {
    let GroupShape {
        shape,
        expert_bytes,
    } = shape;
    wire::GroupRank {
        group: group.to_string(),
        rank: me.id.rank as u32,
        incarnation: me.id.incarnation,
        exchange_address: me.exchange.clone(),
        layers: shape.layers as u32,
        experts: shape.experts as u32,
        ranks: shape.ranks as u32,
        slots: shape.slots as u32,
        expert_bytes,
    }
}

#[cfg(test)]
mod tests {
    use millrace_experts::Loads;

    use super::*;

    fn shape(layers: usize) -> Shape {
        Shape::new(layers, 4, 2, 0).unwrap()
    }

    fn epoch(layers: usize) -> Epoch {
        Epoch {
            number: 3,
            reset: 1,
            members: (0..2)
                .map(|rank| Member {
                    id: RankId {
                        rank,
                        incarnation: 5,
                    },
                    exchange: "a:1".to_string(),
                    grpc: "a:2".to_string(),
                })
                .collect(),
            placement: Arc::new(Placement::initial(shape(layers)).unwrap()),
            expected: Arc::new(Loads::zero(layers, 4)),
        }
    }

    fn good() -> wire::GroupOrder {
        wire::GroupOrder {
            store: "etcd".to_string(),
            peers: vec![wire::GroupPeer {
                id: Some(wire::RankId {
                    rank: 1,
                    incarnation: 5,
                }),
                exchange_address: "a:1".to_string(),
                grpc_address: "a:2".to_string(),
            }],
            epoch: epoch(2).to_json(),
            plan: Vec::new(),
        }
    }

    #[test]
    fn an_order_is_read_whole_or_not_at_all() {
        let (store, order) = order_from_wire(good(), shape(2)).unwrap();
        assert_eq!(store, "etcd");
        assert_eq!(*order.epoch.unwrap(), epoch(2));
        assert_eq!(order.peers, epoch(2).members[1..]);

        type Change = fn(&mut wire::GroupOrder);
        let broken: [(&str, Change); 8] = [
            ("no store", |o| o.store.clear()),
            ("not JSON", |o| o.epoch.truncate(20)),
            ("not JSON", |o| o.plan = b"{}".to_vec()),
            ("another shape", |o| o.epoch = epoch(3).to_json()),
            ("out of order", |o| {
                o.epoch = Epoch {
                    reset: 9,
                    ..epoch(2)
                }
                .to_json();
            }),
            ("a plan that skips a number", |o| {
                let (id, base, next) = (1, 7, epoch(2));
                o.plan = Plan { id, base, next }.to_json();
            }),
            ("no id", |o| o.peers[0].id = None),
            ("no such rank", |o| {
                o.peers[0].id.as_mut().unwrap().rank = 2;
            }),
        ];
        for (what, change) in broken {
            let mut order = good();
            change(&mut order);
            assert!(order_from_wire(order, shape(2)).is_err(), "{what}");
        }
    }
}
