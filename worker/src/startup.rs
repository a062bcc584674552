//! From a folder of weights to a running engine.

use std::{sync::Arc, time::Instant};

use millrace_engine::{Engine, LeasedPages, LoadProgress, experts::ExpertCounts, pages::PagePool};
use millrace_experts::Shape;
use millrace_kernels::PageLayout;
use millrace_model::{checkpoint::Checkpoint, text};
use millrace_proto::worker::v1::GroupRank;

use crate::{
    Compatibility, WorkerConfig, WorkerError,
    attach::Identity,
    device::Device,
    engine::{EngineHandle, EngineMonitor, EngineThread, Mailbox, StepMetrics, Waker, start_in},
    group::{Beside, Joining, first_placement, join},
    metrics::Metrics,
};

/// An engine with its weights, not running yet.
pub struct Loaded<B: Device> {
    engine: Engine<B>,
    compatibility: Compatibility,
    text_revision: String,
    /// Of the group it is a rank of.
    group: Option<Shape>,
}

/// An engine on its thread.
pub struct Started<B: Device, R> {
    pub engine: EngineHandle<R>,
    pub monitor: EngineMonitor,
    pub thread: EngineThread,
    /// The most sequences that it runs at once.
    pub(crate) max_running: usize,
    /// Of a model with experts.
    pub(crate) experts: Option<Arc<ExpertCounts>>,
    /// Of a rank.
    pub(crate) beside: Option<Beside<B>>,
}

impl<B: Device> Loaded<B> {
    /// Opens the device and reads the checkpoint; takes as long as its weights are large. A rank of a
    /// group loads its share of the experts.
    pub fn load(
        worker: &WorkerConfig,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Loaded<B>, WorkerError> {
        let started = Instant::now();
        let (dir, config) = (&worker.model_dir, worker.engine.clone());
        let backend = B::open(worker)?;
        let checkpoint = Arc::new(Checkpoint::open(dir)?);
        let text_revision = text::revision(dir, &checkpoint.config().common)?;
        let rank = worker
            .group
            .as_ref()
            .map(|group| first_placement(group, checkpoint.config(), config.mtp))
            .transpose()?;
        let (reading, mut read) = (Instant::now(), 0);
        let mut progress = |now: LoadProgress| {
            read = now.bytes_done;
            progress(now);
        };
        let progress = &mut progress;
        let engine = match &rank {
            None => Engine::load(backend, &checkpoint, config, progress)?,
            Some(rank) => Engine::load_rank(backend, checkpoint, config, rank, progress)?,
        };
        let gigabytes_per_second = read as f64 * 1e-9 / reading.elapsed().as_secs_f64();
        let layout = engine.pool().memory().layout();
        let compatibility = Compatibility::new(engine.revision().to_string(), &layout);
        tracing::info!(
            model = %dir.display(),
            revision = compatibility.model_revision,
            architecture = engine.model().common.architecture,
            device = %worker.device,
            kv_pages = engine.pool().total(),
            drafts = engine.drafts(),
            seconds = started.elapsed().as_secs_f64(),
            gigabytes_per_second,
            "model loaded"
        );
        if let Some(memory) = engine.device_memory() {
            tracing::info!(device = %worker.device, "device memory: {memory}");
        }
        Ok(Loaded {
            engine,
            compatibility,
            text_revision,
            group: rank.map(|rank| rank.placement.shape()),
        })
    }

    /// Alone, for whoever wants to measure it.
    pub fn into_engine(self) -> Engine<B> {
        self.engine
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
    ) -> Result<Option<Joining<B>>, WorkerError> {
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
        joining: Option<Joining<B>>,
    ) -> Result<Started<B, R>, WorkerError> {
        let experts = self.engine.expert_counts().cloned();
        let max_running = self.engine.config().max_running;
        let (rank, beside) = joining
            .map(|joining| (joining.rank, joining.beside))
            .unzip();
        let (engine, monitor, thread) = start_in(
            mailbox,
            self.engine,
            metrics,
            reserved,
            rank,
            B::LONGEST_STEP,
        )
        .map_err(WorkerError::Thread)?;
        Ok(Started {
            engine,
            monitor,
            thread,
            max_running,
            experts,
            beside,
        })
    }
}
