// Planted results that depend on the order of threads: kernel<true> has the fault, kernel<false> is its twin.
#include "planted.cuh"

// floating-point atomics add in the order of arrival
template <bool FAULT>
__global__ void atomic_float_sum(const float* x, float* sum) {
  __shared__ float scratch[8];
  const float v = x[blockIdx.x * blockDim.x + threadIdx.x];
  if (FAULT) {
    atomicAdd(sum, v);
  } else {
    const float total = block_sum<256>(v, scratch);
    if (threadIdx.x == 0) sum[blockIdx.x] = total;
  }
}

// who comes first gets the first place
template <bool FAULT>
__global__ void compaction(const int* x, int* y, int* count) {
  if (x[threadIdx.x] <= 0) return;
  int place = 0;
  if (FAULT) place = atomicAdd(count, 1);
  else
    for (int i = 0; i < threadIdx.x; ++i) place += x[i] > 0;
  y[place] = threadIdx.x;
}

// the last block to arrive writes its own number instead of what all blocks know
template <bool FAULT>
__global__ void last_writer(const int* x, int* ticket, int* y) {
  if (threadIdx.x != 0) return;
  const int arrived = atomicAdd(ticket, x[0]);
  if (arrived == static_cast<int>(gridDim.x) - 1) y[0] = FAULT ? static_cast<int>(blockIdx.x) : arrived;
}
