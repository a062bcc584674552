// Attention over paged rows of any width and type, latent or grouped: the form that takes everything. Scores and
// sums are in float32 on the plain cores; widths that models have are taken by faster kernels where there are some.
//
// A block computes up to eight query heads that share a key head, of one row of the batch. It goes over the row's
// positions in pieces of 32 from the first on, so the order of every sum depends on the position alone.
#include "common.cuh"

constexpr int HEADS = 8;   // warps: one a head
constexpr int PIECE = 32;  // lanes: one a position
constexpr int THREADS = HEADS * 32;
constexpr int MAX_VALUES = 512;

struct AttentionParams {
  const bf16* q;
  uint64_t q_stride;
  bf16* out;
  uint64_t out_stride;
  uint32_t heads;
  uint32_t share;  // query heads a key head
  uint32_t key_dim, value_dim;
  uint32_t first_key, first_value;  // of key head 0 in a cache row
  float scale;
  Rows rows;
  Pages pages;
};

// Grid: (rows, key heads, pieces of eight query heads). Dynamic shared memory: HEADS x key_dim queries, then PIECE rows
// of `width` + 1 values (an odd number of words, so that lanes reading a column meet different banks), then HEADS x PIECE.
extern "C" __global__ void __launch_bounds__(THREADS) attention(const AttentionParams p) {
  after_earlier();
  extern __shared__ float shared[];
  const uint32_t row = blockIdx.x, key_head = blockIdx.y;
  const uint32_t first_head = key_head * p.share + blockIdx.z * HEADS;
  const uint32_t heads = min((uint32_t)HEADS, p.share - blockIdx.z * HEADS);
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool same = p.first_key == p.first_value;  // latent rows: values are the first columns of keys
  const uint32_t key_at = p.first_key + key_head * (same ? 0 : p.key_dim);
  const uint32_t value_at = p.first_value + key_head * (same ? 0 : p.value_dim);
  const uint32_t width = same ? p.key_dim : p.key_dim + p.value_dim;
  const uint32_t value_in = same ? 0 : p.key_dim;
  const uint32_t stride = width | 1;
  float* q = shared;
  float* cache = q + HEADS * p.key_dim;
  float* weights = cache + PIECE * stride;

  for (uint32_t i = threadIdx.x; i < heads * p.key_dim; i += THREADS) {
    const uint32_t head = i / p.key_dim;
    q[i] = to_f32(p.q[row * p.q_stride + (uint64_t)(first_head + head) * p.key_dim + i % p.key_dim]);
  }
  const uint32_t count = p.rows.positions[row] + 1;
  const uint32_t* table = p.rows.tables + p.rows.table_of[row];
  float largest = -INFINITY, sum = 0;  // of this warp's head
  float acc[HEADS][MAX_VALUES / THREADS] = {};
  __shared__ float factors[HEADS], sums[HEADS];

  for (uint32_t begin = 0; begin < count; begin += PIECE) {
    __syncthreads();
    for (uint32_t slot = warp; slot < PIECE; slot += HEADS) {
      const uint32_t position = begin + slot;
      float* to = cache + slot * stride;
      if (position < count) {
        const uint8_t* from = p.pages.row(table, position);
        for (uint32_t i = lane; i < p.key_dim; i += 32) to[i] = p.pages.read(from, key_at + i);
        if (!same)
          for (uint32_t i = lane; i < p.value_dim; i += 32) to[value_in + i] = p.pages.read(from, value_at + i);
      } else {
        for (uint32_t i = lane; i < width; i += 32) to[i] = 0;
      }
    }
    __syncthreads();
    if (warp < heads) {
      float score = 0;
      const float *a = q + warp * p.key_dim, *b = cache + lane * stride;
      for (uint32_t i = 0; i < p.key_dim; i++) score += a[i] * b[i];
      score = begin + lane < count ? score * p.scale : -INFINITY;
      float most = score;
      for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
      most = fmaxf(largest, most);
      const float weight = expf(score - most), factor = expf(largest - most);
      float total = weight;
      for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);
      sum = sum * factor + total;
      largest = most;
      weights[warp * PIECE + lane] = weight;
      if (lane == 0) factors[warp] = factor;
    }
    __syncthreads();
#pragma unroll
    for (int head = 0; head < HEADS; head++) {
      if (head >= heads) break;
#pragma unroll
      for (int part = 0; part < MAX_VALUES / THREADS; part++) {
        const uint32_t col = part * THREADS + threadIdx.x;
        if (col >= p.value_dim) continue;
        float value = acc[head][part] * factors[head];
        for (int slot = 0; slot < PIECE; slot++) value += weights[head * PIECE + slot] * cache[slot * stride + value_in + col];
        acc[head][part] = value;
      }
    }
  }
  if (warp < heads && lane == 0) sums[warp] = sum;
  __syncthreads();
#pragma unroll
  for (int head = 0; head < HEADS; head++) {
    if (head >= heads) break;
#pragma unroll
    for (int part = 0; part < MAX_VALUES / THREADS; part++) {
      const uint32_t col = part * THREADS + threadIdx.x;
      if (col >= p.value_dim) continue;
      p.out[row * p.out_stride + (uint64_t)(first_head + head) * p.value_dim + col] = from_f32<bf16>(acc[head][part] / sums[head]);
    }
  }
}
