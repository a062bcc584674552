// Y = X W^T (+ bias) in bf16 with float32 sums on Hopper: one matrix, or one a head with its own columns of X and Y.
//
// W's rows are the M side of wgmma and tokens the N side, so that a tile of few tokens costs what its weights cost to
// read. Every output is a chain of k16 steps over K in ascending order. In the `split` and `halves` forms K is cut into
// kSegments segments, each such a chain; kChain sums at a time are added up in ascending order, and then these sums.
// That does not depend on the tile that an output is in. So, as long as W's shape alone decides whether K is cut, a
// row's result is the same bits for any number of rows and any tile.
//
// All forms are persistent. One warp loads weights, one tokens, two warpgroups compute. A tile has `outputs` rows of W
// (128: each warpgroup has half of them; 64: each has half of the tokens) and `tokens` rows of X. In the `pair` form
// the two CTAs of a cluster have neighbouring outputs and share the tokens: each reads half and multicasts it. In the
// split and halves forms the CTAs of a cluster have one tile, and each has one segment of K (few rows) or half of them.

#include <cuda.h>
#include <cuda_bf16.h>
#include <stdint.h>
#include "hopper.cuh"

struct Bf16GemmArgs {
    const float *bias;          // [heads][n], or null
    void *y;                    // [rows][ldy], head h from column h * y_step on
    uint64_t ldy, y_step;       // elements
    uint32_t rows, n, k, heads;
    uint32_t outputs, tokens;   // of a tile: 64 or 128; 16, 32, 64, 128 or 256 (but 128 x 256 only without split)
    uint32_t stages;            // 2 .. 16
    uint32_t store_tokens;      // of a box of the Y map, 16 .. 128 or the tokens of a warpgroup; 0: no Y map
};

// Maps of (k or n, head, row) with 128-byte swizzle. Only the bf16 forms without split read the Y map. It needs an n
// that is a multiple of 8, as the copy engine writes pieces of 16 bytes.
struct Bf16GemmLaunch {
    CUtensorMap x_map, w_map, y_map;
    Bf16GemmArgs args;
};

namespace bf16_gemm {

using namespace hopper;

constexpr uint32_t kBlockK = 64;
constexpr uint32_t kSegments = 8, kChain = 4;  // of a cut K; segments that are summed before the sums are
constexpr uint32_t kBand = 8;  // token tiles that share the weights they go through
constexpr uint32_t kThreads = 384, kWarps = 8;
constexpr uint32_t kMaxStages = 16;
constexpr uint32_t kAtTiles = 1024;  // barriers are before them

// --- PTX ------------------------------------------------------------------------------------

__device__ __forceinline__ float4 load_shared(uint32_t addr) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(addr)
                 : "memory");
    return v;
}

// The warps of a warpgroup.
__device__ __forceinline__ void group_sync(uint32_t wg) { asm volatile("bar.sync %0, 128;" ::"r"(wg + 1) : "memory"); }

__device__ __forceinline__ void load_tile(uint32_t dst, const CUtensorMap *map, uint32_t bar, uint32_t k, uint32_t head,
                                          uint32_t row, uint64_t policy) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
        "[%1, {%3, %4, %5}], [%2], %6;" ::"r"(dst),
        "l"(map), "r"(bar), "r"(k), "r"(head), "r"(row), "l"(policy)
        : "memory");
}

__device__ __forceinline__ void load_tile_multicast(uint32_t dst, const CUtensorMap *map, uint32_t bar, uint32_t k,
                                                    uint32_t head, uint32_t row, uint16_t mask) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
        "[%1, {%3, %4, %5}], [%2], %6;" ::"r"(dst),
        "l"(map), "r"(bar), "r"(k), "r"(head), "r"(row), "h"(mask)
        : "memory");
}

__device__ __forceinline__ void store_tile(const CUtensorMap *map, uint32_t src, uint32_t n, uint32_t head,
                                           uint32_t row) {
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];\n"
        "cp.async.bulk.commit_group;" ::"l"(map),
        "r"(src), "r"(n), "r"(head), "r"(row)
        : "memory");
}

// What store_tile reads has been read.
__device__ __forceinline__ void stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
// What ordinary stores put into shared memory, before what the copy engine reads there.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ uint64_t cache_policy(bool once) {
    uint64_t p;
    if (once) asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p));
    else asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(p));
    return p;
}

// d (+)= A[64][16] B[n][16]^T, both from shared memory.
template <int N>
struct Mma;
#define BF16_GEMM_MMA(N, COUNT, A, B, C)                                                                              \
    template <>                                                                                                       \
    struct Mma<N> {                                                                                                   \
        static __device__ __forceinline__ void issue(float (&d)[COUNT], uint32_t a, uint32_t b, int accumulate) {     \
            asm volatile(                                                                                             \
                "{\n.reg .pred p;\n.reg .b64 da, db;\nsetp.ne.b32 p, %" #C ", 0;\n"                                   \
                "mov.b64 da, {%" #A ", 0x40000040};\nmov.b64 db, {%" #B ", 0x40000040};\n"                            \
                "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" R##COUNT "}, da, db, p, 1, 1, 0, 0;\n}\n" \
                : D##COUNT(0)                                                                                         \
                : "r"(a), "r"(b), "r"(accumulate));                                                                   \
        }                                                                                                             \
    };
BF16_GEMM_MMA(8, 4, 4, 5, 6)
BF16_GEMM_MMA(16, 8, 8, 9, 10)
BF16_GEMM_MMA(32, 16, 16, 17, 18)
BF16_GEMM_MMA(64, 32, 32, 33, 34)
BF16_GEMM_MMA(128, 64, 64, 65, 66)
BF16_GEMM_MMA(256, 128, 128, 129, 130)

// --- tiles ----------------------------------------------------------------------------------

struct Tile {
    uint32_t head, unit, row;
};

// Head by head; within a head bands of token tiles; within a band every unit of outputs; within that the
// token tiles, which thus follow each other with the same weights.
struct Walk {
    uint32_t units, tiles, heads, tokens;

    __device__ __forceinline__ bool find(uint32_t item, Tile &t) const {
        const uint32_t per_head = units * tiles;
        t.head = heads == 1 ? 0 : item / per_head;
        uint32_t j = item - t.head * per_head;
        const uint32_t band = tiles <= kBand ? 0 : j / (kBand * units);
        const uint32_t wide = min(kBand, tiles - band * kBand);
        j -= band * kBand * units;
        t.unit = wide == 1 ? j : j / wide;
        t.row = (band * kBand + j - t.unit * wide) * tokens;
        return item < per_head * heads;
    }
};

// Rows of X in one load, and how many of these a tile from `row` on needs. The rest of the tile is left as it was: it is
// multiplied, and the result is not stored. (To load zeros from outside of X would be slower.)
__device__ __forceinline__ uint32_t x_box(const Bf16GemmArgs &a, uint32_t pair) { return min(64u, a.tokens / pair); }
__device__ __forceinline__ uint32_t x_boxes(const Bf16GemmArgs &a, uint32_t pair, uint32_t row) {
    const uint32_t box = x_box(a, pair);
    return (min(a.tokens, a.rows - row) + box - 1) / box;
}

struct Ring {
    uint32_t stage = 0, phase = 0;
    __device__ __forceinline__ void advance(uint32_t stages) {
        if (++stage == stages) {
            stage = 0;
            phase ^= 1;
        }
    }
};

// Where everything is, the same in all threads.
struct Layout {
    uint32_t base, stages, stage_bytes, w_bytes;
    uint32_t after;  // behind the stages: what is on its way to Y, or to the sums of a split

    __device__ __forceinline__ Layout(const Bf16GemmArgs &a, uint32_t base)
        : base(base), stages(a.stages), stage_bytes((a.outputs + a.tokens) * 128), w_bytes(a.outputs * 128),
          after(base + kAtTiles + stages * stage_bytes) {}
    __device__ __forceinline__ uint32_t full(uint32_t stage) const { return base + stage * 8; }
    __device__ __forceinline__ uint32_t empty(uint32_t stage) const { return base + (kMaxStages + stage) * 8; }
    __device__ __forceinline__ uint32_t sums_full() const { return base + 2 * kMaxStages * 8; }
    __device__ __forceinline__ uint32_t sums_empty() const { return sums_full() + 8; }
    __device__ __forceinline__ uint32_t tile(uint32_t stage) const { return base + kAtTiles + stage * stage_bytes; }
};

// Blocks of K of a CTA. Segment i is from boundary(i) on.
struct Span {
    uint32_t blocks, segment, first, end;
    __device__ __forceinline__ uint32_t boundary(uint32_t i) const { return blocks * i / kSegments; }
};

template <typename Out_, uint32_t PAIR_, uint32_t SPLIT_>
struct Form {
    using Out = Out_;
    static constexpr uint32_t PAIR = PAIR_, SPLIT = SPLIT_, CLUSTER = PAIR * SPLIT;
    static_assert(PAIR == 1 || SPLIT == 1, "a cluster is for one of the two");
    static constexpr uint32_t SEGMENTS = SPLIT > 1 ? kSegments / SPLIT : 1;  // of a CTA
    static_assert(SEGMENTS == 1 || SEGMENTS == kChain, "a CTA has a segment or a chain of them");
    static constexpr int MAX_NT = SPLIT > 1 ? 128 : 256;  // tokens of a warpgroup
    static constexpr bool MAPPED = SPLIT == 1 && sizeof(Out) == 2;  // the copy engine can store Y
};

// --- storing --------------------------------------------------------------------------------

// Eight tokens of 16 outputs from `n` on: v is the fragment of one group of columns of wgmma's accumulators.
template <class F>
__device__ __forceinline__ void store_group(const Bf16GemmArgs &a, uint32_t head, uint32_t n, uint32_t row, float4 v) {
    using Out = typename F::Out;
    const uint32_t lane = threadIdx.x & 31, quad = lane & 3;
    Out *y = static_cast<Out *>(a.y) + head * a.y_step;
    if constexpr (sizeof(Out) == 2) {
        const uint32_t lo = transpose8(pack(v.x, v.y)), hi = transpose8(pack(v.z, v.w));
        const bool odd = quad & 1;
        const uint32_t got = __shfl_xor_sync(~0u, odd ? lo : hi, 1);
        const uint2 four = odd ? make_uint2(got, hi) : make_uint2(lo, got);
        const uint32_t r = row + lane / 4, col = n + (odd ? 8 + 2 * (quad - 1) : 2 * quad);
        if (r < a.rows && col < a.n) {
            Out *p = y + r * a.ldy + col;
            if (col + 4 <= a.n) {
                *reinterpret_cast<uint2 *>(p) = four;
            } else {
                const uint32_t half[2] = {four.x, four.y};
#pragma unroll
                for (uint32_t i = 0; i < 3; ++i)
                    if (col + i < a.n) p[i] = __ushort_as_bfloat16(uint16_t(half[i / 2] >> i % 2 * 16));
            }
        }
    } else {
        const uint32_t r = row + quad * 2, col = n + lane / 4;
        Out *p = y + r * a.ldy + col;
        const bool in0 = col < a.n, in1 = col + 8 < a.n;
        if (r < a.rows) {
            if (in0) p[0] = v.x;
            if (in1) p[8] = v.z;
        }
        if (r + 1 < a.rows) {
            if (in0) p[a.ldy] = v.y;
            if (in1) p[a.ldy + 8] = v.w;
        }
    }
}

// Through shared memory, `store_tokens` at a time.
template <int NT>
__device__ __forceinline__ void store_mapped(const CUtensorMap *map, const Bf16GemmArgs &a, uint32_t box, uint32_t head,
                                             uint32_t n, uint32_t row, const float (&acc)[NT / 2]) {
    const uint32_t wg = __shfl_sync(~0u, threadIdx.x / 128, 0), warp = threadIdx.x / 32 % 4, lane = threadIdx.x & 31;
    const uint32_t chunk = warp * 2 + lane / 8 % 2;
    const bool leader = threadIdx.x % 128 == 0;
    box += wg * a.store_tokens * 128;
    uint32_t in_box = 0;
#pragma unroll
    for (int i = 0; i < NT; i += 16) {
        if (in_box == 0) {
            if (leader) stores_read();
            group_sync(wg);
        }
        // 16 tokens of 16 outputs into rows of 128 bytes, whose 16-byte pieces are exchanged by row.
        const uint32_t r = in_box + lane / 16 * 8 + lane % 8;
        const float *v = acc + i / 2;
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                         box + r * 128 + (chunk ^ (r & 7)) * 16),
                     "r"(pack(v[0], v[1])), "r"(pack(v[2], v[3])), "r"(pack(v[4], v[5])), "r"(pack(v[6], v[7]))
                     : "memory");
        in_box += 16;
        if (in_box == a.store_tokens) {
            fence_async();
            group_sync(wg);
            if (leader) store_tile(map, box, n, head, row + i + 16 - in_box);
            in_box = 0;
        }
    }
}

// --- computing ------------------------------------------------------------------------------

__device__ __forceinline__ void add(float4 &a, float4 b) { a.x += b.x, a.y += b.y, a.z += b.z, a.w += b.w; }

struct Consumer {
    Ring ring;
    uint32_t sums_phase = 0;
};

template <class F>
__device__ __forceinline__ void release(const Layout &l, uint32_t stage) {
    const uint32_t lane = threadIdx.x & 31;
    if constexpr (F::PAIR > 1) {
        if (lane < F::PAIR) barrier_arrive_at(l.empty(stage), lane);
    } else {
        if (lane == 0) barrier_arrive(l.empty(stage));
    }
}

// A warpgroup's part of a tile: 64 outputs from n on and NT tokens from `row` on.
template <class F, int NT>
__device__ __forceinline__ void tile(const CUtensorMap *y_map, const Bf16GemmArgs &a, const Layout &l, Consumer &c,
                                     uint32_t head, uint32_t n, uint32_t row, uint32_t a_offset, uint32_t b_offset,
                                     const Span &k) {
    const uint32_t warp = threadIdx.x / 32 % 4, lane = threadIdx.x & 31;
    float acc[NT / 2] = {};
    float total[F::SEGMENTS > 1 ? NT / 2 : 1];
    uint32_t last = 0, begin = k.first, segment = k.segment;
    pin(acc);
    for (uint32_t kb = k.first; kb < k.end; ++kb) {
        if constexpr (F::SEGMENTS > 1) {
            if (kb == k.boundary(segment + 1)) {
                mma_wait<0>();
                pin(acc);
#pragma unroll
                for (int i = 0; i < NT / 2; ++i) total[i] = segment == k.segment ? acc[i] : total[i] + acc[i];
                begin = kb;
                ++segment;
            }
        }
        const uint32_t at = descriptor(l.tile(c.ring.stage));
        barrier_wait(l.full(c.ring.stage), c.ring.phase);
        mma_fence();
#pragma unroll
        for (int i = 0; i < 4; ++i)
            Mma<NT>::issue(acc, at + a_offset / 16 + i * 2, at + b_offset / 16 + i * 2, i != 0 || kb != begin);
        mma_commit();
        // The tensor cores have the next block before the one before it is given back.
        mma_wait<1>();
        if (kb != k.first) release<F>(l, last);
        last = c.ring.stage;
        c.ring.advance(l.stages);
    }
    mma_wait<0>();
    pin(acc);
    release<F>(l, last);
    if constexpr (F::SEGMENTS > 1) {
#pragma unroll
        for (int i = 0; i < NT / 2; ++i) acc[i] = total[i] + acc[i];
    }

    const uint32_t my_n = n + warp * 16 + lane / 4;
    float b0 = 0.f, b1 = 0.f;
    if (a.bias) {
        const float *bias = a.bias + size_t(head) * a.n;
        if (my_n < a.n) b0 = __ldg(bias + my_n);
        if (my_n + 8 < a.n) b1 = __ldg(bias + my_n + 8);
    }
    if constexpr (F::SPLIT > 1) {
        // Every CTA adds up its share of the groups of eight tokens.
        constexpr uint32_t GROUPS = NT / 8, SHARE = (GROUPS + F::SPLIT - 1) / F::SPLIT;
        constexpr uint32_t PARTS = kChain / F::SEGMENTS;  // of a chain
        const uint32_t rank = cluster_rank(), full = l.sums_full(), empty = l.sums_empty();
        const uint32_t buffer = l.after + threadIdx.x * 16;
        if (threadIdx.x == 0) barrier_expect(full, (GROUPS + F::SPLIT - 1 - rank) / F::SPLIT * F::SPLIT * 4096);
        barrier_wait<true>(empty, c.sums_phase ^ 1);
#pragma unroll
        for (uint32_t j = 0; j < GROUPS; ++j)
            store_at(buffer + (rank * SHARE + j / F::SPLIT) * 4096, full, j % F::SPLIT,
                     make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]));
        barrier_wait<true>(full, c.sums_phase);
#pragma unroll 1
        for (uint32_t j = rank; j < GROUPS; j += F::SPLIT) {
            float4 sum;
#pragma unroll
            for (uint32_t first = 0; first < F::SPLIT; first += PARTS) {
                float4 chain;
#pragma unroll
                for (uint32_t i = first; i < first + PARTS; ++i) {
                    const float4 part = load_shared(buffer + (i * SHARE + j / F::SPLIT) * 4096);
                    if (i == first) chain = part;
                    else add(chain, part);
                }
                if (first == 0) sum = chain;
                else add(sum, chain);
            }
            if (a.bias) add(sum, make_float4(b0, b0, b1, b1));
            store_group<F>(a, head, n + warp * 16, row + j * 8, sum);
        }
        __syncwarp();
        if (lane < F::SPLIT) barrier_arrive_at(empty, lane);
        c.sums_phase ^= 1;
    } else {
        if (a.bias) {
#pragma unroll
            for (int i = 0; i < NT / 2; ++i) acc[i] += i & 2 ? b1 : b0;
        }
        if constexpr (F::MAPPED && NT >= 16) {
            if (a.store_tokens && a.store_tokens <= NT) {
                store_mapped<NT>(y_map, a, l.after, head, n, row, acc);
                return;
            }
        }
#pragma unroll
        for (int j = 0; j < NT / 8; ++j)
            store_group<F>(a, head, n + warp * 16, row + j * 8,
                           make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]));
    }
}

// --- loading --------------------------------------------------------------------------------

// What one loading thread does: weights (and says how much comes), or tokens.
template <class F, bool WEIGHTS>
__device__ __forceinline__ void load(const CUtensorMap *map, const Bf16GemmArgs &a, const Layout &l, const Walk &walk,
                                     uint32_t rank, const Span &k) {
    // Weights that no other tile needs make room for what is needed again.
    const uint64_t policy = cache_policy(WEIGHTS && walk.tiles == 1);
    const uint32_t part = F::PAIR > 1 ? rank : 0;
    Ring ring;
    Tile t;
    for (uint32_t item = blockIdx.x / F::CLUSTER; walk.find(item, t); item += gridDim.x / F::CLUSTER) {
        const uint32_t n0 = (t.unit * F::PAIR + part) * a.outputs;
        const uint32_t box = x_box(a, F::PAIR), boxes = x_boxes(a, F::PAIR, t.row);
        const uint32_t bytes = l.w_bytes + boxes * box * 128;
        for (uint32_t kb = k.first; kb < k.end; ++kb) {
            barrier_wait(l.empty(ring.stage), ring.phase ^ 1);
            const uint32_t bar = l.full(ring.stage), at = l.tile(ring.stage);
            if constexpr (WEIGHTS) {
                barrier_expect(bar, bytes);
                load_tile(at, map, bar, kb * kBlockK, t.head, n0, policy);
            } else {
                // Also by one that has no box of a tile: a thread that nobody waits for may come to a barrier a phase
                // late, and then waits for ever.
                barrier_arrive(bar);
#pragma unroll 1
                for (uint32_t i = part; i < boxes; i += F::PAIR) {
                    const uint32_t dst = at + l.w_bytes + i * box * 128, row = t.row + i * box;
                    if constexpr (F::PAIR > 1)
                        load_tile_multicast(dst, map, bar, kb * kBlockK, t.head, row, (1 << F::PAIR) - 1);
                    else
                        load_tile(dst, map, bar, kb * kBlockK, t.head, row, policy);
                }
            }
            ring.advance(l.stages);
        }
    }
    if constexpr (F::PAIR > 1 && WEIGHTS) {
        // Not gone before the last arrival of a neighbour.
        for (uint32_t i = 0; i < l.stages; ++i) {
            barrier_wait(l.empty(ring.stage), ring.phase ^ 1);
            ring.advance(l.stages);
        }
    }
}

template <class F>
__device__ __forceinline__ void product(const Bf16GemmLaunch &p) {
    extern __shared__ uint8_t raw[];
    const Bf16GemmArgs &a = p.args;
    const uint32_t unaligned = shared_addr(raw);
    const Layout l(a, kept(unaligned + (-unaligned & 1023)));
    const uint32_t rank = F::CLUSTER > 1 ? cluster_rank() : 0;
    if (threadIdx.x == 256) {
        prefetch_map(&p.x_map);
        prefetch_map(&p.w_map);
        if (F::MAPPED && a.store_tokens) prefetch_map(&p.y_map);
        for (uint32_t i = 0; i < l.stages; ++i) {
            barrier_init(l.full(i), 2);
            barrier_init(l.empty(i), kWarps * F::PAIR);
        }
        barrier_init(l.sums_full(), 1);
        barrier_init(l.sums_empty(), kWarps * F::SPLIT);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    let_next_start();
    __syncthreads();
    if constexpr (F::CLUSTER > 1) cluster_sync();

    const uint32_t step = a.outputs * F::PAIR;
    const Walk walk{(a.n + step - 1) / step, (a.rows + a.tokens - 1) / a.tokens, a.heads, a.tokens};
    Span k{(a.k + kBlockK - 1) / kBlockK};
    k.segment = F::SPLIT > 1 ? rank * F::SEGMENTS : 0;
    k.first = F::SPLIT > 1 ? k.boundary(k.segment) : 0;
    k.end = F::SPLIT > 1 ? k.boundary(k.segment + F::SEGMENTS) : k.blocks;

    if (threadIdx.x >= 256) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 256) {
            // Weights are nobody's output: they need not wait for the kernels before.
            load<F, true>(&p.w_map, a, l, walk, rank, k);
        } else if (threadIdx.x == 288) {
            wait_for_earlier();
            load<F, false>(&p.x_map, a, l, walk, rank, k);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const uint32_t wg = __shfl_sync(~0u, threadIdx.x / 128, 0);
        const bool by_tokens = a.outputs == 64;
        const uint32_t a_offset = by_tokens ? 0 : wg * 8192;
        Consumer c;
        Tile t;
        for (uint32_t item = blockIdx.x / F::CLUSTER; walk.find(item, t); item += gridDim.x / F::CLUSTER) {
            const uint32_t n = (t.unit * F::PAIR + (F::PAIR > 1 ? rank : 0)) * a.outputs + (by_tokens ? 0 : wg * 64);
            uint32_t tokens = a.tokens;
            while (tokens > 16 && a.rows - t.row <= tokens / 2) tokens /= 2;
            if (by_tokens) tokens /= 2;
            const uint32_t first = by_tokens ? wg * tokens : 0, row = t.row + first, b_offset = l.w_bytes + first * 128;
#define BF16_GEMM_TILE(NT)                                                                                            \
    case NT: tile<F, NT>(&p.y_map, a, l, c, t.head, n, row, a_offset, b_offset, k); break
            switch (tokens) {
                BF16_GEMM_TILE(8);
                BF16_GEMM_TILE(16);
                BF16_GEMM_TILE(32);
                BF16_GEMM_TILE(64);
                BF16_GEMM_TILE(128);
            default:
                if constexpr (F::MAX_NT == 256) tile<F, 256>(&p.y_map, a, l, c, t.head, n, row, a_offset, b_offset, k);
            }
#undef BF16_GEMM_TILE
        }
        // Not gone before the last arrival of a neighbour.
        if constexpr (F::SPLIT > 1) barrier_wait<true>(l.sums_empty(), c.sums_phase ^ 1);
        if constexpr (F::MAPPED) {
            if (threadIdx.x % 128 == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
        }
    }
}

}  // namespace bf16_gemm

// --- entry points ---------------------------------------------------------------------------

// Grid: a multiple of the cluster, at most as many CTAs as the device holds at once.
#define BF16_GEMM(name, ...)                                                                                          \
    extern "C" __global__ void __cluster_dims__(bf16_gemm::Form<__VA_ARGS__>::CLUSTER, 1, 1)                          \
        __launch_bounds__(bf16_gemm::kThreads, 1) name(const __grid_constant__ Bf16GemmLaunch p) {                    \
        bf16_gemm::product<bf16_gemm::Form<__VA_ARGS__>>(p);                                                          \
    }

//        name               output,  pair, CTAs that K is split over
BF16_GEMM(bf16_gemm_bf16, __nv_bfloat16, 1, 1)
BF16_GEMM(bf16_gemm_f32, float, 1, 1)
BF16_GEMM(bf16_gemm_pair_bf16, __nv_bfloat16, 2, 1)
BF16_GEMM(bf16_gemm_pair_f32, float, 2, 1)
BF16_GEMM(bf16_gemm_split_bf16, __nv_bfloat16, 1, 8)
BF16_GEMM(bf16_gemm_split_f32, float, 1, 8)
BF16_GEMM(bf16_gemm_halves_bf16, __nv_bfloat16, 1, 2)
BF16_GEMM(bf16_gemm_halves_f32, float, 1, 2)
