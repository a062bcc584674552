//! Connections to prefill workers, kept from request to request.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

use millrace_proto::worker::v1::prefill_client::PrefillClient;

use crate::failure::PrefillFailure;

/// A prefill worker that answers no ping for twice this is gone, whatever TCP thinks.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// One channel an address. It connects when it is first used and again after it broke, so a
/// prefill worker that comes back is simply there again.
pub struct Peers {
    connect: Duration,
    channels: Mutex<HashMap<String, Channel>>,
}

impl Peers {
    pub fn new(connect: Duration) -> Peers {
        Peers {
            connect,
            channels: Mutex::default(),
        }
    }

    /// A client for the worker at `address` (`host:port`).
    pub fn client(&self, address: &str) -> Result<PrefillClient<Channel>, PrefillFailure> {
        let mut channels = self.channels.lock();
        let channel = match channels.get(address) {
            Some(channel) => channel.clone(),
            None => {
                let channel = self.channel(address)?;
                channels.insert(address.to_string(), channel.clone());
                channel
            }
        };
        Ok(PrefillClient::new(channel))
    }

    /// Drops the channel to a worker that failed: addresses of workers that never come back must
    /// not pile up.
    pub fn forget(&self, address: &str) {
        self.channels.lock().remove(address);
    }

    fn channel(&self, address: &str) -> Result<Channel, PrefillFailure> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| PrefillFailure::Address(address.to_string()))?
            .connect_timeout(self.connect)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        Ok(endpoint.connect_lazy())
    }
}
