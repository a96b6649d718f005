// Planted faults of barriers and warp collectives: kernel<true> has the fault, kernel<false> is its correct twin.
#include "planted.cuh"

// half of the block waits at one barrier, half at another
template <bool FAULT>
__global__ void divergent_barrier(float* x) {
  if (!FAULT) {
    x[threadIdx.x] = 1;
    __syncthreads();  // all together
  } else if (threadIdx.x < 32) {
    x[threadIdx.x] = 1;
    __syncthreads();  // FAULT divergent_barrier
  } else {
    __syncthreads();  // the others
    x[threadIdx.x] = 2;
  }
}

// threads past the end return before the barrier
template <bool FAULT>
__global__ void returned_before_barrier(const float* x, float* y, int n) {
  __shared__ float s[64];
  if (FAULT && threadIdx.x >= n) return;
  s[threadIdx.x] = threadIdx.x < n ? x[threadIdx.x] : 0.0f;
  __syncthreads();  // FAULT returned_before_barrier
  if (threadIdx.x < n) y[threadIdx.x] = s[n - 1 - threadIdx.x];
}

// a shuffle of half a warp that calls itself the whole
template <bool FAULT>
__global__ void lanes_missing(const float* x, float* y) {
  const unsigned mask = FAULT ? 0xffffffffu : 0xffffu;
  float v = x[threadIdx.x];
  if (threadIdx.x < 16) v += __shfl_down_sync(mask, v, 8, 16);  // FAULT lanes_missing
  y[threadIdx.x] = v;
}

// a lane that takes part without being in its mask
template <bool FAULT>
__global__ void outside_mask(const float* x, float* y) {
  const unsigned mask = FAULT ? 0xffffu : 0xffffffffu;
  y[threadIdx.x] = __shfl_xor_sync(mask, x[threadIdx.x], 1);  // FAULT outside_mask
}

// one warp waits for the block while the other goes through a shuffle that its lanes do not all reach
template <bool FAULT>
__global__ void deadlock(const float* x, float* y) {
  float v = x[threadIdx.x];
  if (FAULT ? threadIdx.x % 2 == 0 : true) v += __shfl_xor_sync(0xffffffffu, v, 2);  // FAULT deadlock
  __syncthreads();  // the others are here already
  y[threadIdx.x] = v;
}

// a warp of a partial block: the mask names lanes that the block does not have
template <bool FAULT>
__global__ void lanes_that_do_not_exist(const float* x, float* y) {
  const unsigned mask = FAULT || threadIdx.x < 32 ? 0xffffffffu : 0xffffu;
  y[threadIdx.x] = __shfl_sync(mask, x[threadIdx.x], 0);  // FAULT lanes_that_do_not_exist
}

// a block that returns before the others' barrier
template <bool FAULT>
__global__ void block_leaves(float* x, unsigned* counter) {
  if (FAULT && blockIdx.x == 1) return;
  grid_barrier(counter, gridDim.x);  // FAULT block_leaves
  x[blockIdx.x * blockDim.x + threadIdx.x] = 1;
}
