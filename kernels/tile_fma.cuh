// The product of a tile with fused multiply-adds: C[BM, BN] += A[BM, BK] B[BK, BN], slab by slab (tile_slabs.cuh).
//
// Map: thread (ty, tx) of a (BM/TM) x (BN/TN) grid owns TM x TN elements.  Of an operand that lies along k the thread
// loads 16 bytes of k for each of its rows or columns, which lie one thread apart; of one that lies along the tile's
// side, groups of 16 bytes of it.  Each sum is over k in rising order: deterministic.
//
// Small tiles have too few elements to give as many threads 8 x 8 each, which is what makes a shared load pay.  There
// SLICES such grids share a slab: each takes BK / SLICES steps of its k, and `combine` adds their sums in order and
// leaves every grid with TM / SLICES rows of each thread's elements.
#pragma once
#include "tile_product.cuh"
#include "tile_slabs.cuh"

// VN: elements that the thread gives at a time along a row of C: 1 where rows of C are not whole 16 bytes.
template <class T, class TILE, int SLICES, bool A_K, bool B_K, int VN>
struct FmaProduct {
  static constexpr int BM = TILE::BM, BN = TILE::BN, BK = TILE::BK, TM = TILE::TM, TN = TILE::TN;
  static constexpr int THREADS = TILE::THREADS * SLICES;
  static constexpr int DEPTH = BK / SLICES;  // of a slab, for one slice
  static constexpr int OWNED = TM / SLICES;  // rows of a thread, once the slices are combined
  static constexpr int G = VECTOR_BYTES / int(sizeof(T));
  static constexpr int WM = A_K ? 1 : GROUP<T, TM>;
  static constexpr int WN = B_K || VN == 1 ? 1 : GROUP<T, TN>;
  static_assert(A_K || !B_K, "an operand along k is loaded along it: both, or A alone");
  static_assert(BK % SLICES == 0 && TM % SLICES == 0 && (!A_K || DEPTH % G == 0), "whole loads of k; whole rows");

  T sum[TM][TN];

  template <bool K_CONTIGUOUS, int LENGTH>
  __device__ __forceinline__ static int place(int i, int k) {
    if constexpr (K_CONTIGUOUS) return swapped<T, BK>(i, k);
    return k * LENGTH + i;
  }

  __device__ __forceinline__ static int row(int i) { return position<BM, TM, WM>(thread() / TILE::COLUMNS, i); }
  __device__ __forceinline__ static int column(int j) { return position<BN, TN, WN>(thread() % TILE::COLUMNS, j); }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
      for (int j = 0; j < TN; ++j) sum[i][j] = T(0);
  }

  __device__ __forceinline__ void multiply(const T* As, const T* Bs) {
    const int k0 = slice() * DEPTH;
    if constexpr (A_K) {
#pragma unroll
      for (int first = 0; first < DEPTH; first += G) {
        Vector<T, G> a[TM], along[B_K ? TN : 1];
#pragma unroll
        for (int i = 0; i < TM; ++i) a[i] = load_vector<G>(As + place<true, BM>(row(i), k0 + first));
        if constexpr (B_K) {
#pragma unroll
          for (int j = 0; j < TN; ++j) along[j] = load_vector<G>(Bs + place<true, BN>(column(j), k0 + first));
        }
#pragma unroll
        for (int k = 0; k < G; ++k) {
          Vector<T, WN> b[TN / WN];
          if constexpr (!B_K) load_columns(b, Bs, k0 + first + k);
#pragma unroll
          for (int i = 0; i < TM; ++i)
#pragma unroll
            for (int j = 0; j < TN; ++j) {
              if constexpr (B_K)
                sum[i][j] += a[i][k] * along[j][k];
              else
                sum[i][j] += a[i][k] * b[j / WN][j % WN];
            }
        }
      }
    } else {
#pragma unroll
      for (int k = 0; k < DEPTH; ++k) {
        Vector<T, WM> a[TM / WM];
        Vector<T, WN> b[TN / WN];
#pragma unroll
        for (int g = 0; g < TM / WM; ++g) a[g] = load_vector<WM>(As + place<false, BM>(row(g * WM), k0 + k));
        load_columns(b, Bs, k0 + k);
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
          for (int j = 0; j < TN; ++j) sum[i][j] += a[i / WM][i % WM] * b[j / WN][j % WN];
      }
    }
  }

  // After the last slab: the slices' sums in order.  EXCHANGED elements of shared memory, free before and after.
  static constexpr int EXCHANGED = (SLICES - 1) * TM * TN * TILE::THREADS;
  __device__ __forceinline__ void combine(T* exchanged) {
    if constexpr (SLICES > 1) {
      const int mine = slice();
#pragma unroll
      for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < TN; ++j)
          if (i / OWNED != mine) exchanged[sent(mine, i / OWNED, i % OWNED, j)] = sum[i][j];
      __syncthreads();  // what the other slices have of this one's rows is there
#pragma unroll
      for (int i = 0; i < OWNED; ++i)
#pragma unroll
        for (int j = 0; j < TN; ++j) {
          T own = sum[i][j];
#pragma unroll
          for (int s = 1; s < SLICES; ++s)
            if (s == mine) own = sum[s * OWNED + i][j];
          T total = mine == 0 ? own : exchanged[sent(0, mine, i, j)];
#pragma unroll
          for (int s = 1; s < SLICES; ++s) total += s == mine ? own : exchanged[sent(s, mine, i, j)];
          sum[i][j] = total;
        }
      __syncthreads();  // all of it has been read
    }
  }

  // Gives every group of neighbouring elements inside the M x N matrix to write(group, row, column).
  template <class Write>
  __device__ __forceinline__ void for_each_group(int m0, int M, int n0, int N, const Write& write) const {
#pragma unroll
    for (int i = 0; i < OWNED; ++i) {
      const int m = m0 + row(slice() * OWNED + i);
      if (m >= M) continue;
#pragma unroll
      for (int j = 0; j < TN; j += WN) {
        const int n = n0 + column(j);
        if (n >= N) continue;
        Vector<T, WN> group;
#pragma unroll
        for (int e = 0; e < WN; ++e) group[e] = sum[i][j + e];
        write(group, m, n);
      }
    }
  }

 private:
  __device__ __forceinline__ static int thread() { return threadIdx.x % TILE::THREADS; }
  __device__ __forceinline__ static int slice() { return SLICES == 1 ? 0 : threadIdx.x / TILE::THREADS; }

  // Where slice `from` leaves its sum of row i of those that slice `to` owns: threads lie side by side.
  __device__ __forceinline__ static int sent(int from, int to, int i, int j) {
    const int place = to * (SLICES - 1) + (from < to ? from : from - 1);
    return ((place * OWNED + i) * TN + j) * TILE::THREADS + thread();
  }

  __device__ __forceinline__ static void load_columns(Vector<T, WN> (&b)[TN / WN], const T* Bs, int k) {
#pragma unroll
    for (int g = 0; g < TN / WN; ++g) b[g] = load_vector<WN>(Bs + place<false, BN>(column(g * WN), k));
  }
};
