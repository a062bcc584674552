//! What a worker computes on.

use std::{fmt, str::FromStr, time::Duration};

#[cfg(feature = "cuda")]
use millrace_kernels::cuda::CudaBackend;
use millrace_kernels::{Backend, cpu::CpuBackend};

use crate::{WorkerConfig, WorkerError};

/// A device, as `--device` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceId {
    #[default]
    Cpu,
    /// The GPU that CUDA counts as this number; `None`: the first, but each rank of a group takes the next.
    Cuda(Option<usize>),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected cpu, cuda or cuda:N, not {0:?}")]
pub struct UnknownDevice(String);

impl FromStr for DeviceId {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<DeviceId, UnknownDevice> {
        let unknown = || UnknownDevice(text.to_string());
        match text.split_once(':') {
            None if text == "cpu" => Ok(DeviceId::Cpu),
            None if text == "cuda" => Ok(DeviceId::Cuda(None)),
            Some(("cuda", ordinal)) => {
                let ordinal = ordinal.parse().map_err(|_| unknown())?;
                Ok(DeviceId::Cuda(Some(ordinal)))
            }
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceId::Cpu => f.write_str("cpu"),
            DeviceId::Cuda(None) => f.write_str("cuda"),
            DeviceId::Cuda(Some(ordinal)) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// A backend that a worker can be started on.
pub trait Device: Backend {
    /// One that takes longer will never end; `None` where it may just be slow.
    const LONGEST_STEP: Option<Duration>;

    fn open(config: &WorkerConfig) -> Result<Self, WorkerError>;
}

impl Device for CpuBackend {
    const LONGEST_STEP: Option<Duration> = None;

    fn open(config: &WorkerConfig) -> Result<CpuBackend, WorkerError> {
        let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Ok(CpuBackend::new(config.threads.unwrap_or_else(cores)))
    }
}

#[cfg(feature = "cuda")]
impl Device for CudaBackend {
    /// The largest batches of the largest models take a few seconds.
    const LONGEST_STEP: Option<Duration> = Some(Duration::from_secs(120));

    fn open(config: &WorkerConfig) -> Result<Self, WorkerError> {
        let ordinal = match (config.device, &config.group) {
            (DeviceId::Cuda(Some(ordinal)), _) => ordinal,
            // More ranks than GPUs share them.
            (_, Some(group)) => group.rank % CudaBackend::count()?.max(1),
            _ => 0,
        };
        Ok(CudaBackend::new(ordinal)?)
    }
}

/// Awaits `$serve::<B>($argument, ...)` with `B` the backend of device `$device`.
#[macro_export]
macro_rules! on_device {
    ($device:expr, $serve:ident($($argument:expr),* $(,)?)) => {
        match $device {
            $crate::DeviceId::Cpu => $serve::<$crate::CpuBackend>($($argument),*).await,
            #[cfg(feature = "cuda")]
            $crate::DeviceId::Cuda(_) => $serve::<$crate::CudaBackend>($($argument),*).await,
            #[cfg(not(feature = "cuda"))]
            device => Err($crate::WorkerError::NoCuda(device)),
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_known_by_name() {
        for (text, device) in [
            ("cpu", DeviceId::Cpu),
            ("cuda", DeviceId::Cuda(None)),
            ("cuda:3", DeviceId::Cuda(Some(3))),
        ] {
            assert_eq!(text.parse(), Ok(device));
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cpu:0", "cuda:x"] {
            assert!(text.parse::<DeviceId>().is_err(), "{text}");
        }
        for text in ["cpu", "cuda", "cuda:2"] {
            assert_eq!(text.parse::<DeviceId>().unwrap().to_string(), text);
        }
    }
}
