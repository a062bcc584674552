// Ops that look at one row at a time: embedding, norms, rotation, SwiGLU, copies, and writing the cache.
// A block a row (or a head of a row); all of them move few bytes, so launches are what they cost.
#include "common.cuh"
#include "quantize.cuh"

struct Matrix {
  void* data;
  uint64_t stride;  // values from one row to the next
};
template <class T> __device__ __forceinline__ T* row_of(const Matrix& x, uint64_t row) {
  return reinterpret_cast<T*>(x.data) + row * x.stride;
}

// --- embedding ---

struct EmbedParams {
  const bf16* table;
  uint64_t table_stride;
  Rows rows;
  Matrix out;
  uint32_t cols;
};
template <class T> __device__ void embed(const EmbedParams& p) {
  after_earlier();
  const bf16* from = p.table + p.rows.tokens[blockIdx.x] * p.table_stride;
  T* to = row_of<T>(p.out, blockIdx.x);
  for (uint32_t i = threadIdx.x; i < p.cols; i += blockDim.x) to[i] = from_f32<T>(to_f32(from[i]));
}
extern "C" __global__ void embed_f32(const EmbedParams p) { embed<float>(p); }
extern "C" __global__ void embed_bf16(const EmbedParams p) { embed<bf16>(p); }

// --- norms ---

// Where a row's values go in 8 bits, besides.
struct Narrow {
  uint8_t* codes;  // or null
  float* scales;   // [cols / 128][scale_stride]
  uint64_t stride;
  uint64_t scale_stride;

  // Values `i .. i + 8` of a row of a tensor whose part from `first` on is kept so; all lanes of a warp call it.
  __device__ __forceinline__ void put(uint64_t row, uint32_t i, uint32_t cols, const float (&v)[8]) const {
    float scale;
    const uint2 q = quantize_8(v, scale);
    if (i >= cols) return;
    *reinterpret_cast<uint2*>(codes + row * stride + i) = q;
    if (i % 128 == 0) scales[i / 128 * scale_stride + row] = scale;
  }
};

struct NormParams {
  Matrix x;
  Matrix delta;  // added to x first, if there is one
  const float* weight;
  Matrix out;
  uint32_t cols;
  float eps;
  Narrow narrow;
};

// Eight values at once.
__device__ __forceinline__ void load_8(const float* from, float (&v)[8]) {
  const float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
__device__ __forceinline__ void load_8(const bf16* from, float (&v)[8]) {
  const uint4 a = *reinterpret_cast<const uint4*>(from);
  const uint32_t words[4] = {a.x, a.y, a.z, a.w};
  for (int j = 0; j < 4; j++) {
    v[2 * j] = __uint_as_float(words[j] << 16);
    v[2 * j + 1] = __uint_as_float(words[j] & 0xffff0000u);
  }
}
__device__ __forceinline__ void store_8(float* to, const float (&v)[8]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(v[0], v[1], v[2], v[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(v[4], v[5], v[6], v[7]);
}
// What was stored is what `v` holds after it.
__device__ __forceinline__ void store_8(bf16* to, float (&v)[8]) {
  __align__(16) bf16 values[8];
  for (int j = 0; j < 8; j++) {
    values[j] = from_f32<bf16>(v[j]);
    v[j] = to_f32(values[j]);
  }
  *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(values);
}

// Rows of up to 16384 values, a multiple of eight: a thread keeps two eights. Which form a row takes depends on its
// width alone.
template <class X, class Y> __device__ void rms_norm_wide(const NormParams& p) {
  after_earlier();
  X* x = row_of<X>(p.x, blockIdx.x);
  Y* out = row_of<Y>(p.out, blockIdx.x);
  float v[2][8] = {};
  float sum = 0;
  for (uint32_t n = 0, i = 8 * threadIdx.x; n < 2; n++, i += 8 * blockDim.x) {
    if (i >= p.cols) break;
    load_8(x + i, v[n]);
    if (p.delta.data) {
      float delta[8];
      load_8(row_of<bf16>(p.delta, blockIdx.x) + i, delta);
      for (int j = 0; j < 8; j++) v[n][j] += delta[j];
      store_8(x + i, v[n]);
    }
    for (int j = 0; j < 8; j++) sum += v[n][j] * v[n][j];
  }
  const float factor = rsqrtf(block_sum(sum) / p.cols + p.eps);
  for (uint32_t n = 0; n < 2; n++) {
    const uint32_t i = 8 * (threadIdx.x + n * blockDim.x);
    // A warp goes on together: its lanes quantise together.
    if (8 * (threadIdx.x / 32 * 32 + n * blockDim.x) >= p.cols) break;
    if (i < p.cols) {
      float weight[8];
      load_8(p.weight + i, weight);
      for (int j = 0; j < 8; j++) v[n][j] = v[n][j] * factor * weight[j];
      store_8(out + i, v[n]);
    }
    if (p.narrow.codes) p.narrow.put(blockIdx.x, i, p.cols, v[n]);
  }
}

template <class X, class Y> __device__ void rms_norm(const NormParams& p) {
  after_earlier();
  X* x = row_of<X>(p.x, blockIdx.x);
  Y* out = row_of<Y>(p.out, blockIdx.x);
  const bf16* delta = p.delta.data ? row_of<bf16>(p.delta, blockIdx.x) : nullptr;
  float sum = 0;
  for (uint32_t i = threadIdx.x; i < p.cols; i += blockDim.x) {
    float value = to_f32(x[i]);
    if (delta) {
      value += to_f32(delta[i]);
      x[i] = from_f32<X>(value);
    }
    sum += value * value;
  }
  const float factor = rsqrtf(block_sum(sum) / p.cols + p.eps);
  // Each thread reads what it wrote itself.
  for (uint32_t i = threadIdx.x; i < p.cols; i += blockDim.x) out[i] = from_f32<Y>(to_f32(x[i]) * factor * p.weight[i]);
}
#define RMS_NORM(name, x, y)                                                                              \
  extern "C" __global__ void __launch_bounds__(256) name(const NormParams p) { rms_norm<x, y>(p); }       \
  extern "C" __global__ void __launch_bounds__(1024) name##_wide(const NormParams p) { rms_norm_wide<x, y>(p); }
RMS_NORM(rms_norm_f32_f32, float, float)
RMS_NORM(rms_norm_f32_bf16, float, bf16)
RMS_NORM(rms_norm_bf16_f32, bf16, float)
RMS_NORM(rms_norm_bf16_bf16, bf16, bf16)

struct HeadNormParams {
  Matrix x;
  const float* weight;
  uint32_t first;
  uint32_t width;
  float eps;
  Narrow narrow;  // of the one head, if there is one
};
// A row, in place: one head of up to 16384 values.
extern "C" __global__ void __launch_bounds__(1024) head_rms_norm_wide(const HeadNormParams p) {
  const Matrix x = {row_of<bf16>(p.x, 0) + p.first, p.x.stride};
  rms_norm_wide<bf16, bf16>(NormParams{x, {}, p.weight, x, p.width, p.eps, p.narrow});
}
// Block (row, head), in place.
extern "C" __global__ void head_rms_norm(const HeadNormParams p) {
  after_earlier();
  bf16* x = row_of<bf16>(p.x, blockIdx.x) + p.first + blockIdx.y * p.width;
  float sum = 0;
  for (uint32_t i = threadIdx.x; i < p.width; i += blockDim.x) sum += to_f32(x[i]) * to_f32(x[i]);
  const float factor = rsqrtf(block_sum(sum) / p.width + p.eps);
  for (uint32_t i = threadIdx.x; i < p.width; i += blockDim.x) x[i] = from_f32<bf16>(to_f32(x[i]) * factor * p.weight[i]);
}

// --- elementwise ---

struct AddParams {
  Matrix out;
  Matrix delta;
  uint32_t cols;
};
template <class T> __device__ void add(const AddParams& p) {
  after_earlier();
  T* out = row_of<T>(p.out, blockIdx.x);
  const bf16* delta = row_of<bf16>(p.delta, blockIdx.x);
  for (uint32_t i = threadIdx.x; i < p.cols; i += blockDim.x) out[i] = from_f32<T>(to_f32(out[i]) + to_f32(delta[i]));
}
extern "C" __global__ void add_f32(const AddParams p) { add<float>(p); }
extern "C" __global__ void add_bf16(const AddParams p) { add<bf16>(p); }

struct SiluParams {
  Matrix x;  // [gate | up]
  Matrix out;
  uint32_t width;
  Narrow narrow;
};
// Eights of one row; width is a multiple of eight. Block (row, part of it).
extern "C" __global__ void __launch_bounds__(256) silu_mul_wide(const SiluParams p) {
  after_earlier();
  const uint32_t row = blockIdx.x, i = 8 * (blockIdx.y * blockDim.x + threadIdx.x);
  if (8 * (blockIdx.y * blockDim.x + threadIdx.x / 32 * 32) >= p.width) return;
  float v[8] = {};
  if (i < p.width) {
    float up[8];
    load_8(row_of<bf16>(p.x, row) + i, v);
    load_8(row_of<bf16>(p.x, row) + p.width + i, up);
    for (int j = 0; j < 8; j++) v[j] = v[j] / (1.0f + expf(-v[j])) * up[j];
    store_8(row_of<bf16>(p.out, row) + i, v);
  }
  if (p.narrow.codes) p.narrow.put(row, i, p.width, v);
}
extern "C" __global__ void silu_mul(const SiluParams p) {
  after_earlier();
  const bf16* x = row_of<bf16>(p.x, blockIdx.x);
  bf16* out = row_of<bf16>(p.out, blockIdx.x);
  for (uint32_t i = threadIdx.x; i < p.width; i += blockDim.x) {
    const float gate = to_f32(x[i]), up = to_f32(x[p.width + i]);
    out[i] = from_f32<bf16>(gate / (1.0f + expf(-gate)) * up);
  }
}

struct ArgMaxParams {
  Matrix x;  // float32
  uint32_t cols;
  uint2* out;  // index, and the bits of the value
};
// A block a row. Of equal values the first; a NaN is larger than all else.
extern "C" __global__ void __launch_bounds__(1024) arg_max(const ArgMaxParams p) {
  after_earlier();
  __shared__ float values[32];
  __shared__ uint32_t places[32];
  const float* x = row_of<float>(p.x, blockIdx.x);
  float value = -INFINITY;
  uint32_t place = 0;
  const auto see = [&](float other, uint32_t at) {
    const bool larger = isnan(other) ? !isnan(value) || at < place : other > value || (other == value && at < place);
    if (larger) {
      value = other;
      place = at;
    }
  };
  for (uint32_t i = threadIdx.x; i < p.cols; i += blockDim.x) see(x[i], i);
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(~0u, value, step);
    const uint32_t at = __shfl_xor_sync(~0u, place, step);
    see(other, at);
  }
  const uint32_t warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) {
    values[warp] = value;
    places[warp] = place;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (uint32_t w = 1; w < blockDim.x / 32; w++) see(values[w], places[w]);
    p.out[blockIdx.x] = make_uint2(place, __float_as_uint(value));
  }
}

struct CopyParams {
  const uint16_t* from;
  uint64_t from_stride;  // in units of two bytes, like all below
  uint16_t* to;
  uint64_t to_stride;
  uint32_t count;
  const uint32_t* index;  // row of `from` for each row of `to`, if it is another
};
extern "C" __global__ void copy_rows(const CopyParams p) {
  after_earlier();
  const uint64_t row = p.index ? p.index[blockIdx.x] : blockIdx.x;
  const uint16_t* from = p.from + row * p.from_stride;
  uint16_t* to = p.to + blockIdx.x * p.to_stride;
  for (uint32_t i = threadIdx.x; i < p.count; i += blockDim.x) to[i] = from[i];
}

// --- rotation ---

struct RotateParams {
  Matrix from;
  Matrix to;
  uint32_t from_first, from_width;  // of head 0, and from one head to the next
  uint32_t to_first, to_width;
  uint32_t heads;
  uint32_t neighbours;  // the values of a pair are, and both begin at a multiple of two
  Rope rope;
  Rows rows;
};
// Rotates the first `dim` values of each head from one place to another, or in place.
extern "C" __global__ void rotate(const RotateParams p) {
  after_earlier();
  const uint32_t row = blockIdx.x, pairs = p.rope.dim / 2, position = p.rows.positions[row];
  for (uint32_t i = threadIdx.x; i < p.heads * pairs; i += blockDim.x) {
    const uint32_t head = i / pairs, pair = i % pairs;
    const bf16* from = row_of<bf16>(p.from, row) + p.from_first + head * p.from_width;
    bf16* to = row_of<bf16>(p.to, row) + p.to_first + head * p.to_width;
    if (p.neighbours) {
      const float2 both = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162*>(from)[pair]);
      reinterpret_cast<__nv_bfloat162*>(to)[pair] = __float22bfloat162_rn(p.rope.turn(both.x, both.y, position, pair));
      continue;
    }
    const uint2 at = p.rope.places(pair);
    const float2 turned = p.rope.turn(to_f32(from[at.x]), to_f32(from[at.y]), position, pair);
    to[at.x] = from_f32<bf16>(turned.x);
    to[at.y] = from_f32<bf16>(turned.y);
  }
}

// --- the cache ---

struct WriteLatentParams {
  Matrix kv_a;
  uint32_t first;  // column of [c_kv | k_pe]
  const float* norm;
  float eps;
  Rope rope;
  Rows rows;
  Pages pages;
};
// A block a row: [RMSNorm(c_kv) | RoPE(k_pe)]. Dynamic shared memory: the row in float32.
extern "C" __global__ void write_latent(const WriteLatentParams p) {
  after_earlier();
  extern __shared__ float values[];
  const uint32_t row = blockIdx.x, position = p.rows.positions[row], latent = p.pages.latent;
  const bf16* x = row_of<bf16>(p.kv_a, row) + p.first;
  float sum = 0;
  for (uint32_t i = threadIdx.x; i < latent; i += blockDim.x) sum += to_f32(x[i]) * to_f32(x[i]);
  const float factor = rsqrtf(block_sum(sum) / latent + p.eps);
  for (uint32_t i = threadIdx.x; i < latent; i += blockDim.x) values[i] = to_f32(x[i]) * factor * p.norm[i];
  for (uint32_t i = threadIdx.x; i < p.rope.dim / 2; i += blockDim.x) {
    const uint2 at = p.rope.places(i);
    const float2 turned = p.rope.turn(to_f32(x[latent + at.x]), to_f32(x[latent + at.y]), position, i);
    values[latent + at.x] = turned.x;
    values[latent + at.y] = turned.y;
  }
  __syncthreads();
  uint8_t* to = p.pages.row(p.rows.tables + p.rows.table_of[row], position);
  if (p.pages.type != PAGE_FP8) {
    for (uint32_t i = threadIdx.x; i < p.pages.row_values; i += blockDim.x) {
      if (p.pages.type == PAGE_BF16) reinterpret_cast<bf16*>(to)[i] = from_f32<bf16>(values[i]);
      else reinterpret_cast<float*>(to)[i] = values[i];
    }
    return;
  }
  const uint32_t blocks = (latent + FP8_BLOCK - 1) / FP8_BLOCK, lane = threadIdx.x % 32;
  for (uint32_t block = threadIdx.x / 32; block < blocks; block += blockDim.x / 32) {
    const uint32_t begin = block * FP8_BLOCK, end = min(begin + FP8_BLOCK, latent);
    float largest = 0;
    for (uint32_t i = begin + lane; i < end; i += 32) largest = fmaxf(largest, fabsf(values[i]));
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
    const float scale = largest > 0 ? __fdiv_rn(largest, FP8_LARGEST) : 1.0f;
    for (uint32_t i = begin + lane; i < end; i += 32) {
      to[i] = __nv_fp8_e4m3(__fdiv_rn(values[i], scale)).__x;
    }
    if (lane == 0) const_cast<float*>(p.pages.scales(to))[block] = scale;
  }
  for (uint32_t i = threadIdx.x; i < p.rope.dim; i += blockDim.x) {
    const_cast<bf16*>(p.pages.rotated(to))[i] = from_f32<bf16>(values[latent + i]);
  }
}

struct WriteKvParams {
  Matrix qkv;
  uint32_t first;
  Rows rows;
  Pages pages;
};
extern "C" __global__ void write_kv(const WriteKvParams p) {
  after_earlier();
  const uint32_t row = blockIdx.x;
  const bf16* x = row_of<bf16>(p.qkv, row) + p.first;
  uint8_t* to = p.pages.row(p.rows.tables + p.rows.table_of[row], p.rows.positions[row]);
  for (uint32_t i = threadIdx.x; i < p.pages.row_values; i += blockDim.x) {
    if (p.pages.type == PAGE_BF16) reinterpret_cast<bf16*>(to)[i] = x[i];
    else reinterpret_cast<float*>(to)[i] = to_f32(x[i]);
  }
}
