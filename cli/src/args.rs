//! Flags that several commands share.

use std::{ffi::OsString, path::PathBuf};

use millrace_worker::DeviceId;

use clap::{
    Args, ValueEnum,
    builder::{FalseyValueParser, NonEmptyStringValueParser},
};

/// What is served.
#[derive(Debug, Clone, Default, Args)]
pub struct ModelArgs {
    /// A Hugging Face folder: config.json, tokenizer.json, *.safetensors [default: the embedded tiny-r1]
    #[arg(long, value_name = "DIR", env = "MILLRACE_MODEL")]
    pub model: Option<PathBuf>,
    /// The names that clients may ask for; answers carry the first; may be given several times [default: the folder's name]
    #[arg(
        long,
        value_name = "NAME,...",
        env = "MILLRACE_SERVED_MODEL_NAME",
        value_delimiter = ',',
        value_parser = NonEmptyStringValueParser::new()
    )]
    pub served_model_name: Vec<String>,
    /// Prompt plus output, in tokens [default: what the model allows]
    #[arg(long, value_name = "TOKENS", env = "MILLRACE_MAX_MODEL_LEN")]
    pub max_model_len: Option<usize>,
}

impl ModelArgs {
    /// The checkpoint's folder and the names it is served under, one at least.
    ///
    /// # Errors
    /// The embedded model could not be unpacked.
    pub fn resolve(&self) -> Result<(PathBuf, Vec<String>), crate::embedded::EmbeddedError> {
        let (dir, name) = match &self.model {
            Some(dir) => (dir.clone(), folder_name(dir)),
            None => (crate::embedded::unpack()?, crate::embedded::NAME.to_owned()),
        };
        match self.served_model_name.clone() {
            names if names.is_empty() => Ok((dir, vec![name])),
            names => Ok((dir, names)),
        }
    }
}

/// `.` and `..` have no name of their own: ask the file system.
fn folder_name(dir: &std::path::Path) -> String {
    let named = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    named.file_name().map_or_else(
        || "model".into(),
        |name| name.to_string_lossy().into_owned(),
    )
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvDtypeArg {
    F32,
    Bf16,
    /// Latent values in 8 bits, with a scale for every 128 (models with latent attention): a page is
    /// little more than half of one in bf16, in memory and on the wire
    Fp8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TransferArg {
    /// Shared memory between workers of one machine; between machines NIXL over RDMA where both
    /// ends have it, otherwise TCP
    Auto,
    /// NIXL, whatever network it finds
    Nixl,
    Shm,
    Tcp,
}

/// How a worker is sized. Absent values take the engine's defaults.
#[derive(Debug, Clone, Default, Args)]
pub struct EngineArgs {
    /// What computes: cpu, cuda, or cuda:N for one of several GPUs [default: cpu]
    #[arg(long, value_name = "DEVICE", env = "MILLRACE_DEVICE")]
    pub device: Option<DeviceId>,
    /// Threads that compute, a worker [default: the machine's cores; `up` shares them out]
    #[arg(long, value_name = "N", env = "MILLRACE_THREADS", value_parser = positive)]
    pub threads: Option<usize>,
    /// KV pages of 64 tokens, a worker
    #[arg(long, value_name = "PAGES", env = "MILLRACE_KV_PAGES", value_parser = positive)]
    pub kv_pages: Option<usize>,
    /// How cached values are stored
    #[arg(long, value_name = "DTYPE", env = "MILLRACE_KV_DTYPE")]
    pub kv_dtype: Option<KvDtypeArg>,
    /// Most tokens a step computes; longer prompts are cut into chunks of this
    #[arg(long, value_name = "TOKENS", env = "MILLRACE_MAX_BATCH_TOKENS", value_parser = positive)]
    pub max_batch_tokens: Option<usize>,
    /// Most sequences a step computes
    #[arg(long, value_name = "N", env = "MILLRACE_MAX_RUNNING", value_parser = positive)]
    pub max_running: Option<usize>,
    /// A prompt with at most this many tokens to compute is prefilled by the decode worker itself
    #[arg(long, value_name = "TOKENS", env = "MILLRACE_LOCAL_PREFILL_TOKENS")]
    pub local_prefill_tokens: Option<usize>,
    /// Do not draft tokens with the model's MTP layer
    #[arg(long, env = "MILLRACE_NO_MTP", value_parser = FalseyValueParser::new())]
    pub no_mtp: bool,
    /// Do not keep finished pages for prompts that start the same
    #[arg(long, env = "MILLRACE_NO_PREFIX_CACHE", value_parser = FalseyValueParser::new())]
    pub no_prefix_cache: bool,
    /// How KV pages travel between workers
    #[arg(long, value_name = "HOW", env = "MILLRACE_TRANSFER")]
    pub transfer: Option<TransferArg>,
    /// Network devices for NIXL, such as mlx5_0 [default: what UCX finds]
    #[arg(
        long,
        value_name = "NAME,..",
        env = "MILLRACE_TRANSFER_DEVICES",
        value_delimiter = ','
    )]
    pub transfer_devices: Vec<String>,
}

pub fn positive(text: &str) -> Result<usize, PositiveError> {
    text.parse().ok().filter(|&n| n > 0).ok_or(PositiveError)
}

#[derive(Debug, thiserror::Error)]
#[error("expected a number of at least 1")]
pub struct PositiveError;

impl ModelArgs {
    /// The flags that give another command of this binary the same values, with `dir` and `names`
    /// resolved.
    pub fn to_flags(&self, dir: &std::path::Path, names: &[String]) -> Vec<OsString> {
        let mut flags = Flags::default();
        flags.value("--model", Some(dir));
        flags.value("--served-model-name", Some(&names.join(",")));
        flags.number("--max-model-len", self.max_model_len);
        flags.0
    }
}

impl EngineArgs {
    /// As `ModelArgs::to_flags`, with `threads` where none were given.
    pub fn to_flags(&self, threads: usize) -> Vec<OsString> {
        let mut flags = Flags::default();
        let device = self.device.map(|device| device.to_string());
        flags.value("--device", device.as_ref());
        flags.number("--threads", Some(self.threads.unwrap_or(threads)));
        flags.number("--kv-pages", self.kv_pages);
        flags.choice("--kv-dtype", self.kv_dtype);
        flags.number("--max-batch-tokens", self.max_batch_tokens);
        flags.number("--max-running", self.max_running);
        flags.number("--local-prefill-tokens", self.local_prefill_tokens);
        flags.switch("--no-mtp", self.no_mtp);
        flags.switch("--no-prefix-cache", self.no_prefix_cache);
        flags.choice("--transfer", self.transfer);
        let devices = self.transfer_devices.join(",");
        flags.value(
            "--transfer-devices",
            (!devices.is_empty()).then_some(&devices),
        );
        flags.0
    }
}

/// Builds an argument list.
#[derive(Debug, Default)]
pub struct Flags(pub Vec<OsString>);

impl Flags {
    pub fn value<V: AsRef<std::ffi::OsStr> + ?Sized>(&mut self, flag: &str, value: Option<&V>) {
        if let Some(value) = value {
            self.0.extend([flag.into(), value.as_ref().to_owned()]);
        }
    }

    pub fn number(&mut self, flag: &str, value: Option<usize>) {
        self.value(flag, value.map(|n| n.to_string()).as_deref());
    }

    pub fn choice<E: ValueEnum>(&mut self, flag: &str, value: Option<E>) {
        let name = value.and_then(|v| v.to_possible_value());
        self.value(flag, name.as_ref().map(|v| v.get_name()));
    }

    pub fn switch(&mut self, flag: &str, on: bool) {
        if on {
            self.0.push(flag.into());
        }
    }
}
