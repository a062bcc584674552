//! What the engine's tests share: loading golden checkpoints, and running requests to their end.
#![allow(dead_code)] // Each test file uses its part.

pub mod group;
pub mod mesh;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use millrace_engine::{
    Engine, EngineConfig, Event, Finish, Kind, PageRef, Request, RequestId, SamplingParams,
    TokenOutput, engine::Pending, pages::PagePool, request::Output, request::Start,
};
use millrace_kernels::{Backend, KvDtype, PageMemory};
use millrace_model::checkpoint::Checkpoint;
use millrace_transfer::{LeaseTable, MemoryRegion, WritesEnded};
use safetensors::SafeTensors;

/// What the tests compute on: with feature `test-on-cuda` the first GPU.
#[cfg(not(feature = "test-on-cuda"))]
pub type TestBackend = millrace_kernels::cpu::CpuBackend;
#[cfg(feature = "test-on-cuda")]
pub type TestBackend = millrace_kernels::cuda::CudaBackend;

pub type TestTensor = <TestBackend as Backend>::Tensor;

/// `threads`: of the processor, if it computes.
pub fn backend(threads: usize) -> TestBackend {
    #[cfg(not(feature = "test-on-cuda"))]
    return TestBackend::new(threads);
    #[cfg(feature = "test-on-cuda")]
    {
        let _ = threads;
        TestBackend::new(0).expect("a GPU")
    }
}

/// A page of one pool into page `to` of another of the same layout.
///
/// # Safety
/// `page` is finished, and nobody else touches page `to`.
pub unsafe fn copy_page(page: &PageRef, from: &PagePool, to: &PageMemory, index: u32) {
    let (from, to_page) = (from.memory(), to.page_ptr(index as usize));
    let from_page = from.page_ptr(page.index() as usize);
    let bytes = to.layout().page_bytes();
    match (from.device(), to.device()) {
        (Some((_, from)), Some((_, to))) => {
            let mut host = vec![0; bytes];
            // SAFETY: pages of these devices, by the caller's promise nobody else's now.
            unsafe {
                from.read(from_page, &mut host);
                to.write(&host, to_page);
            }
        }
        (None, None) => {
            // SAFETY: as above, on the host.
            unsafe { to_page.copy_from_nonoverlapping(from_page, bytes) }
        }
        _ => panic!("pools of the tests are of one kind"),
    }
}

pub const FAMILIES: [&str; 11] = [
    "deepseek_v2_lite",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v3_fp8",
    "deepseek_v3_fp8_whole",
    "deepseek_v31",
    "qwen2",
    "qwen2_tied",
    "llama",
    "qwen3",
    "qwen3_attn_factor",
];

pub fn golden_dir(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(family)
}

/// float32 pages: the goldens' own precision.
pub fn float_config() -> EngineConfig {
    EngineConfig {
        kv_dtype: KvDtype::F32,
        kv_pages: 512,
        max_running: 32,
        max_model_len: Some(2048),
        ..EngineConfig::default()
    }
}

pub fn engine(family: &str, config: EngineConfig) -> Engine<TestBackend> {
    let checkpoint = Checkpoint::open(&golden_dir(family)).expect("a golden checkpoint opens");
    Engine::load(backend(2), &checkpoint, config, &mut |_| {}).expect("it loads")
}

pub fn request(id: u64, tokens: &[u32], sampling: SamplingParams) -> Request {
    Request {
        id: RequestId(id),
        prompt_tokens: tokens.len(),
        tokens: tokens.to_vec(),
        sampling,
        cache_salt: String::new(),
        kind: Kind::Whole,
    }
}

pub fn greedy(max_tokens: usize) -> SamplingParams {
    SamplingParams {
        max_tokens,
        ignore_eos: true,
        ..SamplingParams::default()
    }
}

/// All that one request gave.
#[derive(Debug, Default)]
pub struct Answer {
    pub tokens: Vec<TokenOutput>,
    pub start: Option<Start>,
    pub finish: Option<Finish>,
}

impl Answer {
    pub fn add(&mut self, output: Output) {
        self.tokens.extend(output.tokens);
        self.start = self.start.take().or(output.start);
        self.finish = output.finish;
    }

    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

/// Steps until nothing is left, and panics where an engine gets stuck.
pub fn run(engine: &mut Engine<TestBackend>) -> HashMap<u64, Answer> {
    let mut answers: HashMap<u64, Answer> = HashMap::new();
    loop {
        match engine.pending() {
            Pending::Idle => return answers,
            Pending::Blocked => panic!("stuck: {:?}", engine.status()),
            Pending::Runnable => {}
        }
        engine.step(&mut |event| match event {
            Event::Output { id, output } => answers.entry(id.0).or_default().add(output),
            Event::Started { .. } => {}
            event => panic!("not for a whole request: {event:?}"),
        });
    }
}

/// One request alone.
pub fn run_one(
    engine: &mut Engine<TestBackend>,
    id: u64,
    tokens: &[u32],
    sampling: SamplingParams,
) -> Answer {
    engine
        .submit(request(id, tokens, sampling))
        .expect("accepted");
    run(engine).remove(&id).expect("answered")
}

/// `golden.safetensors` of a family.
pub struct Golden {
    bytes: Vec<u8>,
}

pub const PROMPTS: [&str; 5] = ["p1", "p63", "p64", "p65", "p1000"];

impl Golden {
    pub fn open(family: &str) -> Golden {
        let path = golden_dir(family).join("golden.safetensors");
        Golden {
            bytes: std::fs::read(path).expect("a golden file"),
        }
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.values(name, |bytes| i32::from_le_bytes(bytes) as u32)
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.values(name, f32::from_le_bytes)
    }

    pub fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.bytes)
            .unwrap()
            .tensor(name)
            .is_ok()
    }

    fn values<T>(&self, name: &str, parse: impl Fn([u8; 4]) -> T) -> Vec<T> {
        let tensors = SafeTensors::deserialize(&self.bytes).expect("a golden file is well formed");
        let tensor = tensors.tensor(name).unwrap_or_else(|_| panic!("no {name}"));
        tensor
            .data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&bytes| parse(bytes))
            .collect()
    }
}

/// Leases the pages in a table of its own and revokes the lease at once.
pub fn proof(pool: &PagePool, pages: &[u32]) -> WritesEnded {
    let memory = pool.memory().clone();
    let (base, bytes, count) = (memory.base(), memory.layout().page_bytes(), memory.pages());
    // SAFETY: the pool's own memory, whose pages the tests hand over one after another.
    let region = unsafe { MemoryRegion::new(base, bytes, count, memory) };
    let table = LeaseTable::new(region.expect("a region"));
    table.lease(pages, None).expect("a lease").revoke()
}
