// The dense layer, forward and backward, with bias, activation and mask fused into the matrix products.
//
//   forward          y  = f(x W + b)                  x (N, D), W (D, H), b (H,) or null, y (N, H)
//   backward_input   dZ1 = (dZ W^T) * f'(A)           dZ (N, C), W (H, C), A and dZ1 (N, H)
//   backward_weight  dW = x^T dZ, db = sum_n dZ       x (N, D), dZ (N, H), dW (D, H), db (H,) or null
//
// All matrices row-major and contiguous.  The weight product is split over the samples: partition s of S sums
// samples [s * chunk, (s + 1) * chunk) into its own partial result, and reduce_partials adds the S partials in
// rising order.  S and chunk depend on the shape alone, so the bits never depend on the GPU.
//
// A block computes one tile of the result (tile_product.cuh); tiles along the samples go in grid.x.  V* are the
// elements a load moves along the named side, 1 where the side or a pointer is not a multiple of 16 bytes.
#include "tile_product.cuh"
#include "activation.cuh"

// ---- forward ----------------------------------------------------------------------------------------------

template <class T, class F>
struct BiasActivation {
  const T* __restrict__ b;
  T* __restrict__ y;
  int H;
  template <int W>
  __device__ __forceinline__ void operator()(Vector<T, W> z, int n, int h) const {
    if (b != nullptr) {
      const Vector<T, W> bias = load_vector<W>(b + h);
#pragma unroll
      for (int e = 0; e < W; ++e) z[e] += bias[e];
    }
#pragma unroll
    for (int e = 0; e < W; ++e) z[e] = F::forward(z[e]);
    store_vector<W>(y + static_cast<long long>(n) * H + h, z);
  }
};

template <class T, class TILE, class F, int VD, int VH>
__global__ void __launch_bounds__(TILE::THREADS, sizeof(T) == 4 ? TILE::FLOAT_BLOCKS : TILE::DOUBLE_BLOCKS)
    linear_forward(const T* __restrict__ x, const T* __restrict__ W, const T* __restrict__ b, T* __restrict__ y,
                   int N, int D, int H) {
  const int n0 = blockIdx.x * TILE::BM, h0 = blockIdx.y * TILE::BN;
  TileProduct<T, TILE, VD, true, VH, false> product;
  product.template accumulate<false>(x, D, n0, N, W, H, h0, H, 0, D, false);
  product.template for_each_group<VH>(n0, N, h0, H, BiasActivation<T, F>{b, y, H});
}

// ---- backward ---------------------------------------------------------------------------------------------

template <class T, class F>
struct ActivationDerivative {
  const T* __restrict__ A;  // null where f is the identity
  T* __restrict__ dZ1;
  int H;
  template <int W>
  __device__ __forceinline__ void operator()(Vector<T, W> dA, int n, int h) const {
    const long long at = static_cast<long long>(n) * H + h;
    if (A != nullptr) {
      const Vector<T, W> a = load_vector<W>(A + at);
#pragma unroll
      for (int e = 0; e < W; ++e) dA[e] = F::backward(a[e], dA[e]);
    }
    store_vector<W>(dZ1 + at, dA);
  }
};

template <class T, class TILE, class F, int VC, int VH>
__global__ void __launch_bounds__(TILE::THREADS, sizeof(T) == 4 ? TILE::FLOAT_BLOCKS : TILE::DOUBLE_BLOCKS)
    linear_backward_input(const T* __restrict__ dZ, const T* __restrict__ W, const T* __restrict__ A,
                          T* __restrict__ dZ1, int N, int C, int H) {
  const int n0 = blockIdx.x * TILE::BM, h0 = blockIdx.y * TILE::BN;
  TileProduct<T, TILE, VC, true, VC, true> product;
  product.template accumulate<false>(dZ, C, n0, N, W, C, h0, H, 0, C, false);
  product.template for_each_group<VH>(n0, N, h0, H, ActivationDerivative<T, F>{A, dZ1, H});
}

template <class T>
struct Plain {
  T* __restrict__ out;
  int ld;
  template <int W>
  __device__ __forceinline__ void operator()(const Vector<T, W>& value, int row, int column) const {
    store_vector<W>(out + static_cast<long long>(row) * ld + column, value);
  }
};

// Partition blockIdx.z writes its partial dW and db `stride` elements after those of the partition before.
template <class T, class TILE, int VD, int VH>
__global__ void __launch_bounds__(TILE::THREADS, sizeof(T) == 4 ? TILE::FLOAT_BLOCKS : TILE::DOUBLE_BLOCKS)
    linear_backward_weight(const T* __restrict__ x, const T* __restrict__ dZ, T* __restrict__ dW,
                           T* __restrict__ db, int N, int D, int H, int chunk, long long stride) {
  const int d0 = blockIdx.x * TILE::BM, h0 = blockIdx.y * TILE::BN;
  const int n0 = blockIdx.z * chunk, n1 = min(n0 + chunk, N);
  const bool sums_bias = db != nullptr && blockIdx.x == 0;
  TileProduct<T, TILE, VD, false, VH, false> product;
  product.template accumulate<true>(x, D, d0, D, dZ, H, h0, H, n0, n1, sums_bias);
  product.template for_each_group<VH>(d0, D, h0, H, Plain<T>{dW + blockIdx.z * stride, H});
  const int h = h0 + threadIdx.x;
  if (sums_bias && threadIdx.x < TILE::BN && h < H) db[blockIdx.z * stride + h] = product.column_sum;
}

constexpr int REDUCE_THREADS = 256;

// dW = sum_s partials[s, 0:weights], db = sum_s partials[s, offset:offset + biases], s = 0, 1, ... in this order.
template <class T>
__global__ void __launch_bounds__(REDUCE_THREADS)
    reduce_partials(const T* __restrict__ partials, T* __restrict__ dW, T* __restrict__ db, int S,
                    long long stride, int weights, int offset, int biases) {
  const int i = blockIdx.x * REDUCE_THREADS + threadIdx.x;
  if (i >= weights + biases) return;  // no barrier follows
  const T* part = partials + (i < weights ? i : offset + i - weights);
  T sum = part[0];
  for (int s = 1; s < S; ++s) sum += part[s * stride];
  if (i < weights)
    dW[i] = sum;
  else
    db[i - weights] = sum;
}
