// Rows to the ranks of their experts and back, by stores into peers' memory. Nothing here waits for the host.
//
// Every rank has a window that the others write to: their rows and work, the results of this rank's own rows, and
// flags. One turn (a layer of a step) is
//
//   dispatch ─▶ collect ─▶ (sort, gather, products) ─▶ respond ─▶ combine
//
// A flag holds the number of the turn that it was raised in, and counts are written before it. Nothing is written
// twice before it was read: a rank goes on to the next turn only when all have responded to it, and a rank responds
// when it is through with what it was sent.
//
// A wait that takes too long, or that the host wants no more, marks the step as failed, and from then on nobody waits
// here: what is computed until the host sees the mark is for nothing, and ends soon. Nor does this rank raise flags any
// more, so that nobody takes what it did not send for what it did.
#include "common.cuh"

constexpr uint32_t MAX_RANKS = 256, MAX_CHOICES = 32;

struct Peer {
  uint8_t* window;
  uint32_t source;  // which of its sources this rank is
  uint32_t member;  // whether it takes part
};

struct Counts {
  uint32_t rows, work;
};

struct Piece {
  uint32_t row;   // of those that its source sent
  uint32_t slot;  // of this rank
  uint32_t home;  // row and choice at its source
};

// Of this rank alone.
struct State {
  uint64_t turn;  // never the same again in one window
  uint32_t dispatched, responded;  // blocks that are done
  uint32_t failed;
  uint32_t first_row;
  uint32_t total;  // pieces of this turn
};

struct Exchange {
  const Peer* peers;
  uint8_t* window;
  State* state;
  Counts* sent;  // [ranks], of this turn so far
  uint32_t* stop;  // in the host's memory: not zero once the step is given up, on either side
  uint64_t timeout;  // nanoseconds
  // Where the parts of a window are.
  uint64_t counts, arrived, returned, rows_at, work_at, results_at;
  uint64_t row_bytes;  // from one row to the next
  uint32_t ranks, rows, per_token, cols, slots;

  __device__ uint8_t* row_of(uint8_t* in, uint32_t source, uint32_t row) const {
    return in + rows_at + ((uint64_t)source * rows + row) * row_bytes;
  }
  __device__ Piece* work_of(uint8_t* in, uint32_t source) const {
    return reinterpret_cast<Piece*>(in + work_at) + (uint64_t)source * rows * per_token;
  }
  __device__ bf16* result_of(uint8_t* in, uint32_t home) const {
    return reinterpret_cast<bf16*>(in + results_at) + (uint64_t)home * cols;
  }
  __device__ uint64_t* flag(uint8_t* in, uint64_t flags, uint32_t source) const {
    return reinterpret_cast<uint64_t*>(in + flags) + source;
  }
  __device__ bool failed() const { return *static_cast<volatile uint32_t*>(&state->failed); }
};

__device__ __forceinline__ uint64_t load_flag(const uint64_t* flag) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(flag) : "memory");
  return value;
}
__device__ __forceinline__ void raise_flag(uint64_t* flag, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(flag), "l"(value) : "memory");
}
__device__ __forceinline__ uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

// Gives the step up, and tells the host.
__device__ void fail(const Exchange& e) {
  *static_cast<volatile uint32_t*>(&e.state->failed) = 1;
  *static_cast<volatile uint32_t*>(e.stop) = 1;
}

// Looks for a flag between two looks at the host's memory, which is far.
constexpr uint32_t LOOKS = 64;

// Whether the flag was raised in this turn, in time.
__device__ bool wait_for(const Exchange& e, const uint64_t* flag, uint64_t turn) {
  if (e.failed()) return false;
  const uint64_t begin = nanoseconds();
  for (uint32_t looks = 1; load_flag(flag) != turn; looks++) {
    if (e.failed()) return false;
    if (looks % LOOKS) continue;
    if (*static_cast<volatile uint32_t*>(e.stop) || nanoseconds() - begin > e.timeout) {
      fail(e);
      return false;
    }
  }
  return true;
}

// True in all threads of the last block that comes here; what all blocks wrote before is visible to it, and to
// whoever sees a flag that it raises.
__device__ bool last_block(uint32_t* done) {
  __shared__ uint32_t last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence_system();
    last = atomicAdd(done, 1) == gridDim.x - 1;
    __threadfence_system();
  }
  __syncthreads();
  return last;
}

struct Entry {
  uint32_t first, count, offset;
};
struct Replica {
  uint32_t rank, slot, upto;
};
constexpr uint32_t ROW_STEP = 3242174889u;  // as in the crate `experts`, choice

struct DispatchParams {
  Exchange exchange;
  const Entry* entries;  // of this layer's experts
  const Replica* replicas;
  const uint32_t* chosen;
  uint32_t rows;
  uint32_t scale_count, scale_stride;  // scales of a row, and from one to the next; none for rows in bf16
  const uint8_t* codes;
  uint64_t code_stride, code_bytes;
  const float* scales;
  unsigned long long* sums;  // [ranks]: pieces sent in this layer, ever
};

// A block a row, and one where there is none.
extern "C" __global__ void __launch_bounds__(256) exchange_dispatch(const __grid_constant__ DispatchParams p) {
  after_earlier();
  const Exchange& e = p.exchange;
  __shared__ uint32_t rank_of[MAX_CHOICES], index_of[MAX_CHOICES];
  __shared__ uint8_t* to[MAX_CHOICES];
  __shared__ uint32_t targets;
  const uint32_t row = blockIdx.x, n = threadIdx.x, choices = e.per_token;
  const bool failed = __syncthreads_or(e.failed());
  if (row < p.rows && !failed) {
    Replica replica;
    if (n == 0) targets = 0;
    if (n < choices) {
      const Entry entry = p.entries[p.chosen[row * choices + n]];
      const uint32_t point = (e.state->first_row + row) * ROW_STEP + entry.offset;
      uint32_t at = 0;
      while (at + 1 < entry.count && p.replicas[entry.first + at].upto < point) at++;
      replica = p.replicas[entry.first + at];
      rank_of[n] = replica.rank;
    }
    __syncthreads();
    uint32_t leader = n;
    if (n < choices) {
      for (uint32_t i = 0; i < n && leader == n; i++)
        if (rank_of[i] == replica.rank) leader = i;
      if (leader == n) {
        const uint32_t index = index_of[n] = atomicAdd(&e.sent[replica.rank].rows, 1);
        const Peer peer = e.peers[replica.rank];
        to[atomicAdd(&targets, 1)] = e.row_of(peer.window, peer.source, index);
      }
    }
    __syncthreads();
    if (n < choices) {
      const Peer peer = e.peers[replica.rank];
      const uint32_t piece = atomicAdd(&e.sent[replica.rank].work, 1);
      e.work_of(peer.window, peer.source)[piece] = Piece{index_of[leader], replica.slot, row * choices + n};
      atomicAdd(p.sums + replica.rank, 1ull);
    }
    const uint8_t* codes = p.codes + row * p.code_stride;
    const uint32_t ranks = targets;
    for (uint32_t i = threadIdx.x; i < p.code_bytes / 16; i += blockDim.x) {
      const uint4 value = reinterpret_cast<const uint4*>(codes)[i];
      for (uint32_t r = 0; r < ranks; r++) reinterpret_cast<uint4*>(to[r])[i] = value;
    }
    for (uint32_t i = threadIdx.x; i < p.scale_count; i += blockDim.x) {
      const float value = p.scales[(uint64_t)i * p.scale_stride + row];
      for (uint32_t r = 0; r < ranks; r++) reinterpret_cast<float*>(to[r] + p.code_bytes)[i] = value;
    }
  }
  if (!last_block(&e.state->dispatched)) return;
  const uint64_t turn = e.state->turn + 1;
  for (uint32_t r = threadIdx.x; r < e.ranks; r += blockDim.x) {
    const Peer peer = e.peers[r];
    // By way of the cache that the others' additions are in.
    const Counts counts = {__ldcg(&e.sent[r].rows), __ldcg(&e.sent[r].work)};
    e.sent[r] = Counts{0, 0};
    if (!peer.member || failed) continue;
    reinterpret_cast<Counts*>(peer.window + e.counts)[peer.source] = counts;
    raise_flag(e.flag(peer.window, e.arrived, peer.source), turn);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    e.state->turn = turn;
    e.state->dispatched = 0;
  }
}

struct CollectParams {
  Exchange exchange;
  uint32_t* slots;  // of each piece
  uint32_t* rows;   // its row, counted over all sources' places
  uint2* homes;     // its source, and row and choice there
  unsigned long long* sum;  // pieces collected in this layer, ever
};

// One block of 1024 threads. Waits for all ranks and puts what they sent one after another.
extern "C" __global__ void __launch_bounds__(1024) exchange_collect(const __grid_constant__ CollectParams p) {
  after_earlier();
  const Exchange& e = p.exchange;
  __shared__ uint32_t ends[MAX_RANKS], rows[MAX_RANKS];
  const uint64_t turn = e.state->turn;
  const uint32_t source = threadIdx.x;
  if (source < MAX_RANKS) {
    Counts counts = {0, 0};
    if (source < e.ranks && e.peers[source].member && wait_for(e, e.flag(e.window, e.arrived, source), turn)) {
      const Counts* sent = reinterpret_cast<const Counts*>(e.window + e.counts) + source;
      counts = Counts{__ldcv(&sent->rows), __ldcv(&sent->work)};
      if (counts.rows > e.rows || counts.work > e.rows * e.per_token) {
        fail(e);
        counts = Counts{0, 0};
      }
    }
    rows[source] = counts.rows;
    ends[source] = counts.work;
  }
  __syncthreads();
  for (uint32_t step = 1; step < MAX_RANKS; step *= 2) {
    const uint32_t before = source < MAX_RANKS && source >= step ? ends[source - step] : 0;
    __syncthreads();
    if (source < MAX_RANKS) ends[source] += before;
    __syncthreads();
  }
  const uint32_t total = ends[MAX_RANKS - 1];
  for (uint32_t i = threadIdx.x; i < total; i += blockDim.x) {
    uint32_t low = 0, high = MAX_RANKS - 1;
    while (low < high) {
      const uint32_t middle = (low + high) / 2;
      if (i < ends[middle]) high = middle;
      else low = middle + 1;
    }
    const Piece* from = e.work_of(e.window, low) + (i - (low ? ends[low - 1] : 0));
    Piece piece = {__ldcv(&from->row), __ldcv(&from->slot), __ldcv(&from->home)};
    // Nothing that a rank of this version sends.
    if (piece.row >= rows[low] || piece.slot >= e.slots || piece.home >= e.rows * e.per_token) {
      fail(e);
      piece = Piece{0, 0, 0};
    }
    p.slots[i] = piece.slot;
    p.rows[i] = low * e.rows + piece.row;
    p.homes[i] = make_uint2(low, piece.home);
  }
  if (threadIdx.x == 0) {
    e.state->total = total;
    *p.sum += total;
  }
}

struct GatherParams {
  Exchange exchange;
  const uint32_t* rows;  // of sorted pieces
  uint32_t first, count;  // those to gather, as far as there are so many
  uint32_t code_bytes, scale_count;
  uint8_t* codes;  // [count][code_bytes]
  float* scales;   // [scale_count][scale_stride]
  uint64_t scale_stride;
};

// Rows of pieces, as products in 8 bits read them.
extern "C" __global__ void __launch_bounds__(128) exchange_gather(const __grid_constant__ GatherParams p) {
  after_earlier();
  const Exchange& e = p.exchange;
  const uint32_t total = e.state->total;
  for (uint32_t i = blockIdx.x; i < p.count && p.first + i < total; i += gridDim.x) {
    const uint8_t* from = e.row_of(e.window, 0, p.rows[p.first + i]);
    uint4* codes = reinterpret_cast<uint4*>(p.codes + (uint64_t)i * p.code_bytes);
    for (uint32_t n = threadIdx.x; n < p.code_bytes / 16; n += blockDim.x)
      codes[n] = reinterpret_cast<const uint4*>(from)[n];
    for (uint32_t n = threadIdx.x; n < p.scale_count; n += blockDim.x)
      p.scales[n * p.scale_stride + i] = reinterpret_cast<const float*>(from + p.code_bytes)[n];
  }
}

struct RespondParams {
  Exchange exchange;
  const bf16* products;
  uint64_t stride;
  const uint32_t* place;  // where in sorted order each piece is
  const uint2* homes;
  uint32_t first, count;  // products that are there
  uint32_t last;          // whether these are the last of this turn
};

// Products to where their rows came from.
extern "C" __global__ void __launch_bounds__(256) exchange_respond(const __grid_constant__ RespondParams p) {
  after_earlier();
  const Exchange& e = p.exchange;
  const uint32_t total = e.state->total;
  // Most waves have nothing.
  for (uint32_t i = p.first < total ? blockIdx.x : total; i < total; i += gridDim.x) {
    const uint32_t at = p.place[i] - p.first;
    if (at >= p.count) continue;
    const uint2 home = p.homes[i];
    const uint4* from = reinterpret_cast<const uint4*>(p.products + at * p.stride);
    uint4* to = reinterpret_cast<uint4*>(e.result_of(e.peers[home.x].window, home.y));
    for (uint32_t n = threadIdx.x; n < e.cols / 8; n += blockDim.x) to[n] = from[n];
  }
  if (!p.last || !last_block(&e.state->responded)) return;
  for (uint32_t r = threadIdx.x; r < e.ranks; r += blockDim.x) {
    const Peer peer = e.peers[r];
    if (peer.member && !e.failed()) raise_flag(e.flag(peer.window, e.returned, peer.source), e.state->turn);
  }
  if (threadIdx.x == 0) e.state->responded = 0;
}

struct CombineParams {
  Exchange exchange;
  const float* weights;
  uint32_t rows;
  bf16* out;
  uint64_t out_stride;
  const bf16* more;  // added to the sum, or null
  uint64_t more_stride;
};

// The sum of a row's results, in order of choice. A block a row, and one where there is none.
extern "C" __global__ void __launch_bounds__(1024) exchange_combine(const __grid_constant__ CombineParams p) {
  after_earlier();
  const Exchange& e = p.exchange;
  for (uint32_t r = threadIdx.x; r < e.ranks; r += blockDim.x)
    if (e.peers[r].member) wait_for(e, e.flag(e.window, e.returned, r), e.state->turn);
  __syncthreads();
  const uint32_t row = blockIdx.x;
  if (row >= p.rows) return;
  for (uint32_t i = threadIdx.x; i < e.cols / 8; i += blockDim.x) {
    float sum[8] = {};
    for (uint32_t n = 0; n < e.per_token; n++) {
      const uint32_t home = row * e.per_token + n;
      const float weight = p.weights[home];
      const uint4 value = __ldcv(reinterpret_cast<const uint4*>(e.result_of(e.window, home)) + i);
      const uint32_t words[4] = {value.x, value.y, value.z, value.w};
      for (int j = 0; j < 4; j++) {
        sum[2 * j] += weight * __uint_as_float(words[j] << 16);
        sum[2 * j + 1] += weight * __uint_as_float(words[j] & 0xffff0000u);
      }
    }
    __align__(16) bf16 values[8];
    for (int j = 0; j < 8; j++) values[j] = from_f32<bf16>(sum[j]);
    if (p.more) {
      // Rounded before, as where it is added by an op of its own.
      const bf16* more = p.more + row * p.more_stride + 8 * i;
      for (int j = 0; j < 8; j++) values[j] = from_f32<bf16>(to_f32(values[j]) + to_f32(more[j]));
    }
    reinterpret_cast<uint4*>(p.out + row * p.out_stride)[i] = *reinterpret_cast<const uint4*>(values);
  }
}
