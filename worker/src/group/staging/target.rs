//! What to stage next, and what to keep.

use std::{collections::BTreeMap, sync::Arc};

use millrace_experts::{
    Epoch, Placement, Plan, RankId, Shape,
    group::{Order, Staged},
};

/// Whose slots of this rank want their weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// It is committed: the group may be waiting for this rank.
    Epoch(Arc<Epoch>),
    Plan(Arc<Plan>),
}

impl Target {
    /// The first thing to do about `order`; a committed epoch comes before a plan. `staged` is the
    /// latest epoch whose weights are here, `told` what was said of a plan.
    pub fn of(order: &Order, me: RankId, staged: u64, told: Option<&Staged>) -> Option<Target> {
        if let Some(epoch) = &order.epoch
            && epoch.number > staged
            && epoch.member(me).is_some()
        {
            return Some(Target::Epoch(epoch.clone()));
        }
        let plan = order.plan.as_ref()?;
        let wanted = plan.next.member(me).is_some() && told.is_none_or(|told| told.plan != plan.id);
        wanted.then(|| Target::Plan(plan.clone()))
    }

    pub fn placement(&self) -> &Placement {
        match self {
            Target::Epoch(epoch) => &epoch.placement,
            Target::Plan(plan) => &plan.next.placement,
        }
    }
}

/// Epochs that are staged but not adopted yet: their weights stay whatever comes after them, since
/// only the engine's thread knows when it is past them.
#[derive(Debug, Default)]
pub struct Promised(BTreeMap<u64, Arc<Epoch>>);

impl Promised {
    pub fn add(&mut self, epoch: Arc<Epoch>) {
        self.0.insert(epoch.number, epoch);
    }

    /// The latest, or 0.
    pub fn latest(&self) -> u64 {
        self.0.keys().next_back().copied().unwrap_or(0)
    }

    /// The engine is past those up to `number`. The latest stays, since it says what is staged.
    pub fn adopted(&mut self, number: u64) {
        let latest = self.latest();
        self.0.retain(|&n, _| n > number || n == latest);
    }

    pub fn epochs(&self) -> impl Iterator<Item = &Arc<Epoch>> {
        self.0.values()
    }
}

/// `[layer][expert]`: which weights a rank has to have in memory.
pub struct Needs {
    experts: usize,
    needed: Vec<bool>,
}

impl Needs {
    pub fn none(shape: Shape) -> Needs {
        Needs {
            experts: shape.experts,
            needed: vec![false; shape.layers * shape.experts],
        }
    }

    pub fn add(&mut self, placement: &Placement, rank: usize) {
        for layer in 0..placement.shape().layers {
            for &expert in placement.slots(layer, rank) {
                self.needed[layer * self.experts + expert as usize] = true;
            }
        }
    }

    pub fn contains(&self, layer: usize, expert: usize) -> bool {
        self.needed[layer * self.experts + expert]
    }

    /// `(layer, expert)`, in order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize)> {
        let experts = self.experts;
        let needed = |(_, needed): &(usize, &bool)| **needed;
        self.needed
            .iter()
            .enumerate()
            .filter(needed)
            .map(move |(place, _)| (place / experts, place % experts))
    }
}

#[cfg(test)]
mod tests {
    use millrace_experts::{Loads, Member};

    use super::*;

    const ME: RankId = RankId {
        rank: 1,
        incarnation: 5,
    };

    fn epoch(number: u64, member: bool) -> Arc<Epoch> {
        let shape = Shape::new(1, 4, 2, 4).unwrap();
        let member = member.then(|| Member {
            id: ME,
            exchange: String::new(),
            grpc: String::new(),
        });
        Arc::new(Epoch {
            number,
            reset: number,
            members: member.into_iter().collect(),
            placement: Arc::new(Placement::initial(shape).unwrap()),
            expected: Arc::new(Loads::zero(1, 4)),
        })
    }

    fn order(epoch: Option<Arc<Epoch>>, plan: Option<(u64, Arc<Epoch>)>) -> Order {
        Order {
            peers: Vec::new(),
            plan: plan.map(|(id, next)| {
                Arc::new(Plan {
                    id,
                    base: next.number - 1,
                    next: Epoch::clone(&next),
                })
            }),
            epoch,
        }
    }

    #[test]
    fn a_committed_epoch_comes_before_a_plan_and_each_is_staged_once() {
        let both = order(Some(epoch(4, true)), Some((9, epoch(5, true))));
        let first = Target::of(&both, ME, 3, None);
        assert_eq!(first, Some(Target::Epoch(epoch(4, true))));
        let second = Target::of(&both, ME, 4, None);
        assert!(matches!(second, Some(Target::Plan(plan)) if plan.id == 9));
        let told = |plan| Staged {
            plan,
            outcome: Ok(()),
        };
        assert_eq!(Target::of(&both, ME, 4, Some(&told(9))), None);
        assert!(
            Target::of(&both, ME, 4, Some(&told(8))).is_some(),
            "that was another plan"
        );
        let left_out = order(Some(epoch(4, false)), Some((9, epoch(5, false))));
        assert_eq!(Target::of(&left_out, ME, 0, None), None);
    }

    #[test]
    fn what_the_engine_may_still_adopt_is_promised() {
        let mut promised = Promised::default();
        assert_eq!(promised.latest(), 0);
        (2..=4).for_each(|number| promised.add(epoch(number, true)));
        promised.adopted(3);
        let left: Vec<u64> = promised.epochs().map(|epoch| epoch.number).collect();
        assert_eq!(left, [4]);
        promised.adopted(4);
        assert_eq!(promised.latest(), 4);
    }

    #[test]
    fn a_rank_needs_what_its_own_slots_hold() {
        let placement = &epoch(1, true).placement;
        let mut needs = Needs::none(placement.shape());
        needs.add(placement, 1);
        let mut slots = placement.slots(0, 1).to_vec();
        slots.sort_unstable();
        slots.dedup();
        let needed: Vec<u32> = needs.iter().map(|(_, expert)| expert as u32).collect();
        assert_eq!(needed, slots);
        assert!(needs.contains(0, slots[0] as usize));
    }
}
