//! What this rank tells every router, put together from what its parts know.

use std::sync::Arc;

use tokio::sync::watch;

use millrace_experts::{
    Epoch, Member, RankId,
    group::{Report, Staged},
};

/// The one copy of the report. The engine's thread says what is adopted, linked and lost; staging
/// says what is staged; links to routers read.
pub struct Reports(watch::Sender<Report>);

impl Reports {
    pub fn new(me: Member) -> Reports {
        Reports(watch::Sender::new(Report {
            me,
            adopted: None,
            known: 0,
            linked: Vec::new(),
            lost: Vec::new(),
            staged: None,
        }))
    }

    pub fn subscribe(&self) -> watch::Receiver<Report> {
        self.0.subscribe()
    }

    pub fn adopted(&self) -> Option<Arc<Epoch>> {
        self.0.borrow().adopted.clone()
    }

    /// Another epoch, or none after this rank was left out of one. Whom the one before had lost does
    /// not matter any more.
    pub fn adopt(&self, epoch: Option<Arc<Epoch>>) {
        self.0.send_modify(|report| {
            report.adopted = epoch;
            report.lost.clear();
        });
    }

    /// `known`: the latest epoch that this rank was told of.
    pub fn set(&self, known: u64, mut linked: Vec<RankId>, mut lost: Vec<RankId>) {
        linked.sort_unstable();
        lost.sort_unstable();
        self.0.send_if_modified(|report| {
            let changed = (report.known, &report.linked, &report.lost) != (known, &linked, &lost);
            report.known = known;
            report.linked = linked;
            report.lost = lost;
            changed
        });
    }

    pub fn set_staged(&self, staged: Staged) {
        self.0.send_modify(|report| report.staged = Some(staged));
    }

    /// What was staged for another plan than this may have left the memory.
    pub fn forget_staged_but(&self, plan: Option<u64>) {
        self.0.send_if_modified(|report| {
            let over = report.staged.as_ref().map(|staged| staged.plan) != plan;
            over && report.staged.take().is_some()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_changes_only_with_what_it_says() {
        let id = |rank| RankId {
            rank,
            incarnation: 5,
        };
        let reports = Reports::new(Member {
            id: id(0),
            exchange: String::new(),
            grpc: String::new(),
        });
        let mut seen = reports.subscribe();
        let mut changed = || {
            let changed = seen.has_changed().unwrap();
            seen.borrow_and_update();
            changed
        };
        reports.set(0, Vec::new(), Vec::new());
        assert!(!changed());
        reports.set(3, vec![id(2), id(1)], vec![id(1)]);
        assert!(changed());
        reports.set(3, vec![id(1), id(2)], vec![id(1)]);
        assert!(!changed(), "the order of links means nothing");
        reports.adopt(None);
        assert!(changed());
        assert!(reports.subscribe().borrow().lost.is_empty());

        reports.set_staged(Staged {
            plan: 9,
            outcome: Ok(()),
        });
        assert!(changed());
        reports.forget_staged_but(Some(9));
        assert!(!changed());
        reports.forget_staged_but(Some(10));
        assert!(changed());
        reports.forget_staged_but(None);
        assert!(!changed());
    }
}
