// What the products of R3 and R4 are made of: the tiles, the slabs of X, and what becomes of the sums.
#pragma once
#include "tile_fma.cuh"
#include "tile_mma.cuh"

// The product class of a tile: Fma<Tile<...>, 2>, or Mma<Tf32, WarpTile<...>>.
template <class TILE, int SLICES = 1>
struct Fma {
  static constexpr int THREADS = TILE::THREADS * SLICES;
  template <class T, bool A_K, bool B_K, int VN>
  using Product = FmaProduct<T, TILE, SLICES, A_K, B_K, VN>;
};

template <class PRECISION, class TILE>
struct Mma {
  static constexpr int THREADS = TILE::THREADS;
  template <class T, bool A_K, bool B_K, int VN>
  using Product = MmaProduct<PRECISION, TILE, A_K, B_K, VN>;
};

// Slabs of X as it is stored: X is the type of its elements.
template <class X, class T, class P, int LENGTH, int V, bool K_CONTIGUOUS>
struct InputSlab : CopiedSlab<T, P, LENGTH, V, K_CONTIGUOUS> {};
template <class T, class P, int LENGTH, int V, bool K_CONTIGUOUS>
struct InputSlab<unsigned char, T, P, LENGTH, V, K_CONTIGUOUS> : ScaledSlab<T, P, LENGTH, V, K_CONTIGUOUS> {};

template <class S, class X, class T>
__device__ __forceinline__ S input_slab(const X* x, int ld, int i0, int i_end, int k0, int k_end, T scale, T shift) {
  S slab;
  slab.p = x;
  slab.ld = ld, slab.i0 = i0, slab.i_end = i_end, slab.k0 = k0, slab.k_end = k_end;
  if constexpr (sizeof(X) == 1) slab.scale = scale, slab.shift = shift;
  return slab;
}

template <class T, class P>
__device__ __forceinline__ int slabs_of(int k) {
  return (k + P::BK - 1) / P::BK;
}

// Stores a group of neighbouring elements at its place in a matrix with rows of ld.
template <class T>
struct Plain {
  T* out;
  int ld;
  template <int W>
  __device__ __forceinline__ void operator()(const Vector<T, W>& value, int row, int column) const {
    store_vector<W>(out + static_cast<long long>(row) * ld + column, value);
  }
};

// Adds up the columns of B, one a thread.
template <class T, class P>
struct ColumnSums {
  T& sum;
  bool wanted;
  __device__ __forceinline__ void operator()(const T* Bs) const {
    static_assert(P::BN <= P::THREADS, "one thread a column");
    if (wanted && threadIdx.x < P::BN) {
#pragma unroll
      for (int k = 0; k < P::BK; ++k) sum += Bs[P::template place<false, P::BN>(threadIdx.x, k)];
    }
  }
};
