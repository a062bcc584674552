//! Compiles the contracts with protox, so that no protoc is needed.

use prost::Message as _;

const FILES: [&str; 3] = [
    "millrace/inference/v1/inference.proto",
    "millrace/worker/v1/worker.proto",
    "inference/grpc_service.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    // The reflection service answers from the same descriptors that the code was generated from.
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
