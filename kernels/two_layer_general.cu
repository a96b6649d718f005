// A training step of any shape, R4: three launches, and two_layer_reduce.cu as the fourth.
//
//   general_hidden        A1 = f(X W1 + b1)                                X (N, D), W1 (D, H), A1 (N, H)
//   general_output        Z2 = A1 W2 + b2, loss, dZ2, db2                  W2 (H, C), dZ2 (N, C);  C up to 16
//   general_output_wide   the same, and dZ1 = (dZ2 W2^T) * f'(A1)          any C;  Z2 (N, C), dZ1 (N, H)
//   general_weight        dW1 = X^T dZ1, db1 = sum dZ1, dW2 = A1^T dZ2;  up to C = 16, dZ1 is computed on the way:
//                         each slab of it from dZ2, W2 and A1, as (dZ2 W2^T) * f'(A1)
//
// X is float or double, or uint8 and counts as X * scale + shift.  The products with X (Z1, dW1) and, where C is above
// 16, the others are TILE's: fused multiply-adds (tile_fma.cuh) or tensor cores (tile_mma.cuh).
//
// Partial sums: general_output leaves a loss and a db2 for each partition of `rows` samples, general_weight a row of
// the flat gradient for each partition of `chunk` samples.  Partitions follow from the shape alone, and blocks go through
// them in steps of the grid: the bits do not depend on the grid.  Every sum has one order; there are no atomics.
//
// Two blocks of 128 threads fit on a multiprocessor with all the registers that a thread can have; left alone, ptxas
// spills to have a third.
#include "loss.cuh"
#include "two_layer_general.cuh"

// ---- A1 -----------------------------------------------------------------------------------------------------

// f(z + b) of neighbouring elements; b null without bias.
template <class T, class F>
struct Activated {
  const T* __restrict__ b;
  T* __restrict__ out;
  int ld;
  template <int W>
  __device__ __forceinline__ void operator()(Vector<T, W> z, int row, int column) const {
    if (b != nullptr) {
      const Vector<T, W> bias = load_vector<W>(b + column);
#pragma unroll
      for (int e = 0; e < W; ++e) z[e] += bias[e];
    }
#pragma unroll
    for (int e = 0; e < W; ++e) z[e] = F::forward(z[e]);
    store_vector<W>(out + static_cast<long long>(row) * ld + column, z);
  }
};

template <class T, class X, class TILE, class F, int VD, int VH>
__global__ void __launch_bounds__(TILE::THREADS, 2)
    general_hidden(const X* __restrict__ x, const T* __restrict__ W1, const T* __restrict__ b1, T* __restrict__ A1,
                   int N, int D, int H, T scale, T shift) {
  using P = typename TILE::template Product<T, true, false, VH>;
  constexpr int COUNT = STAGES<T, P>;
  __shared__ __align__(16) T ring[RING_SIZE<T, P>];
  const int n0 = blockIdx.x * P::BM, h0 = blockIdx.y * P::BN;
  auto a = input_slab<InputSlab<X, T, P, P::BM, VD, true>>(x, D, n0, N, 0, D, scale, shift);
  CopiedSlab<T, P, P::BN, VH, false> b{W1, H, h0, H, 0, D};
  P product;
  product.clear();
  accumulate<COUNT>(product, a, b, ring, slabs_of<T, P>(D), Nothing<T>{});
  product.for_each_group(n0, N, h0, H, Activated<T, F>{b1, A1, H});
}

// ---- the second layer, C up to 16 ---------------------------------------------------------------------------

template <class T>
struct ToShared {
  const T* __restrict__ b2;  // null without bias
  T* to;
  int pitch;
  __device__ __forceinline__ void operator()(const Vector<T, 1>& z, int row, int column) const {
    to[row * pitch + column] = b2 == nullptr ? z[0] : z[0] + b2[column];
  }
};

// Block b takes the partitions b, b + blocks, ... of `rows` samples; `count` partitions.
template <class T, class TILE, class L, int VH>
__global__ void __launch_bounds__(TILE::THREADS, 2)
    general_output(const T* __restrict__ A1, const T* __restrict__ W2, const T* __restrict__ b2,
                   const typename L::template Target<T>* __restrict__ y, T* __restrict__ dZ2,
                   T* __restrict__ loss_partials, T* __restrict__ b2_partials, int N, int H, int C, int rows,
                   int count, int stride, T scale) {
  using P = typename TILE::template Product<T, true, false, 1>;
  constexpr int THREADS = P::THREADS, ROWS = P::BM, COUNT = STAGES<T, P, THREADS * sizeof(T)>;
  constexpr int PITCH = P::BN + 1;      // odd: the rows of a warp lie in different banks
  constexpr int FEW = 16;               // columns of the output, at most
  constexpr int PARTS = THREADS / FEW;  // of the rows, for db2
  static_assert(ROWS <= THREADS && ROWS % PARTS == 0 && THREADS % FEW == 0, "a thread a row; whole parts");
  static_assert(P::BN <= FEW, "one tile holds whole rows");
  constexpr int RING = RING_SIZE<T, P, THREADS * sizeof(T)>;
  static_assert(2 * ROWS * PITCH <= RING, "logits and gradients fit where the slabs were");
  __shared__ __align__(16) T ring[RING];
  __shared__ T scratch[THREADS];
  T* const z = ring;  // (ROWS, C), once the slabs have been multiplied
  T* const dz = ring + ROWS * PITCH;
  const int c = threadIdx.x % FEW, part = threadIdx.x / FEW;

  for (int s = blockIdx.x; s < count; s += gridDim.x) {
    T loss = T(0), bias = T(0);
    const int end = min(N, (s + 1) * rows);
    for (int n0 = s * rows; n0 < end; n0 += ROWS) {
      const int here = min(ROWS, end - n0);  // rows of this tile
      CopiedSlab<T, P, ROWS, VH, true> a{A1, H, n0, N, 0, H};
      CopiedSlab<T, P, P::BN, 1, false> b{W2, C, 0, C, 0, H};
      P product;
      product.clear();
      accumulate<COUNT>(product, a, b, ring, slabs_of<T, P>(H), Nothing<T>{});
      product.for_each_group(0, ROWS, 0, C, ToShared<T>{b2, z, PITCH});
      __syncthreads();  // all logits are there
      const long long first = static_cast<long long>(n0) * C;  // of the elements of these rows, which lie together
      if constexpr (L::OF_ROWS) {
        const int row = threadIdx.x;
        if (row < ROWS) {  // whole warps, since the losses shuffle
          const bool inside = row < here;
          const int label = inside ? y[n0 + row] : 0;
          const bool known = 0 <= label && label < C;
          const Logits<1, T> logits(z + row * PITCH, C, 0);
          T value = L::template row<1>(logits, known ? label : 0, dz + row * PITCH, C, 0, scale, inside && known);
          if (!known) {
            value = static_cast<T>(__int_as_float(0x7fc00000));
            for (int j = 0; j < C; ++j) dz[row * PITCH + j] = value;
          }
          if (inside) loss += value;
        }
        __syncthreads();  // the gradients of all rows are there
        for (int e = threadIdx.x; e < here * C; e += THREADS) dZ2[first + e] = dz[e / C * PITCH + e % C];
      } else {
        for (int e = threadIdx.x; e < here * C; e += THREADS) {
          T gradient;
          const int at = e / C * PITCH + e % C;
          loss += L::loss(z[at], y[first + e], scale, gradient);
          dz[at] = gradient;
          dZ2[first + e] = gradient;
        }
        __syncthreads();  // the gradients of all elements are there
      }
      if (b2_partials != nullptr && c < C)
        for (int row = part * (ROWS / PARTS); row < min(here, (part + 1) * (ROWS / PARTS)); ++row)
          bias += dz[row * PITCH + c];
      __syncthreads();  // logits and gradients have been read: the slabs of the next tile may come
    }
    scratch[threadIdx.x] = bias;
    __syncthreads();  // every part's sum is there
    if (b2_partials != nullptr && threadIdx.x < C) {
      T sum = T(0);
      for (int p = 0; p < PARTS; ++p) sum += scratch[p * FEW + threadIdx.x];
      b2_partials[static_cast<long long>(s) * stride + threadIdx.x] = sum;
    }
    __syncthreads();  // the parts' sums have been read: the losses take their place
    const T total = block_sum<THREADS>(loss, scratch);
    if (threadIdx.x == 0) loss_partials[s] = total;
    __syncthreads();  // thread 0 has read the warps' losses: the next partition's sums may come
  }
}

// ---- the second layer, any C --------------------------------------------------------------------------------

template <class T>
struct WithBias {
  const T* __restrict__ b;  // null without bias
  T* out;
  int ld;
  template <int W>
  __device__ __forceinline__ void operator()(Vector<T, W> z, int row, int column) const {
    if (b != nullptr) {
      const Vector<T, W> bias = load_vector<W>(b + column);
#pragma unroll
      for (int e = 0; e < W; ++e) z[e] += bias[e];
    }
    store_vector<W>(out + static_cast<long long>(row) * ld + column, z);
  }
};

template <class T, class F>
struct TimesDerivative {
  const T* __restrict__ A1;
  T* __restrict__ dZ1;
  int H;
  template <int W>
  __device__ __forceinline__ void operator()(Vector<T, W> dA, int n, int h) const {
    const long long at = static_cast<long long>(n) * H + h;
    const Vector<T, W> a = load_vector<W>(A1 + at);
#pragma unroll
    for (int e = 0; e < W; ++e) dA[e] = F::backward(a[e], dA[e]);
    store_vector<W>(dZ1 + at, dA);
  }
};

// Partitions as in general_output.  Z2 and dZ2 are written and read again by the same block: never through the cache
// of constants, so they are not `const __restrict__`.
template <class T, class TILE, class L, class F, int VH, int VC>
__global__ void __launch_bounds__(TILE::THREADS, 2)
    general_output_wide(const T* __restrict__ A1, const T* __restrict__ W2, const T* __restrict__ b2,
                        const typename L::template Target<T>* __restrict__ y, T* Z2, T* dZ2, T* __restrict__ dZ1,
                        T* __restrict__ loss_partials, T* b2_partials, int N, int H, int C, int rows, int count,
                        int stride, T scale) {
  using Forward = typename TILE::template Product<T, true, false, VC>;
  using Backward = typename TILE::template Product<T, true, true, VH>;
  constexpr int THREADS = Forward::THREADS, ROWS = Forward::BM, COLUMNS = Forward::BN;
  constexpr int COUNT = STAGES<T, Forward, THREADS / WARP * sizeof(T)>;
  __shared__ __align__(16) T ring[RING_SIZE<T, Forward, THREADS / WARP * sizeof(T)>];
  __shared__ T scratch[THREADS / WARP];
  const int lane = threadIdx.x % WARP;

  for (int s = blockIdx.x; s < count; s += gridDim.x) {
    T loss = T(0);
    const int end = min(N, (s + 1) * rows);
    for (int n0 = s * rows; n0 < end; n0 += ROWS) {
      const int here = min(ROWS, end - n0);  // rows of this tile
      const long long first = static_cast<long long>(n0) * C;
      for (int c0 = 0; c0 < C; c0 += COLUMNS) {
        CopiedSlab<T, Forward, ROWS, VH, true> a{A1, H, n0, N, 0, H};
        CopiedSlab<T, Forward, COLUMNS, VC, false> b{W2, C, c0, C, 0, H};
        Forward product;
        product.clear();
        accumulate<COUNT>(product, a, b, ring, slabs_of<T, Forward>(H), Nothing<T>{});
        product.for_each_group(n0, N, c0, C, WithBias<T>{b2, Z2, C});
      }
      __syncthreads();  // all logits are there
      if constexpr (L::OF_ROWS) {
        for (int row = threadIdx.x / WARP; row < here; row += THREADS / WARP) {  // a warp a row
          const long long at = first + static_cast<long long>(row) * C;
          const int label = __shfl_sync(FULL_WARP, lane == 0 ? y[n0 + row] : 0, 0);
          const bool known = 0 <= label && label < C;
          const Logits<WARP, T> logits(Z2 + at, C, lane);
          T value = L::template row<WARP>(logits, known ? label : 0, dZ2 + at, C, lane, scale, known);
          if (!known) {
            value = static_cast<T>(__int_as_float(0x7fc00000));
            for (int j = lane; j < C; j += WARP) dZ2[at + j] = value;
          }
          if (lane == 0) loss += value;
        }
      } else {
        const long long last = first + static_cast<long long>(here) * C;
        for (long long e = first + threadIdx.x; e < last; e += THREADS) {
          T gradient;
          loss += L::loss(Z2[e], y[e], scale, gradient);
          dZ2[e] = gradient;
        }
      }
      __syncthreads();  // the gradients of all elements are there
      if (b2_partials != nullptr)
        for (int c = threadIdx.x; c < C; c += THREADS) {
          T* const to = b2_partials + static_cast<long long>(s) * stride + c;
          T bias = n0 == s * rows ? T(0) : *to;  // of the tiles before, by the same thread
          for (int row = 0; row < here; ++row) bias += dZ2[first + static_cast<long long>(row) * C + c];
          *to = bias;
        }
      for (int h0 = 0; h0 < H; h0 += COLUMNS) {
        CopiedSlab<T, Backward, ROWS, VC, true> a{dZ2, C, n0, N, 0, C};
        CopiedSlab<T, Backward, COLUMNS, VC, true> b{W2, C, h0, H, 0, C};
        Backward product;
        product.clear();
        accumulate<COUNT>(product, a, b, ring, slabs_of<T, Backward>(C), Nothing<T>{});
        product.for_each_group(n0, N, h0, H, TimesDerivative<T, F>{A1, dZ1, H});
      }
    }
    const T total = block_sum<THREADS>(loss, scratch);
    if (threadIdx.x == 0) loss_partials[s] = total;
    __syncthreads();  // thread 0 has read the warps' losses: those of the next partition may come
  }
}

// ---- gradients of the weights -------------------------------------------------------------------------------

// Blocks (x, y): tile x, the first `tiles` of dW1 (along D first), the others of dW2 (along H first); partitions y,
// y + gridDim.y, ... of `count`.  MOST: 0 where dZ1 is given, else 4 or 16, at least C.  Without bias, b1 is below 0.
template <class T, class X, class TILE, class TILE2, class F, int VD, int VH, int VC, int MOST>
__global__ void __launch_bounds__(TILE::THREADS, 2)
    general_weight(const X* __restrict__ x, const T* __restrict__ A1, const T* __restrict__ dZ1,
                   const T* __restrict__ dZ2, const T* __restrict__ W2, T* __restrict__ partials, int N, int D, int H,
                   int C, int chunk, int count, int tiles, int b1, int W2_at, long long stride, T scale, T shift) {
  using P = typename TILE::template Product<T, false, false, VH>;
  using P2 = typename TILE2::template Product<T, false, false, VC>;
  static_assert(int(P::THREADS) == int(P2::THREADS), "the same blocks compute both");
  constexpr int KEPT = MOST ? MOST * P::BN + 2 * P::BK * MOST : 0;
  constexpr int COUNT = STAGES<T, P, KEPT * sizeof(T)>, COUNT2 = STAGES<T, P2, KEPT * sizeof(T)>;
  constexpr int ELEMENTS = RING_SIZE<T, P, KEPT * sizeof(T)>, ELEMENTS2 = RING_SIZE<T, P2, KEPT * sizeof(T)>;
  __shared__ __align__(16) T ring[ELEMENTS > ELEMENTS2 ? ELEMENTS : ELEMENTS2];
  __shared__ __align__(16) T kept[KEPT ? KEPT : 1];

  if (static_cast<int>(blockIdx.x) < tiles) {
    const int along_D = (D + P::BM - 1) / P::BM;
    const int d0 = blockIdx.x % along_D * P::BM, h0 = blockIdx.x / along_D * P::BN;
    const bool sums_bias = b1 >= 0 && d0 == 0;
    for (int s = blockIdx.y; s < count; s += gridDim.y) {
      const int k0 = s * chunk, k1 = min(N, k0 + chunk);
      T* const out = partials + s * stride;
      T bias = T(0);
      auto a = input_slab<InputSlab<X, T, P, P::BM, VD, false>>(x, D, d0, D, k0, k1, scale, shift);
      P product;
      product.clear();
      const ColumnSums<T, P> sums{bias, sums_bias};
      if constexpr (MOST) {
        HiddenGradientSlab<T, P, F, VH, MOST> b;
        b.A1 = A1, b.dZ2 = dZ2, b.H = H, b.C = C, b.h0 = h0, b.k0 = k0, b.k_end = k1;
        b.W2_shared = kept, b.dZ2_shared = kept + b.W2_SIZE;
        if (s == static_cast<int>(blockIdx.y)) b.keep_weights(W2);
        accumulate<COUNT>(product, a, b, ring, slabs_of<T, P>(k1 - k0), sums);
      } else {
        CopiedSlab<T, P, P::BN, VH, false> b{dZ1, H, h0, H, k0, k1};
        accumulate<COUNT>(product, a, b, ring, slabs_of<T, P>(k1 - k0), sums);
      }
      product.for_each_group(d0, D, h0, H, Plain<T>{out, H});
      if (sums_bias && threadIdx.x < P::BN && h0 + static_cast<int>(threadIdx.x) < H)
        out[b1 + h0 + threadIdx.x] = bias;
    }
  } else {
    const int tile = blockIdx.x - tiles, along_H = (H + P2::BM - 1) / P2::BM;
    const int h0 = tile % along_H * P2::BM, c0 = tile / along_H * P2::BN;
    for (int s = blockIdx.y; s < count; s += gridDim.y) {
      const int k0 = s * chunk, k1 = min(N, k0 + chunk);
      CopiedSlab<T, P2, P2::BM, VH, false> a{A1, H, h0, H, k0, k1};
      CopiedSlab<T, P2, P2::BN, VC, false> b{dZ2, C, c0, C, k0, k1};
      P2 product;
      product.clear();
      accumulate<COUNT2>(product, a, b, ring, slabs_of<T, P2>(k1 - k0), Nothing<T>{});
      product.for_each_group(h0, H, c0, C, Plain<T>{partials + s * stride + W2_at, C});
    }
  }
}
