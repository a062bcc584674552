//! One device: its stream, its kernels, and how they are launched.

use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result, sys};

use super::error::{CudaError, Refused};
use super::ledger::Ledger;
use super::params;
use super::uploads::Pinned;
use crate::KernelError;

/// Shared memory that a block may ask for on compute capability 9.0.
const SHARED_BYTES: i32 = 227 << 10;

/// A kernel that takes a `P`.
pub struct Function<P> {
    raw: sys::CUfunction,
    params: PhantomData<fn(P)>,
}

// SAFETY: a handle of the driver's, which takes it from any thread.
unsafe impl<P> Send for Function<P> {}
// SAFETY: as above.
unsafe impl<P> Sync for Function<P> {}

macro_rules! kernels {
    ($($file:ident { $($name:ident: $params:ident,)* })*) => {
        /// Every kernel, by the name it has in its source.
        pub struct Kernels {
            $($(pub $name: Function<params::$params>,)*)*
        }

        impl Kernels {
            /// The context of the device is the current one.
            fn load() -> Result<Kernels, DriverError> {
                $(
                    let image = include_bytes!(concat!(env!("OUT_DIR"), "/", stringify!($file), ".cubin"));
                    // SAFETY: a whole binary as nvcc made it. It stays loaded for as long as the context.
                    let $file = unsafe { result::module::load_data(image.as_ptr().cast()) }?;
                )*
                Ok(Kernels {
                    $($($name: Function::load($file, stringify!($name))?,)*)*
                })
            }

            /// Names, and the binaries that they are looked up in.
            #[cfg(test)]
            fn images() -> Vec<(&'static str, &'static [u8])> {
                vec![$($((
                    stringify!($name),
                    &include_bytes!(concat!(env!("OUT_DIR"), "/", stringify!($file), ".cubin"))[..],
                ),)*)*]
            }
        }
    };
}

kernels! {
    sm90_bf16_rows {
        embed_f32: Embed,
        embed_bf16: Embed,
        rms_norm_f32_f32: Norm,
        rms_norm_f32_f32_wide: Norm,
        rms_norm_f32_bf16: Norm,
        rms_norm_f32_bf16_wide: Norm,
        rms_norm_bf16_f32: Norm,
        rms_norm_bf16_f32_wide: Norm,
        rms_norm_bf16_bf16: Norm,
        rms_norm_bf16_bf16_wide: Norm,
        head_rms_norm: HeadNorm,
        head_rms_norm_wide: HeadNorm,
        add_f32: Add,
        add_bf16: Add,
        silu_mul: Silu,
        silu_mul_wide: Silu,
        arg_max: ArgMax,
        copy_rows: CopyRows,
        rotate: Rotate,
        write_latent: WriteLatent,
        write_kv: WriteKv,
    }
    sm90_bf16_attention {
        attention: Attention,
    }
    sm90_bf16_exchange {
        exchange_dispatch: ExchangeDispatch,
        exchange_collect: ExchangeCollect,
        exchange_gather: ExchangeGather,
        exchange_respond: ExchangeRespond,
        exchange_combine: ExchangeCombine,
    }
    sm90_bf16_grouped_gemm {
        grouped_gemm_16: GroupedGemm,
        grouped_gemm_64: GroupedGemm,
        grouped_gemm_128: GroupedGemm,
    }
    sm90a_bf16_gemm {
        bf16_gemm_bf16: Bf16Gemm,
        bf16_gemm_f32: Bf16Gemm,
        bf16_gemm_pair_bf16: Bf16Gemm,
        bf16_gemm_pair_f32: Bf16Gemm,
        bf16_gemm_split_bf16: Bf16Gemm,
        bf16_gemm_split_f32: Bf16Gemm,
        bf16_gemm_halves_bf16: Bf16Gemm,
        bf16_gemm_halves_f32: Bf16Gemm,
    }
    sm90a_bf16_mla {
        mla_bf16: Mla,
        mla_merge: MlaMerge,
    }
    sm90a_fp8_gemm {
        fp8_gemm_narrow_bf16: Fp8Gemm,
        fp8_gemm_narrow_f32: Fp8Gemm,
        fp8_gemm_split3_bf16: Fp8Gemm,
        fp8_gemm_split3_f32: Fp8Gemm,
        fp8_gemm_wide_bf16: Fp8Gemm,
        fp8_gemm_wide_f32: Fp8Gemm,
        fp8_gemm_wide256_bf16: Fp8Gemm,
        fp8_gemm_wide256_f32: Fp8Gemm,
        fp8_gemm_wide_split_bf16: Fp8Gemm,
        fp8_gemm_wide_split_f32: Fp8Gemm,
        fp8_quantize: Fp8Quantize,
        fp8_silu_mul_quantize: Fp8Quantize,
    }
    sm90_f32_choice {
        edit: Edit,
        log_probs: LogProbs,
    }
    sm90_f32_draw {
        draw: Draw,
    }
    sm90_f32_gate {
        route: Route,
        count_choices: Count,
        sort_by_slot: Sort,
        combine: Combine,
    }
}

impl<P> Function<P> {
    fn load(module: sys::CUmodule, name: &str) -> Result<Function<P>, DriverError> {
        let name = CString::new(name).expect("names of kernels have no zero byte");
        // SAFETY: the module was loaded just now.
        let raw = unsafe { result::module::get_function(module, name) }?;
        let shared = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let fixed = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        let mut used = 0;
        // SAFETY: a function of that module; the number goes to a local.
        unsafe {
            sys::cuFuncGetAttribute(&mut used, fixed, raw).result()?;
            sys::cuFuncSetAttribute(raw, shared, SHARED_BYTES - used).result()?;
        }
        Ok(Function {
            raw,
            params: PhantomData,
        })
    }
}

/// A device and the one stream that all computing runs on, in the order of the calls.
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// On which weights come in.
    uploads: Arc<CudaStream>,
    /// While a model is loaded.
    pinned: Mutex<Option<Pinned>>,
    multiprocessors: usize,
    ledger: Mutex<Ledger>,
    /// Launches were recorded before and run as part of that.
    replaying: AtomicBool,
    pub kernels: Kernels,
}

/// Blocks along each axis, threads a block, and bytes of dynamic shared memory.
#[derive(Clone, Copy)]
pub struct Shape {
    pub grid: [usize; 3],
    pub threads: usize,
    pub shared: usize,
}

impl Device {
    /// How many there are.
    pub fn count() -> Result<usize, CudaError> {
        // SAFETY: looks for a library and keeps it open.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        result::init().to("start")?;
        Ok(result::device::get_count().to("count devices")? as usize)
    }

    pub fn open(ordinal: usize) -> Result<Arc<Device>, CudaError> {
        let count = Device::count()?;
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal).to("open the device")?;
        // SAFETY: what it tracks are cudarc's own slices, and there are none here. With it the first stream of a context
        // waits for the whole device, which makes passes void that another thread of this process is recording.
        unsafe { context.disable_event_tracking() };
        let (major, minor) = context
            .compute_capability()
            .to("tell what the device can do")?;
        if (major, minor) != (9, 0) {
            let name = context.name().unwrap_or_default();
            return Err(CudaError::OtherArchitecture {
                ordinal,
                name,
                major,
                minor,
            });
        }
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = context.attribute(attribute).to("count multiprocessors")?;
        let stream = context.new_stream().to("make a stream")?;
        let uploads = context.new_stream().to("make a stream")?;
        let kernels = Kernels::load().to("load the kernels")?;
        Ok(Arc::new(Device {
            context,
            stream,
            uploads,
            pinned: Mutex::default(),
            multiprocessors: multiprocessors as usize,
            ledger: Mutex::default(),
            replaying: AtomicBool::new(false),
            kernels,
        }))
    }

    /// Whether launches are left out from now on.
    pub fn set_replaying(&self, replaying: bool) {
        self.replaying.store(replaying, Ordering::Relaxed);
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("nothing panics with it")
    }

    pub fn uploads(&self) -> &Arc<CudaStream> {
        &self.uploads
    }

    pub fn pinned(&self) -> MutexGuard<'_, Option<Pinned>> {
        // A panic of who fills a buffer leaves it as good as before.
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Lets kernels here write to `other`'s memory.
    pub fn reach(&self, other: &Device) -> Result<(), KernelError> {
        if self.context.ordinal() == other.context.ordinal() {
            return Ok(());
        }
        self.bind();
        // SAFETY: both contexts live as long as their devices.
        let enabled = unsafe { sys::cuCtxEnablePeerAccess(other.context.cu_ctx(), 0) };
        match enabled {
            sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            result => result.result().map_err(|error| {
                let (from, to) = (self.context.ordinal(), other.context.ordinal());
                KernelError::Device(format!(
                    "cuda:{from} cannot reach the memory of cuda:{to}: {error}"
                ))
            }),
        }
    }

    /// One that runs beside everything else.
    pub fn another_stream(&self) -> Result<Arc<CudaStream>, CudaError> {
        self.context.bind_to_thread().to("bind the device")?;
        self.context.new_stream().to("make a stream")
    }

    pub fn stream(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }

    /// Makes this device the calling thread's.
    pub fn bind(&self) {
        self.expect(self.context.bind_to_thread());
    }

    /// One that will know when the stream reached it.
    pub fn timed_mark(&self) -> CudaEvent {
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        self.expect(self.context.new_event(Some(flags)))
    }

    /// Puts a mark behind everything that was asked for.
    pub fn reach_mark(&self, mark: &CudaEvent) {
        self.expect(mark.record(&self.stream));
    }

    /// After this everything that was asked for is done.
    pub fn wait(&self) {
        self.expect(self.stream.synchronize());
    }

    /// Asks for a kernel to run. Does nothing for an empty grid.
    ///
    /// # Safety
    /// The addresses in `params` are of device memory of the extents that the kernel goes to with them,
    /// alive until the stream is past it.
    pub unsafe fn launch<P: Copy>(&self, function: &Function<P>, shape: Shape, params: &P) {
        let [x, y, z] = shape.grid.map(|size| size as u32);
        if x == 0 || y == 0 || z == 0 || self.replaying.load(Ordering::Relaxed) {
            return;
        }
        self.bind();
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // Kernels wait for those before them themselves (`launch.cuh`), so this one may be made ready meanwhile.
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: shape.threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared as u32,
            hStream: self.stream(),
            attrs: &raw mut early,
            numAttrs: 1,
        };
        // SAFETY: the kernel takes one `P`, by the way it was loaded; the driver copies it before it
        // returns. What is behind the addresses is the caller's promise.
        let launched = unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                function.raw,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result();
        self.expect(launched);
    }

    /// What `result` holds. A device that refuses in the middle of serving is lost: its memory can no
    /// longer be trusted, and the process has to start again.
    pub fn expect<T>(&self, result: Result<T, DriverError>) -> T {
        result.unwrap_or_else(|error| panic!("cuda:{} failed: {error}", self.context.ordinal()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_is_in_its_binary() {
        for (name, image) in Kernels::images() {
            // Symbols end with a zero byte.
            let symbol = [b"\0", name.as_bytes(), b"\0"].concat();
            let found = image.windows(symbol.len()).any(|bytes| bytes == symbol);
            assert!(found, "{name}");
        }
    }
}
