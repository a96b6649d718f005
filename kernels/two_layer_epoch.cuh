// What a block of two_layer_epoch.cu keeps where: the cells of the grid, their slices of the parameters, and the
// shared memory of a step.
#pragma once
#include "common.cuh"

constexpr int EPOCH_THREADS = 256;
constexpr int RULES = 32;      // steps whose rule is prepared together, by a thread each
constexpr int GROUP = 4;       // hidden units that a thread works on; SH is a multiple of it
constexpr int SUM_LANES = 8;   // lanes that share a sum over the rows

// The shape of a launch.
struct Epoch {
  int count, N, D, H, C;  // rows of the epoch and of a batch
  int SD, SH;             // a cell: columns of X, hidden units
  int b1, W2, b2;         // places in the flat buffer; b1 and b2 are -1 where there is no bias
};

// GROUP neighbouring elements of shared or global memory, aligned to 16 bytes.
template <class T>
struct Units {
  static constexpr int V = VECTOR_BYTES / sizeof(T);
  T element[GROUP];
  __device__ __forceinline__ T& operator[](int i) { return element[i]; }
  __device__ __forceinline__ static Units load(const T* p) {
    Units units;
#pragma unroll
    for (int part = 0; part < GROUP / V; ++part) {
      const Vector<T, V> v = load_vector<V>(p + part * V);
#pragma unroll
      for (int k = 0; k < V; ++k) units.element[part * V + k] = v[k];
    }
    return units;
  }
  __device__ __forceinline__ void store(T* p) const {
#pragma unroll
    for (int part = 0; part < GROUP / V; ++part) {
      Vector<T, V> v;
#pragma unroll
      for (int k = 0; k < V; ++k) v[k] = element[part * V + k];
      store_vector<V>(p + part * V, v);
    }
  }
};

// What a cell keeps from step to step: each parameter's slice, and behind it as much for each state.
// ops/two_layer_epoch_cells.py counts the same elements.
template <class T>
struct Slices {
  T *W1, *W2, *b1, *b2;
  __device__ __forceinline__ Slices(T* memory, const Epoch& e, int copies)
      : W1(memory),
        W2(W1 + copies * e.SD * e.SH),
        b1(W2 + copies * e.SH * e.C),
        b2(b1 + copies * e.SH) {}
  // Elements, a multiple of 16 bytes.
  __device__ __forceinline__ static int elements(const Epoch& e, int copies) {
    const int all = copies * (e.SD * e.SH + e.SH * e.C + e.SH + e.C);
    return (all + GROUP - 1) / GROUP * GROUP;
  }
};

// The distance between rows of `width` elements in shared memory, whole vectors, such that the same place of
// eight rows lies in different banks: an odd number of vectors.
template <class T>
__device__ __forceinline__ int row_stride(int width) {
  constexpr int V = VECTOR_BYTES / sizeof(T);
  return ((width + V - 1) / V | 1) * V;
}

// What a block needs of shared memory within a step.
template <class T>
struct Scratch {
  int x_stride, a_stride, z_stride;
  T *X, *A, *dZ2, *Z2, *dW2;  // Z2 only for losses of rows
  __device__ __forceinline__ Scratch(T* memory, const Epoch& e, bool keeps_logits)
      : x_stride(row_stride<T>(e.SD)),
        a_stride(row_stride<T>(e.SH)),
        z_stride(e.C | 1),
        X(memory),
        A(X + e.N * x_stride),
        dZ2(A + e.N * a_stride),
        Z2(dZ2 + e.N * z_stride),
        dW2(Z2 + (keeps_logits ? e.N * z_stride : 0)) {}
};

// One cell of the grid, as the phases see it.
struct Cell {
  int i, j, d0, h0, ds, hs;  // ds and hs: columns and units that there are
  __device__ __forceinline__ Cell(int cell, const Epoch& e) {
    const int across = (e.H + e.SH - 1) / e.SH;
    i = cell / across;
    j = cell % across;
    d0 = i * e.SD;
    h0 = j * e.SH;
    ds = min(e.SD, e.D - d0);
    hs = min(e.SH, e.H - h0);
  }
};

// Copies a parameter's slice, rows x columns of a matrix of `width` columns, and its states: from the flat
// buffers, or back to them where BACK.  What the slice has beyond is zero.
template <bool BACK, int STATES, class T>
__device__ __forceinline__ void copy_slice(T* slice, int place, T* w, T* state1, T* state2, int width, int rows,
                                           int columns, int slice_rows, int slice_columns) {
  T* const flat[3] = {w, state1, state2};
#pragma unroll
  for (int state = 0; state <= STATES; ++state) {
#pragma unroll 1
    for (int k = threadIdx.x; k < slice_rows * slice_columns; k += EPOCH_THREADS) {
      const int row = k / slice_columns, column = k % slice_columns;
      const bool inside = row < rows && column < columns;
      T* const own = slice + state * slice_rows * slice_columns + k;
      T* const other = flat[state] + place + static_cast<long long>(row) * width + column;
      if (!BACK) *own = inside ? *other : T(0);
      else if (inside) *other = *own;
    }
  }
}

// All slices of a cell; back, only the cells of the first row of the grid have the copies that count.
template <bool BACK, int STATES, class T>
__device__ __forceinline__ void copy_cell(const Slices<T>& s, const Cell& c, const Epoch& e, T* w, T* state1,
                                          T* state2) {
  copy_slice<BACK, STATES>(s.W1, c.d0 * e.H + c.h0, w, state1, state2, e.H, c.ds, c.hs, e.SD, e.SH);
  if (BACK && c.i > 0) return;
  copy_slice<BACK, STATES>(s.W2, e.W2 + c.h0 * e.C, w, state1, state2, e.C, c.hs, e.C, e.SH, e.C);
  if (e.b1 < 0) return;
  copy_slice<BACK, STATES>(s.b1, e.b1 + c.h0, w, state1, state2, 1, c.hs, 1, e.SH, 1);
  if (!BACK || c.j == 0) copy_slice<BACK, STATES>(s.b2, e.b2, w, state1, state2, 1, e.C, 1, e.C, 1);
}
