// Attention in latent space (MLA, absorbed) over paged bf16 cache rows `[512 latent | 64 rotated]`, for Hopper: keys are
// whole rows, values their first 512 columns.
//
// A block computes a tile of 64 queries (heads of one row, or of a few consecutive rows of a sequence) against
// positions in tiles of 64, which the tensor copy engine brings: nine boxes of 64 x 64. Two tiles are in flight.
// Warpgroup 0 computes scores and weights of even tiles, warpgroup 1 of odd tiles, and each sums all tiles into its half
// of the 512 output columns; so one computes weights while the other keeps the tensor cores busy. Weights go from one to
// the other where the rotated columns of their tile were, which nobody needs by then.
//
// What a query gets depends on its own positions and on where its work item begins and ends, not on the rest of the
// list.
#include <cuda.h>
#include <cuda_bf16.h>
#include <stdint.h>
#include "launch.cuh"

constexpr int TILE = 64;  // queries; positions
constexpr int KEY = 576, VALUE = 512;
constexpr int BOXES = KEY / 64;
constexpr uint32_t BOX = 64 * 64 * 2;  // bytes
constexpr int GROUPS = 3;  // boxes that become free together: columns of warpgroup 0, of warpgroup 1, rotated columns
constexpr int THREADS = 384;  // two warpgroups that compute, one that loads
constexpr int LOADERS = 64;   // of the latter, those that fetch queries

// Offsets in shared memory.
constexpr uint32_t AT_Q = 0;
constexpr uint32_t AT_KV = BOXES * BOX;
constexpr uint32_t AT_FULL = 3 * BOXES * BOX;         // [2][GROUPS] barriers
constexpr uint32_t AT_EMPTY = AT_FULL + 16 * GROUPS;  // [2][GROUPS]
constexpr uint32_t AT_Q_FULL = AT_EMPTY + 16 * GROUPS;
constexpr uint32_t AT_Q_EMPTY = AT_Q_FULL + 8;
constexpr uint32_t AT_LARGEST = AT_Q_EMPTY + 8;       // [2][TILE] floats: after an even tile, after an odd one
constexpr uint32_t AT_SUM = AT_LARGEST + 8 * TILE;    // [2][2][TILE] floats: by item, by warpgroup
constexpr uint32_t SHARED = AT_SUM + 16 * TILE;       // dynamic shared memory of a launch
static_assert(SHARED <= 227 * 1024, "more than a block gets");

// Queries (`row .. row + rows`, `head .. min(head + 64, heads)`; 64 at most) and the positions that they look at: row i
// of the item at `begin .. min(end, last - (rows - 1 - i))`. With `end <= begin` there is nothing to do. An item is read
// as two pieces of 16 bytes.
struct MlaItem {
  uint32_t row, rows;
  uint32_t table;  // of the sequence's first page in `tables`
  uint32_t begin;  // a multiple of 64
  uint32_t end;
  uint32_t last;   // positions that the item's last row attends to in all
  uint32_t head;
  int32_t split;  // the partial result to write, or -1: write `out`
};

struct MlaParams {
  const __nv_bfloat16* q;  // [rows][heads][576]
  uint64_t q_stride;       // in values, as all strides; a multiple of 8
  __nv_bfloat16* out;      // [rows][heads][512]
  uint64_t out_stride;
  const uint32_t* tables;
  const MlaItem* items;
  const uint32_t* count;
  float* partial;  // [split][64][512]: sums of weights times values
  float2* stats;   // [split][64]: exponent (base 2) that weights are relative to, sum of weights
  float scale;
  uint32_t heads;
  uint32_t page_rows;  // cache rows a page: 64 x layers
  uint32_t layer_row;  // of them, before the layer: 64 x layer
};
struct MlaLaunch {
  CUtensorMap map;
  MlaParams p;
};

// --- barriers ----------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra AGAIN;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Named barriers among warps that compute.
enum { EVEN_READY = 1, ODD_READY, SCORES_STARTED, ITEM_DONE, OWN };
__device__ __forceinline__ void named_sync(int name, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int name, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
// What this thread stored to shared memory, before what the tensor cores and the copy engine do there next.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- copies ------------------------------------------------------------------------------------

__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap* map, uint32_t barrier, uint32_t col, uint32_t row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(col), "r"(row)
      : "memory");
}
// True in one lane.
__device__ __forceinline__ bool elect() {
  uint32_t chosen;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(chosen));
  return chosen;
}
// 16 bytes, or zeros.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool zero) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(zero ? 0 : 16) : "memory");
}
__device__ __forceinline__ void store_matrices(uint32_t to, const uint32_t* r) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t to, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
}
__device__ __forceinline__ float load_shared(uint32_t from) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(from) : "memory");
  return value;
}

// --- tensor cores ------------------------------------------------------------------------------

// Descriptors of operands in boxes: 64 rows of 128 bytes, their 16-byte pieces exchanged by row. Across columns (`keys`),
// groups of eight rows are 1024 bytes apart; 16 columns on is 32 bytes on. Along columns (`values`), boxes are 8192
// bytes apart; 16 rows on is 2048 bytes on.
__device__ __forceinline__ uint32_t keys_at(uint32_t address) { return (1 << 16) | (address & 0x3ffff) >> 4; }
__device__ __forceinline__ uint32_t values_at(uint32_t address) { return (512 << 16) | (address & 0x3ffff) >> 4; }
__device__ __forceinline__ uint64_t operand(uint32_t low) {
  uint64_t r;
  asm("mov.b64 %0, {%1, %2};" : "=l"(r) : "r"(low), "r"((1u << 30) | 64));
  return r;
}
__device__ __forceinline__ void mma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void mma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void mma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Keeps the compiler from moving uses of registers over this place.
template <class T, int N> __device__ __forceinline__ void pin(T (&r)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) {
    if constexpr (sizeof(T) == 4 && T(0.5f) != T(0)) asm volatile("" : "+f"(r[i])::"memory");
    else asm volatile("" : "+r"(r[i])::"memory");
  }
}

#define D4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(d, i) D4(d, i), D4(d, i + 4), D4(d, i + 8), D4(d, i + 12)
#define D64(d, i) D16(d, i), D16(d, i + 16), D16(d, i + 32), D16(d, i + 48)

// d[64][64] = (add ? d : 0) + a[64][16] b[64][16]^T, both in shared memory.
template <int ADD> __device__ __forceinline__ void mma_scores(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
      "}, %32, %33, p, 1, 1, 0, 0;\n}"
      : D16(d, 0), D16(d, 16)
      : "l"(a), "l"(b), "n"(ADD));
}
// d[64][256] += a[64][16] b[16][256], `a` in registers.
__device__ __forceinline__ void mma_values(float (&d)[128], const uint32_t* a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
      "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"
      "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"
      "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"
      "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
      "}, {%128,%129,%130,%131}, %132, 1, 1, 1, 1;"
      : D64(d, 0), D64(d, 64)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// The same with `a` in shared memory.
__device__ __forceinline__ void mma_values(float (&d)[128], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
      "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"
      "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"
      "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"
      "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
      "}, %128, %129, 1, 1, 1, 0, 1;"
      : D64(d, 0), D64(d, 64)
      : "l"(a), "l"(b));
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ uint32_t pack(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<uint32_t*>(&pair);
}

// The same in all lanes, and the compiler may know.
__device__ __forceinline__ uint32_t uniform(uint32_t x) { return __shfl_sync(~0u, x, 0); }

// --- an item, as every warp sees it --------------------------------------------------------------

struct Work {
  MlaItem item;
  uint32_t heads;  // of a row
  int32_t tiles;

  // False: nothing to do.
  __device__ __forceinline__ bool read(const MlaParams& p, uint32_t index) {
    const uint4* from = reinterpret_cast<const uint4*>(p.items + index);
    const uint4 a = __ldg(from), b = __ldg(from + 1);
    item.row = uniform(a.x), item.rows = uniform(a.y), item.table = uniform(a.z), item.begin = uniform(a.w);
    item.end = uniform(b.x), item.last = uniform(b.y), item.head = uniform(b.z), item.split = (int32_t)uniform(b.w);
    heads = min((uint32_t)TILE, p.heads - item.head);
    tiles = item.end > item.begin ? (int32_t)((item.end - item.begin + TILE - 1) / TILE) : 0;
    return tiles > 0;
  }
  // Row and head of query `i` of the tile; false: none.
  __device__ __forceinline__ bool query(uint32_t i, uint32_t& row, uint32_t& head) const {
    const uint32_t j = item.rows == 1 ? (i >= heads) : i / heads;
    row = item.row + j;
    head = item.head + i - j * heads;
    return j < item.rows;
  }
  // Positions from `begin` on that query `i` looks at.
  __device__ __forceinline__ int32_t limit(uint32_t i) const {
    const uint32_t j = min(item.rows == 1 ? 0 : i / heads, item.rows - 1);
    return min((int32_t)item.end, (int32_t)(item.last - (item.rows - 1 - j))) - (int32_t)item.begin;
  }
};

// --- loading -----------------------------------------------------------------------------------

// The i-th box of a tile to be loaded and used, in the order in which they become free: columns of the warpgroup that
// computes the tile's weights (`half`), of the other, rotated columns.
__device__ __forceinline__ constexpr int box_at(int half, int i) { return i < 8 ? i ^ (half * 4) : 8; }
__device__ __forceinline__ constexpr uint32_t group_bytes(int group) { return group == 2 ? BOX : 4 * BOX; }

// One warp: even (HALF 0) or odd tiles of cache rows.
template <int HALF> __device__ void load_tiles(const MlaParams& p, const CUtensorMap* map, uint32_t base) {
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t count = uniform(*p.count);
  uint32_t uses = 0;
  for (uint32_t index = blockIdx.x; index < count; index += gridDim.x) {
    Work work{};
    if (!work.read(p, index)) continue;
    const int steps = (work.tiles + 1 - HALF) / 2;
    const uint32_t* table = p.tables + work.item.table + work.item.begin / TILE + HALF;
    uint32_t pages = 0, next = 0;  // of 32 steps, one a lane
    if (lane < steps) next = __ldg(table + 2 * lane);
    for (int step = 0; step < steps; step++, uses++) {
      if (step % 32 == 0) {
        pages = next;
        if (step + 32 + lane < steps) next = __ldg(table + 2 * (step + 32 + lane));
      }
      // A sum, because its result is in a uniform register.
      const uint32_t row = __reduce_add_sync(~0u, lane == step % 32 ? pages : 0) * p.page_rows + p.layer_row;
#pragma unroll
      for (int i = 0; i < BOXES; i += 4) {
        const int group = box_at(HALF, i) / 4;
        const uint32_t full = base + AT_FULL + (HALF * GROUPS + group) * 8;
        if (uses > 0) barrier_wait(base + AT_EMPTY + (HALF * GROUPS + group) * 8, (uses - 1) & 1);
        if (elect()) {
          barrier_expect(full, group_bytes(group));
#pragma unroll
          for (int j = i; j < i + 4 && j < BOXES; j++) {
            const int box = box_at(HALF, j);
            copy_box(base + AT_KV + (HALF * BOXES + box) * BOX, map, full, box * 64, row);
          }
        }
        __syncwarp();
      }
    }
  }
}

// LOADERS threads: queries.
__device__ void load_queries(const MlaParams& p, uint32_t base) {
  const uint32_t thread = threadIdx.x % 128 - 64;
  const uint32_t count = uniform(*p.count);
  uint32_t use = 0;
  for (uint32_t index = blockIdx.x; index < count; index += gridDim.x) {
    Work work{};
    if (!work.read(p, index)) continue;
    if (use > 0) barrier_wait(base + AT_Q_EMPTY, (use - 1) & 1);
    // Eight threads a query: 128 bytes of it, box by box.
#pragma unroll 1
    for (uint32_t query = thread / 8; query < TILE; query += LOADERS / 8) {
      uint32_t row, head;
      const bool some = work.query(query, row, head);
      const __nv_bfloat16* from = some ? p.q + row * p.q_stride + head * KEY + thread % 8 * 8 : p.q;
      const uint32_t to = base + AT_Q + query * 128 + ((thread ^ query) & 7) * 16;
#pragma unroll
      for (int box = 0; box < BOXES; box++) copy_async(to + box * BOX, from + (some ? box * 64 : 0), !some);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    fence_async();
    barrier_arrive(base + AT_Q_FULL);
    use++;
  }
}

// --- computing ---------------------------------------------------------------------------------

// Largest scores move only when they grow by more than this (in powers of two), so sums are seldom rescaled.
constexpr float SLACK = 8.0f;
constexpr float NONE = -1e30f;

// Warpgroup HALF of two.
template <int HALF> struct Computer {
  const MlaParams& p;
  uint32_t base;
  uint32_t lane, warp;  // of the warpgroup
  uint32_t query;       // this thread's first; the second is eight on
  uint32_t uses = 0;    // of this warpgroup's buffer
  float out[128];
  float scores[32];
  uint32_t weights[16];
  float largest[2], sum[2];
  int32_t limits[2];

  __device__ __forceinline__ Computer(const MlaParams& p, uint32_t base) : p(p), base(base) {
    lane = threadIdx.x % 32;
    warp = threadIdx.x / 32 % 4;
    query = warp * 16 + lane / 4;
  }
  __device__ __forceinline__ uint32_t kv(int buffer) const { return base + AT_KV + buffer * (BOXES * BOX); }
  // Where a tile's weights are handed over.
  __device__ __forceinline__ uint32_t weights_at(int buffer) const { return kv(buffer) + 8 * BOX; }

  // Boxes FROM..TO of scores, in the order in which they arrive.
  template <int FROM, int TO> __device__ __forceinline__ void start_scores() {
    const uint32_t q = keys_at(base + AT_Q), k = keys_at(kv(HALF));
    pin(scores);
#pragma unroll
    for (int i = FROM; i < TO; i++) {
      const int box = box_at(HALF, i);
      if (i % 4 == 0) {
        barrier_wait(base + AT_FULL + (HALF * GROUPS + box / 4) * 8, uses & 1);
        mma_fence();
      }
#pragma unroll
      for (int step = 0; step < 4; step++) {
        const uint32_t at = box * (BOX / 16) + step * 2;
        if (i == 0 && step == 0) mma_scores<0>(scores, operand(q + at), operand(k + at));
        else mma_scores<1>(scores, operand(q + at), operand(k + at));
      }
    }
    mma_commit();
  }
  // Adds the values of a tile: weights from registers (this warpgroup's tile) or from shared memory (the other's).
  template <bool MINE> __device__ __forceinline__ void start_values() {
    constexpr int BUFFER = MINE ? HALF : 1 - HALF;
    const uint32_t v = values_at(kv(BUFFER) + HALF * 4 * BOX), w = keys_at(weights_at(BUFFER));
    pin(out);
    if (MINE) pin(weights);
    mma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++) {
      if constexpr (MINE) mma_values(out, weights + 4 * step, operand(v + step * 128));
      else mma_values(out, operand(w + step * 2), operand(v + step * 128));
    }
    mma_commit();
  }
  // Waits for them, with LATER more groups of products on their way, and hands the boxes back.
  template <int LATER> __device__ __forceinline__ void end_values(int buffer) {
    mma_wait<LATER>();
    release(buffer, HALF);
    if (buffer != HALF) release(buffer, 2);
    pin(out);
  }
  __device__ __forceinline__ void release(int buffer, int group) {
    if (lane == 0) barrier_arrive(base + AT_EMPTY + (buffer * GROUPS + group) * 8);
  }
  __device__ __forceinline__ void queries_done() {
    if (lane == 0) barrier_arrive(base + AT_Q_EMPTY);
  }
  template <int LATER> __device__ __forceinline__ void end_scores() {
    mma_wait<LATER>();
    pin(scores);
    uses++;
  }

  // Largest of this thread's two queries' scores, in powers of two; positions past the limits masked.
  __device__ __forceinline__ void score_tile(int tile, float scale, float (&most)[2]) {
    const int left0 = limits[0] - tile * TILE, left1 = limits[1] - tile * TILE;
    if (min(left0, left1) < TILE) {
#pragma unroll
      for (int i = 0; i < 32; i++) {
        const int position = i / 4 * 8 + (lane % 4) * 2 + (i & 1);
        if (position >= (i & 2 ? left1 : left0)) scores[i] = -INFINITY;
      }
    }
    // Chains that don't wait for each other.
    float part[8];
#pragma unroll
    for (int i = 0; i < 8; i++) part[i] = fmaxf(scores[i], scores[i + 8]);
#pragma unroll
    for (int i = 16; i < 32; i++) part[i % 8] = fmaxf(part[i % 8], scores[i]);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      most[h] = fmaxf(fmaxf(part[2 * h], part[2 * h + 1]), fmaxf(part[2 * h + 4], part[2 * h + 5]));
      most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 1));
      most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 2)) * scale;
      if (!(most[h] > largest[h] + SLACK)) most[h] = largest[h];
    }
  }
  // Turns scores into weights relative to `largest`.
  __device__ __forceinline__ void weigh(float scale) {
    float more[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 32; i++) {
      scores[i] = exp2_fast(fmaf(scores[i], scale, -largest[i / 2 & 1]));
      more[i % 4] += scores[i];
    }
    sum[0] += more[0] + more[1];
    sum[1] += more[2] + more[3];
#pragma unroll
    for (int i = 0; i < 16; i++) weights[i] = pack(scores[2 * i], scores[2 * i + 1]);
  }
  // Hands them to the other warpgroup, which waits at `name`.
  __device__ __forceinline__ void publish(int name) {
    const uint32_t row = warp * 16 + lane % 16, to = weights_at(HALF) + row * 128;
#pragma unroll
    for (int step = 0; step < 4; step++)
      store_matrices(to + ((step * 2 + lane / 16) ^ (row & 7)) * 16, weights + 4 * step);
    if (lane % 4 == 0) {
      store_shared(base + AT_LARGEST + (HALF * TILE + query) * 4, largest[0]);
      store_shared(base + AT_LARGEST + (HALF * TILE + query + 8) * 4, largest[1]);
    }
    fence_async();
    named_arrive(name, 256);
  }
  // Cache rows from `valid` on were never written: zeros, so that no NaN in them meets a weight of zero.
  __device__ __forceinline__ void clear_values(int valid) {
    for (int i = warp * 32 + lane; i < (TILE - valid) * 64; i += 128) {
      const int row = valid + i / 64, piece = i % 64;
      const uint32_t to = kv(HALF) + piece / 8 * BOX + row * 128 + piece % 8 * 16;
      asm volatile("st.shared.v4.b32 [%0], {%1,%1,%1,%1};" ::"r"(to), "r"(0) : "memory");
    }
    fence_async();
    named_sync(OWN + HALF, 128);
  }
  __device__ __forceinline__ bool grows(const float (&to)[2]) const {
    return __any_sync(~0u, to[0] != largest[0] || to[1] != largest[1]);
  }
  // From the exponent that sums are relative to, to a new one. Exact for rows whose exponent stays.
  __device__ __forceinline__ void rescale(const float (&to)[2]) {
    if (grows(to)) {
      const float by[2] = {exp2_fast(largest[0] - to[0]), exp2_fast(largest[1] - to[1])};
#pragma unroll
      for (int i = 0; i < 128; i++) out[i] *= by[i / 2 & 1];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        sum[h] *= by[h];
        largest[h] = to[h];
      }
    }
  }
  __device__ __forceinline__ void other_largest(float (&to)[2]) {
    to[0] = load_shared(base + AT_LARGEST + ((1 - HALF) * TILE + query) * 4);
    to[1] = load_shared(base + AT_LARGEST + ((1 - HALF) * TILE + query + 8) * 4);
  }

  // Warpgroup 0, one pair of an even and an odd tile, whose scores of the even one are there: weights of the even one,
  // then its values, then the odd one's values; then scores of the next even one, with `MORE`.
  template <bool MORE> __device__ __forceinline__ void even_tile(int tile, int positions, float scale) {
    float to[2];
    score_tile(tile, scale, to);
    rescale(to);
    weigh(scale);
    if (!MORE && positions - tile * TILE < TILE) clear_values(positions - tile * TILE);
    publish(EVEN_READY);
    start_values<true>();
    end_values<0>(0);
    if (!MORE && tile * TILE + TILE >= positions) return;
    named_sync(ODD_READY, 256);
    other_largest(to);
    rescale(to);
    start_values<false>();
    if (MORE) {
      start_scores<0, 1>();
      end_values<1>(1);
      start_scores<1, 9>();
      if ((tile + 3) * TILE < positions) named_arrive(SCORES_STARTED, 256);
      end_scores<0>();
    } else {
      end_values<0>(1);
    }
  }
  __device__ __forceinline__ void even_tiles(int tiles, int positions, float scale) {
    start_scores<0, 9>();
    if (tiles > 1) named_arrive(SCORES_STARTED, 256);
    end_scores<0>();
    int tile = 0;
    for (; tile + 2 < tiles; tile += 2) even_tile<true>(tile, positions, scale);
    queries_done();
    even_tile<false>(tile, positions, scale);
  }
  // Warpgroup 1: scores of the odd tile; the even one's values, while it computes weights of the odd one; then the odd
  // one's values.
  __device__ __forceinline__ void odd_tiles(int tiles, int positions, float scale) {
    int tile = 0;
    float to[2];
    for (; tile + 1 < tiles; tile += 2) {
      named_sync(SCORES_STARTED, 256);  // so that the even tile's are there first
      start_scores<0, 9>();
      named_sync(EVEN_READY, 256);
      other_largest(to);
      if (grows(to)) {
        mma_wait<0>();
        rescale(to);
      }
      start_values<false>();
      end_scores<1>();
      if (tile + 3 >= tiles) queries_done();
      score_tile(tile + 1, scale, to);
      // The sums are still relative to the old exponent.
      const float old[2] = {largest[0], largest[1]}, sums[2] = {sum[0], sum[1]};
      largest[0] = to[0], largest[1] = to[1];
      sum[0] = sum[1] = 0;
      weigh(scale);
      if (positions - (tile + 1) * TILE < TILE) clear_values(positions - (tile + 1) * TILE);
      publish(ODD_READY);
      end_values<0>(0);
      const float more[2] = {sum[0], sum[1]};
      largest[0] = old[0], largest[1] = old[1];
      sum[0] = sums[0], sum[1] = sums[1];
      rescale(to);
      sum[0] += more[0], sum[1] += more[1];
      start_values<true>();
      end_values<0>(1);
    }
    if (tiles == 1) queries_done();
    if (tile < tiles) {
      named_sync(EVEN_READY, 256);
      other_largest(to);
      rescale(to);
      start_values<false>();
      end_values<0>(0);
    }
  }

  // Four registers of each lane of four, exchanged: lane i gets the i-th of all.
  __device__ __forceinline__ uint4 exchange(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    const bool odd = lane & 1, high = lane & 2;
    const uint32_t ab = __shfl_xor_sync(~0u, odd ? a : b, 1), cd = __shfl_xor_sync(~0u, odd ? c : d, 1);
    const uint32_t a0 = odd ? ab : a, a1 = odd ? b : ab, c0 = odd ? cd : c, c1 = odd ? d : cd;
    const uint32_t x = __shfl_xor_sync(~0u, high ? a0 : c0, 2), y = __shfl_xor_sync(~0u, high ? a1 : c1, 2);
    return high ? make_uint4(x, y, c0, c1) : make_uint4(a0, a1, x, y);
  }

  __device__ __forceinline__ void finish(const Work& work, uint32_t turn) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
      sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
    }
    const uint32_t sums = base + AT_SUM + (turn & 1) * (8 * TILE);
    if (lane % 4 == 0) {
      store_shared(sums + (HALF * TILE + query) * 4, sum[0]);
      store_shared(sums + (HALF * TILE + query + 8) * 4, sum[1]);
    }
    named_sync(ITEM_DONE, 256);
#pragma unroll
    for (int h = 0; h < 2; h++)
      sum[h] = load_shared(sums + (query + 8 * h) * 4) + load_shared(sums + (TILE + query + 8 * h) * 4);

    if (work.item.split < 0) {
      const float by[2] = {sum[0] > 0 ? 1 / sum[0] : 0, sum[1] > 0 ? 1 / sum[1] : 0};
#pragma unroll
      for (int h = 0; h < 2; h++) {
        uint32_t row, head;
        const bool some = work.query(query + 8 * h, row, head);
        __nv_bfloat16* to = p.out + row * p.out_stride + head * VALUE + HALF * 256 + lane % 4 * 8;
#pragma unroll
        for (int i = 0; i < 8; i++) {
          uint32_t r[4];
#pragma unroll
          for (int j = 0; j < 4; j++)
            r[j] = pack(out[16 * i + 4 * j + 2 * h] * by[h], out[16 * i + 4 * j + 2 * h + 1] * by[h]);
          const uint4 value = exchange(r[0], r[1], r[2], r[3]);
          if (some) *reinterpret_cast<uint4*>(to + 32 * i) = value;
        }
      }
    } else {
      const uint64_t slot = work.item.split;
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float* to = p.partial + (slot * TILE + query + 8 * h) * VALUE + HALF * 256 + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 32; i++)
          *reinterpret_cast<float2*>(to + 8 * i) = make_float2(out[4 * i + 2 * h], out[4 * i + 2 * h + 1]);
        if (HALF == 0 && lane % 4 == 0) p.stats[slot * TILE + query + 8 * h] = make_float2(largest[h], sum[h]);
      }
    }
  }

  __device__ __forceinline__ void run() {
    const uint32_t count = uniform(*p.count);
    const float scale = p.scale * 1.4426950408889634f;
    uint32_t turn = 0;
    for (uint32_t index = blockIdx.x; index < count; index += gridDim.x) {
      int tiles, positions;
      {
        Work work{};
        if (!work.read(p, index)) continue;
        tiles = work.tiles;
        positions = work.item.end - work.item.begin;
#pragma unroll
        for (int h = 0; h < 2; h++) limits[h] = work.limit(query + 8 * h);
      }
      largest[0] = largest[1] = NONE;
      sum[0] = sum[1] = 0;
#pragma unroll
      for (int i = 0; i < 128; i++) out[i] = 0;
      barrier_wait(base + AT_Q_FULL, turn & 1);
      if (HALF == 0) even_tiles(tiles, positions, scale);
      else odd_tiles(tiles, positions, scale);
      // Read again: registers are scarce in between.
      Work work{};
      work.read(p, index);
      finish(work, turn);
      turn++;
    }
  }
};

// `map`: the pool as a matrix [pages x layers x 64][576] of bf16, boxes of 64 x 64, swizzled by 128 bytes.
// Grid: as many blocks as can run (any number is right), THREADS each; block b takes items b, b + grid, ... Items of the
// same positions should be neighbours in the list, so that one brings rows to L2 for the other.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
mla_bf16(const __grid_constant__ MlaLaunch launch) {
  after_earlier();
  const MlaParams& p = launch.p;
  // Starts at 1024 bytes (the system's), as there are no static variables: boxes must be aligned to that.
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = (uint32_t)__cvta_generic_to_shared(shared);
  if (base % 1024 != 0) __trap();
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2 * GROUPS; i++) {
      barrier_init(base + AT_FULL + i * 8, 1);
      barrier_init(base + AT_EMPTY + i * 8, 4);
    }
    barrier_init(base + AT_Q_FULL, LOADERS);
    barrier_init(base + AT_Q_EMPTY, 8);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    fence_async();
  }
  __syncthreads();
  const uint32_t role = uniform(threadIdx.x / 128);
  if (role == 2) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    const uint32_t warp = uniform(threadIdx.x / 32 % 4);
    if (warp == 0) load_tiles<0>(p, &launch.map, base);
    else if (warp == 1) load_tiles<1>(p, &launch.map, base);
    else load_queries(p, base);
  } else if (role == 0) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    Computer<0>(p, base).run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    Computer<1>(p, base).run();
  }
}

// --- merging partial results ---------------------------------------------------------------------

// Partial results `split`, `split + step`, ... (`parts` of them) of a tile of queries.
struct MlaMerge {
  uint32_t row, rows, head;
  uint32_t split, step, parts;
};
struct MlaMergeParams {
  __nv_bfloat16* out;
  uint64_t out_stride;
  const float* partial;
  const float2* stats;
  const MlaMerge* merges;
  const uint32_t* count;
  uint32_t heads;
};

// Any grid; 128 threads a block: a query at a time.
extern "C" __global__ void __launch_bounds__(128) mla_merge(const __grid_constant__ MlaMergeParams p) {
  after_earlier();
  const uint32_t units = *p.count * TILE;
  for (uint32_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const MlaMerge merge = p.merges[unit / TILE];
    const uint32_t query = unit % TILE, heads = min((uint32_t)TILE, p.heads - merge.head), j = query / heads;
    if (j >= merge.rows) continue;
    float largest = NONE;
    for (uint32_t i = 0; i < merge.parts; i++)
      largest = fmaxf(largest, p.stats[(uint64_t)(merge.split + i * merge.step) * TILE + query].x);
    float sum = 0;
    float4 acc = make_float4(0, 0, 0, 0);
    for (uint32_t i = 0; i < merge.parts; i++) {
      const uint64_t at = (uint64_t)(merge.split + i * merge.step) * TILE + query;
      const float2 stats = p.stats[at];
      const float4 value = reinterpret_cast<const float4*>(p.partial + at * VALUE)[threadIdx.x];
      const float by = exp2f(stats.x - largest);
      sum += by * stats.y;
      acc.x += by * value.x, acc.y += by * value.y, acc.z += by * value.z, acc.w += by * value.w;
    }
    const float by = sum > 0 ? 1 / sum : 0;
    __nv_bfloat16* to = p.out + (merge.row + j) * p.out_stride + (merge.head + query - j * heads) * VALUE + threadIdx.x * 4;
    *reinterpret_cast<uint2*>(to) = make_uint2(pack(acc.x * by, acc.y * by), pack(acc.z * by, acc.w * by));
  }
}
