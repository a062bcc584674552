//! The part of NIXL that is used, with its rules about lifetimes kept by types.

use std::ffi::CStr;
use std::sync::{Arc, Once, OnceLock};

use libc::{c_int, c_void};
use nixl_sys::{
    AgentConfig, MemType, MemoryRegion as NixlMemory, NixlDescriptor, Params, RegistrationHandle,
    ThreadSync, XferDescList, XferOp, XferRequest, XferStatus,
};
use parking_lot::Mutex;

use super::{NixlConfig, NixlError};
use crate::machine;
use crate::memory::{MemoryKind, MemoryRegion, Source};

const PLUGIN: &str = "UCX";
const LIBRARY: &CStr = c"libnixl_capi.so";

/// Settings of UCX; variables of the environment come before them.
///
/// Where UCX waits for a socket to connect, a peer that dies between being connected to and being
/// greeted ends this process, too: its endpoint fails while it is being made, is used all the same,
/// and an assertion about it aborts. It also keeps every other peer waiting for one that does not
/// answer.
const UCX_CONFIG: &str = "TCP_CONN_NB=y";

/// One NIXL agent with a UCX worker, and a thread of NIXL's that keeps it going.
///
/// Fields are dropped in order: whatever the agent may still read or write goes after it.
pub(crate) struct Agent {
    registered: Mutex<Vec<RegistrationHandle>>,
    agent: nixl_sys::Agent,
    regions: Mutex<Vec<MemoryRegion>>,
    /// Copies under writes that were given up: whoever still reads them ends with the agent.
    orphans: Mutex<Vec<Box<[u8]>>>,
}

impl Agent {
    /// Loads NIXL's library, once. Its wrapper aborts the process where that fails, so nothing of
    /// it may be called before this has succeeded.
    fn load() -> Result<(), NixlError> {
        static LOADED: OnceLock<Result<(), NixlError>> = OnceLock::new();
        LOADED
            .get_or_init(|| {
                // SAFETY: a C string; NIXL's initialisers run, which is what was asked for.
                let library =
                    unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
                if !library.is_null() {
                    return Ok(());
                }
                // SAFETY: after a failure it is a C string, valid until the next call of its kind.
                let error = unsafe { libc::dlerror() };
                let cause = match error.is_null() {
                    true => "no reason given".into(),
                    // SAFETY: as above.
                    false => unsafe { CStr::from_ptr(error) }.to_string_lossy().into(),
                };
                Err(NixlError::NotInstalled(cause))
            })
            .clone()
    }

    pub(crate) fn new(config: &NixlConfig) -> Result<Agent, NixlError> {
        Agent::load()?;
        let start = |cause: String| NixlError::Start(cause);
        // Peers know agents by name, so no two may ever share one.
        let id = machine::random_u128().map_err(|error| start(error.to_string()))?;
        let name = format!("millrace-{id:032x}");
        let settings = AgentConfig {
            enable_prog_thread: true,
            // At 0, the default, NIXL's thread asks its sockets and cards without a pause, and an idle worker has a core
            // less. With any other it sleeps until there is something, and looks again this often.
            pthr_delay_us: 1000,
            // Writers' threads share an initiator's agent.
            thread_sync: ThreadSync::Strict,
            ..AgentConfig::default()
        };
        let agent = nixl_sys::Agent::new_configured(&name, &settings)
            .map_err(|error| start(error.to_string()))?;
        let plugins: Vec<String> = agent
            .get_available_plugins()
            .map_err(|error| start(error.to_string()))?
            .iter()
            .filter_map(|plugin| plugin.ok().map(str::to_owned))
            .collect();
        if !plugins.iter().any(|plugin| plugin == PLUGIN) {
            let found = match plugins.is_empty() {
                true => "none".into(),
                false => plugins.join(", "),
            };
            return Err(NixlError::NoPlugin {
                plugin: PLUGIN,
                found,
            });
        }
        // Not waiting for a peer that may be dead is what closing is for here.
        let mut parameters = vec![
            ("ucx_ep_close_force", "true".to_owned()),
            ("engine_config", UCX_CONFIG.to_owned()),
        ];
        if !config.devices.is_empty() {
            parameters.push(("device_list", config.devices.join(", ")));
        }
        let parameters = Params::from(parameters).map_err(|error| start(error.to_string()))?;
        agent
            .create_backend(PLUGIN, &parameters)
            .map_err(|error| start(error.to_string()))?;
        end_without_destructors();
        Ok(Agent {
            registered: Mutex::default(),
            agent,
            regions: Mutex::default(),
            orphans: Mutex::default(),
        })
    }

    /// Registers memory for as long as the agent lives.
    ///
    /// # Safety
    /// The memory outlives the agent, and peers that get its metadata may write it.
    pub(crate) unsafe fn register(
        &self,
        base: *mut u8,
        bytes: usize,
        kind: MemoryKind,
    ) -> Result<(), NixlError> {
        let handle = register(&self.agent, base, bytes, kind)?;
        self.registered.lock().push(handle);
        Ok(())
    }

    /// Registers a pool to write from. Nobody gets this agent's metadata, so peers cannot reach it.
    pub(crate) fn register_region(&self, region: &MemoryRegion) -> Result<(), NixlError> {
        let mut regions = self.regions.lock();
        if regions.iter().any(|known| known.is_same(region)) {
            return Ok(());
        }
        // SAFETY: the clone kept below outlives the agent.
        unsafe { self.register(region.page_ptr(0), region.bytes(), region.kind())? };
        regions.push(region.clone());
        Ok(())
    }

    /// How to reach this agent and the memory registered so far, for a peer's [`Agent::connect`].
    pub(crate) fn metadata(&self) -> Result<Vec<u8>, NixlError> {
        self.agent.get_local_md().map_err(failed("describe itself"))
    }

    /// Takes in a peer's metadata. The connection itself is made by the first write.
    pub(crate) fn connect(self: &Arc<Self>, metadata: &[u8]) -> Result<Remote, NixlError> {
        let name = self
            .agent
            .load_remote_md(metadata)
            .map_err(failed("take in the target's description"))?;
        Ok(Remote {
            agent: self.clone(),
            name,
        })
    }

    fn knows(&self, region: &MemoryRegion) -> bool {
        self.regions
            .lock()
            .iter()
            .any(|known| known.is_same(region))
    }
}

/// From here on, the process ends without the destructors of the libraries that NIXL has loaded by now:
/// they crash now and then (libnl-route's), which would turn a good exit code into a signal.
fn end_without_destructors() {
    static ONCE: Once = Once::new();
    unsafe extern "C" {
        // glibc's: like atexit, with the exit code.
        fn on_exit(function: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    }
    extern "C" fn end(code: c_int, _: *mut c_void) {
        // SAFETY: ends the process at once. Rust has flushed its output before handlers run.
        unsafe { libc::_exit(code) }
    }
    ONCE.call_once(|| {
        // SAFETY: the function has the type asked for and needs no argument. Handlers run in reverse, so
        // this one before what was registered as libraries were loaded. If it is not taken, the
        // destructors run as ever.
        unsafe { on_exit(end, std::ptr::null_mut()) };
    });
}

fn failed(what: &'static str) -> impl Fn(nixl_sys::NixlError) -> NixlError {
    move |error| NixlError::Failed {
        what,
        cause: error.to_string(),
    }
}

fn register(
    agent: &nixl_sys::Agent,
    base: *mut u8,
    bytes: usize,
    kind: MemoryKind,
) -> Result<RegistrationHandle, NixlError> {
    let extent = Extent {
        base: base as usize,
        bytes,
        kind,
    };
    agent
        .register_memory(&extent, None)
        .map_err(|error| NixlError::Register {
            bytes,
            cause: error.to_string(),
            limit: machine::memlock_limit(),
        })
}

#[derive(Debug)]
struct Extent {
    base: usize,
    bytes: usize,
    kind: MemoryKind,
}

impl NixlMemory for Extent {
    unsafe fn as_ptr(&self) -> *const u8 {
        self.base as *const u8
    }

    fn size(&self) -> usize {
        self.bytes
    }
}

impl NixlDescriptor for Extent {
    fn mem_type(&self) -> MemType {
        mem_type(self.kind)
    }

    fn device_id(&self) -> u64 {
        device_id(self.kind)
    }
}

fn mem_type(kind: MemoryKind) -> MemType {
    match kind {
        MemoryKind::Host => MemType::Dram,
        MemoryKind::Device(_) => MemType::Vram,
    }
}

fn device_id(kind: MemoryKind) -> u64 {
    match kind {
        MemoryKind::Host => 0,
        MemoryKind::Device(device) => device.into(),
    }
}

/// A peer's agent that can be written to. Dropping it closes the way there at once.
pub(crate) struct Remote {
    agent: Arc<Agent>,
    name: String,
}

impl Remote {
    /// Begins to write `bytes` bytes of `source`, from `offset` on, to address `to` at the peer.
    /// `source` has to stay until the write is done, or dropped.
    pub(crate) fn write(
        &self,
        source: &Source,
        offset: usize,
        bytes: usize,
        to: u64,
    ) -> Result<Write, NixlError> {
        let (kind, from, bounce) = match source.region() {
            Some((region, page)) if self.agent.knows(region) => {
                // SAFETY: a page of the region, of which a part is asked for.
                let from = unsafe { region.page_ptr(page).add(offset) };
                (region.kind(), from as usize, None)
            }
            _ => {
                let part = &source.bytes()[offset..offset + bytes];
                let bounce = Bounce::new(&self.agent.agent, part)?;
                (
                    MemoryKind::Host,
                    bounce.memory.as_ptr() as usize,
                    Some(bounce),
                )
            }
        };
        let list = |kind| XferDescList::new(kind).map_err(failed("describe a write"));
        let (mut local, mut remote) = (list(mem_type(kind))?, list(MemType::Dram)?);
        local.add_desc(from, bytes, device_id(kind));
        remote.add_desc(to as usize, bytes, 0);
        let agent = &self.agent.agent;
        let request = agent
            .create_xfer_req(XferOp::Write, &local, &remote, &self.name, None)
            .map_err(failed("prepare a write"))?;
        let mut write = Write {
            request: Some(request),
            agent: self.agent.clone(),
            bounce,
            done: false,
        };
        let request = write.request.as_ref().expect("just put there");
        let pending = agent
            .post_xfer_req(request, None)
            .map_err(failed("begin a write"))?;
        write.done = !pending;
        Ok(write)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // Where the peer is gone NIXL has forgotten it already.
        let _ = self.agent.agent.invalidate_remote_md(&self.name);
    }
}

/// A write on its way.
pub(crate) struct Write {
    /// Absent only while being dropped.
    request: Option<XferRequest>,
    agent: Arc<Agent>,
    bounce: Option<Bounce>,
    done: bool,
}

impl Write {
    /// Whether every byte is at the peer.
    pub(crate) fn is_done(&mut self) -> Result<bool, NixlError> {
        if !self.done {
            let request = self.request.as_ref().expect("taken by drop alone");
            let status = self.agent.agent.get_xfer_status(request);
            self.done = status.map_err(failed("write"))? == XferStatus::Success;
        }
        Ok(self.done)
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        // Cancels what is not done, so far as that goes: the card may still read the source.
        self.request = None;
        if let (false, Some(bounce)) = (self.done, self.bounce.take()) {
            self.agent.orphans.lock().push(bounce.memory);
        }
    }
}

/// A registered copy of bytes that lie outside any registered region.
struct Bounce {
    /// Before the memory.
    _registration: RegistrationHandle,
    memory: Box<[u8]>,
}

impl Bounce {
    fn new(agent: &nixl_sys::Agent, bytes: &[u8]) -> Result<Bounce, NixlError> {
        let mut memory: Box<[u8]> = bytes.into();
        let registration = register(agent, memory.as_mut_ptr(), memory.len(), MemoryKind::Host)?;
        Ok(Bounce {
            _registration: registration,
            memory,
        })
    }
}
