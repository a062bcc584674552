//! An expert's weights out of another rank's memory.

use std::{collections::HashMap, time::Duration};

use tokio::time::timeout;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use millrace_proto::worker::v1::{FetchExpert, expert_weights_client::ExpertWeightsClient};

use super::budget::Budget;

const CONNECT: Duration = Duration::from_secs(1);
/// A peer that sends nothing for this long is given up; the checkpoint is always there.
const SILENT: Duration = Duration::from_secs(5);

/// As sent, not verified yet.
#[derive(Debug, Default)]
pub struct Fetched {
    pub bytes: Vec<u8>,
    pub digest: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("`{0}` is not a host:port")]
    Address(String),
    #[error("{:?}: {}", .0.code(), .0.message())]
    Call(Box<Status>),
    #[error("it has not got it in memory")]
    Absent,
    #[error("it sent nothing for {SILENT:?}")]
    Silent,
    #[error("it offers {offered} bytes, but an expert of this model has at most {largest}")]
    Size { offered: u64, largest: u64 },
    #[error("it sent {sent} of {offered} bytes")]
    Length { sent: u64, offered: u64 },
}

impl FetchError {
    /// As a metric label.
    pub fn label(&self) -> &'static str {
        match self {
            FetchError::Address(_) | FetchError::Call(_) => "unavailable",
            FetchError::Absent => "absent",
            FetchError::Silent => "timeout",
            FetchError::Size { .. } | FetchError::Length { .. } => "malformed",
        }
    }
}

impl From<Status> for FetchError {
    fn from(status: Status) -> FetchError {
        match status.code() {
            Code::NotFound => FetchError::Absent,
            _ => FetchError::Call(Box::new(status)),
        }
    }
}

/// Connections to the ranks that weights were fetched from.
#[derive(Default)]
pub struct Peers(HashMap<String, Channel>);

impl Peers {
    /// Reads one expert of at most `largest` bytes within `budget`: what is not read yet waits at the
    /// sender.
    pub async fn fetch(
        &mut self,
        address: &str,
        request: FetchExpert,
        largest: u64,
        budget: &mut Budget,
    ) -> Result<Fetched, FetchError> {
        let mut client = ExpertWeightsClient::new(self.channel(address)?);
        let mut chunks = unless_silent(client.fetch(request)).await?.into_inner();
        let mut fetched = Fetched::default();
        let mut offered = 0;
        while let Some(chunk) = unless_silent(chunks.message()).await? {
            // The first one says what is to come.
            if fetched.bytes.is_empty() {
                offered = chunk.total_bytes;
                if offered > largest {
                    return Err(FetchError::Size { offered, largest });
                }
                fetched.bytes.reserve_exact(offered as usize);
                fetched.digest = chunk.digest;
            }
            budget.spend(chunk.data.len() as u64).await;
            fetched.bytes.extend_from_slice(&chunk.data);
            if fetched.bytes.len() as u64 > offered {
                break;
            }
        }
        match fetched.bytes.len() as u64 {
            sent if sent == offered => Ok(fetched),
            sent => Err(FetchError::Length { sent, offered }),
        }
    }

    /// Forgets those at other addresses.
    pub fn keep<'a>(&mut self, addresses: impl Iterator<Item = &'a str> + Clone) {
        self.0
            .retain(|known, _| addresses.clone().any(|address| address == known));
    }

    fn channel(&mut self, address: &str) -> Result<Channel, FetchError> {
        if let Some(channel) = self.0.get(address) {
            return Ok(channel.clone());
        }
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| FetchError::Address(address.to_string()))?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .connect_lazy();
        self.0.insert(address.to_string(), channel.clone());
        Ok(channel)
    }
}

async fn unless_silent<T>(
    answer: impl Future<Output = Result<T, Status>>,
) -> Result<T, FetchError> {
    Ok(timeout(SILENT, answer)
        .await
        .map_err(|_| FetchError::Silent)??)
}
