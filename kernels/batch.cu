// A mini-batch picked out of the data by index, scaled on the way.
//
//   out[i, :] = X[order[i], :] * scale + shift        X: (N, D) of TX;  order: (rows,);  out: (rows, D) of T
//
// Map: one warp a row, lanes along the columns in vectors of V.  Deterministic: every element is written once.
#include "common.cuh"

constexpr int GATHER_THREADS = 256;

template <class TX, class T, int V>
__global__ void __launch_bounds__(GATHER_THREADS)
    gather_rows(const TX* __restrict__ X, const int* __restrict__ order, T* __restrict__ out, int rows, int D,
                T scale, T shift) {
  const int row = blockIdx.x * (GATHER_THREADS / WARP) + threadIdx.x / WARP;
  if (row >= rows) return;  // no barrier follows
  const TX* source = X + static_cast<long long>(order[row]) * D;
  T* target = out + static_cast<long long>(row) * D;
  for (int column = threadIdx.x % WARP * V; column < D; column += WARP * V) {
    const Vector<TX, V> pixels = load_vector<V>(source + column);
    Vector<T, V> scaled;
#pragma unroll
    for (int j = 0; j < V; ++j) scaled[j] = static_cast<T>(pixels[j]) * scale + shift;
    store_vector<V>(target + column, scaled);
  }
}
