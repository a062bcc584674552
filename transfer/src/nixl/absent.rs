//! Stands in for [`super::agent`] in builds without NIXL: there is no agent, so nothing of it is ever called.

use std::convert::Infallible;
use std::sync::Arc;

use super::{NixlConfig, NixlError};
use crate::memory::{MemoryKind, MemoryRegion, Source};

pub(crate) struct Agent(Infallible);

impl Agent {
    pub(crate) fn new(_: &NixlConfig) -> Result<Agent, NixlError> {
        Err(NixlError::NotBuilt)
    }

    /// # Safety
    /// Never called.
    pub(crate) unsafe fn register(
        &self,
        _: *mut u8,
        _: usize,
        _: MemoryKind,
    ) -> Result<(), NixlError> {
        match self.0 {}
    }

    pub(crate) fn register_region(&self, _: &MemoryRegion) -> Result<(), NixlError> {
        match self.0 {}
    }

    pub(crate) fn metadata(&self) -> Result<Vec<u8>, NixlError> {
        match self.0 {}
    }

    pub(crate) fn connect(self: &Arc<Self>, _: &[u8]) -> Result<Remote, NixlError> {
        match self.0 {}
    }
}

pub(crate) struct Remote(Infallible);

impl Remote {
    pub(crate) fn write(&self, _: &Source, _: usize, _: usize, _: u64) -> Result<Write, NixlError> {
        match self.0 {}
    }
}

pub(crate) struct Write(Infallible);

impl Write {
    pub(crate) fn is_done(&mut self) -> Result<bool, NixlError> {
        match self.0 {}
    }
}
