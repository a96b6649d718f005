// A whole epoch of mini-batch training of a two-layer network, in one persistent cooperative launch.
//
//   for every batch of rows n of the order:
//     Z1 = X W1 + b1,  A1 = f(Z1),  Z2 = A1 W2 + b2,  loss and dZ2 of the batch
//     dW2 = A1' dZ2,  db2 = sum_n dZ2,  dZ1 = (dZ2 W2') o f'(A1),  dW1 = X' dZ1,  db1 = sum_n dZ1
//     the optimizer's rule on every parameter
//
// X: (rows, D) of TX, as X * scale + shift;  y: (rows, C), or labels (rows,);  order: (count,) row numbers.
//
// Map: the parameters are cut into a grid of cells, SD columns of X by SH hidden units each.  Cell (i, j) keeps
// its slice of W1 with the optimizer's state for the whole epoch, and a copy of b1, W2 (units of slice j) and b2
// that it updates itself, so that weights are never exchanged.  A step takes two grid barriers:
//
//   1. every cell: its slice of X, once; its part of Z1, over the columns of slice i      -> partial_Z1
//      ---- all parts of Z1 are there ----
//   2. every cell: Z1 of slice j = b1 + the parts in rising order of i; A1;
//      for the rows that are i's: its part of the logits, over the units of slice j       -> partial_Z2
//      ---- all parts of the logits are there ----
//   3. every block: the logits = b2 + the parts in rising order of j; loss and dZ2 of all rows;
//      every cell: dW2, dZ1, dW1, db1, db2 of its slices, and the rule
//
// With as many blocks as cells (KEPT) the slices lie in shared memory.  Else they lie in `slices`, in global
// memory, and every block goes through several cells, reading X and the parts of Z1 anew in phase 3: the same
// sums in the same order, with fma written out, since what a compiler fuses may differ between the two.  So the bits
// depend on the cells, which follow from the shape and the tiling, never on the number of blocks.  Deterministic:
// every sum has one order, and the only atomic is the barrier's integer.
//
// The next step writes partial_Z1 after the second barrier, when all have passed phase 2, and partial_Z2 after its
// own first barrier, when all have passed phase 3: one buffer of each is enough where KEPT.  Else phase 3 reads
// partial_Z1 too, and steps take turns at two of them.
#include "common.cuh"
#include "intrinsics.cuh"
#include "activation.cuh"
#include "loss.cuh"
#include "optimizer_rules.cuh"
#include "two_layer_epoch.cuh"

// The cell's columns of the batch's rows, scaled; columns that X has not are zero.
template <int V, class TX, class T>
__device__ __forceinline__ void read_X(const Scratch<T>& m, const Cell& c, const Epoch& e, const TX* __restrict__ X,
                                       const int* __restrict__ order, int rows, T scale, T shift) {
  const int pieces = e.SD / V;
  for (int k = threadIdx.x; k < rows * pieces; k += EPOCH_THREADS) {
    const int n = k / pieces, d = k % pieces * V;
    Vector<T, V> scaled = {};
    if (d < c.ds) {
      const Vector<TX, V> given = load_vector<V>(X + static_cast<long long>(order[n]) * e.D + c.d0 + d);
#pragma unroll
      for (int v = 0; v < V; ++v) scaled[v] = fma(static_cast<T>(given[v]), scale, shift);
    }
    store_vector<V>(m.X + n * m.x_stride + d, scaled);
  }
}

// The cell's part of Z1: (rows, SH), a thread takes two rows by GROUP units.
template <class T>
__device__ __forceinline__ void multiply_X(const Scratch<T>& m, const T* W1, const Epoch& e, T* part, int rows) {
  constexpr int V = VECTOR_BYTES / sizeof(T);
  const int groups = e.SH / GROUP, half = (rows + 1) / 2;
#pragma unroll 1
  for (int k = threadIdx.x; k < half * groups; k += EPOCH_THREADS) {
    const int h = k % groups * GROUP, n = k / groups, other = min(n + half, rows - 1);
    T sums[2][GROUP] = {};
#pragma unroll 1
    for (int d = 0; d < e.SD; d += V) {
      const Vector<T, V> x0 = load_vector<V>(m.X + n * m.x_stride + d);
      const Vector<T, V> x1 = load_vector<V>(m.X + other * m.x_stride + d);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        Units<T> w = Units<T>::load(W1 + (d + v) * e.SH + h);
#pragma unroll
        for (int u = 0; u < GROUP; ++u) {
          sums[0][u] = fma(x0[v], w[u], sums[0][u]);
          sums[1][u] = fma(x1[v], w[u], sums[1][u]);
        }
      }
    }
    Units<T> first, second;
#pragma unroll
    for (int u = 0; u < GROUP; ++u) first[u] = sums[0][u], second[u] = sums[1][u];
    first.store(part + n * e.SH + h);
    if (n + half < rows) second.store(part + other * e.SH + h);
  }
}

// A1 of the cell's units: f of b1 and the parts of Z1, in rising order of i.  Units that there are not are zero.
template <class F, class T>
__device__ __forceinline__ void activate(const Scratch<T>& m, const T* b1, const Cell& c, const Epoch& e,
                                         const T* partial_Z1, int rows) {
  const int groups = e.SH / GROUP, down = (e.D + e.SD - 1) / e.SD, across = (e.H + e.SH - 1) / e.SH;
  const long long distance = static_cast<long long>(across) * e.N * e.SH;  // from i to i + 1
#pragma unroll 1
  for (int k = threadIdx.x; k < rows * groups; k += EPOCH_THREADS) {
    const int h = k % groups * GROUP, n = k / groups;
    const T* part = partial_Z1 + (static_cast<long long>(c.j) * e.N + n) * e.SH + h;
    Units<T> a;
#pragma unroll
    for (int u = 0; u < GROUP; ++u) a[u] = e.b1 < 0 ? T(0) : b1[h + u];
    for (int i = 0; i < down; ++i, part += distance) {
      Units<T> z = Units<T>::load(part);
#pragma unroll
      for (int u = 0; u < GROUP; ++u) a[u] += z[u];
    }
#pragma unroll
    for (int u = 0; u < GROUP; ++u) a[u] = h + u < c.hs ? F::forward(a[u]) : T(0);
    a.store(m.A + n * m.a_stride + h);
  }
}

// The cell's part of the logits, for the rows that are its own.
template <class T>
__device__ __forceinline__ void multiply_A(const Scratch<T>& m, const T* W2, const Cell& c, const Epoch& e,
                                           T* partial_Z2, int rows) {
  const int down = (e.D + e.SD - 1) / e.SD, share = (e.N + down - 1) / down;
  const int first = min(c.i * share, rows), own = min(share, rows - first);
#pragma unroll 1
  for (int k = threadIdx.x; k < own * e.C; k += EPOCH_THREADS) {
    const int n = first + k / e.C, j = k % e.C;
    T sum = T(0);
    for (int h = 0; h < c.hs; ++h) sum = fma(m.A[n * m.a_stride + h], W2[h * e.C + j], sum);
    partial_Z2[(static_cast<long long>(c.j) * e.N + n) * e.C + j] = sum;
  }
}

// Logit j of row n: b2 and the parts, in rising order of the cells' columns.
template <class T>
__device__ __forceinline__ T logit(const T* b2, const Epoch& e, const T* partial_Z2, int n, int j) {
  const int across = (e.H + e.SH - 1) / e.SH;
  T sum = e.b2 < 0 ? T(0) : b2[j];
  for (int part = 0; part < across; ++part)
    sum += partial_Z2[(static_cast<long long>(part) * e.N + n) * e.C + j];
  return sum;
}

// dZ2 of all rows of the batch; gives what the thread has of the sum of the losses.
template <class L, int LANES, class T>
__device__ __forceinline__ T losses_of(const Scratch<T>& m, const T* b2, const Epoch& e, const T* partial_Z2,
                                       const typename L::template Target<T>* __restrict__ y,
                                       const int* __restrict__ order, int rows, T scale) {
  T sum = T(0);
  if constexpr (LANES == 0) {  // element by element
#pragma unroll 1
    for (int k = threadIdx.x; k < rows * e.C; k += EPOCH_THREADS) {
      const int n = k / e.C, j = k % e.C;
      T gradient;
      sum += L::loss(logit(b2, e, partial_Z2, n, j), y[static_cast<long long>(order[n]) * e.C + j], scale, gradient);
      m.dZ2[n * m.z_stride + j] = gradient;
    }
  } else {  // LANES lanes a row
    for (int k = threadIdx.x; k < rows * e.C; k += EPOCH_THREADS)
      m.Z2[k / e.C * m.z_stride + k % e.C] = logit(b2, e, partial_Z2, k / e.C, k % e.C);
    __syncthreads();  // a row's lanes read logits that other threads wrote
    const int lane = threadIdx.x % LANES;
    for (int first = 0; first < rows; first += EPOCH_THREADS / LANES) {
      const int n = first + threadIdx.x / LANES;
      const bool inside = n < rows;  // lanes past the end go through the last row without writing: shuffles need all
      const int row = inside ? n : rows - 1, given = y[order[row]];
      const bool known = 0 <= given && given < e.C;
      T* const dz = m.dZ2 + row * m.z_stride;
      const Logits<LANES, T> logits(m.Z2 + row * m.z_stride, e.C, lane);
      T value = L::template row<LANES>(logits, known ? given : 0, dz, e.C, lane, scale, inside && known);
      if (!known) {
        value = static_cast<T>(__int_as_float(0x7fc00000));
        for (int j = lane; j < e.C && inside; j += LANES) dz[j] = value;
      }
      if (inside && lane == 0) sum += value;
    }
  }
  return sum;
}

// The sum over the rows to which add(sum, n) adds row n, by SUM_LANES neighbouring lanes; every lane of the warp has to
// come here.
template <class T, class Add>
__device__ __forceinline__ T sum_rows(int rows, bool wanted, Add add) {
  T sum = T(0);
  if (wanted)
#pragma unroll 2
    for (int n = threadIdx.x % SUM_LANES; n < rows; n += SUM_LANES) sum = add(sum, n);
  return combine_lanes<Sum, SUM_LANES>(sum);
}

// The rule on one element of a slice of `size` elements, whose states lie behind it.
template <class Rule, class T>
__device__ __forceinline__ void update(const Rule& rule, T* slice, int k, int size, T gradient) {
  T none1 = T(0), none2 = T(0);
  T& state1 = Rule::STATES > 0 ? slice[size + k] : none1;
  T& state2 = Rule::STATES > 1 ? slice[2 * size + k] : none2;
  rule.apply(slice[k], gradient, state1, state2);
}

// dW2 and db2 (row hs of the sums), of the cell's units.
template <class T>
__device__ __forceinline__ void sum_dW2(const Scratch<T>& m, const Cell& c, const Epoch& e, int rows) {
  const int sums = (c.hs + 1) * e.C;
#pragma unroll 1
  for (int first = 0; first < sums; first += EPOCH_THREADS / SUM_LANES) {
    const int k = first + threadIdx.x / SUM_LANES, h = k / e.C, j = k % e.C;
    const T sum = sum_rows<T>(rows, k < sums, [&](T before, int n) {
      const T dz = m.dZ2[n * m.z_stride + j];
      return h < c.hs ? fma(m.A[n * m.a_stride + h], dz, before) : before + dz;
    });
    if (k < sums && threadIdx.x % SUM_LANES == 0) m.dW2[k] = sum;
  }
}

// dZ1 of the cell's units takes the place of A1.
template <class F, class T>
__device__ __forceinline__ void propagate(const Scratch<T>& m, const T* W2, const Cell& c, const Epoch& e, int rows) {
  const int groups = e.SH / GROUP;
#pragma unroll 1
  for (int k = threadIdx.x; k < rows * groups; k += EPOCH_THREADS) {
    const int h = k % groups * GROUP, n = k / groups;
    T da[GROUP] = {};
    for (int j = 0; j < e.C; ++j) {
      const T dz = m.dZ2[n * m.z_stride + j];
#pragma unroll
      for (int u = 0; u < GROUP; ++u) da[u] = fma(dz, W2[(h + u) * e.C + j], da[u]);
    }
    Units<T> a = Units<T>::load(m.A + n * m.a_stride + h);
#pragma unroll
    for (int u = 0; u < GROUP; ++u) a[u] = h + u < c.hs ? F::backward(a[u], da[u]) : T(0);
    a.store(m.A + n * m.a_stride + h);
  }
}

// dW1 = X' dZ1 and the rule on it; a thread takes two columns of X by GROUP units.
template <class Rule, class T>
__device__ __forceinline__ void update_W1(const Rule& rule, const Scratch<T>& m, T* W1, const Cell& c, const Epoch& e,
                                          int rows) {
  const int groups = e.SH / GROUP, size = e.SD * e.SH;
#pragma unroll 1
  for (int k = threadIdx.x; k < e.SD / 2 * groups; k += EPOCH_THREADS) {
    const int d = k / groups * 2, h = k % groups * GROUP;
    T sums[2][GROUP] = {};
#pragma unroll 4
    for (int n = 0; n < rows; ++n) {
      const Vector<T, 2> x = load_vector<2>(m.X + n * m.x_stride + d);
      Units<T> dz = Units<T>::load(m.A + n * m.a_stride + h);
#pragma unroll
      for (int u = 0; u < GROUP; ++u) {
        sums[0][u] = fma(x[0], dz[u], sums[0][u]);
        sums[1][u] = fma(x[1], dz[u], sums[1][u]);
      }
    }
#pragma unroll
    for (int v = 0; v < 2; ++v)
#pragma unroll
      for (int u = 0; u < GROUP; ++u)  // what lies beyond the slice's columns and units stays zero
        if (d + v < c.ds && h + u < c.hs) update(rule, W1, (d + v) * e.SH + h + u, size, sums[v][u]);
  }
}

// db1, and the rule on b1, W2 and b2.
template <class Rule, class T>
__device__ __forceinline__ void update_rest(const Rule& rule, const Scratch<T>& m, const Slices<T>& s, const Cell& c,
                                            const Epoch& e, int rows, bool with_b1, bool with_W2, bool with_b2) {
  for (int first = 0; first < c.hs && with_b1; first += EPOCH_THREADS / SUM_LANES) {
    const int h = first + threadIdx.x / SUM_LANES;
    const T sum = sum_rows<T>(rows, h < c.hs, [&](T before, int n) { return before + m.A[n * m.a_stride + h]; });
    if (h < c.hs && threadIdx.x % SUM_LANES == 0) update(rule, s.b1, h, e.SH, sum);
  }
  for (int k = threadIdx.x; k < c.hs * e.C && with_W2; k += EPOCH_THREADS)
    update(rule, s.W2, k, e.SH * e.C, m.dW2[k]);
  for (int k = threadIdx.x; k < e.C && with_b2; k += EPOCH_THREADS)
    update(rule, s.b2, k, e.C, m.dW2[c.hs * e.C + k]);
}

// The grid has one block a cell where KEPT, else at most as many.  L: a loss of loss.cuh, LANES lanes a row (0:
// element by element).  F: the activation.  VX: elements of X that are read at once.
template <class Rule, class TX, class F, class L, int LANES, int VX, bool KEPT>
__global__ void __launch_bounds__(EPOCH_THREADS, sizeof(typename Rule::Element) == 4 ? 2 : 1)  // a multiprocessor
    two_layer_epoch(const TX* __restrict__ X,
                    const typename L::template Target<typename Rule::Element>* __restrict__ y,
                    const int* __restrict__ order, const unsigned char* __restrict__ trainable,
                    const double* __restrict__ hyperparameters, typename Rule::Element* w,
                    typename Rule::Element* state1, typename Rule::Element* state2, int* steps,
                    typename Rule::Element* losses, typename Rule::Element* partial_Z1,
                    typename Rule::Element* partial_Z2, typename Rule::Element* slices, unsigned* barrier, int count,
                    int N, int D, int H, int C, int SD, int SH, int b1, int W2, int b2,
                    typename Rule::Element scale, typename Rule::Element shift,
                    typename Rule::Element loss_scale, typename Rule::Element last_loss_scale) {
  using T = typename Rule::Element;
  constexpr int COPIES = 1 + Rule::STATES;
  constexpr int CHUNK = CHUNK_BYTES / sizeof(T);
  const Epoch e = {count, N, D, H, C, SD, SH, b1, W2, b2};
  const int cells = (D + SD - 1) / SD * ((H + SH - 1) / SH), kept = Slices<T>::elements(e, COPIES);

  DYN_SHARED(unsigned char, memory);
  Rule* const rules = reinterpret_cast<Rule*>(memory);
  T* const sums = reinterpret_cast<T*>(memory + RULES * sizeof(Rule));  // of the warps' losses
  T* const rest = sums + EPOCH_THREADS / WARP;
  const Scratch<T> m(rest + (KEPT ? kept : 0), e, LANES > 0);
  const auto slices_of = [&](int cell) {
    return Slices<T>(KEPT ? rest : slices + static_cast<long long>(cell) * kept, e, COPIES);
  };
  const bool train_W1 = trainable[0], train_W2 = trainable[W2 / CHUNK];
  const bool train_b1 = b1 >= 0 && trainable[b1 / CHUNK], train_b2 = b2 >= 0 && trainable[b2 / CHUNK];

  for (int cell = blockIdx.x; cell < cells; cell += gridDim.x)
    copy_cell<false, Rule::STATES>(slices_of(cell), Cell(cell, e), e, w, state1, state2);
  const int done = *steps, batches = (count + N - 1) / N;

  for (int step = 0; step < batches; ++step) {
    const int* const batch = order + static_cast<long long>(step) * N;
    const int rows = min(N, count - step * N);
    __syncthreads();  // the step before is done with X, A, the rules; the slices are there
    if (step % RULES == 0 && threadIdx.x < min(RULES, batches - step))
      rules[threadIdx.x] = Rule::prepare(hyperparameters, done + step + static_cast<int>(threadIdx.x) + 1);

    T* const Z1 = partial_Z1 + (KEPT ? 0 : static_cast<long long>(step % 2) * cells * N * SH);
#pragma unroll 1
    for (int cell = blockIdx.x; cell < cells; cell += gridDim.x) {
      const Cell c(cell, e);
      read_X<VX>(m, c, e, X, batch, rows, scale, shift);
      __syncthreads();  // X is whole
      multiply_X(m, slices_of(cell).W1, e, Z1 + static_cast<long long>(cell) * N * SH, rows);
      if (!KEPT) __syncthreads();  // the next cell's X takes its place
    }
    grid_barrier(barrier, gridDim.x);  // all parts of Z1 are there

#pragma unroll 1
    for (int cell = blockIdx.x; cell < cells; cell += gridDim.x) {
      const Cell c(cell, e);
      const Slices<T> s = slices_of(cell);
      activate<F>(m, s.b1, c, e, Z1, rows);
      __syncthreads();  // A is whole
      multiply_A(m, s.W2, c, e, partial_Z2, rows);
      if (!KEPT) __syncthreads();  // the next cell's A takes its place
    }
    grid_barrier(barrier, gridDim.x);  // all parts of the logits are there

    const T this_scale = step + 1 < batches ? loss_scale : last_loss_scale;
    T loss = losses_of<L, LANES>(m, slices_of(blockIdx.x).b2, e, partial_Z2, y, batch, rows, this_scale);
    if (blockIdx.x == 0) {
      loss = block_sum<EPOCH_THREADS>(loss, sums);
      if (threadIdx.x == 0) losses[step] = loss * this_scale;
    }
    __syncthreads();  // dZ2 is whole

#pragma unroll 1
    for (int cell = blockIdx.x; cell < cells; cell += gridDim.x) {
      const Cell c(cell, e);
      const Slices<T> s = slices_of(cell);
      const Rule rule = rules[step % RULES];
      if (!KEPT) {
        read_X<VX>(m, c, e, X, batch, rows, scale, shift);
        activate<F>(m, s.b1, c, e, Z1, rows);
        __syncthreads();  // X and A are whole
      }
      sum_dW2(m, c, e, rows);
      __syncthreads();  // A is read before dZ1 takes its place
      propagate<F>(m, s.W2, c, e, rows);
      __syncthreads();  // dZ1 is whole, and W2 may change
      if (train_W1) update_W1(rule, m, s.W1, c, e, rows);
      update_rest(rule, m, s, c, e, rows, train_b1, train_W2, train_b2);
      if (!KEPT) __syncthreads();  // the next cell's X, A and dW2 take their place
    }
  }
  __syncthreads();  // the slices are as the last step left them
  for (int cell = blockIdx.x; cell < cells; cell += gridDim.x)
    copy_cell<true, Rule::STATES>(slices_of(cell), Cell(cell, e), e, w, state1, state2);
  if (blockIdx.x == 0 && threadIdx.x == 0) *steps = done + batches;  // all have passed a barrier since reading it
}
