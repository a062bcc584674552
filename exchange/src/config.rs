//! What a mesh is told at its start.

use std::net::SocketAddr;
use std::time::Duration;

use millrace_experts::RankId;

use crate::MeshError;
use crate::wire::{Hello, MAX_GREETING, WORK_BYTES};

#[derive(Debug, Clone)]
pub struct MeshConfig {
    /// Where the other ranks connect to. Port 0 takes a free one.
    pub listen: SocketAddr,
    pub me: RankId,
    /// Name of the group.
    pub group: String,
    /// What every rank must agree on besides `limits`, by name, such as the model's revision. A
    /// link is refused with the name and both values of the first that differs.
    pub layout: Vec<(String, String)>,
    pub limits: FrameLimits,
    /// How often a link says that this process lives.
    pub heartbeat: Duration,
    /// A link over which nothing came for so long is lost.
    pub silence: Duration,
}

/// The largest parcel. Part of the layout: a rank whose buffers are made for smaller parcels must
/// not be sent larger ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// Values a row.
    pub hidden: usize,
    /// Rows from one rank to one other, in one layer.
    pub rows: usize,
    /// Pieces of work from one rank to one other, in one layer: rows times experts a token.
    pub work: usize,
    /// Physical slots a rank.
    pub slots: usize,
}

impl MeshConfig {
    /// Heartbeats every 200 ms, and a link lost after 800 ms of silence.
    pub fn new(
        listen: SocketAddr,
        me: RankId,
        group: impl Into<String>,
        limits: FrameLimits,
    ) -> Self {
        MeshConfig {
            listen,
            me,
            group: group.into(),
            layout: Vec::new(),
            limits,
            heartbeat: Duration::from_millis(200),
            silence: Duration::from_millis(800),
        }
    }

    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.layout.push((name.into(), value.to_string()));
        self
    }

    /// The whole layout, as it is compared at a handshake.
    pub(crate) fn agreed(&self) -> Vec<(String, String)> {
        let FrameLimits {
            hidden,
            rows,
            work,
            slots,
        } = self.limits;
        let limits = [
            ("hidden size", hidden),
            ("rows a parcel", rows),
            ("work a parcel", work),
            ("slots a rank", slots),
        ];
        let limits = limits.map(|(name, value)| (name.to_owned(), value.to_string()));
        self.layout.iter().cloned().chain(limits).collect()
    }

    pub(crate) fn check(&self) -> Result<(), MeshError> {
        // Two heartbeats at least must fit, or one that comes late is a lost rank.
        if self.heartbeat.is_zero() || self.heartbeat * 2 > self.silence {
            return Err(MeshError::Heartbeat {
                heartbeat: self.heartbeat,
                silence: self.silence,
            });
        }
        let FrameLimits {
            hidden, rows, work, ..
        } = self.limits;
        let results = hidden.saturating_mul(size_of::<f32>());
        let largest = results
            .saturating_mul(rows.max(work))
            .saturating_add(work.saturating_mul(WORK_BYTES));
        if u32::try_from(largest).is_err() {
            return Err(MeshError::FrameSize { largest });
        }
        let (bytes, limit) = (Hello::new(self, self.me).to_json().len(), MAX_GREETING / 4);
        if bytes > limit {
            return Err(MeshError::Layout { bytes, limit });
        }
        Ok(())
    }
}
