//! Passes that are recorded once and replayed: a launch a pass instead of a launch a kernel.
//!
//! A pass over so many rows asks for the same kernels with the same parameters every time, as long as all memory is where
//! it was: what differs (tokens, positions, pages, cut work) lies in memory. So a recording is kept for each number of rows
//! (and what else decides about launches), and no rows are made up to reach one of a few sizes. Replaying still goes
//! through the pass on the host, with launches left out: tensors get their rows as they always do.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use cudarc::driver::sys;

use super::device::Device;
use super::mla::Wave;
use super::params::Address;

/// Larger passes take longer than their launches.
pub const MOST_ROWS: usize = 512;
/// Recordings kept: a few MiB each.
const MOST: usize = 128;
/// Plain passes before one is recorded: they find room for what they compute in.
const PLAIN: u32 = 2;

/// What decides about a pass's launches, besides what memory is where.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub rows: usize,
    pub batch: Address,
    pub pages: Address,
    pub waves: Vec<Wave>,
    /// Which of the passes that a caller has.
    pub pass: u64,
}

#[derive(Default)]
pub struct Graphs {
    known: HashMap<Key, Known>,
    /// The ledger's count that they hold for.
    changes: u64,
}

enum Known {
    Plain(u32),
    Recorded(Recording),
}

struct Recording(sys::CUgraphExec);

// SAFETY: a handle of the driver's, which takes it from any thread; one thread at a time has it.
unsafe impl Send for Recording {}

impl Drop for Recording {
    fn drop(&mut self) {
        // SAFETY: made by `record`, destroyed once. Replays that were launched go on.
        let _: Result<_, _> = unsafe { sys::cuGraphExecDestroy(self.0) }.result();
    }
}

impl Graphs {
    /// Runs `pass`, or what was recorded of it.
    pub fn run(&mut self, device: &Device, key: Key, pass: impl FnOnce()) {
        let changes = device.ledger().changes();
        if self.changes != changes || self.known.len() >= MOST {
            self.known.clear();
            self.changes = changes;
        }
        let known = self.known.entry(key).or_insert(Known::Plain(0));
        match known {
            Known::Plain(times) if *times < PLAIN => {
                *times += 1;
                pass();
            }
            Known::Plain(_) => {
                let recording = record(device, pass);
                replay(device, &recording);
                *known = Known::Recorded(recording);
            }
            Known::Recorded(recording) => {
                replay(device, recording);
                // While the device is at it: nothing is asked of it here.
                device.set_replaying(true);
                let done = catch_unwind(AssertUnwindSafe(pass));
                device.set_replaying(false);
                done.unwrap_or_else(|panic| resume_unwind(panic));
            }
        }
    }
}

fn record(device: &Device, pass: impl FnOnce()) -> Recording {
    device.bind();
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: the stream lives as long as the device.
    device.expect(unsafe { sys::cuStreamBeginCapture_v2(device.stream(), mode) }.result());
    pass();
    let (mut graph, mut recording) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: handles go to locals; the graph is not needed once it can be launched.
    let made = unsafe {
        let ended = sys::cuStreamEndCapture(device.stream(), &raw mut graph).result();
        let made = ended
            .and_then(|()| sys::cuGraphInstantiateWithFlags(&raw mut recording, graph, 0).result());
        if !graph.is_null() {
            let _: Result<_, _> = sys::cuGraphDestroy(graph).result();
        }
        made
    };
    device.expect(made);
    Recording(recording)
}

fn replay(device: &Device, recording: &Recording) {
    device.bind();
    // SAFETY: what it was recorded with is where it was: the ledger has not changed.
    device.expect(unsafe { sys::cuGraphLaunch(recording.0, device.stream()) }.result());
}
