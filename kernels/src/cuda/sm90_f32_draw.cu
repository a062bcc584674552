// Drawing a token from a row of logits: temperature, min_p, top_k, top_p, and the quantile of a given number.
//
// Weights are fixed-point numbers, whose sums are the same in any order: a row's token depends on nothing but the row and
// what is asked of it. A weight below 2^-40 of the largest counts as none. What top_k and top_p leave is told by a
// threshold: all values above it, and the first so many that are equal to it. It is found digit by digit.
#include "common.cuh"

typedef unsigned long long u64;

struct Spec {
  uint32_t row;
  uint32_t top_k;  // 0: all
  float inverse_temperature;
  float min_p, top_p;
  uint32_t padding;
  double quantile;  // in [0, 1)
};

struct DrawParams {
  const float* x;
  uint64_t stride;
  uint32_t cols;
  const Spec* specs;
  uint2* out;  // token, and the bits of the row's largest value; NaN where nothing can be drawn
};

constexpr uint32_t THREADS = 1024, WARPS = THREADS / 32;

// As large as its value.
__device__ __forceinline__ uint32_t key_of(float value) {
  const uint32_t bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float value_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

struct Row {
  const float* x;
  uint32_t cols;
  float most, inverse_temperature, min_p;

  __device__ __forceinline__ u64 weight(float value) const {
    const float weight = expf((value - most) * inverse_temperature);
    return weight >= min_p ? __float2ull_rz(weight * 1099511627776.0f) : 0;
  }
};

// What is left: keys above it, and the first `ties` that are equal to it.
struct Threshold {
  uint32_t key;
  uint32_t ties;
};

__device__ __forceinline__ u64 warp_sum(u64 value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}
__device__ u64 block_total(u64 value) {
  __shared__ u64 parts[WARPS];
  value = warp_sum(value);
  __syncthreads();  // the last call's parts have been read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  u64 sum = 0;
  for (uint32_t i = 0; i < WARPS; i++) sum += parts[i];
  return sum;
}

// The sum of `amount(key, weight)` over keys above `floor`.
template <class F> __device__ u64 sum_above(const Row& row, uint32_t floor, F amount) {
  u64 sum = 0;
  for (uint32_t i = threadIdx.x; i < row.cols; i += THREADS) {
    const uint32_t key = key_of(row.x[i]);
    if (key <= floor) continue;
    const u64 weight = row.weight(row.x[i]);
    if (weight) sum += amount(weight);
  }
  return block_total(sum);
}

// The largest key whose sum of `amount` over all keys from it on reaches `wanted`, among keys above `floor`, whose sum
// does; `above` becomes the sum over keys above it.
template <class F>
__device__ uint32_t find_key(const Row& row, uint32_t floor, u64 wanted, F amount, u64& above) {
  __shared__ u64 bins[256];
  __shared__ uint32_t found;
  __shared__ u64 found_above;
  uint32_t prefix = 0;
  above = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    __syncthreads();
    if (threadIdx.x < 256) bins[threadIdx.x] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < row.cols; i += THREADS) {
      const uint32_t key = key_of(row.x[i]);
      if (key <= floor || (shift < 24 && key >> (shift + 8) != prefix)) continue;
      const u64 weight = row.weight(row.x[i]);
      if (weight) atomicAdd(&bins[key >> shift & 255], amount(weight));
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      // A lane has eight bins, the first lane the largest.
      const uint32_t lane = threadIdx.x, top = 255 - 8 * lane;
      u64 own = 0;
      for (uint32_t i = 0; i < 8; i++) own += bins[top - i];
      u64 upto = own;
      for (int step = 1; step < 32; step *= 2) {
        const u64 before = __shfl_up_sync(~0u, upto, step);
        if (lane >= step) upto += before;
      }
      const uint32_t reached = __ballot_sync(~0u, above + upto >= wanted);
      if (lane == (reached ? __ffs(reached) - 1 : 31)) {
        u64 sum = above + upto - own;
        uint32_t bin = top;
        for (uint32_t i = 0; i < 7 && sum + bins[bin] < wanted; i++) sum += bins[bin--];
        found = bin;
        found_above = sum;
      }
    }
    __syncthreads();
    prefix = prefix << 8 | found;
    above = found_above;
  }
  return prefix;
}

__device__ Threshold find_threshold(const Row& row, const Spec& spec) {
  Threshold left = {0, 0};
  const auto one = [](u64) -> u64 { return 1; };
  const auto weight = [](u64 weight) { return weight; };
  if (spec.top_k > 0 && sum_above(row, 0, one) > spec.top_k) {
    u64 above;
    left.key = find_key(row, 0, spec.top_k, one, above);
    left.ties = spec.top_k - (uint32_t)above;
  }
  if (spec.top_p < 1.0f) {
    const u64 above = sum_above(row, left.key, weight);
    const u64 tie = left.ties ? row.weight(value_of(left.key)) : 0;
    const u64 total = above + left.ties * tie;
    const u64 wanted = max(1ull, (u64)ceil((double)spec.top_p * (double)total));
    if (wanted <= above) {
      u64 before;
      left.key = find_key(row, left.key, wanted, weight, before);
      const u64 each = row.weight(value_of(left.key));
      left.ties = (uint32_t)((wanted - before + each - 1) / each);
    } else if (tie) {
      left.ties = min(left.ties, (uint32_t)((wanted - above + tie - 1) / tie));
    }
  }
  return left;
}

// The token at `target` when the weights of what is left stand one after another by token.
__device__ void pick(const Row& row, const Threshold& left, double quantile, uint2* out) {
  __shared__ u64 sums[WARPS];
  __shared__ uint32_t ties[WARPS];
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t run = (row.cols + WARPS * 32 - 1) / (WARPS * 32) * 32;
  const uint32_t begin = min(warp * run, row.cols), end = min(begin + run, row.cols);
  const u64 tie = left.ties ? row.weight(value_of(left.key)) : 0;
  u64 sum = 0;
  uint32_t equal = 0;
  for (uint32_t i = begin + lane; i < end; i += 32) {
    const uint32_t key = key_of(row.x[i]);
    if (key > left.key) sum += row.weight(row.x[i]);
    equal += key == left.key;
  }
  sum = warp_sum(sum);
  equal = __reduce_add_sync(~0u, equal);
  __syncthreads();
  if (lane == 0) {
    sums[warp] = sum;
    ties[warp] = equal;
  }
  __syncthreads();
  // All threads alike.
  u64 total = 0;
  uint32_t seen = 0;
  for (uint32_t w = 0; w < WARPS; w++) {
    total += sums[w] + tie * min(ties[w], left.ties - min(seen, left.ties));
    seen += ties[w];
  }
  const u64 target = min((u64)(quantile * (double)total), total - 1);
  u64 before = 0;
  seen = 0;
  uint32_t chosen = 0;
  for (; chosen + 1 < WARPS; chosen++) {
    const u64 here = sums[chosen] + tie * min(ties[chosen], left.ties - min(seen, left.ties));
    if (before + here > target) break;
    before += here;
    seen += ties[chosen];
  }
  if (warp != chosen) return;
  for (uint32_t from = begin; from < end; from += 32) {
    const uint32_t i = from + lane;
    const uint32_t key = i < end ? key_of(row.x[i]) : 0;
    const bool equal_here = i < end && key == left.key;
    const uint32_t equals = __ballot_sync(~0u, equal_here);
    u64 weight = 0;
    if (i < end && key > left.key) weight = row.weight(row.x[i]);
    if (equal_here && seen + __popc(equals & ((1u << lane) - 1)) < left.ties) weight = tie;
    u64 upto = weight;
    for (int step = 1; step < 32; step *= 2) {
      const u64 other = __shfl_up_sync(~0u, upto, step);
      if (lane >= step) upto += other;
    }
    const uint32_t reached = __ballot_sync(~0u, before + upto > target);
    if (reached) {
      if (lane == __ffs(reached) - 1) *out = make_uint2(i, __float_as_uint(row.most));
      return;
    }
    before += __shfl_sync(~0u, upto, 31);
    seen += __popc(equals);
  }
}

// A block a spec.
extern "C" __global__ void __launch_bounds__(THREADS) draw(const DrawParams p) {
  after_earlier();
  const Spec spec = p.specs[blockIdx.x];
  Row row = {p.x + spec.row * p.stride, p.cols, 0, spec.inverse_temperature, spec.min_p};
  float most = -INFINITY, bad = 0;
  for (uint32_t i = threadIdx.x; i < p.cols; i += THREADS) {
    most = fmaxf(most, row.x[i]);
    if (isnan(row.x[i])) bad = 1;
  }
  row.most = block_max(most);
  bad = block_max(bad);
  if (bad != 0 || !isfinite(row.most)) {
    if (threadIdx.x == 0) p.out[blockIdx.x] = make_uint2(0, 0x7fc00000u);
    return;
  }
  const Threshold left = find_threshold(row, spec);
  pick(row, left, spec.quantile, p.out + blockIdx.x);
}
