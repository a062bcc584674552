//! An epoch store: a record, a plan and a revision, changed by compare-and-swap.

use std::sync::Arc;

use millrace_experts::group::{StoreView, Write};

#[derive(Default)]
pub struct Store {
    pub up: bool,
    pub revision: u64,
    pub view: StoreView,
}

impl Store {
    pub fn apply(&mut self, write: &Write) {
        self.revision += 1;
        match write {
            Write::Publish(plan) => self.view.plan = Some(Arc::clone(plan)),
            Write::Commit(epoch) => {
                self.view = StoreView {
                    epoch: Some(Arc::clone(epoch)),
                    plan: None,
                }
            }
            Write::Withdraw { .. } => self.view.plan = None,
        }
    }

    /// A lone router's memory, when the router dies.
    pub fn forget(&mut self) {
        self.revision += 1;
        self.view = StoreView::default();
    }
}
