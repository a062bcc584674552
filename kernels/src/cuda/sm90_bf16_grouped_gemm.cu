// y = x W^T in bf16 with float32 sums, on warp-wide matrix instructions (mma.sync): one matrix an expert slot, with the
// rows that chose it.
//
// An output is one chain of mma over inputs from first to last, whatever the tile that it is in. So a row's result is
// the same bit for bit in every batch, and tiles may be chosen by the number of rows.
#include "common.cuh"

constexpr int BN = 64;      // outputs a block
constexpr int BK = 64;      // inputs a stage: 128 bytes a row
constexpr int STAGES = 4;
constexpr int THREADS = 128;

// Row i of y is row `x_rows[i]` of x (or i itself, without `x_rows`) through the matrix of its slot; `tiles` says which
// rows are whose.
struct GroupedGemmParams {
  const bf16* x;
  uint64_t x_stride;
  uint64_t w_stride;
  bf16* y;
  uint64_t y_stride;
  uint32_t n, k;
  const bf16* const* slots;
  const uint32_t* x_rows;
  const uint32_t* tile_count;
  const uint32_t* tiles;  // [count][3]: slot, first row, end
};

__device__ __forceinline__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
// Copies `bytes` of 16, and zeros for the rest.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Byte offset of 16-byte piece `piece` of row `row` in a stage: rows of 128 bytes whose pieces are exchanged by row, so
// that eight rows of one column lie in different banks.
__device__ __forceinline__ uint32_t place(int row, int piece) { return row * 128 + ((piece ^ (row & 7)) * 16); }

// BM rows a block. Warps stand WM x WN.
template <int BM, int WM> __device__ void gemm(const GroupedGemmParams& p) {
  after_earlier();
  constexpr int WN = 4 / WM, ROWS = BM / WM, COLS = BN / WN;
  constexpr int MI = ROWS / 16, NI = COLS / 8;
  static_assert(MI >= 1 && NI % 2 == 0, "whole fragments");
  constexpr uint32_t X_BYTES = BM * BK * 2, W_BYTES = BN * BK * 2;
  extern __shared__ __align__(128) uint8_t stages[];
  const uint32_t base = shared_address(stages);

  if (blockIdx.y >= *p.tile_count) return;
  const uint32_t* tile = p.tiles + 3 * blockIdx.y;
  const bf16* w = p.slots[tile[0]];
  const uint32_t first_row = tile[1], end_row = tile[2];
  const uint32_t first_col = blockIdx.x * BN;
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;

  // A thread always copies the same 16-byte column of rows `tid / 8`, + 16, ...
  const int piece = tid % 8;
  const bf16* x_from[BM / 16];
  bool x_is[BM / 16];
#pragma unroll
  for (int i = 0; i < BM / 16; i++) {
    const uint32_t row = first_row + tid / 8 + 16 * i;
    x_is[i] = row < end_row;
    const uint64_t from = !x_is[i] ? 0 : p.x_rows ? p.x_rows[row] : row;
    x_from[i] = p.x + from * p.x_stride;
  }
  auto load = [&](int stage, uint32_t block) {
    const uint32_t at = block * BK + piece * 8;
    const int bytes = at < p.k ? min(16u, 2 * (p.k - at)) : 0;
    const uint32_t to = base + stage * (X_BYTES + W_BYTES);
#pragma unroll
    for (int i = 0; i < BM / 16; i++)
      copy_async(to + place(tid / 8 + 16 * i, piece), x_from[i] + (bytes ? at : 0), x_is[i] ? bytes : 0);
#pragma unroll
    for (int i = 0; i < BN / 16; i++) {
      const uint32_t row = first_col + tid / 8 + 16 * i;
      const bool is = row < p.n && bytes;
      copy_async(to + X_BYTES + place(tid / 8 + 16 * i, piece), w + (is ? row * p.w_stride + at : 0), is ? bytes : 0);
    }
  };

  float acc[MI][NI][4] = {};
  const uint32_t blocks = (p.k + BK - 1) / BK;
  for (int stage = 0; stage < STAGES - 1; stage++) {
    if (stage < blocks) load(stage, stage);
    asm volatile("cp.async.commit_group;");
  }
  const int warp_row = warp / WN * ROWS, warp_col = warp % WN * COLS;
  for (uint32_t block = 0; block < blocks; block++) {
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
    __syncthreads();
    if (block + STAGES - 1 < blocks) load((block + STAGES - 1) % STAGES, block + STAGES - 1);
    asm volatile("cp.async.commit_group;");
    const uint32_t xs = base + block % STAGES * (X_BYTES + W_BYTES), ws = xs + X_BYTES;
#pragma unroll
    for (int k = 0; k < BK / 16; k++) {
      uint32_t a[MI][4], b[NI / 2][4];
#pragma unroll
      for (int i = 0; i < MI; i++) load_matrices(a[i], xs + place(warp_row + 16 * i + lane % 16, 2 * k + lane / 16));
#pragma unroll
      for (int j = 0; j < NI / 2; j++)
        load_matrices(b[j], ws + place(warp_col + 16 * j + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < MI; i++)
#pragma unroll
        for (int j = 0; j < NI; j++) mma(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }

#pragma unroll
  for (int i = 0; i < MI; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t row = first_row + warp_row + 16 * i + 8 * half + lane / 4;
      if (row >= end_row) continue;
#pragma unroll
      for (int j = 0; j < NI; j++)
#pragma unroll
        for (int one = 0; one < 2; one++) {
          const uint32_t col = first_col + warp_col + 8 * j + lane % 4 * 2 + one;
          if (col >= p.n) continue;
          p.y[row * p.y_stride + col] = from_f32<bf16>(acc[i][j][2 * half + one]);
        }
    }
}

// Grid: (outputs / BN, most tiles). Dynamic shared memory: STAGES * (BM + BN) * BK * 2 bytes.
extern "C" __global__ void __launch_bounds__(THREADS) grouped_gemm_16(const GroupedGemmParams p) { gemm<16, 1>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) grouped_gemm_64(const GroupedGemmParams p) { gemm<64, 2>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) grouped_gemm_128(const GroupedGemmParams p) { gemm<128, 2>(p); }
