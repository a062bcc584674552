//! Tensor maps: matrices as the copy engine knows them.

use std::mem::MaybeUninit;

use cudarc::driver::sys::{self, CUtensorMap};

use super::device::Device;
use super::params::Address;

/// A matrix of `rows` rows of `cols` values, `stride` bytes apart, copied in boxes of `box_rows x box_cols`.
#[derive(Clone, Copy)]
pub struct Map {
    pub data: Address,
    pub kind: Value,
    pub cols: usize,
    pub rows: usize,
    pub stride: usize,
    pub box_cols: u32,
    pub box_rows: u32,
    /// Boxes lie in shared memory with their 16-byte pieces exchanged by row; they are 128 bytes wide.
    pub swizzled: bool,
}

#[derive(Clone, Copy)]
pub enum Value {
    Byte,
    Bf16,
    F32,
}

/// Nothing, where a kernel looks at no map.
pub const NO_MAP: CUtensorMap = CUtensorMap { opaque: [0; 16] };

/// Of bf16 in three dimensions, the first of them contiguous and `strides` bytes from one to the next of the others;
/// boxes are swizzled.
#[derive(Clone, Copy)]
pub struct Map3 {
    pub data: Address,
    pub sizes: [usize; 3],
    pub strides: [usize; 2],
    pub box_sizes: [u32; 3],
}

impl Map3 {
    pub fn encode(&self, device: &Device) -> CUtensorMap {
        encode(
            device,
            sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            self.data,
            &self.sizes.map(|size| size as u64),
            &self.strides.map(|stride| stride as u64),
            &self.box_sizes,
            true,
        )
    }
}

impl Map {
    pub fn encode(&self, device: &Device) -> CUtensorMap {
        use sys::CUtensorMapDataType_enum as Type;
        let kind = match self.kind {
            Value::Byte => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            Value::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            Value::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        };
        encode(
            device,
            kind,
            self.data,
            &[self.cols as u64, self.rows as u64],
            &[self.stride as u64],
            &[self.box_cols, self.box_rows],
            self.swizzled,
        )
    }
}

fn encode(
    device: &Device,
    kind: sys::CUtensorMapDataType_enum,
    data: Address,
    sizes: &[u64],
    strides: &[u64],
    box_sizes: &[u32],
    swizzled: bool,
) -> CUtensorMap {
    use sys::{
        CUtensorMapFloatOOBfill_enum as Fill, CUtensorMapInterleave_enum as Interleave,
        CUtensorMapL2promotion_enum as Promotion, CUtensorMapSwizzle_enum as Swizzle,
    };
    let swizzle = match swizzled {
        true => Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        false => Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
    };
    let rank = sizes.len();
    assert!(strides.len() + 1 == rank && box_sizes.len() == rank && rank <= 3);
    device.bind();
    let mut map = MaybeUninit::<CUtensorMap>::uninit();
    // SAFETY: all arrays are as long as the rank says (strides: one less), and the map goes to a local.
    let encoded = unsafe {
        sys::cuTensorMapEncodeTiled(
            map.as_mut_ptr(),
            kind,
            rank as u32,
            data as *mut _,
            sizes.as_ptr(),
            strides.as_ptr(),
            box_sizes.as_ptr(),
            [1, 1, 1].as_ptr(),
            Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    device.expect(encoded.result());
    // SAFETY: written, as the call said.
    unsafe { map.assume_init() }
}
