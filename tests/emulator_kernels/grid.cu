// Kernels whose blocks wait for each other, right and wrong ones.  Lines that a message must name end in a mark.
#include "../../kernels/common.cuh"
#include "../../kernels/intrinsics.cuh"

// x[i] of every block becomes x[i] + 2 x[i of the next block], `rounds` times; one buffer, so two barriers a round
template <bool WAITS>
__global__ void rotate(int* x, unsigned* counter, int rounds) {
  const int own = blockIdx.x * blockDim.x + threadIdx.x;
  const int next = (blockIdx.x + 1) % gridDim.x * blockDim.x + threadIdx.x;
  for (int round = 0; round < rounds; ++round) {
    const int value = x[own] + 2 * x[next];
    grid_barrier(counter, gridDim.x);  // all have read
    x[own] = value;
    if (WAITS) grid_barrier(counter, gridDim.x);  // all have written
  }
}

// The same through static and dynamic shared memory, which belong to one block each.
__global__ void rotate_shared(int* x, unsigned* counter, int rounds) {
  __shared__ int held[64];
  __shared__ int first;
  DYN_SHARED(int, kept);
  const int own = blockIdx.x * blockDim.x + threadIdx.x;
  const int next = (blockIdx.x + 1) % gridDim.x * blockDim.x + threadIdx.x;
  if (threadIdx.x == 0) first = x[own];
  held[threadIdx.x] = x[own];
  for (int round = 0; round < rounds; ++round) {
    kept[threadIdx.x] = held[threadIdx.x] + 2 * x[next];
    grid_barrier(counter, gridDim.x);  // all have read
    x[own] = kept[threadIdx.x];
    held[threadIdx.x] = kept[threadIdx.x];
    grid_barrier(counter, gridDim.x);  // all have written
  }
  x[own] = held[blockDim.x - 1 - threadIdx.x] + first;
}

// block b sums what all blocks wrote, by an asynchronous copy of each
__global__ void gather_sums(const float* x, float* exchanged, float* y, unsigned* counter) {
  __shared__ __align__(16) float s[4 * 8];
  if (threadIdx.x < 4) exchanged[4 * blockIdx.x + threadIdx.x] = x[4 * blockIdx.x + threadIdx.x];
  grid_barrier(counter, gridDim.x);  // all has been exchanged
  if (threadIdx.x < gridDim.x) copy_async(&s[4 * threadIdx.x], &exchanged[4 * threadIdx.x]);
  commit_copies();
  wait_copies<0>();
  __syncthreads();  // every thread's copy has landed
  float sum = 0;
  for (int i = 0; i < 4 * gridDim.x; ++i) sum += s[i];
  if (threadIdx.x == 0) y[blockIdx.x] = sum + blockIdx.x;
}

// pairs of blocks meet, each with a counter of its own, and then all of them
__global__ void pairs_then_all(int* x, int* y, unsigned* counters) {
  if (threadIdx.x == 0) x[blockIdx.x] = blockIdx.x + 1;
  const int pairs = gridDim.x / 2, pair = blockIdx.x % pairs;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const unsigned arrived = atomicAdd(&counters[1 + pair], 1u);
    volatile unsigned* both_arrived = &counters[1 + pair];
#ifdef HANDGRAD_EMULATED
    emulated::grid_meeting(&counters[1 + pair], arrived == 1, "pair", emulated::Site::here());
    if (*both_arrived < 2) x[blockIdx.x] = -1000;  // let go too early
#else
    while (*both_arrived < 2) {}
#endif
  }
  __syncthreads();
  __threadfence();
  const int both = x[pair] + x[pair + pairs];
  grid_barrier(counters, gridDim.x);  // all have read
  if (threadIdx.x == 0) x[blockIdx.x] = both;
  grid_barrier(counters, gridDim.x);  // all have written
  if (threadIdx.x == 0)
    for (int b = 0; b < gridDim.x; ++b) y[blockIdx.x] += x[b];
}

// half of each warp reads between two barriers, and the other half between the next two
__global__ void by_turns(const int* x, int* y, unsigned* counter, int rounds) {
  const int own = blockIdx.x * blockDim.x + threadIdx.x;
  int sum = 0;
  for (int round = 0; round < rounds; ++round) {
    if (threadIdx.x / 16 % 2 == round % 2) sum += x[own];
    grid_barrier(counter, gridDim.x);  // a turn is over
  }
  y[own] = sum;
}

// without the fences no block knows what another wrote
__global__ void unfenced(int* x, int* y, unsigned* counter) {
  if (threadIdx.x == 0) {
    x[blockIdx.x] = blockIdx.x;  // FAULT unfenced
    const unsigned before = atomicAdd(counter, 1u);
#ifdef HANDGRAD_EMULATED
    emulated::grid_meeting(counter, before == gridDim.x - 1, "unfenced barrier", emulated::Site::here());
#endif
    y[blockIdx.x] = x[(blockIdx.x + 1) % gridDim.x];  // FAULT unfenced
  }
}

__global__ void leaves_early(int* x, unsigned* counter) {
  if (blockIdx.x == gridDim.x - 1 && gridDim.x > 1) return;
  grid_barrier(counter, gridDim.x);  // FAULT leaves_early
  x[blockIdx.x] = 1;
}

__global__ void waits_elsewhere(int* x, unsigned* counters) {
  if (blockIdx.x == 1) {
    grid_barrier(counters + 1, gridDim.x);  // FAULT waits_elsewhere other
  } else {
    grid_barrier(counters, gridDim.x);  // FAULT waits_elsewhere
  }
  x[blockIdx.x] = 1;
}

__global__ void divergent(int* x, unsigned* counter) {
  if (blockIdx.x == 1) {
    grid_barrier(counter, gridDim.x);  // FAULT divergent one
  } else {
    grid_barrier(counter, gridDim.x);  // FAULT divergent other
  }
  x[blockIdx.x] = 1;
}

// a thread of every block stays away from the block's part of the barrier
__global__ void thread_stays_away(int* x, unsigned* counter) {
  if (threadIdx.x != 5) grid_barrier(counter, gridDim.x);  // FAULT thread_stays_away
  x[blockIdx.x] = 1;
}

__global__ void wrong_count(int* x, unsigned* counter) {
  grid_barrier(counter, gridDim.x + 1);  // FAULT wrong_count
  x[blockIdx.x] = 1;
}

// one block writes past the end of its shared memory
__global__ void past_shared(int* x, unsigned* counter) {
  __shared__ int s[8];
  DYN_SHARED(int, kept);
  if (threadIdx.x < 4) s[threadIdx.x] = kept[threadIdx.x] = 0;
  grid_barrier(counter, gridDim.x);  // only to be together
  if (blockIdx.x == 1 && threadIdx.x == 0) kept[4] = 1;  // FAULT past_shared
  if (threadIdx.x == 0) x[blockIdx.x] = s[0];
}

// shared memory that a block has not written, whatever others wrote into theirs
__global__ void unwritten_shared(float* x, unsigned* counter) {
  __shared__ float s[32];
  if (blockIdx.x != 1) s[threadIdx.x] = 1;
  grid_barrier(counter, gridDim.x);  // the others have written theirs
  x[blockIdx.x * blockDim.x + threadIdx.x] = s[threadIdx.x];  // FAULT unwritten_shared
}
