// Choosing experts (DeepSeek-V2 report, sections 2.1.2 and 2.2; V3 report, section 2.1.2), and putting rows in the
// order of their experts. Scores are float32; of equal ones the lower index comes first.
#include "common.cuh"

constexpr uint32_t MAX_EXPERTS = 1024, MAX_GROUPS = 64;

enum TopkMethod : uint32_t { GREEDY = 0, GROUP_LIMITED = 1, NOAUX_TC = 2 };

struct RouteParams {
  const float* logits;
  uint64_t stride;
  const float* bias;
  uint32_t experts, per_token, groups, top_groups;
  TopkMethod method;
  uint32_t sigmoid, normalise;
  float scaling;
  uint32_t* chosen;  // [rows][per_token]
  float* weights;
};

// Larger first, then lower index. What cannot be compared is never larger.
__device__ __forceinline__ void better(float& value, uint32_t& index, float other, uint32_t at) {
  if (other > value || (other == value && at < index)) {
    value = other;
    index = at;
  }
}

// A warp a row. Dynamic shared memory: two float32 an expert.
extern "C" __global__ void __launch_bounds__(32) route(const RouteParams p) {
  after_earlier();
  extern __shared__ float scores[];
  float* choice = scores + p.experts;
  __shared__ float group_scores[MAX_GROUPS];
  const uint32_t row = blockIdx.x, lane = threadIdx.x;
  const float* logits = p.logits + row * p.stride;
  if (p.sigmoid) {
    for (uint32_t i = lane; i < p.experts; i += 32) scores[i] = 1.0f / (1.0f + expf(-logits[i]));
  } else {
    float most = -INFINITY, sum = 0;
    for (uint32_t i = lane; i < p.experts; i += 32) most = fmaxf(most, logits[i]);
    for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
    for (uint32_t i = lane; i < p.experts; i += 32) sum += scores[i] = expf(logits[i] - most);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    for (uint32_t i = lane; i < p.experts; i += 32) scores[i] /= sum;
  }
  for (uint32_t i = lane; i < p.experts; i += 32) choice[i] = scores[i] + (p.bias ? p.bias[i] : 0.0f);
  __syncwarp();

  if (p.method != GREEDY && p.top_groups < p.groups) {
    const uint32_t size = p.experts / p.groups;
    for (uint32_t group = lane; group < p.groups; group += 32) {
      float first = -INFINITY, second = -INFINITY;
      for (uint32_t i = group * size; i < (group + 1) * size; i++) {
        if (choice[i] > first) {
          second = first;
          first = choice[i];
        } else {
          second = fmaxf(second, choice[i]);
        }
      }
      group_scores[group] = p.method == NOAUX_TC && size > 1 ? first + second : first;
    }
    __syncwarp();
    uint64_t kept = 0;
    for (uint32_t n = 0; n < p.top_groups; n++) {
      // All lanes alike: there are few groups.
      float value = -INFINITY;
      uint32_t best = 0;
      for (uint32_t group = 0; group < p.groups; group++)
        if (!(kept >> group & 1) && group_scores[group] > value) {
          value = group_scores[group];
          best = group;
        }
      kept |= 1ull << best;
    }
    for (uint32_t i = lane; i < p.experts; i += 32)
      if (!(kept >> (i / size) & 1)) choice[i] = -INFINITY;
    __syncwarp();
  }

  float sum = 0;
  for (uint32_t n = 0; n < p.per_token; n++) {
    float value = -INFINITY;
    uint32_t best = MAX_EXPERTS;
    for (uint32_t i = lane; i < p.experts; i += 32)
      if (choice[i] > value) {
        value = choice[i];
        best = i;
      }
    for (int step = 16; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(~0u, value, step);
      const uint32_t at = __shfl_xor_sync(~0u, best, step);
      better(value, best, other, at);
    }
    // Too few can be compared: expert 0 fills up, and what is computed from it is NaN as well.
    if (best == MAX_EXPERTS) best = 0;
    const float weight = scores[best];
    sum += weight;
    if (lane == 0) {
      p.chosen[row * p.per_token + n] = best;
      p.weights[row * p.per_token + n] = weight;
      choice[best] = -INFINITY;
    }
    __syncwarp();
  }
  const float divisor = p.normalise ? sum + 1e-20f : 1.0f;
  for (uint32_t n = lane; n < p.per_token; n += 32) p.weights[row * p.per_token + n] = p.weights[row * p.per_token + n] / divisor * p.scaling;
}

struct CountParams {
  const uint32_t* chosen;
  uint32_t count;
  unsigned long long* sums;  // of one layer
};
extern "C" __global__ void count_choices(const CountParams p) {
  after_earlier();
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < p.count) atomicAdd(p.sums + p.chosen[i], 1ull);
}

struct SortParams {
  const uint32_t* keys;    // slot of each piece of work
  const uint32_t* row_of;  // its row; without, every `per_row` pieces are of one row
  uint32_t step;           // words from one piece's key (and row) to the next's
  uint32_t per_row;
  uint32_t count, slots;
  const uint32_t* counted;  // the number of pieces, of at most `count`; without, `count`
  uint32_t tile_rows;
  uint32_t wave, waves;  // sorted pieces are also cut into waves of so many
  uint32_t* rows;   // by slot, in order of the pieces' numbers: the row of each
  uint32_t* place;  // where each piece went
  uint32_t* tile_count;
  uint32_t* tiles;    // [count][3]: slot, first, end
  uint32_t* offsets;  // [waves][slots + 1]: where in each wave each slot's pieces begin
};

// Where a slot's pieces begin, in every wave.
__device__ void put_offset(const SortParams& p, uint32_t slot, uint32_t at) {
  for (uint32_t wave = 0; wave < p.waves; wave++) {
    const uint32_t first = wave * p.wave;
    p.offsets[wave * (p.slots + 1) + slot] = at > first ? min(at - first, p.wave) : 0;
  }
}

// One block. Sorts by slot, keeping the order within one, and cuts slots into tiles. Each warp counts and later places a
// run of its own, so the result depends on no race. Dynamic shared memory: warps x slots words.
extern "C" __global__ void __launch_bounds__(1024) sort_by_slot(const SortParams p) {
  after_earlier();
  extern __shared__ uint32_t counts[];  // [warp][slot], then where the warp's run of that slot begins
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const uint32_t count = p.counted ? min(*p.counted, p.count) : p.count;
  const uint32_t run = (count + warps * 32 - 1) / (warps * 32) * 32;
  const uint32_t begin = min(warp * run, count), end = min(begin + run, count);
  for (uint32_t i = threadIdx.x; i < warps * p.slots; i += blockDim.x) counts[i] = 0;
  __syncthreads();
  uint32_t* mine = counts + warp * p.slots;
  for (uint32_t i = begin + lane; i < end; i += 32) atomicAdd(mine + p.keys[(uint64_t)i * p.step], 1u);
  __syncthreads();
  if (warp == 0) {
    uint32_t first = 0, tiles = 0;
    for (uint32_t from = 0; from < p.slots; from += 32) {
      const uint32_t slot = from + lane;
      uint32_t total = 0;
      if (slot < p.slots)
        for (uint32_t w = 0; w < warps; w++) total += counts[w * p.slots + slot];
      uint32_t cut = (total + p.tile_rows - 1) / p.tile_rows;
      uint32_t rows_to = total, tiles_to = cut;  // sums up to and with this lane
      for (int step = 1; step < 32; step *= 2) {
        const uint32_t a = __shfl_up_sync(~0u, rows_to, step), b = __shfl_up_sync(~0u, tiles_to, step);
        if (lane >= step) {
          rows_to += a;
          tiles_to += b;
        }
      }
      uint32_t at = first + rows_to - total, tile = tiles + tiles_to - cut;
      const uint32_t slot_end = at + total;
      if (slot < p.slots) put_offset(p, slot, at);
      for (uint32_t row = at; row < slot_end; row += p.tile_rows, tile++) {
        p.tiles[3 * tile] = slot;
        p.tiles[3 * tile + 1] = row;
        p.tiles[3 * tile + 2] = min(row + p.tile_rows, slot_end);
      }
      if (slot < p.slots)
        for (uint32_t w = 0; w < warps; w++) {
          const uint32_t here = counts[w * p.slots + slot];
          counts[w * p.slots + slot] = at;
          at += here;
        }
      first += __shfl_sync(~0u, rows_to, 31);
      tiles += __shfl_sync(~0u, tiles_to, 31);
    }
    if (lane == 0) {
      *p.tile_count = tiles;
      put_offset(p, p.slots, first);
    }
  }
  __syncthreads();
  for (uint32_t from = begin; from < end; from += 32) {
    const uint32_t i = from + lane;
    const bool is = i < end;
    const uint32_t slot = is ? p.keys[(uint64_t)i * p.step] : ~0u;
    const uint32_t peers = __match_any_sync(~0u, slot);
    const uint32_t before = __popc(peers & ((1u << lane) - 1));
    const uint32_t at = is ? mine[slot] + before : 0;
    __syncwarp();
    if (is) {
      p.rows[at] = p.row_of ? p.row_of[(uint64_t)i * p.step] : i / p.per_row;
      p.place[i] = at;
      if (before == 0) mine[slot] += __popc(peers);
    }
    __syncwarp();
  }
}

struct CombineParams {
  const bf16* products;
  uint64_t products_stride;
  const uint32_t* place;  // of each (row, choice)
  const float* weights;
  uint32_t per_token;
  uint32_t cols;
  bf16* out;
  uint64_t out_stride;
};
// The sum of a row's products, in order of choice. A block a row.
extern "C" __global__ void combine(const CombineParams p) {
  after_earlier();
  const uint32_t row = blockIdx.x;
  for (uint32_t i = threadIdx.x; i < p.cols; i += blockDim.x) {
    float sum = 0;
    for (uint32_t n = 0; n < p.per_token; n++) {
      const uint32_t choice = row * p.per_token + n;
      sum += p.weights[choice] * to_f32(p.products[p.place[choice] * p.products_stride + i]);
    }
    p.out[row * p.out_stride + i] = from_f32<bf16>(sum);
  }
}
