// Planted races: kernel<true> has the fault, kernel<false> is its correct twin.
#include "planted.cuh"

// y[i] = x[63 - i] through shared memory
template <bool FAULT>
__global__ void missing_barrier(const float* x, float* y) {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];  // FAULT missing_barrier write
  if (!FAULT) __syncthreads();  // s is whole
  y[threadIdx.x] = s[63 - threadIdx.x];  // FAULT missing_barrier read
}

// two tiles after another in one buffer: the second overwrites the first while it is read
template <bool FAULT>
__global__ void reused_buffer(const float* x, float* y) {
  __shared__ float s[64];
  float sum = 0;
  for (int tile = 0; tile < 2; ++tile) {
    s[threadIdx.x] = x[tile * 64 + threadIdx.x];  // FAULT reused_buffer write
    __syncthreads();  // the tile is whole
    sum += s[63 - threadIdx.x];  // FAULT reused_buffer read
    if (!FAULT) __syncthreads();  // nobody reads the tile any more
  }
  y[threadIdx.x] = sum;
}

// neighbouring lanes of a warp: they do not run in lockstep
template <bool FAULT>
__global__ void missing_warp_barrier(const float* x, float* y) {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];  // FAULT missing_warp_barrier write
  if (!FAULT) __syncwarp();  // the neighbour has written
  y[threadIdx.x] = s[threadIdx.x ^ 1];  // FAULT missing_warp_barrier read
}

// a shuffle moves a value, but orders no memory
template <bool FAULT>
__global__ void shuffle_is_no_barrier(const float* x, float* y) {
  __shared__ float s[32];
  s[threadIdx.x] = x[threadIdx.x];  // FAULT shuffle_is_no_barrier write
  const float first = __shfl_sync(0xffffffffu, x[threadIdx.x], 0);
  if (!FAULT) __syncwarp();  // every lane has written
  y[threadIdx.x] = s[31 - threadIdx.x] + first;  // FAULT shuffle_is_no_barrier read
}

// a level of a tree reads what the level before wrote
template <bool FAULT>
__global__ void tree_without_barrier(const float* x, float* y) {
  __shared__ float s[128];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();  // s is whole
  for (int half = 64; half > 0; half /= 2) {
    if (threadIdx.x < half) s[threadIdx.x] += s[threadIdx.x + half];  // FAULT tree_without_barrier
    if (!FAULT) __syncthreads();  // the level is whole
  }
  if (threadIdx.x == 0) y[0] = s[0];
}

// all threads of all blocks count in one place
template <bool FAULT>
__global__ void plain_sum_of_threads(int* count) {
  if (FAULT) *count += 1;  // FAULT plain_sum_of_threads
  else atomicAdd(count, 1);
}

// one thread a block counts: the race is between blocks alone
template <bool FAULT>
__global__ void plain_sum_of_blocks(int* count) {
  if (threadIdx.x != 0) return;
  if (FAULT) *count += 1;  // FAULT plain_sum_of_blocks
  else atomicAdd(count, 1);
}

// blocks write overlapping parts of y
template <bool FAULT>
__global__ void overlapping_blocks(float* y) {
  const int first = blockIdx.x * (FAULT ? 63 : 64);
  y[first + threadIdx.x] = 1.0f;  // FAULT overlapping_blocks
}

// a block reads what another one writes, without any order
template <bool FAULT>
__global__ void reads_other_block(const int* x, int* y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const int other = (i + blockDim.x) % (gridDim.x * blockDim.x);
  if (FAULT) {
    y[i] = x[i];  // FAULT reads_other_block write
    if (y[other] == 7) y[i] = 1;  // FAULT reads_other_block read
  } else {
    y[i] = x[i];
    if (x[other] == 7) y[i] = 1;
  }
}

// atomic here, plain there
template <bool FAULT>
__global__ void atomic_and_plain(int* count, int* y) {
  atomicAdd(count, 1);  // FAULT atomic_and_plain update
  __syncthreads();  // the block has counted
  if (threadIdx.x == 0) y[blockIdx.x] = FAULT ? *count : 0;  // FAULT atomic_and_plain read
}

// The sum of all blocks by the last one to arrive.  What may be missing: the fence before the ticket (1), the
// barrier between fence and ticket (2), the fence after it (3).
template <int MISSING>
__global__ void last_block_sums(const int* x, int* partial, int* ticket, int* sum) {
  __shared__ int arrived;
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  partial[i] = 2 * x[i];  // FAULT last_block_sums write
  if (MISSING != 1) __threadfence();
  if (MISSING != 2) __syncthreads();  // every thread has passed its fence
  if (threadIdx.x == 0) arrived = atomicAdd(ticket, 1);
  __syncthreads();  // all know which block this is
  if (arrived != gridDim.x - 1) return;
  if (MISSING != 3) __threadfence();
  if (threadIdx.x == 0) {
    int total = 0;
    for (int j = 0; j < gridDim.x * blockDim.x; ++j) total += partial[j];  // FAULT last_block_sums read
    *sum = total;
    *ticket = 0;
  }
}

// the project's own ticket, from common.cuh
__global__ void last_block_of_the_project(const int* x, int* partial, int* ticket, int* sum) {
  partial[blockIdx.x * blockDim.x + threadIdx.x] = x[threadIdx.x];
  if (!last_block(ticket, gridDim.x) || threadIdx.x != 0) return;
  int total = 0;
  for (int j = 0; j < gridDim.x * blockDim.x; ++j) total += partial[j];
  *sum = total;
}

// one thread hands a value to another of its block by a flag, with a fence on both sides or not
template <bool FAULT>
__global__ void flag_in_block(const int* x, int* y) {
  __shared__ int value;
  __shared__ int flag;
  if (threadIdx.x == 0) flag = 0;
  __syncthreads();  // the flag is down
  if (threadIdx.x == 33) {
    value = x[0];  // FAULT flag_in_block write
    if (!FAULT) __threadfence_block();
    atomicExch(&flag, 1);
  }
  if (threadIdx.x == 0) {
    while (atomicAdd(&flag, 0) == 0) {}
    if (!FAULT) __threadfence_block();
    y[0] = value;  // FAULT flag_in_block read
  }
}

// the barrier comes before the wait: other threads read while the copy may still be on its way
template <bool FAULT>
__global__ void barrier_before_wait(const float* x, float* y) {
  __shared__ __align__(16) float s[64];
  copy_async(s + 4 * threadIdx.x, x + 4 * threadIdx.x);  // FAULT barrier_before_wait copy
  commit_copies();
  if (FAULT) __syncthreads();  // too early
  wait_copies<0>();
  if (!FAULT) __syncthreads();  // every copy has landed
  for (int i = 4 * threadIdx.x; i < 4 * threadIdx.x + 4; ++i) y[i] = s[63 - i];  // FAULT barrier_before_wait read
}

// blocks exchange values; without the second barrier one block writes what another has yet to read
template <bool FAULT>
__global__ void grid_without_barrier(float* x, unsigned* counter) {
  const int own = blockIdx.x * blockDim.x + threadIdx.x;
  const int next = (blockIdx.x + 1) % gridDim.x * blockDim.x + threadIdx.x;
  for (int round = 0; round < 3; ++round) {
    const float value = x[next];  // FAULT grid_without_barrier
    grid_barrier(counter, gridDim.x);  // all have read
    x[own] = value + 1;  // FAULT grid_without_barrier
    if (!FAULT) grid_barrier(counter, gridDim.x);  // all have written
  }
}
