// sums[row] = the sum of a row of x (rows, columns): one block a row, a tree in shared memory.
#include <cuda_runtime.h>

template <class T>
__global__ void row_sums(const T* __restrict__ x, T* __restrict__ sums, int columns) {
  extern __shared__ __align__(16) unsigned char memory[];
  T* partial = reinterpret_cast<T*>(memory);  // one a thread
  T sum = 0;
  for (int column = threadIdx.x; column < columns; column += blockDim.x) {
    sum += x[blockIdx.x * columns + column];
  }
  partial[threadIdx.x] = sum;
  __syncthreads();  // every thread's sum is there
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();  // this level is whole before the next one reads it
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
}
