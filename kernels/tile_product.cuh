// The product of a tile: C[BM, BN] = A[BM, k0..k1) B[k0..k1, BN), accumulated in registers.
//
// One block computes one tile.  Slabs of BK steps of k go from global memory through registers into one of two
// shared buffers, while the block multiplies the other one: one barrier a slab.  Every operand may be contiguous
// along k or along its rows or columns, so the same code serves x W, dZ W^T and x^T dZ.  Elements outside the
// matrices are taken as 0.
//
// Map: thread (ty, tx) of a (BM/TM) x (BN/TN) grid owns TM x TN elements of the tile, in groups of up to 16
// neighbouring bytes, the groups spread over the tile so that a warp's shared loads do not conflict.
// Each element is a sum over k in rising order: deterministic.
#pragma once
#include "common.cuh"

template <int BM_, int BN_, int BK_, int TM_, int TN_>
struct Tile {
  static constexpr int BM = BM_, BN = BN_, BK = BK_, TM = TM_, TN = TN_;
  static constexpr int COLUMNS = BN / TN;  // threads along a row of the tile
  static constexpr int THREADS = BM / TM * COLUMNS;
  static_assert(BM % TM == 0 && BN % TN == 0, "every thread owns a whole part of the tile");
  static_assert(THREADS % WARP == 0 && THREADS <= 1024, "whole warps");
};

// Neighbouring elements of a thread's T-long side that one shared load takes.
template <class T, int SIDE>
constexpr int GROUP = SIDE * int(sizeof(T)) <= VECTOR_BYTES ? SIDE : VECTOR_BYTES / int(sizeof(T));

// Where element i of thread t's side lies in a tile side of LENGTH: groups of W, LENGTH / groups apart.
template <int LENGTH, int SIDE, int W>
__device__ __forceinline__ int position(int t, int i) {
  constexpr int GROUPS = SIDE / W;
  return i / W * (LENGTH / GROUPS) + t * W + i % W;
}

// A BK x LENGTH slab of one operand on its way from global memory to a shared buffer.
// K_CONTIGUOUS: element (i, k) is p[i * ld + k]; otherwise p[k * ld + i].
template <class T, int BK, int LENGTH, int V, bool K_CONTIGUOUS, int THREADS>
struct Slab {
  static constexpr int PAD = LENGTH * int(sizeof(T)) >= 64 ? VECTOR_BYTES / int(sizeof(T)) : 0;
  static constexpr int PITCH = LENGTH + PAD;
  static constexpr int LINE = (K_CONTIGUOUS ? BK : LENGTH) / V;  // vectors of neighbouring elements
  static constexpr int LINES = K_CONTIGUOUS ? LENGTH : BK;
  static constexpr int STEP = THREADS / LINE;  // lines that the block takes at a time
  static constexpr int SHARE = (LINES + STEP - 1) / STEP;
  static_assert((K_CONTIGUOUS ? BK : LENGTH) % V == 0, "whole vectors");
  static_assert(THREADS % LINE == 0, "the vectors of a thread lie one below the other");

  Vector<T, V> staged[SHARE];

  // Where the thread's vector s begins: STEP lines below the one before, so that its place is computed once.
  // False where it lies past the slab.
  __device__ __forceinline__ static bool locate(int s, int& i, int& k) {
    const int along = threadIdx.x % LINE * V, line = threadIdx.x / LINE + s * STEP;
    i = K_CONTIGUOUS ? line : along;
    k = K_CONTIGUOUS ? along : line;
    return LINES % STEP == 0 || line < LINES;
  }

  // Reads elements i0 .. i0 + LENGTH of k .. k + BK; those from i_end or k_end on are 0.
  __device__ __forceinline__ void fetch(const T* __restrict__ p, int ld, int i0, int i_end, int k0, int k_end) {
#pragma unroll
    for (int s = 0; s < SHARE; ++s) {
      int i, k;
      const bool inside = locate(s, i, k);
      i += i0;
      k += k0;
      if (inside && i < i_end && k < k_end) {
        const long long row = K_CONTIGUOUS ? i : k;
        staged[s] = load_vector<V>(p + row * ld + (K_CONTIGUOUS ? k : i));
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j) staged[s][j] = T(0);
      }
    }
  }

  __device__ __forceinline__ void store(T (*shared)[PITCH]) const {
#pragma unroll
    for (int s = 0; s < SHARE; ++s) {
      int i, k;
      if (!locate(s, i, k)) break;
      if (K_CONTIGUOUS) {
#pragma unroll
        for (int j = 0; j < V; ++j) shared[k + j][i] = staged[s][j];
      } else {
        store_vector<V>(&shared[k][i], staged[s]);
      }
    }
  }
};

// The running product and its place in C.  COLUMN_SUMS also adds up the columns of B, one a thread.
template <class T, class TILE, int VA, bool A_K_CONTIGUOUS, int VB, bool B_K_CONTIGUOUS>
struct TileProduct {
  using A = Slab<T, TILE::BK, TILE::BM, VA, A_K_CONTIGUOUS, TILE::THREADS>;
  using B = Slab<T, TILE::BK, TILE::BN, VB, B_K_CONTIGUOUS, TILE::THREADS>;
  static constexpr int WM = GROUP<T, TILE::TM>;
  static constexpr int WN = GROUP<T, TILE::TN>;

  T sum[TILE::TM][TILE::TN];
  T column_sum;  // of column threadIdx.x of the tile, for threads below BN, if asked for

  __device__ __forceinline__ static int row(int i) {
    return position<TILE::BM, TILE::TM, WM>(threadIdx.x / TILE::COLUMNS, i);
  }
  __device__ __forceinline__ static int column(int j) {
    return position<TILE::BN, TILE::TN, WN>(threadIdx.x % TILE::COLUMNS, j);
  }

  template <bool COLUMN_SUMS>
  __device__ __forceinline__ void accumulate(const T* __restrict__ a, int lda, int m0, int M,
                                             const T* __restrict__ b, int ldb, int n0, int N, int k0, int k1,
                                             bool column_sums_here) {
    __shared__ __align__(16) T As[2][TILE::BK][A::PITCH];
    __shared__ __align__(16) T Bs[2][TILE::BK][B::PITCH];
    static_assert(sizeof(As) + sizeof(Bs) <= 48 * 1024, "CUDA gives a block no more static shared memory");
    static_assert(!COLUMN_SUMS || TILE::THREADS >= TILE::BN, "one thread a column");
#pragma unroll
    for (int i = 0; i < TILE::TM; ++i)
#pragma unroll
      for (int j = 0; j < TILE::TN; ++j) sum[i][j] = T(0);
    column_sum = T(0);

    A next_a;
    B next_b;
    next_a.fetch(a, lda, m0, M, k0, k1);
    next_b.fetch(b, ldb, n0, N, k0, k1);
    next_a.store(As[0]);
    next_b.store(Bs[0]);
    __syncthreads();  // the first slab is whole before it is multiplied
    int buffer = 0;
    for (int k = k0; k < k1; k += TILE::BK) {
      const bool more = k + TILE::BK < k1;
      if (more) {
        next_a.fetch(a, lda, m0, M, k + TILE::BK, k1);
        next_b.fetch(b, ldb, n0, N, k + TILE::BK, k1);
      }
      multiply(As[buffer], Bs[buffer]);
      if (COLUMN_SUMS && column_sums_here && threadIdx.x < TILE::BN) {
#pragma unroll
        for (int s = 0; s < TILE::BK; ++s) column_sum += Bs[buffer][s][threadIdx.x];
      }
      buffer ^= 1;
      if (more) {
        next_a.store(As[buffer]);
        next_b.store(Bs[buffer]);
      }
      __syncthreads();  // the next slab is whole; the one just multiplied may be overwritten
    }
  }

  // Gives every group of neighbouring elements inside the M x N matrix to write(group, row, column).
  // V > 1 promises that N and the pointers that `write` uses are multiples of V elements.
  template <int V, class Write>
  __device__ __forceinline__ void for_each_group(int m0, int M, int n0, int N, const Write& write) const {
    constexpr int W = V < WN ? V : WN;
#pragma unroll
    for (int i = 0; i < TILE::TM; ++i) {
      const int m = m0 + row(i);
      if (m >= M) continue;
#pragma unroll
      for (int j = 0; j < TILE::TN; j += W) {
        const int n = n0 + column(j);
        if (n >= N) continue;
        Vector<T, W> group;
#pragma unroll
        for (int e = 0; e < W; ++e) group[e] = sum[i][j + e];
        write(group, m, n);
      }
    }
  }

 private:
  __device__ __forceinline__ void multiply(const T (*As)[A::PITCH], const T (*Bs)[B::PITCH]) {
#pragma unroll
    for (int k = 0; k < TILE::BK; ++k) {
      Vector<T, WM> a[TILE::TM / WM];
      Vector<T, WN> b[TILE::TN / WN];
#pragma unroll
      for (int g = 0; g < TILE::TM / WM; ++g) a[g] = load_vector<WM>(&As[k][row(g * WM)]);
#pragma unroll
      for (int g = 0; g < TILE::TN / WN; ++g) b[g] = load_vector<WN>(&Bs[k][column(g * WN)]);
#pragma unroll
      for (int i = 0; i < TILE::TM; ++i)
#pragma unroll
        for (int j = 0; j < TILE::TN; ++j) sum[i][j] += a[i / WM][i % WM] * b[j / WN][j % WN];
    }
  }
};
