//! What can be wrong with a device.

/// Before anything runs: there is no device to run on, or it is of another kind.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    #[error(
        "there is no CUDA driver (libcuda.so.1 was not found): install NVIDIA's driver, give the container its GPUs, or use --device cpu"
    )]
    NoDriver,
    #[error(
        "there is no device cuda:{ordinal}; the driver sees {count} (nvidia-smi lists them, CUDA_VISIBLE_DEVICES can hide some)"
    )]
    NoDevice { ordinal: usize, count: usize },
    #[error(
        "cuda:{ordinal} is a {name} of compute capability {major}.{minor}; the kernels are for 9.0 (H100, H200, GH200)"
    )]
    OtherArchitecture {
        ordinal: usize,
        name: String,
        major: i32,
        minor: i32,
    },
    #[error("the driver refused to {what}: {source}")]
    Driver {
        what: &'static str,
        source: cudarc::driver::DriverError,
    },
}

pub(super) trait Refused<T> {
    fn to(self, what: &'static str) -> Result<T, CudaError>;
}

impl<T> Refused<T> for Result<T, cudarc::driver::DriverError> {
    fn to(self, what: &'static str) -> Result<T, CudaError> {
        self.map_err(|source| CudaError::Driver { what, source })
    }
}
