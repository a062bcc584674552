// Eight bits (e4m3) with one float32 scale for 128 values of a row, as products in 8 bits read them.
#pragma once
#include <cuda_fp8.h>
#include <stdint.h>

// Eight of the 128 values; sixteen lanes, beginning with a multiple of sixteen, have the others. All of them get the scale.
__device__ __forceinline__ uint2 quantize_8(const float (&v)[8], float &scale) {
    float most = 0.f;
#pragma unroll
    for (int j = 0; j < 8; ++j) most = fmaxf(most, fabsf(v[j]));
#pragma unroll
    for (uint32_t d = 8; d; d /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
    scale = most > 1e-30f ? most / 448.f : 1.f;
    const float inverse = 1.f / scale;
    uint32_t q[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        const float2 lo = make_float2(v[4 * j] * inverse, v[4 * j + 1] * inverse);
        const float2 hi = make_float2(v[4 * j + 2] * inverse, v[4 * j + 3] * inverse);
        q[j] = uint32_t(__nv_cvt_float2_to_fp8x2(lo, __NV_SATFINITE, __NV_E4M3)) |
               uint32_t(__nv_cvt_float2_to_fp8x2(hi, __NV_SATFINITE, __NV_E4M3)) << 16;
    }
    return make_uint2(q[0], q[1]);
}
