// The products of two_layer_step.cu on tensor cores: X, W1 and dZ1 rounded to tf32 or bfloat16, sums in float32.
//
// A warp multiplies all 16 rows of a tile.  Its lane 4 g + t (g = 0..7, t = 0..3) holds, as tensor_core.cuh has it,
//
//   Z1    of ZT tiles of 16 x 8: rows g and g + 8, columns 2t and 2t + 1.  Two groups of 8 k make a slab; the k of
//         group q are numbered so that the lane takes k0 + 8 q + t and k0 + 8 q + t + 4, whatever the precision
//   dW1   of MT x NT tiles of 16 x 8: rows of tile i of warp w begin at d = 128 i + 32 (w / 2) + 8 (w % 2), and row g
//         is d + g % 4 + 16 (g / 4), row g + 8 four further: so the lanes of a load lie in different banks
#pragma once
#include "tensor_core.cuh"
#include "two_layer_step.cuh"

// How Q groups of 8 k of two float32 operands are multiplied: left is 16 x 8 Q, right 8 Q x 8.
struct Tf32 {
  static constexpr int Q = 1;
  static constexpr bool RELOADS = false;  // the right operands for every 16 rows of the left
  struct Left {
    unsigned a[4];
    __device__ __forceinline__ explicit Left(const float (&x)[1][4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = to_tf32(x[0][i]);
    }
  };
  struct Right {
    unsigned b[2];
    __device__ __forceinline__ explicit Right(const float (&x)[1][2]) {
#pragma unroll
      for (int i = 0; i < 2; ++i) b[i] = to_tf32(x[0][i]);
    }
  };
  __device__ __forceinline__ static void multiply(float (&d)[4], const Left& left, const Right& right) {
    multiply_tf32(d, left.a, right.b);
  }
};

struct SplitTf32 {  // 3xtf32
  static constexpr int Q = 1;
  static constexpr bool RELOADS = true;
  struct Left {
    unsigned a[4], small[4];
    __device__ __forceinline__ explicit Left(const float (&x)[1][4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) split_tf32(x[0][i], a[i], small[i]);
    }
  };
  struct Right {
    unsigned b[2], small[2];
    __device__ __forceinline__ explicit Right(const float (&x)[1][2]) {
#pragma unroll
      for (int i = 0; i < 2; ++i) split_tf32(x[0][i], b[i], small[i]);
    }
  };
  __device__ __forceinline__ static void multiply(float (&d)[4], const Left& left, const Right& right) {
    multiply_3xtf32(d, left.a, left.small, right.b, right.small);
  }
};

struct Bfloat16 {  // the k of both operands are numbered alike, so any pairing is right
  static constexpr int Q = 2;
  static constexpr bool RELOADS = false;
  struct Left {
    unsigned a[4];
    __device__ __forceinline__ explicit Left(const float (&x)[2][4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = to_bfloat16(x[i / 2][i % 2], x[i / 2][i % 2 + 2]);
    }
  };
  struct Right {
    unsigned b[2];
    __device__ __forceinline__ explicit Right(const float (&x)[2][2]) {
#pragma unroll
      for (int q = 0; q < 2; ++q) b[q] = to_bfloat16(x[q][0], x[q][1]);
    }
  };
  __device__ __forceinline__ static void multiply(float (&d)[4], const Left& left, const Right& right) {
    multiply_bfloat16(d, left.a, right.b);
  }
};

// The least pitch from `columns` on that is 8 or 24 beyond a multiple of 32: four neighbouring rows, eight
// neighbouring columns lie in different banks.
__device__ __forceinline__ constexpr int eight_apart(int columns) {
  return columns <= 8 ? 8 : round_up(columns - 8, 16) + 8;
}

// PRECISION: Tf32, SplitTf32 or Bfloat16; V elements of a row of W1 are copied together.
template <class PRECISION, int MT, int NT, int ZT, int V>
struct MmaTile {
  using T = float;
  using Left = typename PRECISION::Left;
  using Right = typename PRECISION::Right;
  static constexpr int ROWS = 16, BK = 16, Q = PRECISION::Q;
  static constexpr int Z = 4 * ZT, COLUMNS = 8 * ZT;  // of Z1: sums of a lane, columns in one go over k
  static constexpr int PASSES = MT;                   // in which dW1 leaves
  static constexpr int PASS_ROWS = 16 * STEP_WARPS;
  static constexpr int BLOCKS = 1;

  __device__ __forceinline__ static int slab_pitch(int H) { return eight_apart(round_up(H, COLUMNS)); }
  __device__ __forceinline__ static int slab_size(int H) { return BK * slab_pitch(H); }
  __device__ __forceinline__ static int z_pitch(int) { return eight_apart(8 * NT); }
  __device__ __forceinline__ static int z_place(int h) { return h; }
  __device__ __forceinline__ static int pass_rows(int) { return PASS_ROWS; }
  __device__ __forceinline__ static int slice_rows(int) { return 0; }

  // ---- Z1 ----

  // BK rows of W1 from row k0 on, zero from row D on.
  __device__ __forceinline__ static void fetch_slab(T* to, const T* __restrict__ W1, int k0, int D, int H) {
    const int lane = thread_in_block() % WARP, pitch = slab_pitch(H);
#pragma unroll 1
    for (int row = 0; row < BK; ++row) {
      const bool inside = k0 + row < D;
      const T* const from = W1 + static_cast<long long>(inside ? k0 + row : 0) * H;
#pragma unroll 1
      for (int h = lane * V; h < H; h += WARP * V) {
        T* const place = to + row * pitch + h;
        if constexpr (V * sizeof(T) == COPY_BYTES)
          copy_async(place, from + h, inside ? COPY_BYTES : 0);
        else if constexpr (V == 2)
          copy_element_async(reinterpret_cast<long long*>(place), reinterpret_cast<const long long*>(from + h),
                             inside);
        else
          copy_element_async(place, from + h, inside);
      }
    }
  }

  // Row and column of sum i of a lane.
  __device__ __forceinline__ static void place(int lane, int i, int& row, int& h) {
    row = lane / 4 + i % 4 / 2 * 8;
    h = i / 4 * 8 + lane % 4 * 2 + i % 2;
  }

  struct Columns {  // the first of the slab
    int h0;
    __device__ __forceinline__ Columns(int h0, int) : h0(h0) {}
  };

  __device__ __forceinline__ static void multiply_slab(T (&z)[Z], const T* X, int pitch, const T* slab, int H,
                                                       const Columns& columns) {
    const int lane = thread_in_block() % WARP, g = lane / 4, t = lane % 4, w_pitch = slab_pitch(H);
    const T* const x = X + g * pitch + t;
    const T* const w = slab + t * w_pitch + columns.h0 + g;
#pragma unroll
    for (int q0 = 0; q0 < 2; q0 += Q) {
      float a[Q][4];
#pragma unroll
      for (int i = 0; i < 4 * Q; ++i) a[i / 4][i % 4] = x[i % 2 * 8 * pitch + 8 * (q0 + i / 4) + i % 4 / 2 * 4];
      const Left left(a);
#pragma unroll
      for (int j = 0; j < ZT; ++j) {
        float b[Q][2], sum[4];
#pragma unroll
        for (int i = 0; i < 2 * Q; ++i) b[i / 2][i % 2] = w[(8 * (q0 + i / 2) + 4 * (i % 2)) * w_pitch + 8 * j];
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] = z[4 * j + i];
        PRECISION::multiply(sum, left, Right(b));
#pragma unroll
        for (int i = 0; i < 4; ++i) z[4 * j + i] = sum[i];
      }
    }
  }

  // ---- dW1 ----

  float dW1[MT][NT][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < MT * NT * 4; ++i) dW1[i / (NT * 4)][i / 4 % NT][i % 4] = 0.0f;
  }

  // Where row 0 of a warp's first tile lies.
  __device__ __forceinline__ static int first_row(int warp) { return warp / 2 * 32 + warp % 2 * 8; }
  // From there to row g.
  __device__ __forceinline__ static int row_place(int g) { return g % 4 + g / 4 * 16; }

  // Adds X^T dZ1 of a tile.
  __device__ __forceinline__ void add(const T* X, int pitch, const T* dZ1, int, int D, int H, int) {
    const int thread = thread_in_block(), lane = thread % WARP, g = lane / 4, t = lane % 4;
    const int first = first_row(thread / WARP);
    const T* const x = X + t * pitch + first + row_place(g);
    const T* const dz = dZ1 + t * z_pitch(H) + g;
#pragma unroll
    for (int i = 0; i < MT; ++i) {
      if (first + i * PASS_ROWS >= D) break;  // the same in every lane of the warp
#pragma unroll
      for (int q0 = 0; q0 < 2; q0 += Q) {
        float a[Q][4];
#pragma unroll
        for (int e = 0; e < 4 * Q; ++e)
          a[e / 4][e % 4] = x[(8 * (q0 + e / 4) + e % 4 / 2 * 4) * pitch + i * PASS_ROWS + e % 2 * 4];
        const Left left(a);
#pragma unroll
        for (int j = 0; j < NT; ++j) {
          if constexpr (PRECISION::RELOADS) __syncwarp();  // else the compiler fetches all of dZ1 first
          float b[Q][2];
#pragma unroll
          for (int e = 0; e < 2 * Q; ++e)
            b[e / 2][e % 2] = dz[(8 * (q0 + e / 2) + 4 * (e % 2)) * eight_apart(8 * NT) + 8 * j];
          PRECISION::multiply(dW1[i][j], left, Right(b));
        }
      }
    }
  }

  // Puts PASS_ROWS neighbouring rows of dW1, the `pass`-th of them, into shared memory.
  __device__ __forceinline__ void stage(T* to, int pass, int H, int) const {
    const int thread = thread_in_block(), lane = thread % WARP;
    const int row = first_row(thread / WARP) + row_place(lane / 4);
#pragma unroll
    for (int j = 0; j < NT; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int h = 8 * j + lane % 4 * 2 + i % 2;
        if (h < H) to[(row + i / 2 * 4) * H + h] = dW1[pass][j][i];
      }
  }
};
