// What all forms of the FP8 product (sm90a_fp8_gemm.cu) are made of: loads, one K block's products, and which tiles
// a block has.
#pragma once
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <stdint.h>

#include "hopper.cuh"

// Parameters of every GEMM entry point, after the tensor maps of X, X's scales and W.
struct Fp8GemmArgs {
    const CUtensorMap *w_maps;     // [slots], or null: the W map of the launch
    const float *const *w_scales;  // [slots], or null: w_scale
    const float *w_scale;          // [ceil(n/128)][k/128]
    const uint32_t *offsets;       // [slots + 1], or null: one slot with all rows
    const uint32_t *rows_ptr;      // the number of rows when offsets is null, or null: rows
    void *y;                       // [rows][ldy]
    uint32_t slots;                // at most 512; 1 when offsets is null
    uint32_t rows;                 // rows of X at most: every offset is held against it
    uint32_t n, k;                 // n % 64 == 0, k % 128 == 0
    uint32_t ldy;                  // elements, a multiple of 8
    uint32_t split;                // segments of K; read by the wide_split form alone
};

namespace fp8_gemm {

using namespace hopper;

constexpr uint32_t kBlockK = 128;
constexpr uint32_t kMaxSlots = 512;
constexpr uint32_t kBand = 8;           // token tiles that share the weights they go through
constexpr uint32_t kScaleBox = 132;     // floats of the scale map's box: 128 rows from a multiple of 4 on
constexpr uint32_t kNarrowXBox = 32;    // rows of the X map's box, narrow and split
constexpr uint32_t kWideXBox = 64;      // rows of the X map's box, wide
constexpr uint32_t kWBox = 64;          // rows of the W map's box

// --- PTX ------------------------------------------------------------------------------------

__device__ __forceinline__ float load_shared(uint32_t addr) {
    float v;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(addr) : "memory");
    return v;
}

__device__ __forceinline__ void load_tile(uint32_t dst, const CUtensorMap *map, uint32_t bar, uint32_t c0, uint32_t c1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(dst),
        "l"(map), "r"(bar), "r"(c0), "r"(c1)
        : "memory");
}

__device__ __forceinline__ void load_tile_hint(uint32_t dst, const CUtensorMap *map, uint32_t bar, uint32_t c0, uint32_t c1,
                                               uint64_t policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4}], "
        "[%2], %5;" ::"r"(dst),
        "l"(map), "r"(bar), "r"(c0), "r"(c1), "l"(policy)
        : "memory");
}

__device__ __forceinline__ void load_tile_multicast(uint32_t dst, const CUtensorMap *map, uint32_t bar, uint32_t c0,
                                                    uint32_t c1, uint16_t mask) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], "
        "[%2], %5;" ::"r"(dst),
        "l"(map), "r"(bar), "r"(c0), "r"(c1), "h"(mask)
        : "memory");
}

// A map in device memory was written by an earlier copy or kernel.
__device__ __forceinline__ void acquire_map(const CUtensorMap *map) {
    asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory");
}

__device__ __forceinline__ uint64_t policy_first() {
    uint64_t p;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p));
    return p;
}

__device__ __forceinline__ uint64_t policy_normal() {
    uint64_t p;
    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(p));
    return p;
}

// d (+)= A[64][32] B[n][32]^T, both from shared memory.
template <int N>
struct Mma;
template <>
struct Mma<8> {
    static __device__ __forceinline__ void issue(float (&d)[4], uint32_t a, uint32_t b, int accumulate) {
        asm volatile(
            "{\n.reg .pred p;\n.reg .b64 da, db;\nsetp.ne.b32 p, %6, 0;\n"
            "mov.b64 da, {%4, 0x40000040};\nmov.b64 db, {%5, 0x40000040};\n"
            "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {"
            "%0, %1, %2, %3}, "
            "da, db, p, 1, 1;\n}\n"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a), "r"(b), "r"(accumulate));
    }
};
template <>
struct Mma<16> {
    static __device__ __forceinline__ void issue(float (&d)[8], uint32_t a, uint32_t b, int accumulate) {
        asm volatile(
            "{\n.reg .pred p;\n.reg .b64 da, db;\nsetp.ne.b32 p, %10, 0;\n"
            "mov.b64 da, {%8, 0x40000040};\nmov.b64 db, {%9, 0x40000040};\n"
            "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {"
            "%0, %1, %2, %3, %4, %5, %6, %7}, "
            "da, db, p, 1, 1;\n}\n"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]),
              "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
            : "r"(a), "r"(b), "r"(accumulate));
    }
};
template <>
struct Mma<32> {
    static __device__ __forceinline__ void issue(float (&d)[16], uint32_t a, uint32_t b, int accumulate) {
        asm volatile(
            "{\n.reg .pred p;\n.reg .b64 da, db;\nsetp.ne.b32 p, %18, 0;\n"
            "mov.b64 da, {%16, 0x40000040};\nmov.b64 db, {%17, 0x40000040};\n"
            "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
            "da, db, p, 1, 1;\n}\n"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]),
              "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
              "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
              "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
            : "r"(a), "r"(b), "r"(accumulate));
    }
};
template <>
struct Mma<64> {
    static __device__ __forceinline__ void issue(float (&d)[32], uint32_t a, uint32_t b, int accumulate) {
        asm volatile(
            "{\n.reg .pred p;\n.reg .b64 da, db;\nsetp.ne.b32 p, %34, 0;\n"
            "mov.b64 da, {%32, 0x40000040};\nmov.b64 db, {%33, 0x40000040};\n"
            "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
            "da, db, p, 1, 1;\n}\n"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]),
              "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
              "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
              "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
              "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),
              "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
              "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
              "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
            : "r"(a), "r"(b), "r"(accumulate));
    }
};
template <>
struct Mma<128> {
    static __device__ __forceinline__ void issue(float (&d)[64], uint32_t a, uint32_t b, int accumulate) {
        asm volatile(
            "{\n.reg .pred p;\n.reg .b64 da, db;\nsetp.ne.b32 p, %66, 0;\n"
            "mov.b64 da, {%64, 0x40000040};\nmov.b64 db, {%65, 0x40000040};\n"
            "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
            "da, db, p, 1, 1;\n}\n"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]),
              "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
              "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
              "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
              "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),
              "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
              "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
              "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
              "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
              "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
              "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),
              "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
              "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]),
              "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
              "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),
              "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
            : "r"(a), "r"(b), "r"(accumulate));
    }
};


// part = the product of one K block. `a` and `b` are descriptors.
template <int N>
__device__ __forceinline__ void multiply(float (&part)[N / 2], uint32_t a, uint32_t b) {
    pin(part);
    mma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) Mma<N>::issue(part, a + i * 2, b + i * 2, i != 0);
    mma_commit();
}

// --- tiles ----------------------------------------------------------------------------------

struct Tile {
    uint32_t slot, row, rows, unit;  // `rows` valid rows from `row` on; `unit` of outputs
};

// What a CTA knows of the groups: where they begin, and how many token tiles are before them.
struct Plan {
    const float *scales[kMaxSlots];  // of W
    uint32_t first[kMaxSlots + 1];
    uint32_t tiles[kMaxSlots + 1];
};

template <uint32_t TOKENS>
__device__ __forceinline__ void make_plan(const Fp8GemmArgs &a, Plan &plan) {
    if (a.offsets || a.rows_ptr) wait_for_earlier();
    if (a.offsets) {
        for (uint32_t i = threadIdx.x; i <= a.slots; i += blockDim.x) {
            plan.first[i] = min(a.offsets[i], a.rows);
            if (i < a.slots) plan.scales[i] = a.w_scales ? a.w_scales[i] : a.w_scale;
        }
    } else if (threadIdx.x == 0) {
        plan.scales[0] = a.w_scales ? a.w_scales[0] : a.w_scale;
        plan.first[0] = 0;
        plan.first[1] = a.rows_ptr ? min(*a.rows_ptr, a.rows) : a.rows;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        uint32_t before = 0;
        for (uint32_t base = 0; base < a.slots; base += 32) {
            const uint32_t i = base + threadIdx.x;
            uint32_t sum = 0;
            if (i < a.slots && plan.first[i + 1] > plan.first[i])
                sum = (plan.first[i + 1] - plan.first[i] + TOKENS - 1) / TOKENS;
#pragma unroll
            for (uint32_t d = 1; d < 32; d *= 2) {
                const uint32_t other = __shfl_up_sync(~0u, sum, d);
                if (threadIdx.x >= d) sum += other;
            }
            if (i < a.slots) plan.tiles[i + 1] = before + sum;
            before += __shfl_sync(~0u, sum, 31);
        }
        if (threadIdx.x == 0) plan.tiles[0] = 0;
    }
}

// Goes through the tiles in ascending order. Within a slot: bands of token tiles; within a band every
// unit of outputs; within that the token tiles, which thus follow each other with the same weights.
template <uint32_t TOKENS>
struct Walk {
    const Plan &plan;
    const uint32_t slots, units;
    uint32_t slot = 0;

    __device__ __forceinline__ bool find(uint32_t item, Tile &t) {
        while (slot < slots && item >= plan.tiles[slot + 1] * units) ++slot;
        if (slot >= slots) return false;
        const uint32_t tiles = plan.tiles[slot + 1] - plan.tiles[slot];
        uint32_t j = item - plan.tiles[slot] * units;
        // Divisions only where they are none of the usual ones.
        const uint32_t band = tiles <= kBand ? 0 : j / (kBand * units);
        const uint32_t wide = min(kBand, tiles - band * kBand);
        j -= band * kBand * units;
        t.unit = wide == 1 ? j : wide == kBand ? j / kBand : j / wide;
        const uint32_t tile = band * kBand + j - t.unit * wide;
        t.slot = slot;
        t.row = plan.first[slot] + tile * TOKENS;
        t.rows = min(TOKENS, plan.first[slot + 1] - t.row);
        return true;
    }
};

struct Ring {
    uint32_t stage = 0, phase = 0;
    template <uint32_t STAGES>
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
};

// One row of W's scales: a lane holds every 32nd, and the next 32 are on their way.
struct WeightScales {
    const float *row;
    uint32_t blocks;
    float now, next;

    __device__ __forceinline__ float load(uint32_t at) const { return row && at < blocks ? __ldg(row + at) : 0.f; }
    __device__ __forceinline__ WeightScales(const float *row, uint32_t blocks) : row(row), blocks(blocks) {
        const uint32_t lane = threadIdx.x & 31;
        now = load(lane);
        next = load(32 + lane);
    }
    __device__ __forceinline__ float at(uint32_t kb) {
        if ((kb & 31) == 0 && kb != 0) {
            now = next;
            next = load(kb + 32 + (threadIdx.x & 31));
        }
        return __shfl_sync(~0u, now, kb & 31);
    }
};

__device__ __forceinline__ WeightScales weight_scales(const Fp8GemmArgs &a, const Plan &plan, bool any, const Tile &t, uint32_t n0,
                                                      uint32_t kb0, uint32_t blocks) {
    const bool inside = any && n0 < a.n;
    return WeightScales(inside ? plan.scales[t.slot] + size_t(n0 / 128) * (a.k / kBlockK) + kb0 : nullptr, blocks);
}

// Where segment `i` of `split` begins.
__device__ __forceinline__ uint32_t segment(uint32_t blocks, uint32_t split, uint32_t i) { return blocks * i / split; }

}  // namespace fp8_gemm
