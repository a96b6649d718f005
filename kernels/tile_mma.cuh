// The product of a tile on tensor cores: C[BM, BN] += A[BM, BK] B[BK, BN], slab by slab (tile_slabs.cuh).
//
// The slabs are float32; operands are rounded on their way into the fragments: tf32, tf32 in two parts (3xtf32), or
// bfloat16.  Sums are float32.
//
// Map: a warp owns WM x WN elements of the tile as (WM / 16) x (WN / 8) fragments (tensor_core.cuh).  tf32 of operands
// along k comes through ldmatrix.  bfloat16 takes the k of a slab in another order, the same in A and in B: lane
// 4 g + t has k = 4 t .. 4 t + 3, so that one 16-byte load brings its part.  The order of the sums is fixed.
#pragma once
#include "tensor_core.cuh"
#include "tile_slabs.cuh"

struct Tf32 {
  static constexpr int DEPTH = 8, PARTS = 1;  // k of one instruction; parts that an operand is split into
};
struct ThreeTf32 {
  static constexpr int DEPTH = 8, PARTS = 2;
};
struct Bfloat16 {
  static constexpr int DEPTH = 16, PARTS = 1;
};

template <int BM_, int BN_, int BK_, int WM_, int WN_>
struct WarpTile {
  static constexpr int BM = BM_, BN = BN_, BK = BK_, WM = WM_, WN = WN_;
  static constexpr int ACROSS = BN / WN;  // warps along a row of the tile
  static constexpr int THREADS = BM / WM * ACROSS * WARP;
  static_assert(BM % WM == 0 && BN % WN == 0 && WM % 16 == 0 && WN % 16 == 0, "whole fragments");
  static_assert(BK % 16 == 0 && BM % 32 == 0 && BN % 32 == 0, "columns change places among 32");
};

// VN: 1 where rows of C are not whole 16 bytes, so that pairs of elements are not aligned.
template <class PRECISION, class TILE, bool A_K, bool B_K, int VN>
struct MmaProduct {
  static constexpr int BM = TILE::BM, BN = TILE::BN, BK = TILE::BK;
  static constexpr int THREADS = TILE::THREADS;
  static constexpr int ROWS = TILE::WM / 16, COLUMNS = TILE::WN / 8;  // fragments
  static constexpr int PARTS = PRECISION::PARTS;
  static constexpr bool BF16 = PRECISION::DEPTH == 16;
  static constexpr int PAIR = VN == 1 ? 1 : 2;

  float sum[ROWS][COLUMNS][4];

  template <bool K_CONTIGUOUS, int LENGTH>
  __device__ __forceinline__ static int place(int i, int k) {
    if constexpr (K_CONTIGUOUS) return swapped<float, BK>(i, k);
    return k * LENGTH + (i ^ (BF16 ? k / 4 : k) % 4 * 8);  // a fragment's four k lie in different banks
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[r][c][e] = 0;
  }

  __device__ __forceinline__ void multiply(const float* As, const float* Bs) {
#pragma unroll
    for (int k = 0; k < BK; k += PRECISION::DEPTH) {
      unsigned b[COLUMNS][PARTS][2];
#pragma unroll
      for (int c = 0; c < COLUMNS; c += 2) load_b(b[c], b[c + 1], Bs, first_column() + 8 * c, k);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        unsigned a[PARTS][4];
        load_a(a, As, first_row() + 16 * r, k);
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
          if constexpr (BF16)
            multiply_bfloat16(sum[r][c], a[0], b[c][0]);
          else if constexpr (PARTS == 2)
            multiply_3xtf32(sum[r][c], a[0], a[PARTS - 1], b[c][0], b[c][PARTS - 1]);
          else
            multiply_tf32(sum[r][c], a[0], b[c][0]);
        }
      }
    }
  }

  // No two warps share an element.
  static constexpr int EXCHANGED = 0;
  __device__ __forceinline__ void combine(float*) {}

  // Gives every one or two neighbouring elements inside the M x N matrix to write(group, row, column).
  template <class Write>
  __device__ __forceinline__ void for_each_group(int m0, int M, int n0, int N, const Write& write) const {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = m0 + first_row() + 16 * r + 8 * half + group();
        if (m >= M) continue;
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
          for (int e = 0; e < 2; e += PAIR) {
            const int n = n0 + first_column() + 8 * c + 2 * member() + e;
            if (n >= N) continue;
            Vector<float, PAIR> value;
#pragma unroll
            for (int j = 0; j < PAIR; ++j) value[j] = sum[r][c][2 * half + e + j];
            write(value, m, n);
          }
      }
  }

 private:
  __device__ __forceinline__ static int lane() { return threadIdx.x % WARP; }
  __device__ __forceinline__ static int group() { return lane() / 4; }
  __device__ __forceinline__ static int member() { return lane() % 4; }
  __device__ __forceinline__ static int first_row() { return threadIdx.x / WARP / TILE::ACROSS * TILE::WM; }
  __device__ __forceinline__ static int first_column() { return threadIdx.x / WARP % TILE::ACROSS * TILE::WN; }

  template <int COUNT>
  __device__ __forceinline__ static void round(unsigned (&parts)[PARTS][COUNT], const unsigned (&bits)[COUNT]) {
#pragma unroll
    for (int e = 0; e < COUNT; ++e) {
      const float x = __uint_as_float(bits[e]);
      if constexpr (PARTS == 2)
        split_tf32(x, parts[0][e], parts[PARTS - 1][e]);
      else
        parts[0][e] = to_tf32(x);
    }
  }

  // Elements i, k + 4 t .. of lane 4 g + t as two pairs of bfloat16.
  template <bool K_CONTIGUOUS, int LENGTH>
  __device__ __forceinline__ static void load_pairs(unsigned& low, unsigned& high, const float* slab, int i, int k) {
    const int first = k + 4 * member();
    Vector<float, 4> v;
    if constexpr (K_CONTIGUOUS) {
      v = load_vector<4>(slab + place<true, LENGTH>(i, first));
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = slab[place<false, LENGTH>(i, first + j)];
    }
    low = to_bfloat16(v[0], v[1]);
    high = to_bfloat16(v[2], v[3]);
  }

  __device__ __forceinline__ static void load_a(unsigned (&a)[PARTS][4], const float* As, int i, int k) {
    if constexpr (BF16) {
      load_pairs<A_K, BM>(a[0][0], a[0][2], As, i + group(), k);
      load_pairs<A_K, BM>(a[0][1], a[0][3], As, i + group() + 8, k);
    } else {
      unsigned bits[4];
      if constexpr (A_K) {
        load_matrices(bits, As + place<true, BM>(i + lane() % 16, k + lane() / 16 * 4));
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          bits[e] = __float_as_uint(As[place<false, BM>(i + group() + e % 2 * 8, k + member() + e / 2 * 4)]);
      }
      round(a, bits);
    }
  }

  // Of columns j .. j + 7 and j + 8 .. j + 15.
  __device__ __forceinline__ static void load_b(unsigned (&left)[PARTS][2], unsigned (&right)[PARTS][2],
                                                const float* Bs, int j, int k) {
    if constexpr (BF16) {
      load_pairs<B_K, BN>(left[0][0], left[0][1], Bs, j + group(), k);
      load_pairs<B_K, BN>(right[0][0], right[0][1], Bs, j + 8 + group(), k);
    } else {
      unsigned bits[4];
      if constexpr (B_K) {
        load_matrices(bits, Bs + place<true, BN>(j + lane() / 16 * 8 + lane() % 8, k + lane() / 8 % 2 * 4));
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          bits[e] = __float_as_uint(Bs[place<false, BN>(j + e / 2 * 8 + group(), k + member() + e % 2 * 4)]);
      }
      round(left, {bits[0], bits[1]});
      round(right, {bits[2], bits[3]});
    }
  }
};
