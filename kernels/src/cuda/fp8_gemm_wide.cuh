// The FP8 product (sm90a_fp8_gemm.cu) for many rows: wide, and wide_split.
#pragma once
#include "fp8_gemm.cuh"

namespace fp8_gemm {

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

}  // namespace fp8_gemm
