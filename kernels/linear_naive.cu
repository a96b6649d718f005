// The dense layer as the formulas say it: one thread an element, no tiles.  Nothing ships this; it documents
// what kernels/linear.cu computes, and a test runs the two side by side.
#include "common.cuh"
#include "activation.cuh"

// y = f(x W + b)
template <class T, class F>
__global__ void naive_forward(const T* x, const T* W, const T* b, T* y, int N, int D, int H) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, n = i / H, h = i % H;
  if (n >= N) return;
  T z = b[h];
  for (int d = 0; d < D; ++d) z += x[n * D + d] * W[d * H + h];
  y[i] = F::forward(z);
}

// dZ1 = (dZ W^T) * f'(A)
template <class T, class F>
__global__ void naive_backward_input(const T* dZ, const T* W, const T* A, T* dZ1, int N, int C, int H) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, n = i / H, h = i % H;
  if (n >= N) return;
  T dA = 0;
  for (int c = 0; c < C; ++c) dA += dZ[n * C + c] * W[h * C + c];
  dZ1[i] = F::backward(A[i], dA);
}

// dW = x^T dZ, and db = the sum of dZ over the samples in the threads of row D
template <class T>
__global__ void naive_backward_weight(const T* x, const T* dZ, T* dW, T* db, int N, int D, int H) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, d = i / H, h = i % H;
  if (d > D) return;
  T sum = 0;
  for (int n = 0; n < N; ++n) sum += (d < D ? x[n * D + d] : T(1)) * dZ[n * H + h];
  (d < D ? dW[i] : db[h]) = sum;
}
