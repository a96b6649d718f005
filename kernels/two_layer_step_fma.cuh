// The products of two_layer_step.cu by multiply-adds, in float32 and float64.
//
//   Z1    lane (r, c) of a warp owns rows r, r + ROW_LANES, ... and HN columns; it reads X by 16 bytes along k
//   dW1   thread (g, h) owns TM x TN elements: TM rows d in groups of 16 bytes, the groups of all threads side by
//         side, and TN neighbouring columns
#pragma once
#include "two_layer_step.cuh"

// ROWS samples a tile; TM x TN elements of dW1 a thread; HN columns of Z1 a lane, VW of them at a time.
template <class T_, int ROWS_, int TM, int TN, int HN, int VW>
struct FmaTile {
  using T = T_;
  static constexpr int COLUMN_LANES = 8, ROW_LANES = WARP / COLUMN_LANES;
  static constexpr int ROWS = ROWS_;
  static constexpr int BK = 8;                                   // rows of W1 in a slab
  static constexpr int G = VECTOR_BYTES / int(sizeof(T));        // elements of a group
  static constexpr int RM = ROWS / ROW_LANES;                    // rows of Z1 a lane
  static constexpr int Z = RM * HN, COLUMNS = COLUMN_LANES * HN; // of Z1: sums of a lane, columns in one go over k
  static constexpr int PAIRS = VW == 2 ? HN / 2 * 2 : 0;         // columns of a lane that come in pairs
  static constexpr int ZP = (round_up(TN, G) / G | 1) * G;  // of a thread's columns in a row of dZ1: odd, in groups
  static constexpr int PASSES = TM / G;                     // in which dW1 leaves
  // Blocks that have to fit on a multiprocessor: two where the accumulators leave room in 128 registers.
  static constexpr int BLOCKS = TM * TN + Z <= 80 ? 2 : 1;
  static_assert(ROWS % ROW_LANES == 0 && TM % G == 0, "every lane has as many rows, every thread whole groups");

  __device__ __forceinline__ static int slab_size(int H) { return BK * H; }
  __device__ __forceinline__ static int z_pitch(int H) { return (H + TN - 1) / TN * ZP; }
  __device__ __forceinline__ static int z_place(int h) { return h / TN * ZP + h % TN; }
  __device__ __forceinline__ static int pass_rows(int d_groups) { return G * d_groups; }
  __device__ __forceinline__ static int slice_rows(int d_groups) { return TM * d_groups; }

  // ---- Z1 ----

  // BK rows of W1 from row k0 on, zero from row D on: contiguous, from a multiple of 16 bytes on.
  __device__ __forceinline__ static void fetch_slab(T* to, const T* __restrict__ W1, int k0, int D, int H) {
    const int left = max(D - k0, 0) * H;
    const T* const from = W1 + static_cast<long long>(left > 0 ? k0 : 0) * H;
#pragma unroll 1
    for (int i = thread_in_block() % WARP * G; i < BK * H; i += WARP * G)
      copy_async(to + i, from + (i < left ? i : 0), min(max(left - i, 0), G) * static_cast<int>(sizeof(T)));
  }

  // Column number j of lane c: pairs first, so that one load takes both.
  __device__ __forceinline__ static int column(int c, int j) {
    return j < PAIRS ? j / 2 * (2 * COLUMN_LANES) + 2 * c + j % 2 : j * COLUMN_LANES + c;
  }
  // Row and column of sum i of a lane.
  __device__ __forceinline__ static void place(int lane, int i, int& row, int& h) {
    row = i / HN * ROW_LANES + lane / COLUMN_LANES;
    h = column(lane % COLUMN_LANES, i % HN);
  }

  struct Columns {  // where the lane's columns lie in a row of the slab; columns that are not there repeat the last
    int row_lane, at[HN];
    __device__ __forceinline__ Columns(int h0, int H) {
      const int lane = thread_in_block() % WARP;
      row_lane = lane / COLUMN_LANES;
#pragma unroll
      for (int j = 0; j < HN; ++j) {
        const int h = h0 + column(lane % COLUMN_LANES, j);
        at[j] = j < PAIRS ? min(h, H - VW + j % 2) : min(h, H - 1);
      }
    }
  };

  __device__ __forceinline__ static void multiply_slab(T (&z)[Z], const T* X, int pitch, const T* slab, int H,
                                                       const Columns& columns) {
    const T* const x = X + columns.row_lane * pitch;
#pragma unroll 1
    for (int k = 0; k < BK; k += G) {
      Vector<T, G> a[RM];
#pragma unroll
      for (int i = 0; i < RM; ++i) a[i] = load_vector<G>(x + i * ROW_LANES * pitch + k);
#pragma unroll
      for (int e = 0; e < G; ++e) {
        T w[HN];
#pragma unroll
        for (int j = 0; j < PAIRS; j += 2) {
          const Vector<T, 2> pair = load_vector<2>(slab + (k + e) * H + columns.at[j]);
          w[j] = pair[0];
          w[j + 1] = pair[1];
        }
#pragma unroll
        for (int j = PAIRS; j < HN; ++j) w[j] = slab[(k + e) * H + columns.at[j]];
#pragma unroll
        for (int i = 0; i < RM; ++i)
#pragma unroll
          for (int j = 0; j < HN; ++j) z[i * HN + j] += a[i][e] * w[j];
      }
    }
  }

  // ---- dW1 ----

  T dW1[TM][TN];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
      for (int j = 0; j < TN; ++j) dW1[i][j] = T(0);
  }

  // Adds X^T dZ1 of a tile, from column d of X on.
  __device__ __forceinline__ void add(const T* X, int pitch, const T* dZ1, int d, int D, int H, int d_groups) {
    const int h_groups = (H + TN - 1) / TN;
    const int thread = thread_in_block(), d_group = thread / h_groups, h_group = thread % h_groups;
    if (d_group >= d_groups) return;  // no barrier follows
    const T* x = X + d + d_group * G;
    const T* dz = dZ1 + h_group * ZP;
#pragma unroll 1
    for (int row = 0; row < ROWS; ++row, x += pitch, dz += h_groups * ZP) {
      T b[TN];
#pragma unroll
      for (int j = 0; j + G <= TN; j += G) {
        const Vector<T, G> part = load_vector<G>(dz + j);
#pragma unroll
        for (int e = 0; e < G; ++e) b[j + e] = part[e];
      }
      if constexpr (TN % G == 2) {
        const Vector<T, 2> part = load_vector<2>(dz + TN / G * G);
        b[TN - 2] = part[0];
        b[TN - 1] = part[1];
      }
#pragma unroll
      for (int i = 0; i < TM; i += G) {
        const Vector<T, G> a = load_vector<G>(x + i * d_groups);
#pragma unroll
        for (int e = 0; e < G; ++e)
#pragma unroll
          for (int j = 0; j < TN; ++j) dW1[i + e][j] += a[e] * b[j];
      }
    }
  }

  // Puts pass_rows neighbouring rows of dW1, the `pass`-th of them, into shared memory.
  __device__ __forceinline__ void stage(T* to, int pass, int H, int d_groups) const {
    const int h_groups = (H + TN - 1) / TN;
    const int thread = thread_in_block(), d_group = thread / h_groups, h_group = thread % h_groups;
    if (d_group >= d_groups) return;  // no barrier follows
#pragma unroll
    for (int e = 0; e < G; ++e)
#pragma unroll
      for (int j = 0; j < TN; ++j) {
        const int h = h_group * TN + j;
        if (h < H) to[(d_group * G + e) * H + h] = dW1[pass * G + e][j];
      }
  }
};
