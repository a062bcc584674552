//! From a folder of weights to a running engine.

use std::{path::Path, sync::Arc, time::Instant};

use millrace_engine::{
    Engine, EngineConfig, LeasedPages, LoadProgress, experts::ExpertCounts, pages::PagePool,
};
use millrace_experts::Shape;
use millrace_kernels::{PageLayout, cpu::CpuBackend};
use millrace_model::{checkpoint::Checkpoint, text};
use millrace_proto::worker::v1::GroupRank;

use crate::{
    Compatibility, GroupConfig, WorkerConfig, WorkerError,
    attach::Identity,
    engine::{EngineHandle, EngineMonitor, EngineThread, Mailbox, StepMetrics, Waker, start_in},
    group::{Beside, Joining, first_placement, join},
    metrics::Metrics,
};

/// An engine with its weights, not running yet.
pub struct Loaded {
    engine: Engine<CpuBackend>,
    compatibility: Compatibility,
    text_revision: String,
    /// Of the group it is a rank of.
    group: Option<Shape>,
}

/// An engine on its thread.
pub struct Started<R> {
    pub engine: EngineHandle<R>,
    pub monitor: EngineMonitor,
    pub thread: EngineThread,
    /// Of a model with experts.
    pub(crate) experts: Option<Arc<ExpertCounts>>,
    /// Of a rank.
    pub(crate) beside: Option<Beside<CpuBackend>>,
}

impl Loaded {
    /// Reads the checkpoint in `dir`; takes as long as its weights are large. A rank of `group` loads
    /// its share of the experts.
    pub fn load(
        dir: &Path,
        config: EngineConfig,
        threads: Option<usize>,
        group: Option<&GroupConfig>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Loaded, WorkerError> {
        let started = Instant::now();
        let checkpoint = Arc::new(Checkpoint::open(dir)?);
        let text_revision = text::revision(dir, &checkpoint.config().common)?;
        let rank = group
            .map(|group| first_placement(group, checkpoint.config(), config.mtp))
            .transpose()?;
        let threads = threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |cores| cores.get()));
        let backend = CpuBackend::new(threads);
        let engine = match &rank {
            None => Engine::load(backend, &checkpoint, config, progress)?,
            Some(rank) => Engine::load_rank(backend, checkpoint, config, rank, progress)?,
        };
        let layout = engine.pool().memory().layout();
        let compatibility = Compatibility::new(engine.revision().to_string(), &layout);
        tracing::info!(
            model = %dir.display(),
            revision = compatibility.model_revision,
            architecture = engine.model().common.architecture,
            threads,
            kv_pages = engine.pool().total(),
            drafts = engine.drafts(),
            seconds = started.elapsed().as_secs_f64(),
            "model loaded"
        );
        Ok(Loaded {
            engine,
            compatibility,
            text_revision,
            group: rank.map(|rank| rank.placement.shape()),
        })
    }

    pub fn pool(&self) -> &PagePool {
        self.engine.pool()
    }

    pub fn page_layout(&self) -> PageLayout {
        self.engine.pool().memory().layout()
    }

    pub fn compatibility(&self) -> &Compatibility {
        &self.compatibility
    }

    pub fn vocab_size(&self) -> usize {
        self.engine.model().common.vocab_size
    }

    /// What routers are told of this worker.
    pub(crate) fn identity(
        &self,
        worker_id: String,
        role: crate::Role,
        address: String,
        served_name: String,
        config: &WorkerConfig,
        group: Option<GroupRank>,
    ) -> Identity {
        Identity {
            worker_id,
            role,
            address,
            compatibility: self.compatibility.clone(),
            served_name,
            architecture: self.engine.model().common.architecture.clone(),
            max_model_len: self.engine.max_model_len(),
            vocab_size: self.vocab_size(),
            mtp: self.engine.drafts(),
            text_revision: self.text_revision.clone(),
            kv_pages: self.engine.pool().total(),
            max_running: self.engine.config().max_running,
            group,
            revision: config.revision.clone(),
            aggregated: config.aggregated,
        }
    }

    /// Makes this the rank of a group that it was loaded as, if it was; see [`join`].
    pub(crate) fn join(
        &self,
        config: &WorkerConfig,
        waker: Waker,
        grpc: &str,
        metrics: &Metrics,
    ) -> Result<Option<Joining<CpuBackend>>, WorkerError> {
        let (Some(group), Some(shape)) = (&config.group, self.group) else {
            return Ok(None);
        };
        let host = config.advertise_host.as_deref();
        join(group, shape, &self.engine, waker, host, grpc, metrics).map(Some)
    }

    /// Starts the engine's thread; see [`crate::engine::start`] for `reserved`.
    pub(crate) fn start<R: Send + 'static>(
        self,
        mailbox: Mailbox<R>,
        metrics: StepMetrics,
        reserved: impl FnMut(LeasedPages, usize) -> R + Send + 'static,
        joining: Option<Joining<CpuBackend>>,
    ) -> Result<Started<R>, WorkerError> {
        let experts = self.engine.expert_counts().cloned();
        let (rank, beside) = joining
            .map(|joining| (joining.rank, joining.beside))
            .unzip();
        let (engine, monitor, thread) =
            start_in(mailbox, self.engine, metrics, reserved, rank).map_err(WorkerError::Thread)?;
        Ok(Started {
            engine,
            monitor,
            thread,
            experts,
            beside,
        })
    }
}
