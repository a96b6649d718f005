// A slab that the products of two_layer_general.cu compute on its way.
#pragma once
#include "two_layer_products.cuh"

// Slabs of dZ1, computed: (dZ2 W2^T) * f'(A1).  W2's part, (MOST, BN), stays in shared memory; of dZ2 two slabs
// of BK samples lie there, MOST numbers each, 0 from C on: that of the slab being computed and the next one.
template <class T, class P, class F, int V, int MOST>
struct HiddenGradientSlab {
  static constexpr bool PRIMED = true;
  static constexpr int THREADS = P::THREADS, BN = P::BN, BK = P::BK;
  static constexpr int W2_SIZE = MOST * BN, DZ2_SIZE = BK * MOST;
  static constexpr int G = MOST * int(sizeof(T)) < VECTOR_BYTES ? MOST : VECTOR_BYTES / int(sizeof(T));
  static constexpr int DZ2_SHARE = (DZ2_SIZE + THREADS - 1) / THREADS;
  using Map = SlabMap<BN, BK, V, false, THREADS>;
  static_assert(THREADS % Map::LINE == 0 && Map::LINE * Map::LINES % THREADS == 0, "a thread keeps to its columns");

  const T *A1, *dZ2;
  int H, C, h0, k0, k_end;
  T *W2_shared, *dZ2_shared;
  Vector<T, V> activations[Map::SHARE];
  T next[DZ2_SHARE];

  // Columns of W2_shared change places in groups of 4 or 8, so that the lanes that fill it meet in fewer banks.
  __device__ __forceinline__ static int turned(int c) { return c * (MOST == 4 ? 8 : 4) % 32; }

  // Once for a tile; prime's barrier follows.
  __device__ __forceinline__ void keep_weights(const T* __restrict__ W2) const {
    for (int e = threadIdx.x; e < W2_SIZE; e += THREADS) {
      const int j = e / MOST, c = e % MOST;
      W2_shared[c * BN + (j ^ turned(c))] = h0 + j < H && c < C ? W2[static_cast<long long>(h0 + j) * C + c] : T(0);
    }
  }

  __device__ __forceinline__ void prime() {
    fetch_gradients(0);
    keep_gradients(0);
  }

  __device__ __forceinline__ void fetch(int n, T*) {
#pragma unroll
    for (int s = 0; s < Map::SHARE; ++s) {
      Map at;
      at.locate(s);
      const int h = h0 + at.i, k = k0 + n * BK + at.k;
      if (h < H && k < k_end) activations[s] = load_vector<V>(A1 + static_cast<long long>(k) * H + h);
    }
    fetch_gradients(n + 1);
  }

  __device__ __forceinline__ void finish(int n, T* to) {
    Map at;
    at.locate(0);  // the vectors of a thread lie below one another
    const T* const dz = dZ2_shared + n % 2 * DZ2_SIZE + at.k * MOST;
    Vector<T, V> dA[Map::SHARE];
#pragma unroll
    for (int s = 0; s < Map::SHARE; ++s)
#pragma unroll
      for (int j = 0; j < V; ++j) dA[s][j] = T(0);
#pragma unroll
    for (int c = 0; c < MOST; c += G) {
      Vector<T, G> z[Map::SHARE];
#pragma unroll
      for (int s = 0; s < Map::SHARE; ++s) z[s] = load_vector<G>(dz + s * (THREADS / Map::LINE) * MOST + c);
#pragma unroll
      for (int g = 0; g < G; ++g) {
        const Vector<T, V> w = load_vector<V>(W2_shared + (c + g) * BN + (at.i ^ turned(c + g)));
#pragma unroll
        for (int s = 0; s < Map::SHARE; ++s)
#pragma unroll
          for (int j = 0; j < V; ++j) dA[s][j] += z[s][g] * w[j];
      }
    }
#pragma unroll
    for (int s = 0; s < Map::SHARE; ++s) {
      at.locate(s);
      const bool inside = h0 + at.i < H && k0 + n * BK + at.k < k_end;  // elsewhere 0, though W2 may be infinite
#pragma unroll
      for (int j = 0; j < V; ++j) dA[s][j] = inside ? F::backward(activations[s][j], dA[s][j]) : T(0);
      store_vector<V>(to + P::template place<false, BN>(at.i, at.k), dA[s]);
    }
    keep_gradients(n + 1);
  }

 private:
  __device__ __forceinline__ void fetch_gradients(int n) {
#pragma unroll
    for (int s = 0; s < DZ2_SHARE; ++s) {
      const int e = threadIdx.x + s * THREADS, k = k0 + n * BK + e / MOST, c = e % MOST;
      next[s] = e < DZ2_SIZE && k < k_end && c < C ? dZ2[static_cast<long long>(k) * C + c] : T(0);
    }
  }
  __device__ __forceinline__ void keep_gradients(int n) {
#pragma unroll
    for (int s = 0; s < DZ2_SHARE; ++s) {
      const int e = threadIdx.x + s * THREADS;
      if (e < DZ2_SIZE) dZ2_shared[n % 2 * DZ2_SIZE + e] = next[s];
    }
  }
};
