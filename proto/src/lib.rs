//! The contracts: generated types and services, and nothing else.
//!
//! Protobuf types are wire types. They are turned into a crate's own types at its edge and do not
//! travel further in (invariant 8).

/// The public gRPC API.
// Generated: a request is decoded once and moved on, so that its size on the stack is no matter.
#[allow(clippy::large_enum_variant)]
pub mod inference {
    pub mod v1 {
        tonic::include_proto!("millrace.inference.v1");
    }
}

/// Between router and workers, and between workers.
// Generated, and the large message is the one that a stream begins with.
#[allow(clippy::large_enum_variant)]
pub mod worker {
    pub mod v1 {
        tonic::include_proto!("millrace.worker.v1");
    }
}

/// KServe v2 (Open Inference Protocol), with Triton's streaming extension.
pub mod kserve {
    tonic::include_proto!("inference");
}

/// All contracts as an encoded `FileDescriptorSet`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
