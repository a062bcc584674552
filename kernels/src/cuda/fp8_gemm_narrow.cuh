// The FP8 product (sm90a_fp8_gemm.cu) for few rows: narrow, and split.
#pragma once
#include "fp8_gemm.cuh"

namespace fp8_gemm {

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

}  // namespace fp8_gemm
