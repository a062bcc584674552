// FP8 (e4m3) GEMM with DeepSeek's block scaling on Hopper: Y[M,N] = X[M,K] W[N,K]^T.
//
// X has one float32 scale per row and 128 inputs, W one per 128 outputs and 128 inputs. The tensor
// cores multiply 128 inputs at a time; each such product is scaled and added to float32 sums, K block
// after K block in ascending order (in a `split` form: segment after segment, then the segments'
// sums in ascending order). Nothing else decides the order of a sum, so a row's result is the same
// bits in every form of one split, for any number of rows, groups and neighbours.
//
// Three forms of one product:
//  * narrow: few rows. W's rows are the M=64 side of wgmma and tokens the N side (8 .. 64 a warpgroup,
//    as many as the tile has), so that a tile costs what its weights cost to read. The CTAs of a
//    cluster have neighbouring outputs and share the tokens: each reads a part and multicasts it.
//  * split: narrow with K cut into segments over the CTAs of a cluster, for a small N.
//  * wide: many rows. 128 or 256 tokens x 128 outputs, pairs of CTAs sharing the tokens. wide_split has
//    the sums of a split form.
//
// All are persistent and find their tiles on the device: rows sorted by slot, `offsets` in device
// memory. Rows past a slot's end are loaded and multiplied (columns or rows of their own, which
// nobody reads) and never stored.

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <stdint.h>

#include "fp8_gemm_narrow.cuh"
#include "fp8_gemm_wide.cuh"
#include "quantize.cuh"

// --- quantisers -----------------------------------------------------------------------------

// Parameters of the quantisers.
struct Fp8QuantArgs {
    const __nv_bfloat16 *x;    // 16-byte aligned, first column included
    uint8_t *q;                // [rows][k]
    float *scales;             // [k/128][scale_ld]
    const uint32_t *rows_ptr;  // the number of rows, or null: rows
    uint32_t rows, k, ldx;     // ldx in elements, a multiple of 8
    uint32_t scale_ld;         // a multiple of 4, >= rows
    const uint32_t *index;     // row of x for each row, or null: the same
};

namespace fp8_gemm {

__device__ __forceinline__ void unpack(uint4 v, float (&f)[8]) {
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        f[2 * i] = __uint_as_float(w[i] << 16);
        f[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
    }
}

// 32 rows x 256 columns a CTA of 8 warps; a warp has four rows, a lane eight columns.
template <bool SILU>
__device__ __forceinline__ void quantize_rows(const Fp8QuantArgs &a, uint32_t row0, uint32_t rows, float (&scales)[2][32]) {
    constexpr uint32_t ROWS = 4;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    const uint32_t col = blockIdx.x * 256 + lane * 8;
    const bool inside = col < a.k;
    uint4 raw[ROWS], up[SILU ? ROWS : 1];
#pragma unroll
    for (uint32_t i = 0; i < ROWS; ++i) {
        const uint32_t row = row0 + warp * ROWS + i;
        raw[i] = make_uint4(0, 0, 0, 0);
        if constexpr (SILU) up[i] = raw[i];
        if (inside && row < rows) {
            const __nv_bfloat16 *p = a.x + size_t(a.index ? a.index[row] : row) * a.ldx + col;
            raw[i] = __ldg(reinterpret_cast<const uint4 *>(p));
            if constexpr (SILU) up[i] = __ldg(reinterpret_cast<const uint4 *>(p + a.k));
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < ROWS; ++i) {
        const uint32_t row = row0 + warp * ROWS + i;
        float v[8];
        unpack(raw[i], v);
        if constexpr (SILU) {
            float u[8];
            unpack(up[i], u);
#pragma unroll
            for (int j = 0; j < 8; ++j) v[j] = __fdividef(v[j], 1.f + __expf(-v[j])) * u[j];
        }
        float scale;
        const uint2 codes = quantize_8(v, scale);
        if (inside && row < rows) *reinterpret_cast<uint2 *>(a.q + size_t(row) * a.k + col) = codes;
        if ((lane & 15) == 0) scales[lane / 16][warp * ROWS + i] = scale;
    }
    __syncthreads();
    if (threadIdx.x < 64) {
        const uint32_t half = threadIdx.x / 32, row = row0 + lane, kb = blockIdx.x * 2 + half;
        if (row < rows && kb < a.k / kBlockK) a.scales[size_t(kb) * a.scale_ld + row] = scales[half][lane];
    }
}

template <bool SILU>
__device__ __forceinline__ void quantize(const Fp8QuantArgs &a) {
    __shared__ float scales[2][32];
    let_next_start();
    wait_for_earlier();
    const uint32_t rows = a.rows_ptr ? min(*a.rows_ptr, a.rows) : a.rows;
    for (uint32_t row0 = blockIdx.y * 32; row0 < rows; row0 += gridDim.y * 32) {
        quantize_rows<SILU>(a, row0, rows, scales);
        __syncthreads();  // the scales have been read
    }
}

}  // namespace fp8_gemm

// --- entry points ---------------------------------------------------------------------------

struct Fp8GemmLaunch {
    CUtensorMap x_map, s_map, w_map;
    Fp8GemmArgs args;
};

#define FP8_GEMM_NARROW(name, ...)                                                                                  \
    extern "C" __global__ void __cluster_dims__(fp8_gemm::Narrow<__VA_ARGS__>::CLUSTER, 1, 1)                       \
        __launch_bounds__(fp8_gemm::Narrow<__VA_ARGS__>::THREADS, 1) name(const __grid_constant__ Fp8GemmLaunch p) {                          \
        fp8_gemm::narrow<fp8_gemm::Narrow<__VA_ARGS__>>(p.x_map, p.s_map, p.w_map, p.args);                                 \
    }

#define FP8_GEMM_WIDE(name, ...)                                                                                    \
    extern "C" __global__ void __cluster_dims__(fp8_gemm::Wide<__VA_ARGS__>::CLUSTER, 1, 1)                         \
        __launch_bounds__(fp8_gemm::Wide<__VA_ARGS__>::THREADS, 1) name(const __grid_constant__ Fp8GemmLaunch p) {                            \
        fp8_gemm::wide<fp8_gemm::Wide<__VA_ARGS__>>(p.x_map, p.s_map, p.w_map, p.args);                                     \
    }

//              name                 multicast, split, stages, output
FP8_GEMM_NARROW(fp8_gemm_narrow_bf16, 2, 1, 8, __nv_bfloat16)
FP8_GEMM_NARROW(fp8_gemm_narrow_f32, 2, 1, 8, float)
FP8_GEMM_NARROW(fp8_gemm_split3_bf16, 1, 3, 7, __nv_bfloat16)
FP8_GEMM_NARROW(fp8_gemm_split3_f32, 1, 3, 7, float)
//            name                    sub, segments, stages, output
FP8_GEMM_WIDE(fp8_gemm_wide_bf16, 1, false, 6, __nv_bfloat16)
FP8_GEMM_WIDE(fp8_gemm_wide_f32, 1, false, 6, float)
FP8_GEMM_WIDE(fp8_gemm_wide256_bf16, 2, false, 4, __nv_bfloat16)
FP8_GEMM_WIDE(fp8_gemm_wide256_f32, 2, false, 4, float)
FP8_GEMM_WIDE(fp8_gemm_wide_split_bf16, 1, true, 6, __nv_bfloat16)
FP8_GEMM_WIDE(fp8_gemm_wide_split_f32, 1, true, 6, float)

extern "C" __global__ void __launch_bounds__(256) fp8_quantize(const __grid_constant__ Fp8QuantArgs args) {
    fp8_gemm::quantize<false>(args);
}

extern "C" __global__ void __launch_bounds__(256) fp8_silu_mul_quantize(const __grid_constant__ Fp8QuantArgs args) {
    fp8_gemm::quantize<true>(args);
}
