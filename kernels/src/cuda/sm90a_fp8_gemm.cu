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

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <stdint.h>

#include "hopper.cuh"
#include "quantize.cuh"

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

// --- narrow ---------------------------------------------------------------------------------

// 64 rows of W and up to 128 tokens, of which the two warpgroups take half each. MC neighbouring tiles of
// outputs in a cluster share the tokens, or the SPLIT segments of K of one tile are in a cluster.
template <uint32_t MC_, uint32_t SPLIT_, uint32_t STAGES_, typename Out_>
struct Narrow {
    static constexpr uint32_t WR = 64, TOKENS = 128, MC = MC_, SPLIT = SPLIT_, STAGES = STAGES_;
    using Out = Out_;
    static_assert(MC == 1 || SPLIT == 1, "a cluster is for one of the two");
    static constexpr uint32_t CLUSTER = MC * SPLIT;
    // Warps that load: one TMA instruction takes a thread near 100 cycles, so that one thread for the
    // weights, the tokens and their scales would be the limit.
    static constexpr uint32_t LOADERS = 3;
    static constexpr uint32_t THREADS = 256 + 32 * LOADERS, WARPS = 8;
    static constexpr uint32_t W_BYTES = WR * 128, X_BYTES = TOKENS * 128, STAGE = W_BYTES + X_BYTES;
    static constexpr uint32_t SCALE_BYTES = 640;  // of kScaleBox floats, and a multiple of 128
    static constexpr uint32_t MAX_NT = TOKENS / 2;  // tokens of a warpgroup
    static constexpr uint32_t SHARE = (MAX_NT / 8 + SPLIT - 1) / SPLIT;  // groups of tokens that a CTA of a split adds up
    static constexpr uint32_t REDUCE = SPLIT > 1 ? SPLIT * SHARE * 4096 : 0;
    static constexpr uint32_t AT_SCALES = STAGES * STAGE;
    static constexpr uint32_t AT_REDUCE = AT_SCALES + STAGES * SCALE_BYTES;
    static constexpr uint32_t AT_BARS = AT_REDUCE + REDUCE;
    static constexpr uint32_t AT_PLAN = AT_BARS + (2 * STAGES + 2) * 8;
    static constexpr uint32_t SMEM = AT_PLAN + sizeof(Plan) + 1024;
    static_assert(SMEM <= 232448, "shared memory");
};

struct NarrowState {
    Ring head, tail;           // the next stage to wait for, the next to give back
    uint32_t reduce_phase = 0;
};

template <class C>
__device__ __forceinline__ void narrow_release(uint32_t base, NarrowState &s) {
    const uint32_t lane = threadIdx.x & 31;
    const uint32_t bar = base + C::AT_BARS + (C::STAGES + s.tail.stage) * 8;
    if constexpr (C::MC > 1) {
        if (lane < C::MC) barrier_arrive_at(bar, lane);
    } else {
        if (lane == 0) barrier_arrive(bar);
    }
    s.tail.template advance<C::STAGES>();
}

// One K block: the scales of this thread's tokens, and the multiplication on its way.
template <class C, int NT>
__device__ __forceinline__ void narrow_issue(uint32_t base, NarrowState &s, float (&part)[NT / 2], uint32_t b_offset) {
    const uint32_t at = descriptor(base + s.head.stage * C::STAGE);
    barrier_wait(base + C::AT_BARS + s.head.stage * 8, s.head.phase);
    multiply<NT>(part, at, at + (C::W_BYTES + b_offset) / 16);
    s.head.template advance<C::STAGES>();
}

template <class C, int NT>
__device__ __forceinline__ void narrow_scales(uint32_t base, const NarrowState &s, float (&sx)[NT / 4], uint32_t token) {
    const uint32_t at = base + C::AT_SCALES + s.tail.stage * C::SCALE_BYTES + (token + (threadIdx.x & 3) * 2) * 4;
#pragma unroll
    for (int j = 0; j < NT / 8; ++j) {
        sx[2 * j] = load_shared(at + j * 32);
        sx[2 * j + 1] = load_shared(at + j * 32 + 4);
    }
}

template <int NT>
__device__ __forceinline__ void narrow_promote(float (&acc)[NT / 2], const float (&part)[NT / 2], const float (&sx)[NT / 4],
                                               float sw) {
#pragma unroll
    for (int j = 0; j < NT / 8; ++j) {
        const float s0 = sx[2 * j] * sw, s1 = sx[2 * j + 1] * sw;
        acc[4 * j] = fmaf(part[4 * j], s0, acc[4 * j]);
        acc[4 * j + 1] = fmaf(part[4 * j + 1], s1, acc[4 * j + 1]);
        acc[4 * j + 2] = fmaf(part[4 * j + 2], s0, acc[4 * j + 2]);
        acc[4 * j + 3] = fmaf(part[4 * j + 3], s1, acc[4 * j + 3]);
    }
}

// Eight tokens of 16 outputs: v is the fragment of one group of columns of wgmma's accumulators.
template <class C>
__device__ __forceinline__ void narrow_store(const Fp8GemmArgs &a, const Tile &t, uint32_t n, uint32_t token, float4 v) {
    const uint32_t lane = threadIdx.x & 31, quad = lane & 3;
    using Out = typename C::Out;
    Out *y = static_cast<Out *>(a.y);
    if constexpr (sizeof(Out) == 2) {
        const uint32_t lo = transpose8(pack(v.x, v.y)), hi = transpose8(pack(v.z, v.w));
        const bool odd = quad & 1;
        const uint32_t got = __shfl_xor_sync(~0u, odd ? lo : hi, 1);
        const uint32_t r = token + lane / 4;
        if (r < t.rows && n < a.n) {
            const uint32_t col = odd ? 8 + 2 * (quad - 1) : 2 * quad;
            *reinterpret_cast<uint2 *>(y + size_t(t.row + r) * a.ldy + n + col) = odd ? make_uint2(got, hi) : make_uint2(lo, got);
        }
    } else {
        const uint32_t r = token + quad * 2, col = n + lane / 4;
        if (n < a.n) {
            Out *p = y + size_t(t.row + r) * a.ldy + col;
            if (r < t.rows) p[0] = v.x, p[8] = v.z;
            if (r + 1 < t.rows) p[a.ldy] = v.y, p[a.ldy + 8] = v.w;
        }
    }
}

// `prepare` looks for the next tile, so that its scales are on their way before this one is stored.
template <class C, int NT, class Prepare>
__device__ __forceinline__ void narrow_tile(const Fp8GemmArgs &a, const Tile &t, uint8_t *smem, uint32_t base, NarrowState &s,
                                            uint32_t n0, uint32_t blocks, WeightScales &sw, const Prepare &prepare) {
    const uint32_t wg = __shfl_sync(~0u, threadIdx.x / 128, 0), warp = threadIdx.x / 32 % 4;
    const uint32_t token = wg * NT, b_offset = token * 128;
    float acc[NT / 2] = {};
    float sx[NT / 4];
    // The product of the next block is under way while this one's is added.
    float p0[NT / 2] = {}, p1[NT / 2] = {};
    narrow_issue<C, NT>(base, s, p0, b_offset);
    uint32_t kb = 0;
    for (; kb + 2 < blocks; kb += 2) {
        narrow_issue<C, NT>(base, s, p1, b_offset);
        narrow_scales<C, NT>(base, s, sx, token + (t.row & 3));
        const float w0 = sw.at(kb);
        mma_wait<1>();
        pin(p0);
        narrow_release<C>(base, s);
        narrow_promote<NT>(acc, p0, sx, w0);
        narrow_issue<C, NT>(base, s, p0, b_offset);
        narrow_scales<C, NT>(base, s, sx, token + (t.row & 3));
        const float w1 = sw.at(kb + 1);
        mma_wait<1>();
        pin(p1);
        narrow_release<C>(base, s);
        narrow_promote<NT>(acc, p1, sx, w1);
    }
    if (kb + 1 < blocks) {
        narrow_issue<C, NT>(base, s, p1, b_offset);
        narrow_scales<C, NT>(base, s, sx, token + (t.row & 3));
        const float w0 = sw.at(kb);
        mma_wait<1>();
        pin(p0);
        narrow_release<C>(base, s);
        narrow_promote<NT>(acc, p0, sx, w0);
        narrow_scales<C, NT>(base, s, sx, token + (t.row & 3));
        const float w1 = sw.at(kb + 1);
        mma_wait<0>();
        pin(p1);
        narrow_release<C>(base, s);
        narrow_promote<NT>(acc, p1, sx, w1);
    } else {
        narrow_scales<C, NT>(base, s, sx, token + (t.row & 3));
        const float w0 = sw.at(kb);
        mma_wait<0>();
        pin(p0);
        narrow_release<C>(base, s);
        narrow_promote<NT>(acc, p0, sx, w0);
    }

    prepare();
    const uint32_t n = n0 + warp * 16;
    if constexpr (C::SPLIT > 1) {
        // Every CTA adds up its share of the groups of eight tokens, segment after segment.
        const uint32_t lane = threadIdx.x & 31, rank = cluster_rank();
        const uint32_t full = base + C::AT_BARS + 2 * C::STAGES * 8, empty = full + 8;
        const uint32_t buffer = base + C::AT_REDUCE + threadIdx.x * 16;
        if (threadIdx.x == 0) barrier_expect(full, (NT / 8 + C::SPLIT - 1 - rank) / C::SPLIT * C::SPLIT * 4096);
        barrier_wait(empty, s.reduce_phase ^ 1);
#pragma unroll
        for (int j = 0; j < NT / 8; ++j)
            store_at(buffer + (rank * C::SHARE + j / C::SPLIT) * 4096, full, j % C::SPLIT,
                     make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]));
        barrier_wait<true>(full, s.reduce_phase);
#pragma unroll
        for (int j = 0; j < NT / 8; ++j) {
            if (j % C::SPLIT != rank) continue;
            const uint8_t *from = smem + C::AT_REDUCE + threadIdx.x * 16 + j / C::SPLIT * 4096;
            float4 sum = *reinterpret_cast<const float4 *>(from);
#pragma unroll
            for (uint32_t i = 1; i < C::SPLIT; ++i) {
                const float4 part = *reinterpret_cast<const float4 *>(from + i * C::SHARE * 4096);
                sum.x += part.x, sum.y += part.y;
                sum.z += part.z, sum.w += part.w;
            }
            narrow_store<C>(a, t, n, token + j * 8, sum);
        }
        __syncwarp();
        if (lane < C::SPLIT) barrier_arrive_at(empty, lane);
        s.reduce_phase ^= 1;
    } else {
#pragma unroll
        for (int j = 0; j < NT / 8; ++j)
            narrow_store<C>(a, t, n, token + j * 8, make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]));
    }
}

// What one loading thread does; WHAT: 1 weights (and says how much comes), 2 tokens, 4 their scales.
template <class C, int WHAT>
__device__ __forceinline__ void narrow_load(const CUtensorMap &x_map, const CUtensorMap &s_map, const CUtensorMap &w_map,
                                            const Fp8GemmArgs &a, const Plan &plan, Walk<C::TOKENS> walk, uint32_t base,
                                            uint32_t kb0, uint32_t blocks, uint32_t part) {
    const uint32_t full = base + C::AT_BARS, empty = full + C::STAGES * 8;
    const uint64_t once = policy_first(), again = policy_normal();
    Ring ring;
    Tile t;
    uint32_t known = ~0u;
    for (uint32_t item = blockIdx.x / C::CLUSTER; walk.find(item, t); item += gridDim.x / C::CLUSTER) {
        const CUtensorMap *w = a.w_maps ? a.w_maps + t.slot : &w_map;
        if constexpr (WHAT & 1) {
            if (a.w_maps && known != t.slot) acquire_map(w);
            known = t.slot;
        }
        const bool alone = plan.tiles[t.slot + 1] - plan.tiles[t.slot] == 1;
        const uint64_t policy = alone ? once : again;
        const uint32_t n0 = (t.unit * C::MC + part) * C::WR;
        const uint32_t chunks = (t.rows + kNarrowXBox - 1) / kNarrowXBox;
        const uint32_t bytes = C::W_BYTES + chunks * kNarrowXBox * 128 + kScaleBox * 4;
        for (uint32_t kb = kb0; kb < kb0 + blocks; ++kb) {
            barrier_wait(empty + ring.stage * 8, ring.phase ^ 1);
            const uint32_t bar = full + ring.stage * 8, at = base + ring.stage * C::STAGE;
            if constexpr (WHAT & 1) {
                barrier_expect(bar, bytes);
                load_tile_hint(at, w, bar, kb * kBlockK, n0, policy);
            }
            if constexpr (WHAT & 2) {
                // Also by one that has no box of a tile: a thread that nobody waits for may come to a barrier a phase
                // late, and then waits for ever.
                barrier_arrive(bar);
#pragma unroll 1
                for (uint32_t c = part; c < chunks; c += C::MC) {
                    const uint32_t dst = at + C::W_BYTES + c * kNarrowXBox * 128, row = t.row + c * kNarrowXBox;
                    if constexpr (C::MC > 1)
                        load_tile_multicast(dst, &x_map, bar, kb * kBlockK, row, (1 << C::MC) - 1);
                    else
                        load_tile(dst, &x_map, bar, kb * kBlockK, row);
                }
            }
            if constexpr (WHAT & 4)
                load_tile(base + C::AT_SCALES + ring.stage * C::SCALE_BYTES, &s_map, bar, t.row & ~3u, kb);
            ring.template advance<C::STAGES>();
        }
    }
    if constexpr (C::MC > 1 && (WHAT & 1)) {
        // Not gone before the last arrival of a neighbour.
        for (uint32_t i = 0; i < C::STAGES; ++i) {
            barrier_wait(empty + ring.stage * 8, ring.phase ^ 1);
            ring.template advance<C::STAGES>();
        }
    }
}

template <class C>
__device__ __forceinline__ void narrow(const CUtensorMap &x_map, const CUtensorMap &s_map, const CUtensorMap &w_map,
                                       const Fp8GemmArgs &a) {
    extern __shared__ uint8_t raw[];
    uint8_t *smem = raw + (-shared_addr(raw) & 1023);
    const uint32_t base = kept(shared_addr(smem));
    const uint32_t full = base + C::AT_BARS, empty = full + C::STAGES * 8;
    Plan &plan = *reinterpret_cast<Plan *>(smem + C::AT_PLAN);
    const uint32_t rank = C::CLUSTER > 1 ? cluster_rank() : 0;
    if (threadIdx.x == 256) {
        prefetch_map(&x_map);
        prefetch_map(&s_map);
        if (!a.w_maps) prefetch_map(&w_map);
        for (uint32_t i = 0; i < C::STAGES; ++i) {
            barrier_init(full + i * 8, 2);
            barrier_init(empty + i * 8, C::WARPS * C::MC);
        }
        barrier_init(empty + C::STAGES * 8, 1);
        barrier_init(empty + C::STAGES * 8 + 8, C::WARPS * C::SPLIT);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    let_next_start();
    make_plan<C::TOKENS>(a, plan);
    __syncthreads();
    if constexpr (C::CLUSTER > 1) cluster_sync();

    const uint32_t step = C::WR * C::MC;
    Walk<C::TOKENS> walk{plan, a.slots, (a.n + step - 1) / step};
    const uint32_t k_blocks = a.k / kBlockK;
    const uint32_t kb0 = C::SPLIT > 1 ? segment(k_blocks, C::SPLIT, rank) : 0;
    const uint32_t blocks = (C::SPLIT > 1 ? segment(k_blocks, C::SPLIT, rank + 1) : k_blocks) - kb0;
    const uint32_t part = C::MC > 1 ? rank : 0;
    const uint32_t clusters = gridDim.x / C::CLUSTER;
    Tile t = {};

    if (threadIdx.x >= 256) {
        const uint32_t loader = threadIdx.x / 32 - 8;
        if ((threadIdx.x & 31) != 0) {
        } else if (loader == 0) {
            // Weights are nobody's output: they need not wait for the kernels before.
            narrow_load<C, 1>(x_map, s_map, w_map, a, plan, walk, base, kb0, blocks, part);
        } else if (loader == 1) {
            wait_for_earlier();
            narrow_load<C, 2>(x_map, s_map, w_map, a, plan, walk, base, kb0, blocks, part);
        } else if (loader == 2) {
            wait_for_earlier();
            narrow_load<C, 4>(x_map, s_map, w_map, a, plan, walk, base, kb0, blocks, part);
        }
    } else {
        NarrowState s;
        uint32_t item = blockIdx.x / C::CLUSTER;
        bool more = walk.find(item, t);
        WeightScales sw = weight_scales(a, plan, more, t, (t.unit * C::MC + part) * C::WR, kb0, blocks);
        while (more) {
            const uint32_t n0 = (t.unit * C::MC + part) * C::WR;
            Tile next = {};
            const auto prepare = [&] {
                item += clusters;
                more = walk.find(item, next);
                sw = weight_scales(a, plan, more, next, (next.unit * C::MC + part) * C::WR, kb0, blocks);
            };
            if (t.rows <= 16) narrow_tile<C, 8>(a, t, smem, base, s, n0, blocks, sw, prepare);
            else if (t.rows <= 32) narrow_tile<C, 16>(a, t, smem, base, s, n0, blocks, sw, prepare);
            else if (t.rows <= 64) narrow_tile<C, 32>(a, t, smem, base, s, n0, blocks, sw, prepare);
            else narrow_tile<C, 64>(a, t, smem, base, s, n0, blocks, sw, prepare);
            t = next;
        }
        // Not gone before the last arrival of a neighbour.
        if constexpr (C::SPLIT > 1) barrier_wait(base + C::AT_BARS + (2 * C::STAGES + 1) * 8, s.reduce_phase ^ 1);
    }
}

// --- wide -----------------------------------------------------------------------------------

// 128 * SUB tokens x 128 outputs; a warpgroup has SUB blocks of 64 tokens. MC neighbouring tiles of
// outputs share the tokens. SEG: sums of K's segments apart, as the split forms have them.
template <uint32_t SUB_, bool SEG_, uint32_t STAGES_, typename Out_>
struct Wide {
    static constexpr uint32_t SUB = SUB_, MC = 2, STAGES = STAGES_;
    static constexpr bool SEG = SEG_;
    static constexpr bool PIPE = SUB == 1 && !SEG;  // otherwise there are no registers for it
    using Out = Out_;
    static constexpr uint32_t CLUSTER = MC, THREADS = 384, WARPS = 8;
    static constexpr uint32_t TOKENS = 128 * SUB, WR = 128;
    static constexpr uint32_t X_BYTES = TOKENS * 128, W_BYTES = WR * 128, STAGE = W_BYTES + X_BYTES;
    static constexpr uint32_t SCALE_BYTES = (TOKENS * 4 + 16 + 127) / 128 * 128;
    static constexpr uint32_t AT_SCALES = STAGES * STAGE;
    static constexpr uint32_t AT_BARS = AT_SCALES + STAGES * SCALE_BYTES;
    static constexpr uint32_t AT_PLAN = AT_BARS + 2 * STAGES * 8;
    static constexpr uint32_t SMEM = AT_PLAN + sizeof(Plan) + 1024;
    static_assert(SMEM <= 232448, "shared memory");
};

// Of four words a lane, lane q of a quad gets word q of each.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4]) {
    const uint32_t q = threadIdx.x & 3;
#pragma unroll
    for (uint32_t i = 0; i < 4; i += 2) {
        const uint32_t got = __shfl_xor_sync(~0u, q & 1 ? w[i] : w[i + 1], 1);
        if (q & 1) w[i] = got;
        else w[i + 1] = got;
    }
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t got = __shfl_xor_sync(~0u, q & 2 ? w[i] : w[i + 2], 2);
        if (q & 2) w[i] = got;
        else w[i + 2] = got;
    }
}

template <class C>
__device__ __forceinline__ void wide_store(const Fp8GemmArgs &a, const Tile &t, uint32_t n0, uint32_t row, const float (&acc)[64]) {
    using Out = typename C::Out;
    const uint32_t quad = threadIdx.x & 3;
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t r = row + half * 8;
        Out *y = static_cast<Out *>(a.y) + size_t(t.row + r) * a.ldy + n0;
        if constexpr (sizeof(Out) == 2) {
#pragma unroll
            for (uint32_t g = 0; g < 4; ++g) {
                uint32_t w[4];
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) w[i] = pack(acc[(g * 4 + i) * 4 + half * 2], acc[(g * 4 + i) * 4 + half * 2 + 1]);
                transpose_quad(w);
                const uint32_t col = g * 32 + quad * 8;
                if (r < t.rows && n0 + col < a.n) *reinterpret_cast<uint4 *>(y + col) = make_uint4(w[0], w[1], w[2], w[3]);
            }
        } else {
#pragma unroll
            for (uint32_t j = 0; j < 16; ++j) {
                const uint32_t col = j * 8 + quad * 2;
                if (r < t.rows && n0 + col < a.n)
                    *reinterpret_cast<float2 *>(y + col) = make_float2(acc[j * 4 + half * 2], acc[j * 4 + half * 2 + 1]);
            }
        }
    }
}

template <class C, uint32_t SUBS, class Prepare>
__device__ __forceinline__ void wide_tile(const Fp8GemmArgs &a, const Tile &t, uint32_t base, Ring &ring,
                                          uint32_t n0, uint32_t blocks, WeightScales &sw, const Prepare &prepare) {
    const uint32_t wg = __shfl_sync(~0u, threadIdx.x / 128, 0), warp = threadIdx.x / 32 % 4, lane = threadIdx.x & 31;
    const uint32_t row = wg * 64 + warp * 16 + lane / 4;
    float acc[SUBS][64];
    float part[64];
    float total[C::SEG ? 64 : 1];
#pragma unroll
    for (uint32_t i = 0; i < 64; ++i) {
        part[i] = 0.f;
#pragma unroll
        for (uint32_t u = 0; u < SUBS; ++u) acc[u][i] = 0.f;
    }
    uint32_t seg = 1, end = C::SEG ? segment(blocks, a.split, 1) : 0;
    for (uint32_t kb = 0; kb < blocks; ++kb) {
        if constexpr (C::SEG) {
            if (kb == end) {
                const bool first = seg == 1;
#pragma unroll
                for (uint32_t i = 0; i < 64; ++i) {
                    total[i] = first ? acc[0][i] : total[i] + acc[0][i];
                    acc[0][i] = 0.f;
                }
                end = segment(blocks, a.split, ++seg);
            }
        }
        const float w = sw.at(kb);
        const uint32_t at = descriptor(base + ring.stage * C::STAGE);
        barrier_wait(base + C::AT_BARS + ring.stage * 8, ring.phase);
        const uint32_t sx = base + C::AT_SCALES + ring.stage * C::SCALE_BYTES + (row + (t.row & 3)) * 4;
        float s[SUBS][2];
#pragma unroll
        for (uint32_t u = 0; u < SUBS; ++u) {
            multiply<128>(part, at + (2 * u + wg) * (8192 / 16), at + C::X_BYTES / 16);
            if (u == 0) {
#pragma unroll
                for (uint32_t v = 0; v < SUBS; ++v) {
                    s[v][0] = load_shared(sx + v * 512) * w;
                    s[v][1] = load_shared(sx + v * 512 + 32) * w;
                }
            }
            mma_wait<0>();
            pin(part);
            if (u == SUBS - 1) {
                const uint32_t bar = base + C::AT_BARS + (C::STAGES + ring.stage) * 8;
                if (lane < C::MC) barrier_arrive_at(bar, lane);
            }
#pragma unroll
            for (uint32_t i = 0; i < 64; ++i) acc[u][i] = fmaf(part[i], s[u][i >> 1 & 1], acc[u][i]);
        }
        ring.template advance<C::STAGES>();
    }
    if constexpr (C::SEG) {
        if (seg > 1) {
#pragma unroll
            for (uint32_t i = 0; i < 64; ++i) acc[0][i] = total[i] + acc[0][i];
        }
    }
    prepare();
#pragma unroll
    for (uint32_t u = 0; u < SUBS; ++u) wide_store<C>(a, t, n0, row + u * 128, acc[u]);
}

// The same with the next block's product under way while this one's is added.
template <class C, class Prepare>
__device__ __forceinline__ void wide_tile_piped(const Fp8GemmArgs &a, const Tile &t, uint32_t base, Ring &ring,
                                                uint32_t n0, uint32_t blocks, WeightScales &sw, const Prepare &prepare) {
    const uint32_t wg = __shfl_sync(~0u, threadIdx.x / 128, 0), warp = threadIdx.x / 32 % 4, lane = threadIdx.x & 31;
    const uint32_t row = wg * 64 + warp * 16 + lane / 4;
    float acc[64] = {}, p0[64] = {}, p1[64] = {};
    Ring tail = ring;
    const auto issue = [&](float(&part)[64]) {
        const uint32_t at = descriptor(base + ring.stage * C::STAGE);
        barrier_wait(base + C::AT_BARS + ring.stage * 8, ring.phase);
        multiply<128>(part, at + wg * (8192 / 16), at + C::X_BYTES / 16);
        ring.template advance<C::STAGES>();
    };
    float s0, s1;
    const auto scales = [&](uint32_t kb) {
        const float w = sw.at(kb);
        const uint32_t sx = base + C::AT_SCALES + tail.stage * C::SCALE_BYTES + (row + (t.row & 3)) * 4;
        s0 = load_shared(sx) * w, s1 = load_shared(sx + 32) * w;
    };
    const auto add = [&](float(&part)[64]) {
        pin(part);
        const uint32_t bar = base + C::AT_BARS + (C::STAGES + tail.stage) * 8;
        if (lane < C::MC) barrier_arrive_at(bar, lane);
        tail.template advance<C::STAGES>();
#pragma unroll
        for (uint32_t i = 0; i < 64; ++i) acc[i] = fmaf(part[i], i & 2 ? s1 : s0, acc[i]);
    };
    issue(p0);
    uint32_t kb = 0;
    for (; kb + 2 < blocks; kb += 2) {
        issue(p1);
        scales(kb);
        mma_wait<1>();
        add(p0);
        issue(p0);
        scales(kb + 1);
        mma_wait<1>();
        add(p1);
    }
    if (kb + 1 < blocks) {
        issue(p1);
        scales(kb);
        mma_wait<1>();
        add(p0);
        scales(kb + 1);
        mma_wait<0>();
        add(p1);
    } else {
        scales(kb);
        mma_wait<0>();
        add(p0);
    }
    prepare();
    wide_store<C>(a, t, n0, row, acc);
}

// As narrow_load.
template <class C, int WHAT>
__device__ __forceinline__ void wide_load(const CUtensorMap &x_map, const CUtensorMap &s_map, const CUtensorMap &w_map,
                                          const Fp8GemmArgs &a, Walk<C::TOKENS> walk, uint32_t base, uint32_t blocks,
                                          uint32_t rank) {
    const uint32_t full = base + C::AT_BARS, empty = full + C::STAGES * 8;
    Ring ring;
    Tile t;
    uint32_t known = ~0u;
    for (uint32_t item = blockIdx.x / C::MC; walk.find(item, t); item += gridDim.x / C::MC) {
        const CUtensorMap *w = a.w_maps ? a.w_maps + t.slot : &w_map;
        if constexpr (WHAT & 1) {
            if (a.w_maps && known != t.slot) acquire_map(w);
            known = t.slot;
        }
        const uint32_t n0 = (t.unit * C::MC + rank) * C::WR;
        const uint32_t chunks = (t.rows + kWideXBox - 1) / kWideXBox;
        const uint32_t scale_boxes = (t.rows + 127) / 128;
        const uint32_t bytes = C::W_BYTES + chunks * kWideXBox * 128 + scale_boxes * kScaleBox * 4;
        for (uint32_t kb = 0; kb < blocks; ++kb) {
            barrier_wait(empty + ring.stage * 8, ring.phase ^ 1);
            const uint32_t bar = full + ring.stage * 8, at = base + ring.stage * C::STAGE;
            if constexpr (WHAT & 1) {
                barrier_expect(bar, bytes);
#pragma unroll
                for (uint32_t i = 0; i < C::WR / kWBox; ++i)
                    load_tile(at + C::X_BYTES + i * kWBox * 128, w, bar, kb * kBlockK, n0 + i * kWBox);
            }
            if constexpr (WHAT & 2) {
                // Also by one that has no box of a tile: a thread that nobody waits for may come to a barrier a phase
                // late, and then waits for ever.
                barrier_arrive(bar);
#pragma unroll 1
                for (uint32_t c = rank; c < chunks; c += C::MC) {
                    const uint32_t dst = at + c * kWideXBox * 128, row = t.row + c * kWideXBox;
                    load_tile_multicast(dst, &x_map, bar, kb * kBlockK, row, (1 << C::MC) - 1);
                }
            }
            if constexpr (WHAT & 4) {
                // Of two boxes four scales are in both.
#pragma unroll 1
                for (uint32_t i = 0; i < scale_boxes; ++i)
                    load_tile(base + C::AT_SCALES + ring.stage * C::SCALE_BYTES + i * 512, &s_map, bar,
                              (t.row & ~3u) + i * 128, kb);
            }
            ring.template advance<C::STAGES>();
        }
    }
    if constexpr (WHAT & 1) {
        // Not gone before the last arrival of a neighbour.
        for (uint32_t i = 0; i < C::STAGES; ++i) {
            barrier_wait(empty + ring.stage * 8, ring.phase ^ 1);
            ring.template advance<C::STAGES>();
        }
    }
}

template <class C>
__device__ __forceinline__ void wide(const CUtensorMap &x_map, const CUtensorMap &s_map, const CUtensorMap &w_map,
                                     const Fp8GemmArgs &a) {
    extern __shared__ uint8_t raw[];
    uint8_t *smem = raw + (-shared_addr(raw) & 1023);
    const uint32_t base = kept(shared_addr(smem));
    const uint32_t full = base + C::AT_BARS, empty = full + C::STAGES * 8;
    Plan &plan = *reinterpret_cast<Plan *>(smem + C::AT_PLAN);
    const uint32_t rank = cluster_rank();
    if (threadIdx.x == 256) {
        prefetch_map(&x_map);
        prefetch_map(&s_map);
        if (!a.w_maps) prefetch_map(&w_map);
        for (uint32_t i = 0; i < C::STAGES; ++i) {
            barrier_init(full + i * 8, 2);
            barrier_init(empty + i * 8, C::WARPS * C::MC);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    let_next_start();
    make_plan<C::TOKENS>(a, plan);
    __syncthreads();
    cluster_sync();

    constexpr uint32_t step = C::WR * C::MC;
    Walk<C::TOKENS> walk{plan, a.slots, (a.n + step - 1) / step};
    const uint32_t blocks = a.k / kBlockK;
    const uint32_t clusters = gridDim.x / C::MC;
    Tile t = {};

    if (threadIdx.x >= 256) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        const uint32_t loader = threadIdx.x / 32 - 8;
        if ((threadIdx.x & 31) != 0) {
        } else if (loader == 0) {
            wide_load<C, 1>(x_map, s_map, w_map, a, walk, base, blocks, rank);
        } else if (loader == 1) {
            wait_for_earlier();
            wide_load<C, 2>(x_map, s_map, w_map, a, walk, base, blocks, rank);
        } else if (loader == 2) {
            wait_for_earlier();
            wide_load<C, 4>(x_map, s_map, w_map, a, walk, base, blocks, rank);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        Ring ring;
        uint32_t item = blockIdx.x / C::MC;
        bool more = walk.find(item, t);
        WeightScales sw = weight_scales(a, plan, more, t, (t.unit * C::MC + rank) * C::WR, 0, blocks);
        while (more) {
            const uint32_t n0 = (t.unit * C::MC + rank) * C::WR;
            Tile next = {};
            const auto prepare = [&] {
                item += clusters;
                more = walk.find(item, next);
                sw = weight_scales(a, plan, more, next, (next.unit * C::MC + rank) * C::WR, 0, blocks);
            };
            if constexpr (C::PIPE) wide_tile_piped<C>(a, t, base, ring, n0, blocks, sw, prepare);
            else if constexpr (C::SUB == 1) wide_tile<C, 1>(a, t, base, ring, n0, blocks, sw, prepare);
            else if (t.rows > 128) wide_tile<C, 2>(a, t, base, ring, n0, blocks, sw, prepare);
            else wide_tile<C, 1>(a, t, base, ring, n0, blocks, sw, prepare);
            t = next;
        }
    }
}

// --- quantisers -----------------------------------------------------------------------------

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
