// Planted faults of memory: kernel<true> has the fault, kernel<false> is its correct twin.
// `FAULT name` marks the line that the finding must give.
#include "planted.cuh"

// y = 2 x, with a bound that lets one element too many through
template <bool FAULT>
__global__ void global_write(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (FAULT ? i <= n : i < n) y[i] = 2 * x[i < n ? i : 0];  // FAULT global_write
}

// y[i] = x[i] + x[i + 1], with or without the end
template <bool FAULT>
__global__ void global_read(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float next = FAULT || i + 1 < n ? x[i + 1] : 0.0f;  // FAULT global_read
  y[i] = x[i] + next;
}

// rows of a matrix with the row length of another: the last row leaves the buffer
template <bool FAULT>
__global__ void wrong_stride(float* y, int rows, int columns) {
  const int row = blockIdx.x, column = threadIdx.x;
  if (row < rows && column < columns) y[row * (FAULT ? columns + 1 : columns) + column] = 1.0f;  // FAULT wrong_stride
}

// one element past a static array, of a template so that the array could have copies elsewhere
template <bool FAULT>
__global__ void static_shared(const float* x, float* y) {
  __shared__ float before[64];
  __shared__ float s[64];
  __shared__ float after[64];
  float* place = s + (FAULT ? 1 : 0);
  before[threadIdx.x] = after[threadIdx.x] = 0.0f;
  place[threadIdx.x] = x[threadIdx.x];  // FAULT static_shared
  __syncthreads();  // s is whole
  y[threadIdx.x] = place[63 - threadIdx.x] + before[threadIdx.x] + after[threadIdx.x];
}

// past the end of a row of a two-dimensional array: inside the array, but in the next row
template <bool FAULT>
__global__ void inner_dimension(const float* x, float* y) {
  __shared__ float s[4][16];
  const int row = threadIdx.x / 16, column = threadIdx.x % 16;
  s[row][column] = x[threadIdx.x];
  __syncthreads();  // s is whole
  y[threadIdx.x] = s[row][FAULT && row < 3 ? column + 1 : column];  // FAULT inner_dimension
}

// dynamic shared memory of one float a thread, of which one more is written
template <bool FAULT>
__global__ void dynamic_shared_memory(const float* x, float* y) {
  DYN_SHARED(float, s);
  s[threadIdx.x + (FAULT ? 1 : 0)] = x[threadIdx.x];  // FAULT dynamic_shared_memory
  __syncthreads();  // s is whole
  y[threadIdx.x] = s[63 - threadIdx.x + (FAULT ? 1 : 0)];
}

// four floats at once from an address that is a multiple of four bytes only
template <bool FAULT>
__global__ void misaligned_vector(const float* x, float* y) {
  const float4 v = *reinterpret_cast<const float4*>(x + 4 * threadIdx.x + (FAULT ? 1 : 0));  // FAULT misaligned_vector
  y[threadIdx.x] = v.x + v.y + v.z + v.w;
}

// the same through the project's wrapper of vector loads
template <bool FAULT>
__global__ void misaligned_wrapper(const float* x, float* y) {
  const Vector<float, 4> v = load_vector<4>(x + 4 * threadIdx.x + (FAULT ? 2 : 0));  // FAULT misaligned_wrapper
  y[threadIdx.x] = v[0] + v[1] + v[2] + v[3];
}

// registers: an index past the end of a thread's own array
template <bool FAULT>
__global__ void local_array(const float* x, float* y, int n) {
  float own[4] = {x[0], x[1], x[2], x[3]};
  y[threadIdx.x] = own[FAULT ? n : n - 1];  // FAULT local_array
}

// the same of a vector, whose operator returns a reference
template <bool FAULT>
__global__ void vector_element(const float* x, float* y, int n) {
  Vector<float, 4> own = load_vector<4>(x);
  float& last = own[FAULT ? n : n - 1];  // FAULT vector_element
  last += 1.0f;
  y[threadIdx.x] = own[0] + own[1] + own[2] + own[3];
}

// an asynchronous copy whose source ends in the middle of its 16 bytes
template <bool FAULT>
__global__ void copy_past_end(const float* x, float* y, int n) {
  __shared__ __align__(16) float s[64];
  const int first = 4 * threadIdx.x;
  const int valid = FAULT ? COPY_BYTES : 4 * (n - first < 4 ? n - first : 4);
  copy_async(s + first, x + first, valid);  // FAULT copy_past_end
  commit_copies();
  wait_copies<0>();
  __syncthreads();  // every copy has landed
  for (int i = first; i < first + 4; ++i) y[i] = s[63 - i];
}
