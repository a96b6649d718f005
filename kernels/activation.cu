// Elementwise activation, forward and backward.
//
//   forward   a  = f(z)              z, a: n elements
//   backward  dz = da * f'(z)        f' from the output a; a, da, dz: n elements
//
// Map: thread t of the grid takes the vectors t, t + threads, ... of V elements; the n % V elements at the end
// are taken one each by the first threads of the grid.  No two threads meet: trivially deterministic.
#include "common.cuh"
#include "activation.cuh"

constexpr int ACTIVATION_THREADS = 256;

template <class T, class F, int V>
__global__ void __launch_bounds__(ACTIVATION_THREADS)
    activation_forward(const T* z, T* a, int n) {  // a may be z: not __restrict__
  const int thread = blockIdx.x * ACTIVATION_THREADS + threadIdx.x;
  const int threads = gridDim.x * ACTIVATION_THREADS;
  for (int v = thread; v < n / V; v += threads) {
    Vector<T, V> value = load_vector<V>(z + V * v);
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] = F::forward(value[j]);
    store_vector<V>(a + V * v, value);
  }
  const int i = n / V * V + thread;
  if (i < n) a[i] = F::forward(z[i]);
}

template <class T, class F, int V>
__global__ void __launch_bounds__(ACTIVATION_THREADS)
    activation_backward(const T* a, const T* da, T* dz, int n) {  // dz may be a or da: not __restrict__
  const int thread = blockIdx.x * ACTIVATION_THREADS + threadIdx.x;
  const int threads = gridDim.x * ACTIVATION_THREADS;
  for (int v = thread; v < n / V; v += threads) {
    const Vector<T, V> output = load_vector<V>(a + V * v);
    Vector<T, V> gradient = load_vector<V>(da + V * v);
#pragma unroll
    for (int j = 0; j < V; ++j) gradient[j] = F::backward(output[j], gradient[j]);
    store_vector<V>(dz + V * v, gradient);
  }
  const int i = n / V * V + thread;
  if (i < n) dz[i] = F::backward(a[i], da[i]);
}
