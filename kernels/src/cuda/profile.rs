//! What each op of a pass takes on the device, next to what it moves and computes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::CudaEvent;

use super::tensor::Tensor;
use super::{CudaBackend, Experts, HeadLinear};

/// Which units an op computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peak {
    Bf16,
    Fp8,
}

/// What an op has to do, however it is done.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    pub what: String,
    /// Read and written, each once.
    pub bytes: f64,
    pub flops: f64,
    pub peak: Peak,
}

/// One call of an op.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    pub cost: Cost,
    pub seconds: f64,
}

#[derive(Default)]
pub struct Profile {
    on: AtomicBool,
    calls: Mutex<Vec<(Cost, CudaEvent, CudaEvent)>>,
    /// Made before measuring begins: making one takes longer than many an op.
    marks: Mutex<Vec<CudaEvent>>,
}

/// Marks that a pass of a large model needs, about.
const MARKS: usize = 8192;

impl CudaBackend {
    /// Measures every op from now on. Ops still follow each other on the device as they do otherwise; what is
    /// measured of each includes its launches where the device waits for them.
    pub fn start_profile(&self) {
        let mut marks = self.profile.marks.lock().expect("nothing panics with it");
        while marks.len() < MARKS {
            marks.push(self.device.timed_mark());
        }
        self.profile.on.store(true, Ordering::Relaxed);
    }

    /// What was measured, in order. Ends the measuring.
    pub fn take_profile(&self) -> Vec<Measured> {
        self.profile.on.store(false, Ordering::Relaxed);
        self.device.wait();
        let mut calls = self.profile.calls.lock().expect("nothing panics with it");
        let measured = |(cost, begin, end): (Cost, CudaEvent, CudaEvent)| Measured {
            cost,
            seconds: f64::from(self.device.expect(begin.elapsed_ms(&end))) / 1e3,
        };
        calls.drain(..).map(measured).collect()
    }

    pub(super) fn is_profiling(&self) -> bool {
        self.profile.on.load(Ordering::Relaxed)
    }

    /// Calls `op`, whose cost is asked for only where it is measured.
    pub(super) fn measured<T>(&self, cost: impl FnOnce() -> Cost, op: impl FnOnce() -> T) -> T {
        if !self.is_profiling() {
            return op();
        }
        let begin = self.mark();
        let done = op();
        let end = self.mark();
        let mut calls = self.profile.calls.lock().expect("nothing panics with it");
        calls.push((cost(), begin, end));
        done
    }

    fn mark(&self) -> CudaEvent {
        let made = self
            .profile
            .marks
            .lock()
            .expect("nothing panics with it")
            .pop();
        let mark = made.unwrap_or_else(|| self.device.timed_mark());
        self.device.reach_mark(&mark);
        mark
    }

    /// An op that does little but move these.
    pub(super) fn moved<T>(&self, what: &str, bytes: usize, op: impl FnOnce() -> T) -> T {
        let cost = || Cost {
            what: what.to_owned(),
            bytes: bytes as f64,
            flops: 0.0,
            peak: Peak::Bf16,
        };
        self.measured(cost, op)
    }
}

/// Bytes of a tensor's current rows.
pub fn bytes_of(x: &Tensor) -> usize {
    x.rows() * x.cols() * x.kind().bytes()
}

/// Of one matrix a head.
pub fn heads_cost(what: &str, w: &HeadLinear, x: &Tensor, out: &Tensor) -> Cost {
    let (inputs, outputs) = (w.weights.inputs, w.outputs());
    let weights = 2 * w.heads * inputs * outputs;
    let rows = 2 * x.rows() * w.heads * (inputs + outputs);
    debug_assert_eq!(x.rows(), out.rows());
    Cost {
        what: what.to_owned(),
        bytes: (weights + rows) as f64,
        flops: 2.0 * (x.rows() * w.heads * inputs * outputs) as f64,
        peak: Peak::Bf16,
    }
}

/// Of `pieces` pieces over all slots.
pub fn experts_cost(experts: &Experts, pieces: usize) -> Cost {
    let [first, second] = experts.forms();
    let values = 3 * experts.hidden() * experts.inter();
    // A slot that nobody asks for is not read.
    let slots = experts.slots().min(pieces);
    Cost {
        what: "experts".to_owned(),
        bytes: (slots * (first.bytes() + second.bytes()) + 2 * 2 * pieces * experts.hidden())
            as f64,
        flops: 2.0 * (pieces * values) as f64,
        peak: first.peak(),
    }
}
