// What is changed in rows of logits before a token is chosen.
#include "common.cuh"

constexpr uint32_t THREADS = 1024;

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
