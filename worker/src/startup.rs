//! From a folder of weights to a running engine.

use std::{path::Path, time::Instant};

use millrace_engine::{Engine, EngineConfig, LeasedPages, LoadProgress, pages::PagePool};
use millrace_kernels::{PageLayout, cpu::CpuBackend};
use millrace_model::checkpoint::Checkpoint;

use crate::{
    Compatibility, WorkerError,
    attach::Identity,
    engine::{EngineHandle, EngineMonitor, EngineThread, StepMetrics, start},
};

/// An engine with its weights, not running yet.
pub struct Loaded {
    engine: Engine<CpuBackend>,
    compatibility: Compatibility,
}

/// An engine on its thread.
pub struct Started<R> {
    pub engine: EngineHandle<R>,
    pub monitor: EngineMonitor,
    pub thread: EngineThread,
}

impl Loaded {
    /// Reads the checkpoint in `dir`; takes as long as its weights are large.
    pub fn load(
        dir: &Path,
        config: EngineConfig,
        threads: Option<usize>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Loaded, WorkerError> {
        let started = Instant::now();
        let checkpoint = Checkpoint::open(dir)?;
        let threads = threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |cores| cores.get()));
        let engine = Engine::load(CpuBackend::new(threads), &checkpoint, config, progress)?;
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
            kv_pages: self.engine.pool().total(),
            max_running: self.engine.config().max_running,
        }
    }

    /// Starts the engine's thread; see [`start`] for `reserved`.
    pub(crate) fn start<R: Send + 'static>(
        self,
        metrics: StepMetrics,
        reserved: impl FnMut(LeasedPages, usize) -> R + Send + 'static,
    ) -> Result<Started<R>, WorkerError> {
        let (engine, monitor, thread) =
            start(self.engine, metrics, reserved).map_err(WorkerError::Thread)?;
        Ok(Started {
            engine,
            monitor,
            thread,
        })
    }
}
