// What the products of two_layer_step.cu share: its block, and how rows of X and slabs of W1 come into shared memory.
#pragma once
#include "intrinsics.cuh"
#include "two_layer_output.cuh"

constexpr int STEP_THREADS = 256;
constexpr int STEP_WARPS = STEP_THREADS / WARP;
constexpr int STAGES = 2;             // slabs that a warp holds: one that it multiplies, one on its way
constexpr int SUMS = STEP_WARPS / 2;  // of Z1, that are in shared memory at once

__device__ __forceinline__ constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

// Rows n0 .. n0 + ROWS of X, zero from N on, to rows `pitch` elements apart; V elements a copy.
template <int ROWS, int V, class TX>
__device__ __forceinline__ void fetch_rows(TX* to, int pitch, const TX* __restrict__ X, int D, int n0, int N) {
  const int thread = thread_in_block(), lane = thread % WARP;
#pragma unroll 1
  for (int row = thread / WARP; row < ROWS; row += STEP_WARPS) {
    const bool inside = n0 + row < N;
    const TX* const from = X + static_cast<long long>(inside ? n0 + row : 0) * D;
#pragma unroll 1
    for (int d = lane * V; d < D; d += WARP * V) {
      TX* const place = to + row * pitch + d;
      if constexpr (V * sizeof(TX) == COPY_BYTES)
        copy_async(place, from + d, inside ? COPY_BYTES : 0);
      else if constexpr (sizeof(TX) >= 4)
        copy_element_async(place, from + d, inside);
      else
        *place = inside ? from[d] : TX(0);
    }
  }
}

// The first slab of this warp, to where its ring begins.
template <class TILE, class T>
__device__ __forceinline__ void fetch_first_slab(T* rings, const T* __restrict__ W1, int D, int H) {
  const int warp = thread_in_block() / WARP;
  TILE::fetch_slab(rings + warp * STAGES * TILE::slab_size(H), W1, warp * TILE::BK, D, H);
}

// z += X W1 over the slabs of this warp, columns h0 on.
template <class TILE, class T>
__device__ __forceinline__ void multiply_slabs(T (&z)[TILE::Z], const T* X, int pitch, T* rings,
                                               const T* __restrict__ W1, int D, int H, int h0) {
  const int warp = thread_in_block() / WARP, slab_size = TILE::slab_size(H);
  T* const ring = rings + warp * STAGES * slab_size;
  const typename TILE::Columns columns(h0, H);
  int stage = 0;
#pragma unroll 1
  for (int k0 = warp * TILE::BK; k0 < D; k0 += STEP_WARPS * TILE::BK, stage ^= 1) {
    wait_copies<STAGES - 2>();
    __syncwarp();  // every lane's part of the slab is there, and the slab before has been multiplied
    const int next = k0 + STEP_WARPS * TILE::BK * (STAGES - 1);
    if (next < D) TILE::fetch_slab(ring + (stage ^ 1) * slab_size, W1, next, D, H);
    commit_copies();
    TILE::multiply_slab(z, X + k0, pitch, ring + stage * slab_size, H, columns);
  }
  wait_copies<0>();  // those of a warp without a slab too: the ring is written over next
}
