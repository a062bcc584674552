//! With feature `cuda`: compiles every `src/cuda/sm90*.cu` to a binary for sm_90a, which `cuda::device` embeds.
//!
//! nvcc is `$NVCC`, or `$CUDA_HOME/bin/nvcc`, or what PATH has. No device and no driver are needed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // All in it, headers and new files too.
    println!("cargo:rerun-if-changed=src/cuda");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for variable in ["NVCC", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let sources = sources(Path::new("src/cuda"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let nvcc = env::var_os("NVCC").map(PathBuf::from).unwrap_or_else(|| {
        env::var_os("CUDA_HOME").map_or("nvcc".into(), |home| Path::new(&home).join("bin/nvcc"))
    });
    thread::scope(|scope| {
        for source in &sources {
            scope.spawn(|| compile(&nvcc, source, &out));
        }
    });
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder of the CUDA sources");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let kernels = paths.filter(|path| path.extension().is_some_and(|extension| extension == "cu"));
    kernels.collect()
}

fn compile(nvcc: &Path, source: &Path, out: &Path) {
    let mut binary = out.join(source.file_stem().expect("a file has a name"));
    binary.set_extension("cubin");
    // sm_90a and not sm_90: wgmma and setmaxnreg are of this architecture alone.
    let status = Command::new(nvcc)
        .args(["-gencode=arch=compute_90a,code=sm_90a", "-cubin"])
        .args(["-O3", "-std=c++17", "-lineinfo", "-Werror", "all-warnings"])
        .arg("-o")
        .arg(&binary)
        .arg(source)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!(
            "{} could not compile {}: {status}",
            nvcc.display(),
            source.display()
        ),
        Err(error) => panic!(
            "cannot run {}: {error}. Feature `cuda` needs nvcc 12.8 or later: put it on PATH or name it by NVCC or CUDA_HOME (docs/gpu.md)",
            nvcc.display()
        ),
    }
}
