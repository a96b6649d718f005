// Correct kernels that a search must not accuse, and a few small ones to be searched.
#include "../../kernels/common.cuh"
#include "../../kernels/intrinsics.cuh"

// neighbouring bytes, written by different threads
__global__ void bytes(const unsigned char* x, unsigned char* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i] + 1;
}

// y may be x
__global__ void in_place(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = 2 * x[i];
}

// a word and its halves
__global__ void parts_of_words(unsigned* y) {
  unsigned short* halves = reinterpret_cast<unsigned short*>(y);
  halves[threadIdx.x] = static_cast<unsigned short>(threadIdx.x);
  __syncthreads();  // every half is written
  if (threadIdx.x % 2 == 0) y[threadIdx.x / 2] += 1;
}

// a histogram by atomics, read after a barrier
__global__ void histogram(const int* x, int* y) {
  __shared__ int counts[8];
  if (threadIdx.x < 8) counts[threadIdx.x] = 0;
  __syncthreads();  // the counts are 0
  atomicAdd(&counts[x[threadIdx.x] & 7], 1);
  __syncthreads();  // all have counted
  if (threadIdx.x < 8) y[threadIdx.x] = counts[threadIdx.x];
}

// lanes hand values around by __syncwarp, warp by warp
__global__ void warp_tree(const float* x, float* y) {
  __shared__ float s[128];
  const int lane = threadIdx.x % 32;
  s[threadIdx.x] = x[threadIdx.x];
  __syncwarp();  // the warp's part of s is whole
  for (int half = 16; half > 0; half /= 2) {
    const float other = lane < half ? s[threadIdx.x + half] : 0.0f;
    __syncwarp();  // all have read
    if (lane < half) s[threadIdx.x] += other;
    __syncwarp();  // all have written
  }
  if (lane == 0) y[threadIdx.x / 32] = s[threadIdx.x];
}

// a producer and a consumer in one block, by a flag between fences
__global__ void handed_over(const int* x, int* flag, int* value, int* y) {
  if (threadIdx.x == 0) {
    *value = x[0];
    __threadfence();
    atomicExch(flag, 1);
  } else if (threadIdx.x == 40) {
    while (atomicAdd(flag, 0) == 0) {}
    __threadfence();
    y[0] = *value;
  }
}

// a structure with padding goes through shared memory as a whole
struct Padded {
  double a;
  char b;
};
__global__ void padded_structure(const double* x, double* y) {
  __shared__ Padded shared;
  if (threadIdx.x == 0) {
    shared.a = x[0];
    shared.b = 1;
  }
  __syncthreads();  // it is whole
  const Padded mine = shared;
  y[threadIdx.x] = mine.a + mine.b;
}

// y = x, n floats in copies of 16 bytes, zeros behind them; `stages` groups under way
__global__ void copied(const float* x, float* y, int n) {
  __shared__ __align__(16) float s[3][64];
  for (int stage = 0; stage < 3; ++stage) {
    const int first = stage * 64 + 4 * threadIdx.x, left = n - first;
    copy_async(s[stage] + 4 * threadIdx.x, x + (left > 0 ? first : 0), left >= 4 ? 16 : left > 0 ? 4 * left : 0);
    commit_copies();
  }
  wait_copies<2>();
  __syncthreads();  // the first stage has landed
  for (int i = 0; i < 4; ++i) y[4 * threadIdx.x + i] = s[0][4 * threadIdx.x + i];
  wait_copies<0>();
  __syncthreads();  // so have the others
  for (int stage = 1; stage < 3; ++stage)
    for (int i = threadIdx.x; i < 64; i += blockDim.x) y[stage * 64 + i] = s[stage][63 - (63 - i)];
}

// how many of the first copy's floats are there before the wait
__global__ void landed_early(const float* x, int* count) {
  __shared__ __align__(16) float s[4];
  copy_async(s, x);
  commit_copies();
  count[0] = s[0] == x[0];
  wait_copies<0>();
  count[1] = s[0] == x[0];
}

__global__ void beyond(float* y, int n) { y[static_cast<int>(threadIdx.x) + n] = 1; }

__global__ void overlapping(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x + 1]; }
