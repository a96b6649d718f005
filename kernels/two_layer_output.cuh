// The output half of a two-layer step, for a tile of ROWS samples whose A1 lies in shared memory:
//
//   Z2 = A1 W2 + b2,  loss and dZ2 of these rows,  dZ1 = (dZ2 W2^T) * f'(A1),  dW2 += A1^T dZ2,  db2 += sum dZ2
//
// All in shared memory but the targets; W2 and its gradient are transposed there, (C, H), so that the lanes of a
// warp, which take neighbouring hidden units, never meet in a bank.
//
// Map: logits and loss, LANES neighbouring lanes share a row; dZ1, thread (r, h) takes row r, r + ROW_STEP, ... of
// column h; dW2, thread (r, h) owns element h of columns r, r + ROW_STEP, ... for the whole kernel; db2, a thread a
// column.  Deterministic: an element belongs to one thread, which adds its rows in rising order, or to fixed lanes.
#pragma once
#include "intrinsics.cuh"
#include "loss.cuh"

constexpr int UNITS = 64;  // neighbouring hidden units that a block takes at a time

template <class T, class F, class L, int ROWS, int THREADS>
struct OutputLayer {
  static constexpr int LANES = THREADS / ROWS < WARP ? THREADS / ROWS : WARP;  // that share a row
  static constexpr int ROW_STEP = THREADS / UNITS;
  static_assert(ROWS * LANES == THREADS, "all rows at once");

  T *A1, *W2, *dW2, *b2, *Z2, *dZ2;  // (ROWS, pitch), (C, H), (C, H), (C,), (ROWS, C), (ROWS, C)
  int pitch, H, C;

  // Fetches W2 and b2, null without bias, and clears dW2.  The caller's barrier follows.
  __device__ __forceinline__ void begin(const T* __restrict__ W2_global, const T* __restrict__ b2_global) const {
#pragma unroll 1
    for (int i = thread_in_block(); i < H * C; i += THREADS) {
      const int h = i / C, c = i % C;
      W2[c * H + h] = W2_global[i];
      dW2[c * H + h] = T(0);
    }
#pragma unroll 1
    for (int c = thread_in_block(); c < C; c += THREADS) b2[c] = b2_global == nullptr ? T(0) : b2_global[c];
  }

  // Z2 and dZ2 of rows n0 .. n0 + ROWS; those from N on have dZ2 = 0.  Gives the loss of what the thread looked at.
  __device__ __forceinline__ T loss(const typename L::template Target<T>* __restrict__ y, int n0, int N,
                                    T scale) const {
    const int thread = thread_in_block(), row = thread / LANES, lane = thread % LANES;
    const int n = n0 + row;
    const bool inside = n < N;
    const T* const a = A1 + row * pitch;
    T* const z = Z2 + row * C;
    T* const dz = dZ2 + row * C;
#pragma unroll 1
    for (int c = 0; c < C; ++c) {
      T sum = T(0);
#pragma unroll 1
      for (int h = lane; h < H; h += LANES) sum += a[h] * W2[c * H + h];
      sum = combine_lanes<Sum, LANES>(sum);
      if (lane == 0) z[c] = sum + b2[c];
    }
    __syncwarp();  // the lanes of a row read the logits that its first lane wrote
    T total = T(0);
    if constexpr (L::OF_ROWS) {
      int label = inside && lane == 0 ? y[n] : 0;
      label = __shfl_sync(FULL_WARP, label, 0, LANES);
      const bool known = 0 <= label && label < C;
      const Logits<LANES, T> logits(z, C, lane);
      T value = L::template row<LANES>(logits, known ? label : 0, dz, C, lane, scale, inside && known);
      if (!known || !inside) {
        const T instead = inside ? static_cast<T>(__int_as_float(0x7fc00000)) : T(0);
#pragma unroll 1
        for (int c = lane; c < C; c += LANES) dz[c] = instead;
        value = instead;
      }
      if (lane == 0) total = value;
    } else {
#pragma unroll 1
      for (int c = lane; c < C; c += LANES) {
        T gradient = T(0);
        if (inside) total += L::loss(z[c], y[static_cast<long long>(n) * C + c], scale, gradient);
        dz[c] = gradient;
      }
    }
    return total;
  }

  // Gives dZ1 of every row of the tile, 0 from N on, to write(value, row, h).
  template <class Write>
  __device__ __forceinline__ void hidden_gradient(int n0, int N, const Write& write) const {
    const int thread = thread_in_block();
#pragma unroll 1
    for (int h = thread % UNITS; h < H; h += UNITS)
#pragma unroll 1
      for (int row = thread / UNITS; row < ROWS; row += ROW_STEP) {
        T dA = T(0);
#pragma unroll 1
        for (int c = 0; c < C; ++c) dA += dZ2[row * C + c] * W2[c * H + h];
        const T dZ = F::backward(A1[row * pitch + h], dA);
        write(n0 + row < N ? dZ : T(0), row, h);  // where W2 is infinite, 0 * W2 is not 0
      }
  }

  // Adds this tile to dW2.  A1 is 0 from row N on.
  __device__ __forceinline__ void add_weight_gradient() const {
    const int thread = thread_in_block();
#pragma unroll 1
    for (int h = thread % UNITS; h < H; h += UNITS)
#pragma unroll 1
      for (int c = thread / UNITS; c < C; c += ROW_STEP) {
        T sum = T(0);
#pragma unroll 4
        for (int row = 0; row < ROWS; ++row) sum += A1[row * pitch + h] * dZ2[row * C + c];
        dW2[c * H + h] += sum;
      }
  }

  // Sum of column c of dZ2 over the tile.
  __device__ __forceinline__ T bias_gradient(int c) const {
    T sum = T(0);
#pragma unroll 4
    for (int row = 0; row < ROWS; ++row) sum += dZ2[row * C + c];
    return sum;
  }

  // dW2 in its own order, (H, C).
  __device__ __forceinline__ void store_weight_gradient(T* __restrict__ to) const {
#pragma unroll 1
    for (int i = thread_in_block(); i < H * C; i += THREADS) to[i] = dW2[i % C * H + i / C];
  }
};
