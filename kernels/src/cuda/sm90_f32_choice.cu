// Rows of logits besides the choice itself: what is changed in them before it, and log-probs of tokens.
#include "common.cuh"

typedef unsigned long long u64;

constexpr uint32_t THREADS = 1024, WARPS = THREADS / 32;

// --- changes ---

// A row's lists, as places in `EditParams::words`, one list after another.
struct EditSpec {
  uint32_t row;
  uint32_t bias;    // pairs (token, bits of what is added), by token, those of one token in their order
  uint32_t banned;  // tokens
  uint32_t seen;    // pairs (token, how often it was generated), each token once
  uint32_t end;
  float repetition, frequency, presence;
};
struct EditParams {
  float* x;
  uint64_t stride;
  uint32_t cols;
  const uint32_t* words;  // a spec for each block, then their lists
};

// A block a row. Numbers are rounded after every operation, as on the processor.
extern "C" __global__ void __launch_bounds__(THREADS) edit(const EditParams p) {
  after_earlier();
  const EditSpec spec = reinterpret_cast<const EditSpec*>(p.words)[blockIdx.x];
  float* x = p.x + spec.row * p.stride;
  for (uint32_t i = spec.bias + 2 * threadIdx.x; i < spec.banned; i += 2 * THREADS) {
    const uint32_t token = p.words[i];
    // The thread with a token's first pair adds them all.
    if (token >= p.cols || (i > spec.bias && p.words[i - 2] == token)) continue;
    float value = x[token];
    for (uint32_t j = i; j < spec.banned && p.words[j] == token; j += 2) {
      value = __fadd_rn(value, __uint_as_float(p.words[j + 1]));
    }
    x[token] = value;
  }
  __syncthreads();
  for (uint32_t i = spec.banned + threadIdx.x; i < spec.seen; i += THREADS) {
    const uint32_t token = p.words[i];
    if (token < p.cols && !isnan(x[token])) x[token] = -INFINITY;
  }
  __syncthreads();
  for (uint32_t i = spec.seen + 2 * threadIdx.x; i < spec.end; i += 2 * THREADS) {
    const uint32_t token = p.words[i], count = p.words[i + 1];
    if (token >= p.cols) continue;
    float value = x[token];
    if (spec.repetition != 1.0f) {
      value = value > 0 ? __fdiv_rn(value, spec.repetition) : __fmul_rn(value, spec.repetition);
    }
    if (count) value = __fsub_rn(value, __fadd_rn(__fmul_rn(spec.frequency, (float)count), spec.presence));
    x[token] = value;
  }
}

// --- log-probs ---

struct ScoredSpec {
  uint32_t row;
  uint32_t token;
  uint32_t count;  // of the largest that are wanted; not more than there are columns
};
struct LogProbsParams {
  const float* x;
  uint64_t stride;
  uint32_t cols;
  const ScoredSpec* scored;
  // For each: the sum of e^(value - largest), the bits of the largest and of the token's value, and then index and bits of
  // the largest `count`, in any order.
  uint2* out;
  uint64_t out_stride;
};

// Larger where the value is, and among equal ones where the index is smaller. Values are ordered by their bits: 0 above
// -0, and NaN, if it is not a negative one, above all else.
__device__ __forceinline__ u64 place_of(float value, uint32_t index) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (u64)key << 32 | ~index;
}

// A sum in an order that only the number of columns decides.
__device__ double sum_of_block(double value) {
  __shared__ double parts[WARPS];
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  for (uint32_t i = 0; i < WARPS; i++) sum += parts[i];
  return sum;
}

// A number that exactly `count` places of the row are not below; between 1 and `cols` of them. It is found byte by byte.
__device__ u64 find_least(const float* x, uint32_t cols, uint32_t count) {
  // Many values begin alike: lanes that would count in one bin have several of it.
  constexpr uint32_t COPIES = 8;
  __shared__ uint32_t bins[COPIES][256];
  __shared__ uint32_t found, found_above, found_count;
  u64 prefix = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < COPIES * 256; i += THREADS) bins[i / 256][i % 256] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < cols; i += THREADS) {
      const u64 place = place_of(x[i], i);
      if (shift < 56 && place >> (shift + 8) != prefix) continue;
      atomicAdd(&bins[threadIdx.x % COPIES][place >> shift & 255], 1u);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      // A lane has eight bins, the first lane the largest.
      const uint32_t lane = threadIdx.x, top = 255 - 8 * lane;
      uint32_t own[8], all = 0;
      for (uint32_t i = 0; i < 8; i++) {
        own[i] = 0;
        for (uint32_t copy = 0; copy < COPIES; copy++) own[i] += bins[copy][top - i];
        all += own[i];
      }
      uint32_t upto = all;
      for (int step = 1; step < 32; step *= 2) {
        const uint32_t before = __shfl_up_sync(~0u, upto, step);
        if (lane >= step) upto += before;
      }
      // The lane in whose bins the last wanted one is.
      if (upto - all < count && upto >= count) {
        uint32_t above = upto - all, i = 0;
        while (above + own[i] < count) above += own[i++];
        found = top - i;
        found_above = above;
        found_count = own[i];
      }
    }
    __syncthreads();
    prefix = prefix << 8 | found;
    count -= found_above;
    if (found_count == count) return prefix << shift;
  }
  return prefix;  // places are all different, so that this is never reached
}

// A block for each.
extern "C" __global__ void __launch_bounds__(THREADS) log_probs(const LogProbsParams p) {
  after_earlier();
  __shared__ uint32_t written;
  if (threadIdx.x == 0) written = 0;
  const ScoredSpec scored = p.scored[blockIdx.x];
  const float* x = p.x + scored.row * p.stride;
  uint2* out = p.out + blockIdx.x * p.out_stride;
  float most = -INFINITY;
  for (uint32_t i = threadIdx.x; i < p.cols; i += THREADS) most = fmaxf(most, x[i]);
  most = block_max(most);
  double sum = 0;
  for (uint32_t i = threadIdx.x; i < p.cols; i += THREADS) sum += expf(x[i] - most);
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) {
    const u64 bits = __double_as_longlong(sum);
    out[0] = make_uint2((uint32_t)bits, (uint32_t)(bits >> 32));
    out[1] = make_uint2(__float_as_uint(most), __float_as_uint(x[scored.token]));
  }
  if (scored.count == 0) return;
  const u64 least = find_least(x, p.cols, scored.count);
  for (uint32_t i = threadIdx.x; i < p.cols; i += THREADS) {
    if (place_of(x[i], i) >= least) out[2 + atomicAdd(&written, 1u)] = make_uint2(i, __float_as_uint(x[i]));
  }
}
