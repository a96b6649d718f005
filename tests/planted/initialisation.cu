// Planted reads of what nobody wrote: kernel<true> has the fault, kernel<false> is its correct twin.
#include "planted.cuh"

// the last elements of a static array are read, but not written
template <bool FAULT>
__global__ void unwritten_static(const float* x, float* y) {
  __shared__ float s[64];
  if (threadIdx.x < (FAULT ? 60 : 64)) s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();  // s is whole
  y[threadIdx.x] = s[63 - threadIdx.x];  // FAULT unwritten_static
}

// counters in dynamic shared memory that are not set to 0: integers have no NaN
template <bool FAULT>
__global__ void unwritten_counters(const int* x, int* y) {
  DYN_SHARED(int, counts);
  if (!FAULT && threadIdx.x < 8) counts[threadIdx.x] = 0;
  __syncthreads();  // the counters are 0
  atomicAdd(&counts[x[threadIdx.x] & 7], 1);  // FAULT unwritten_counters
  __syncthreads();  // all have counted
  if (threadIdx.x < 8) y[threadIdx.x] = counts[threadIdx.x];
}

// adds to an output that nobody has written
template <bool FAULT>
__global__ void unwritten_output(const float* x, float* y) {
  if (FAULT) y[threadIdx.x] += x[threadIdx.x];  // FAULT unwritten_output
  else y[threadIdx.x] = x[threadIdx.x];
}

// leaves the last elements of an output as they were
template <bool FAULT>
__global__ void half_written_output(const float* x, float* y, int n) {  // FAULT half_written_output
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < (FAULT ? n - 3 : n)) y[i] = x[i];
}

// a padded column is copied along, but its value is used by nobody: no fault
template <bool FAULT>
__global__ void padding(const float* x, float* y) {
  __shared__ __align__(16) float s[16][4];
  if (threadIdx.x < 48) s[threadIdx.x / 3][threadIdx.x % 3] = x[threadIdx.x];
  __syncthreads();  // three of four columns are whole
  if (threadIdx.x < 16) {
    const float4 row = *reinterpret_cast<const float4*>(s[threadIdx.x]);  // FAULT padding
    y[threadIdx.x] = row.x + row.y + row.z + (FAULT ? row.w : 0.0f);
  }
}

// the copy is not waited for
template <bool FAULT>
__global__ void copy_without_wait(const float* x, float* y) {
  __shared__ __align__(16) float s[64];
  copy_async(s + 4 * threadIdx.x, x + 4 * threadIdx.x);  // FAULT copy_without_wait copy
  commit_copies();
  if (!FAULT) wait_copies<0>();
  __syncthreads();  // every copy has landed
  for (int i = 4 * threadIdx.x; i < 4 * threadIdx.x + 4; ++i) y[i] = s[63 - i];  // FAULT copy_without_wait read
}

// two copies under way, and the wait leaves one too many of them
template <bool FAULT>
__global__ void copy_waits_for_too_few(const float* x, float* y) {
  __shared__ __align__(16) float s[2][64];
  for (int stage = 0; stage < 2; ++stage) {
    copy_async(s[stage] + 4 * threadIdx.x, x + 64 * stage + 4 * threadIdx.x);  // FAULT copy_waits_for_too_few copy
    commit_copies();
  }
  float sum[4] = {};
  wait_copies<1>();
  for (int stage = 0; stage < 2; ++stage) {
    if (stage == 1 && !FAULT) wait_copies<0>();
    __syncthreads();  // this stage's copies have landed
    for (int i = 0; i < 4; ++i) sum[i] += s[stage][63 - 4 * threadIdx.x - i];  // FAULT copy_waits_for_too_few read
  }
  for (int i = 0; i < 4; ++i) y[4 * threadIdx.x + i] = sum[i];
}

// the copy is waited for, but was never committed
template <bool FAULT>
__global__ void copy_not_committed(const float* x, float* y) {
  __shared__ __align__(16) float s[64];
  copy_async(s + 4 * threadIdx.x, x + 4 * threadIdx.x);  // FAULT copy_not_committed copy
  if (!FAULT) commit_copies();
  wait_copies<0>();
  __syncthreads();  // every copy has landed
  for (int i = 4 * threadIdx.x; i < 4 * threadIdx.x + 4; ++i) y[i] = s[63 - i];  // FAULT copy_not_committed read
}
