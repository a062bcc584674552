// What the kernels of this folder share: numbers, reductions, and where cache rows lie.
//
// Every kernel takes one struct by value, which `params.rs` mirrors field by field.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <stdint.h>
#include "launch.cuh"

typedef __nv_bfloat16 bf16;

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __bfloat162float(x); }
template <class T> __device__ __forceinline__ T from_f32(float x);
template <> __device__ __forceinline__ float from_f32<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_f32<bf16>(float x) { return __float2bfloat16_rn(x); }

// Sums and maxima over a block in an order that only the block's size decides, so that a row's result does not
// depend on other rows. All threads get the result.
template <class F> __device__ float block_reduce(float value, F combine) {
  __shared__ float parts[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int step = 16; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(~0u, value, step));
  __syncthreads();  // the last call's parts have been read
  if (lane == 0) parts[warp] = value;
  __syncthreads();
  value = parts[0];
  for (int i = 1; i < warps; i++) value = combine(value, parts[i]);
  return value;
}
__device__ __forceinline__ float block_sum(float value) {
  return block_reduce(value, [](float a, float b) { return a + b; });
}
__device__ __forceinline__ float block_max(float value) {
  return block_reduce(value, [](float a, float b) { return fmaxf(a, b); });
}

enum PageType : uint32_t { PAGE_F32 = 0, PAGE_BF16 = 1, PAGE_FP8 = 2 };
constexpr int PAGE_TOKENS = 64;
constexpr int FP8_BLOCK = 128;
constexpr float FP8_LARGEST = 448.0f;

// One layer of the page pool.
struct Pages {
  uint8_t* base;  // of the layer in page 0
  uint64_t page_bytes;
  uint32_t row_bytes;
  uint32_t row_values;
  uint32_t latent;
  PageType type;

  __device__ __forceinline__ uint8_t* row(const uint32_t* table, uint32_t position) const {
    return base + table[position / PAGE_TOKENS] * page_bytes + (uint64_t)(position % PAGE_TOKENS) * row_bytes;
  }
  // Parts of a row of 8-bit values, which are aligned: `latent` is a multiple of four.
  __device__ __forceinline__ const float* scales(const uint8_t* row) const {
    return reinterpret_cast<const float*>(row + latent);
  }
  __device__ __forceinline__ const bf16* rotated(const uint8_t* row) const {
    return reinterpret_cast<const bf16*>(scales(row) + (latent + FP8_BLOCK - 1) / FP8_BLOCK);
  }
  // Value `i` of a row.
  __device__ __forceinline__ float read(const uint8_t* row, uint32_t i) const {
    if (type == PAGE_BF16) return to_f32(reinterpret_cast<const bf16*>(row)[i]);
    if (type == PAGE_F32) return reinterpret_cast<const float*>(row)[i];
    if (i < latent) {
      __nv_fp8_e4m3 code;
      code.__x = row[i];
      return float(code) * scales(row)[i / FP8_BLOCK];
    }
    return to_f32(rotated(row)[i - latent]);
  }
};

// A batch: what each row is and where its sequence's pages are.
struct Rows {
  const uint32_t* tokens;
  const uint32_t* positions;
  const uint32_t* table_of;  // row -> first entry in `tables`
  const uint32_t* tables;
};

struct Rope {
  const float* cos;  // [positions][dim / 2]
  const float* sin;
  uint32_t dim;
  uint32_t interleaved;

  // Where the two values of pair `i` stand in a head.
  __device__ __forceinline__ uint2 places(uint32_t i) const {
    return interleaved ? make_uint2(2 * i, 2 * i + 1) : make_uint2(i, i + dim / 2);
  }
  __device__ __forceinline__ float2 turn(float a, float b, uint32_t position, uint32_t i) const {
    const uint64_t at = (uint64_t)position * (dim / 2) + i;
    // Products and sums are rounded apart, as on the processor.
    return make_float2(__fsub_rn(__fmul_rn(a, cos[at]), __fmul_rn(b, sin[at])),
                       __fadd_rn(__fmul_rn(b, cos[at]), __fmul_rn(a, sin[at])));
  }
};
