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
  // Blocks that have to fit on a multiprocessor; 0 leaves it to ptxas.  Square tiles of 4 x 4 elements a thread need
  // about 64 registers: ptxas alone takes a few more and loses a block.  In float64 it spills to gain one.
  static constexpr int FLOAT_BLOCKS = BM == BN && TM * TN == 16 ? 4 : 0;
  static constexpr int DOUBLE_BLOCKS = TM * TN == 16 ? 2 : 0;
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

// A BK x LENGTH slab of one operand on its way from global memory to a shared buffer, from where the product
// reads groups of W neighbouring i.
// K_CONTIGUOUS: element (i, k) is p[i * ld + k]; otherwise p[k * ld + i].
//
// In the shared buffer i is contiguous.  Where it was k, the store is transposed: the lanes of a warp hold vectors
// of BK / V different k at BESIDE neighbouring i, and each element of the vectors has to hit every bank once.
// Rows lie an odd number of 16-byte groups apart, so that AROUND of them begin in different banks; the next
// AROUND are shifted by BESIDE.  Where that would misalign the groups of W, elements change places in them.
template <class T, int BK, int LENGTH, int V, bool K_CONTIGUOUS, int W, int THREADS>
struct Slab {
  static constexpr int BANKS = 32 * 4 / int(sizeof(T));  // elements that lie in different banks
  static constexpr int G = VECTOR_BYTES / int(sizeof(T));
  static constexpr int AROUND = BANKS / G;
  static constexpr int BESIDE = BANKS * V / BK;
  static constexpr bool SPREAD = K_CONTIGUOUS && LENGTH >= G;  // a column alone fits side by side
  static constexpr int PITCH = SPREAD ? (LENGTH / G | 1) * G : LENGTH;
  static constexpr int SHIFT = SPREAD && BESIDE % W == 0 ? BESIDE : 0;
  static constexpr int SIZE = BK * PITCH + (BK - 1) / AROUND * SHIFT;
  static constexpr int LINE = (K_CONTIGUOUS ? BK : LENGTH) / V;  // vectors of neighbouring elements
  static constexpr int LINES = K_CONTIGUOUS ? LENGTH : BK;
  static constexpr int STEP = THREADS / LINE;  // lines that the block takes at a time
  static constexpr int SHARE = (LINES + STEP - 1) / STEP;
  static_assert((K_CONTIGUOUS ? BK : LENGTH) % V == 0, "whole vectors");
  static_assert(THREADS % LINE == 0, "the vectors of a thread lie one below the other");
  static_assert(!SPREAD || LENGTH % G == 0, "whole groups");
  static_assert(!K_CONTIGUOUS || STEP % W == 0, "a thread changes places in all of its lines alike");

  Vector<T, V> staged[SHARE];

  // Where row k begins in the shared buffer, and the order of its groups: element e is at e ^ order(k).
  __device__ __forceinline__ static constexpr int row(int k) { return k * PITCH + k / AROUND * SHIFT; }
  __device__ __forceinline__ static constexpr int order(int k) {
    return SPREAD && SHIFT == 0 ? k / AROUND * BESIDE % W : 0;
  }

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

  __device__ __forceinline__ void store(T* shared) const {
#pragma unroll
    for (int s = 0; s < SHARE; ++s) {
      int i, k;
      if (!locate(s, i, k)) break;
      if (K_CONTIGUOUS) {
        const int place = (threadIdx.x / LINE ^ order(k)) + s * STEP;  // i, or its neighbour in the group
#pragma unroll
        for (int j = 0; j < V; ++j) shared[row(k) + j * PITCH + place] = staged[s][j];
      } else {
        store_vector<V>(shared + row(k) + i, staged[s]);
      }
    }
  }
};

// The running product and its place in C.  COLUMN_SUMS also adds up the columns of B, one a thread.
template <class T, class TILE, int VA, bool A_K_CONTIGUOUS, int VB, bool B_K_CONTIGUOUS>
struct TileProduct {
  static constexpr int WM = GROUP<T, TILE::TM>;
  static constexpr int WN = GROUP<T, TILE::TN>;
  using A = Slab<T, TILE::BK, TILE::BM, VA, A_K_CONTIGUOUS, WM, TILE::THREADS>;
  using B = Slab<T, TILE::BK, TILE::BN, VB, B_K_CONTIGUOUS, WN, TILE::THREADS>;

  using SlabsA = T[2][A::SIZE];
  using SlabsB = T[2][B::SIZE];

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
    SlabsA& As = slabs_of_a();
    __shared__ __align__(16) SlabsB Bs;
    static_assert(sizeof(As) + sizeof(Bs) <= 48 * 1024, "CUDA gives a block no more static shared memory");
    static_assert(!COLUMN_SUMS || TILE::THREADS >= TILE::BN, "one thread a column");
    static_assert(!COLUMN_SUMS || !B_K_CONTIGUOUS, "columns stand in their own order");
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
        for (int s = 0; s < TILE::BK; ++s) column_sum += Bs[buffer][B::row(s) + threadIdx.x];
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
    static_assert(V == 1 || V >= WN, "groups are whole, or single elements");
    if constexpr (V < WN)
      for_each_element(m0, M, n0, N, write);
    else
#pragma unroll
      for (int i = 0; i < TILE::TM; ++i) {
        const int m = m0 + row(i);
        if (m >= M) continue;
#pragma unroll
        for (int j = 0; j < TILE::TN; j += WN) {
          const int n = n0 + column(j);
          if (n >= N) continue;
          write(group_at(i, j), m, n);
        }
      }
  }

 private:
  __device__ __forceinline__ static SlabsA& slabs_of_a() {
    __shared__ __align__(16) SlabsA As;
    return As;
  }

  __device__ __forceinline__ Vector<T, WN> group_at(int i, int j) const {
    Vector<T, WN> group;
#pragma unroll
    for (int e = 0; e < WN; ++e) group[e] = sum[i][j + e];
    return group;
  }

  // The same, element by element.  If threads gave their neighbouring elements one by one, those of a warp would
  // lie WN apart; so they change places in shared memory, and its lanes give neighbours.
  template <class Write>
  __device__ __forceinline__ void for_each_element(int m0, int M, int n0, int N, const Write& write) const {
    constexpr int LINE = TILE::COLUMNS * WN;  // neighbouring elements of a warp
    static_assert(WARP % TILE::COLUMNS == 0 && sizeof(SlabsA) >= sizeof(T) * TILE::THREADS * WN, "it fits");
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    T* const exchanged = slabs_of_a()[0] + warp * WARP * WN;
#pragma unroll
    for (int i = 0; i < TILE::TM; ++i)
#pragma unroll
      for (int j = 0; j < TILE::TN; j += WN) {
        __syncwarp();  // the elements exchanged before have been read
        store_vector<WN>(exchanged + lane * WN, group_at(i, j));
        __syncwarp();  // all of them are there
#pragma unroll
        for (int e = 0; e < WN; ++e) {
          const int place = e * WARP + lane;
          const int m = m0 + position<TILE::BM, TILE::TM, WM>(warp * (WARP / TILE::COLUMNS) + place / LINE, i);
          const int n = n0 + position<TILE::BN, TILE::TN, WN>(0, j) + place % LINE;
          if (m < M && n < N) write(Vector<T, 1>{exchanged[place]}, m, n);
        }
      }
  }

  __device__ __forceinline__ void multiply(const T* As, const T* Bs) {
#pragma unroll
    for (int k = 0; k < TILE::BK; ++k) {
      Vector<T, WM> a[TILE::TM / WM];
      Vector<T, WN> b[TILE::TN / WN];
#pragma unroll
      for (int g = 0; g < TILE::TM / WM; ++g) a[g] = load_vector<WM>(As + A::row(k) + row(g * WM));
#pragma unroll
      for (int g = 0; g < TILE::TN / WN; ++g) b[g] = load_vector<WN>(Bs + B::row(k) + column(g * WN));
#pragma unroll
      for (int i = 0; i < TILE::TM; ++i)
#pragma unroll
        for (int j = 0; j < TILE::TN; ++j)
          sum[i][j] += a[i / WM][i % WM ^ A::order(k)] * b[j / WN][j % WN ^ B::order(k)];
    }
  }
};
