use std::sync::Arc;

use millrace_experts::{Epoch, Loads, Member, Placement, Plan, RankId, Shape};

use super::super::store::Slots;
use super::*;

fn shape() -> Shape {
    Shape::new(1, 2, 2, 2).unwrap()
}

fn epoch(number: u64, shape: Shape) -> Epoch {
    let member = |rank| Member {
        id: RankId {
            rank,
            incarnation: 7,
        },
        exchange: "x:1".into(),
        grpc: "x:2".into(),
    };
    Epoch {
        number,
        reset: number,
        members: (0..shape.ranks).map(member).collect(),
        placement: Arc::new(Placement::initial(shape).unwrap()),
        expected: Arc::new(Loads::zero(shape.layers, shape.experts)),
    }
}

fn plan(base: u64) -> Plan {
    Plan {
        id: 9,
        base,
        next: epoch(base + 1, shape()),
    }
}

/// A store whose records are put by tests.
struct Written {
    id: Arc<str>,
    slots: Slots,
    revision: i64,
}

impl Written {
    fn new(id: &str) -> Written {
        Written {
            id: id.into(),
            slots: Slots::default(),
            revision: 0,
        }
    }

    fn put(&mut self, epoch: Option<&[u8]>, plan: Option<&[u8]>) {
        for (slot, bytes) in [(&mut self.slots.epoch, epoch), (&mut self.slots.plan, plan)] {
            let bytes = bytes.map(Arc::from);
            if slot.bytes != bytes {
                self.revision += 1;
                slot.revision = if bytes.is_some() { self.revision } else { 0 };
                slot.bytes = bytes;
            }
        }
    }

    fn read(&self, records: &mut Records) -> Vec<String> {
        let bad = records.read(&self.id, self.slots.clone());
        bad.iter().map(BadRecord::to_string).collect()
    }
}

#[test]
fn garbage_is_refused_once_and_the_last_good_epoch_stays() {
    let mut records = Records::new(shape());
    let mut store = Written::new("a");
    store.put(Some(&epoch(3, shape()).to_json()), None);
    assert_eq!(store.read(&mut records), [""; 0]);
    let other = Shape::new(1, 2, 3, 2).unwrap();
    let mut unknown = serde_json::to_value(epoch(4, shape())).unwrap();
    unknown["placement"]["table"][0] = 5.into();
    let mut homeless = serde_json::to_value(epoch(4, shape())).unwrap();
    homeless["members"] = serde_json::json!([]);
    for (bytes, why) in [
        (b"{".to_vec(), "not a record of an epoch"),
        (epoch(4, other).to_json(), "it is for Shape"),
        (epoch(2, shape()).to_json(), "its number 2 is not above 3"),
        (unknown.to_string().into_bytes(), "there is no expert 5"),
        (
            homeless.to_string().into_bytes(),
            "no live rank has expert 0",
        ),
    ] {
        store.put(Some(&bytes), None);
        let bad = store.read(&mut records);
        assert!(bad.len() == 1 && bad[0].contains(why), "{bad:?}");
        assert!(bad[0].contains("epoch 3 stays in force"), "{bad:?}");
        assert_eq!(records.epoch().unwrap().number, 3);
        // A write has to replace what is there, not what is believed.
        assert_eq!(records.revisions(), (store.slots.epoch.revision, 0));
        assert_eq!(store.read(&mut records), [""; 0], "told once");
    }
    store.put(None, None);
    assert_eq!(store.read(&mut records), [""; 0]);
    assert_eq!(records.epoch().unwrap().number, 3, "removed by somebody");
    store.put(Some(&epoch(4, shape()).to_json()), None);
    assert_eq!(store.read(&mut records), [""; 0]);
    assert_eq!(records.epoch().unwrap().number, 4);
}

#[test]
fn a_plan_is_one_that_follows_on_the_epoch() {
    let mut records = Records::new(shape());
    let mut store = Written::new("a");
    store.put(Some(&epoch(3, shape()).to_json()), Some(&plan(3).to_json()));
    assert_eq!(store.read(&mut records), [""; 0]);
    assert_eq!(records.plan().unwrap().base, 3);
    // Another epoch makes it void, which is nobody's fault.
    store.put(Some(&epoch(4, shape()).to_json()), Some(&plan(3).to_json()));
    assert_eq!(store.read(&mut records), [""; 0]);
    assert_eq!(records.plan(), None);
    let unnamed = Plan { id: 0, ..plan(4) };
    let skips = Plan {
        next: epoch(6, shape()),
        ..plan(4)
    };
    for (bytes, why) in [
        (plan(7).to_json(), "still to come after 4"),
        (unnamed.to_json(), "its id is 0"),
        (skips.to_json(), "out of order"),
        (b"null".to_vec(), "not a record"),
    ] {
        store.put(Some(&epoch(4, shape()).to_json()), Some(&bytes));
        let bad = store.read(&mut records);
        assert!(bad.len() == 1 && bad[0].contains(why), "{bad:?}");
        assert_eq!(records.plan(), None);
        assert_eq!(records.epoch().unwrap().number, 4);
    }
}

#[test]
fn another_store_is_believed_alone() {
    let mut records = Records::new(shape());
    let mut old = Written::new("a");
    old.put(Some(&epoch(30, shape()).to_json()), None);
    old.read(&mut records);
    let mut wiped = Written::new("b");
    wiped.read(&mut records);
    assert_eq!(records.epoch(), None);
    wiped.put(Some(&epoch(1, shape()).to_json()), None);
    wiped.read(&mut records);
    assert_eq!(records.epoch().unwrap().number, 1);
}
