//! What a device's memory is taken by.

use std::collections::BTreeMap;

use crate::KernelError;

/// Bytes by what they are for, and the first thing that there was no room for.
#[derive(Default)]
pub struct Ledger {
    bytes: BTreeMap<&'static str, usize>,
    refused: Option<KernelError>,
    changes: u64,
}

impl Ledger {
    pub fn add(&mut self, what: &'static str, bytes: usize) {
        *self.bytes.entry(what).or_default() += bytes;
        self.changes += 1;
    }

    pub fn sub(&mut self, what: &'static str, bytes: usize) {
        if let Some(sum) = self.bytes.get_mut(what) {
            *sum -= bytes;
        }
        self.changes += 1;
    }

    /// Another number whenever memory was taken or given back: addresses may mean something else then.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    pub fn refuse(&mut self, error: KernelError) {
        self.refused.get_or_insert(error);
    }

    /// Whether there was room for everything since the last call.
    pub fn check(&mut self) -> Result<(), KernelError> {
        self.refused.take().map_or(Ok(()), Err)
    }

    /// The largest first.
    pub fn used(&self) -> Vec<(&'static str, usize)> {
        let mut used: Vec<_> = self
            .bytes
            .iter()
            .map(|(what, bytes)| (*what, *bytes))
            .collect();
        used.retain(|(_, bytes)| *bytes > 0);
        used.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        used
    }
}
