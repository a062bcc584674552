//! A rank as it introduces itself.

use millrace_experts::Member;
use millrace_experts::group::GroupShape;

use super::{Mismatch, Refusal};

/// A worker's place in an expert-parallel group. Fixed for its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRank {
    pub group: String,
    pub member: Member,
    pub shape: GroupShape,
}

impl GroupRank {
    /// # Errors
    /// Names what no rank may say of itself.
    pub fn check(&self) -> Result<(), Refusal> {
        let missing = |field| Err(Refusal::Missing { field });
        let (id, shape) = (self.member.id, self.shape.shape);
        if self.group.is_empty() {
            return missing("group.group");
        }
        if id.incarnation == 0 {
            return missing("group.incarnation");
        }
        if self.member.exchange.is_empty() {
            return missing("group.exchange_address");
        }
        shape.check()?;
        if id.rank >= shape.ranks {
            return Err(Refusal::Mismatch(Mismatch {
                field: "group.rank",
                worker: id.rank.to_string(),
                expected: format!("less than its {} ranks", shape.ranks),
            }));
        }
        Ok(())
    }

    /// # Errors
    /// The first number in which it differs from its group.
    pub fn check_shape(&self, group: &GroupShape) -> Result<(), Mismatch> {
        let (w, g) = (self.shape.shape, group.shape);
        Mismatch::unless_equal("group.layers", w.layers, g.layers)?;
        Mismatch::unless_equal("group.experts", w.experts, g.experts)?;
        Mismatch::unless_equal("group.ranks", w.ranks, g.ranks)?;
        Mismatch::unless_equal("group.slots", w.slots, g.slots)?;
        Mismatch::unless_equal(
            "group.expert_bytes",
            self.shape.expert_bytes,
            group.expert_bytes,
        )
    }
}
