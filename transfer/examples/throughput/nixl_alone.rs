//! NIXL as its own benchmark uses it: register, exchange metadata, post one request, poll it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use nixl_sys::{
    Agent, AgentConfig, MemType, MemoryRegion, NixlDescriptor, Params, XferDescList, XferOp,
};

use super::{Failure, ROUNDS, Speed, TOTAL};

#[derive(Debug)]
struct Buffer(Vec<u8>);

impl MemoryRegion for Buffer {
    unsafe fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }

    fn size(&self) -> usize {
        self.0.len()
    }
}

impl NixlDescriptor for Buffer {
    fn mem_type(&self) -> MemType {
        MemType::Dram
    }

    fn device_id(&self) -> u64 {
        0
    }
}

fn agent(name: &str) -> Result<Agent, Failure> {
    let agent = Agent::new_configured(name, &AgentConfig::default())?;
    agent.create_backend("UCX", &Params::from([("num_workers", "1")])?)?;
    Ok(agent)
}

/// Lets a child write into this process's memory.
pub fn target(page_bytes: usize, pages: usize) -> Result<Speed, Failure> {
    let agent = agent("target")?;
    let buffer = Buffer(vec![1; page_bytes * pages]);
    let _registered = agent.register_memory(&buffer, None)?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["nixl-alone", &page_bytes.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().ok_or("no stdin")?;
    let metadata = agent.get_local_md()?;
    let metadata: String = metadata.iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(input, "{} {metadata}", buffer.0.as_ptr() as usize)?;
    let output = BufReader::new(child.stdout.take().ok_or("no stdout")?);
    let seconds: Result<Vec<f64>, Failure> = output
        .lines()
        .map(|line| Ok(line?.trim().parse()?))
        .collect();
    let seconds = seconds?;
    drop(input);
    child.wait()?;
    Ok(Speed::of(page_bytes * pages, seconds))
}

/// The child: writes everything again and again; seconds a line.
pub fn writer(page_bytes: usize) -> Result<(), Failure> {
    let agent = agent("writer")?;
    let pages = TOTAL / page_bytes;
    let buffer = Buffer(vec![7; page_bytes * pages]);
    let _registered = agent.register_memory(&buffer, None)?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let (base, metadata) = line.trim().split_once(' ').ok_or("no metadata")?;
    let base: usize = base.parse()?;
    let metadata: Result<Vec<u8>, _> = (0..metadata.len() / 2)
        .map(|at| u8::from_str_radix(&metadata[2 * at..2 * at + 2], 16))
        .collect();
    let remote_name = agent.load_remote_md(&metadata?)?;
    for round in 0..=ROUNDS {
        let mut local = XferDescList::new(MemType::Dram)?;
        let mut remote = XferDescList::new(MemType::Dram)?;
        for page in 0..pages {
            local.add_desc(
                buffer.0.as_ptr() as usize + page * page_bytes,
                page_bytes,
                0,
            );
            remote.add_desc(base + page * page_bytes, page_bytes, 0);
        }
        let request = agent.create_xfer_req(XferOp::Write, &local, &remote, &remote_name, None)?;
        let began = Instant::now();
        if agent.post_xfer_req(&request, None)? {
            while !agent.get_xfer_status(&request)?.is_success() {
                std::hint::spin_loop();
            }
        }
        if round > 0 {
            println!("{}", began.elapsed().as_secs_f64());
        }
    }
    std::io::stdout().flush()?;
    // SAFETY: ends the process without the destructors of NIXL's libraries, which may crash.
    unsafe { libc::_exit(0) }
}
