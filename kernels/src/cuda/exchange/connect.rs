//! How ranks come to know each other's windows.

use std::sync::Arc;

use super::super::device::Device;
use super::super::params;
use super::super::window::{Offer, Opened, ProcessId, Window};
use super::{Exchange, Table, peer};
use crate::{KernelError, ReplicaTable};

impl Exchange {
    /// What the other ranks need to reach this one. `fresh`: by a window that nobody knows yet.
    pub(in crate::cuda) fn offer(
        &mut self,
        device: &Arc<Device>,
        fresh: bool,
    ) -> Result<Vec<u8>, KernelError> {
        // Nothing of a step before is still to be computed here.
        device.wait();
        self.retired.retain(Window::is_shared);
        if fresh {
            let fresh = Window::new(device, self.layout.bytes)?;
            self.retired
                .push(std::mem::replace(&mut self.window, fresh));
        }
        let mut turn = [0u64];
        self.state.download(0, &mut turn);
        let offer = self.window.offer(self.process, self.gpu, turn[0]);
        Ok(bytemuck::bytes_of(&offer).to_vec())
    }

    /// Connects this rank, `me`, with those whose offers these are, by rank; `None`: no member.
    pub(in crate::cuda) fn connect(
        &mut self,
        device: &Arc<Device>,
        me: usize,
        offers: &[Option<&[u8]>],
        table: &ReplicaTable,
        apart: bool,
    ) -> Result<(), KernelError> {
        assert_eq!(offers.len(), self.shape.ranks);
        let read = |offer: &[u8]| {
            bytemuck::try_pod_read_unaligned::<Offer>(offer)
                .map_err(|_| KernelError::Sharing("a rank tells of its memory otherwise".into()))
        };
        let offers = offers
            .iter()
            .map(|offer| offer.map(read).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        let members: Vec<&Offer> = offers.iter().flatten().collect();
        if let Err(why) = self.check(&members, apart) {
            // All ranks see it in the same words, and so nobody opens anything now.
            self.opened.clear();
            self.window.admit(&[], &self.process)?;
            return Err(why);
        }
        let guests: Vec<ProcessId> = members.iter().map(|offer| offer.process).collect();
        self.window.admit(&guests, &self.process)?;
        let mut before = std::mem::take(&mut self.opened);
        before.resize_with(offers.len(), || None);
        let mut peers = vec![params::Peer::default(); offers.len()];
        for (rank, offer) in offers.iter().enumerate() {
            let before = before[rank].take();
            let Some(offer) = offer else {
                self.opened.push(None);
                continue;
            };
            let address = if rank == me {
                self.opened.push(None);
                self.window.address()
            } else {
                let kept = before.filter(|opened| opened.is(offer));
                let opened = match kept {
                    Some(opened) => opened,
                    None => Opened::new(device, offer, &self.process, self.layout.bytes)?,
                };
                let address = opened.address();
                self.opened.push(Some(opened));
                address
            };
            peers[rank] = peer(address, me);
        }
        // One that all agree on, and that no flag in any window has reached.
        let turn = offers.iter().flatten().map(|offer| offer.turn).max();
        self.peers.upload(0, &peers);
        self.state.clear();
        self.state.upload(0, &[turn.unwrap_or(0)]);
        self.sent.clear();
        self.table = Table::new(device, table)?;
        self.stop.clear();
        device.wait();
        Ok(())
    }

    /// What can be known without opening anything.
    fn check(&self, members: &[&Offer], apart: bool) -> Result<(), KernelError> {
        let refused = |why: &str| Err(KernelError::Sharing(why.into()));
        if !members
            .iter()
            .all(|offer| self.process.sees(&offer.process))
        {
            return refused("a rank is on another machine, or in another PID namespace");
        }
        let mut gpus: Vec<[u8; 16]> = members.iter().map(|offer| offer.gpu).collect();
        gpus.sort_unstable();
        gpus.dedup();
        if apart && gpus.len() < members.len() {
            return refused("two ranks share a GPU, and would wait for each other's turns there");
        }
        Ok(())
    }

    /// All members have connected, and so let go of windows from before.
    pub(in crate::cuda) fn met(&mut self) {
        let members = self.window.guests();
        for window in &mut self.retired {
            window.dismiss(&members);
        }
        self.retired.retain(Window::is_shared);
    }
}
