// Path R3: a two-layer step in two launches, for hidden layers that R1 has no registers for.
//
//   1. pair_forward    A1 = f(X W1 + b1), Z2 = A1 W2 + b2, loss, dZ2, dZ1 = (dZ2 W2^T) * f'(A1);  dZ1 (N, H) is
//                      stored, and partition p leaves dW2, db2 and the loss of its samples
//   2. pair_backward   dW1 = X^T dZ1 and db1, split over the samples, and the optimizer's rule on all gradients
//
// X (N, D) of float or double, or of uint8, which counts as X * scale + shift; W1 (D, H), b1 (H,), W2 (H, C), b2 (C,),
// y (N, C) or labels (N,); b1 and b2 null without bias.  The products with X are TILE's (two_layer_products.cuh): fused
// multiply-adds or tensor cores; the others are float or double.
//
// Map: pair_forward, a block takes partitions blockIdx.x, blockIdx.x + gridDim.x, ..., in tiles of BM samples and all
// H <= BN hidden units; A1 then lies in shared memory where the slabs were, and two_layer_output.cuh goes on from it.
// pair_backward, a block sums one tile of dW1 over one of `splits` chunks of the samples; the last block of a tile to
// arrive (an integer ticket) adds the chunks in rising order and applies the rule to its elements.  The first
// `output_blocks` blocks do so for dW2 and db2, the very first for the loss too.  The last of all counts the step.
//
// Deterministic: partitions and chunks depend on the shape alone, and every sum has one order.
#include "optimizer_rules.cuh"
#include "two_layer_output.cuh"
#include "two_layer_products.cuh"

__device__ __forceinline__ constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

// ---- 1: forward, loss, dZ1 --------------------------------------------------------------------------------------

constexpr int RING_BYTES = 36 * 1024;  // of slabs, at most: about as much as A1 takes after them
constexpr int NO_RING = STATIC_SHARED - RING_BYTES;

// A1 = f(z + bias) of `rows` samples, 0 below them.  Rows of A1 begin at multiples of ALIGNED elements.
template <class T, class F, int ALIGNED>
struct ActivatedTile {
  const T* bias;
  T* A1;
  int pitch, rows;
  template <int W>
  __device__ __forceinline__ void operator()(const Vector<T, W>& z, int row, int h) const {
    constexpr int V = W < ALIGNED ? W : ALIGNED;  // of a store
    const Vector<T, W> b = load_vector<W>(bias + h);
#pragma unroll
    for (int first = 0; first < W; first += V) {
      Vector<T, V> a;
#pragma unroll
      for (int e = 0; e < V; ++e) a[e] = row < rows ? F::forward(z[first + e] + b[first + e]) : T(0);
      store_vector<V>(A1 + row * pitch + h + first, a);
    }
  }
};

// A row of output_partials holds dW2 (H, C) and then db2 (C,).
template <class T, class TX, class TILE, class F, class L, int VD, int VH>
__global__ void __launch_bounds__(TILE::THREADS, 2)
    pair_forward(const TX* __restrict__ X, const typename L::template Target<T>* __restrict__ y,
                 const T* __restrict__ W1, const T* __restrict__ b1, const T* __restrict__ W2,
                 const T* __restrict__ b2, T* __restrict__ dZ1, T* __restrict__ output_partials,
                 T* __restrict__ loss_partials, int N, int D, int H, int C, int chunk, int partitions, T loss_scale,
                 T scale, T shift) {
  using P = typename TILE::template Product<T, true, false, VH>;
  constexpr int ROWS = P::BM, THREADS = P::THREADS, COUNT = STAGES<T, P, NO_RING>, SLABS = RING_SIZE<T, P, NO_RING>;
  using Output = OutputLayer<T, F, L, ROWS, THREADS>;
  DYN_SHARED(T, shared);
  Output out;
  constexpr int NEXT = Output::LANES + 8;  // banks from one row of A1 to the next: reads of rows never meet
  out.pitch = round_up(max(H - NEXT, 0), 32) + NEXT;
  out.H = H;
  out.C = C;
  out.A1 = shared;
  T* const bias = shared + max(SLABS, ROWS * out.pitch);
  out.W2 = bias + H;
  out.dW2 = out.W2 + C * H;
  out.b2 = out.dW2 + C * H;
  out.Z2 = out.b2 + C;
  out.dZ2 = out.Z2 + ROWS * C;
  T* const scratch = out.dZ2 + ROWS * C;

  for (int partition = blockIdx.x; partition < partitions; partition += gridDim.x) {
    const int n_begin = partition * chunk, n_end = min(n_begin + chunk, N);
    __syncthreads();  // what the partition before had here has been read
    out.begin(W2, b2);
    for (int h = threadIdx.x; h < H; h += THREADS) bias[h] = b1 != nullptr ? b1[h] : T(0);
    T loss = T(0), bias_sum = T(0);
    for (int n0 = n_begin; n0 < n_end; n0 += ROWS) {
      auto a = input_slab<InputSlab<TX, T, P, ROWS, VD, true>>(X, D, n0, N, 0, D, scale, shift);
      CopiedSlab<T, P, P::BN, VH, false> b{W1, H, 0, H, 0, D};
      P product;
      product.clear();
      accumulate<COUNT>(product, a, b, shared, slabs_of<T, P>(D), Nothing<T>{});
      product.for_each_group(0, ROWS, 0, H, ActivatedTile<T, F, Output::LANES>{bias, out.A1, out.pitch, N - n0});
      __syncthreads();  // A1 is whole
      loss += out.loss(y, n0, N, loss_scale);
      __syncthreads();  // dZ2 is whole
      out.hidden_gradient(n0, N, [=](T dZ, int row, int h) {
        if (n0 + row < N) dZ1[static_cast<long long>(n0 + row) * H + h] = dZ;
      });
      out.add_weight_gradient();
      if (static_cast<int>(threadIdx.x) < C) bias_sum += out.bias_gradient(threadIdx.x);
      __syncthreads();  // A1 and dZ2 have been read: the next slabs may come
    }
    T* const partial = output_partials + static_cast<long long>(partition) * (H * C + C);
    out.store_weight_gradient(partial);
    if (static_cast<int>(threadIdx.x) < C) partial[H * C + threadIdx.x] = bias_sum;
    loss = block_sum<THREADS>(loss, scratch);
    if (threadIdx.x == 0) loss_partials[partition] = loss;
  }
}

// ---- 2: dW1, and the rule ----------------------------------------------------------------------------------------

// The parameters, or with Store the gradient, and the state of the optimizer: flat.
template <class Rule>
struct Flat {
  using T = typename Rule::Element;
  const unsigned char* __restrict__ trainable;
  T *w, *state1, *state2;

  // The rule on elements i .. i + V, whose gradients are the ordered sums of `count` vectors `stride` apart.
  template <int V>
  __device__ __forceinline__ void update(const Rule& rule, int i, const T* part, int count, long long stride) const {
    if constexpr (UPDATES<Rule>)
      if (!trainable[i / (CHUNK_BYTES / static_cast<int>(sizeof(T)))]) return;
    Vector<T, V> gradient, weight, s1, s2;
#pragma unroll
    for (int j = 0; j < V; ++j) gradient[j] = T(0);
#pragma unroll 8
    for (int s = 0; s < count; ++s) {  // eight loads under way at once
      const Vector<T, V> one = load_vector<V>(part + s * stride);
#pragma unroll
      for (int j = 0; j < V; ++j) gradient[j] += one[j];
    }
    if constexpr (UPDATES<Rule>) weight = load_vector<V>(w + i);
    if constexpr (Rule::STATES > 0) s1 = load_vector<V>(state1 + i);
    if constexpr (Rule::STATES > 1) s2 = load_vector<V>(state2 + i);
#pragma unroll
    for (int j = 0; j < V; ++j) rule.apply(weight[j], gradient[j], s1[j], s2[j]);
    store_vector<V>(w + i, weight);
    if constexpr (Rule::STATES > 0) store_vector<V>(state1 + i, s1);
    if constexpr (Rule::STATES > 1) store_vector<V>(state2 + i, s2);
  }

  // With Store, the padding of the gradient is zero.
  __device__ __forceinline__ void clear(int from, int to, int threads) const {
    if constexpr (!UPDATES<Rule>)
      for (int i = from + threadIdx.x; i < to; i += threads) w[i] = T(0);
  }
};

constexpr int BESIDE_SLABS = 256;  // bytes of shared memory, at most, for the rule and the ticket

// tickets: one a tile of dW1, and a last one for all.  A row of weight_partials holds dW1 (D, H) and then db1 (H,),
// `stride` elements from the next; output_partials and loss_partials are what pair_forward left.
template <class Rule, class TX, class TILE, int VD, int VH>
__global__ void __launch_bounds__(TILE::THREADS, 2)
    pair_backward(const TX* __restrict__ X, const typename Rule::Element* __restrict__ dZ1,
                  const typename Rule::Element* __restrict__ output_partials,
                  const typename Rule::Element* __restrict__ loss_partials,
                  const unsigned char* __restrict__ trainable, const double* __restrict__ hyperparameters,
                  typename Rule::Element* weight_partials, typename Rule::Element* w,
                  typename Rule::Element* state1, typename Rule::Element* state2, typename Rule::Element* loss,
                  int* steps, int* tickets, int N, int D, int H, int C, int chunk, int splits, long long stride,
                  int partitions, int output_blocks, int offset_b1, int offset_W2, int offset_b2, int flat_size,
                  int bias, typename Rule::Element loss_scale, typename Rule::Element scale,
                  typename Rule::Element shift) {
  using T = typename Rule::Element;
  using P = typename TILE::template Product<T, false, false, VH>;
  constexpr int THREADS = P::THREADS, BM = P::BM, BN = P::BN, COUNT = STAGES<T, P, BESIDE_SLABS>;
  static_assert(sizeof(Rule) + sizeof(int) <= BESIDE_SLABS, "they fit");
  __shared__ __align__(16) T ring[RING_SIZE<T, P, BESIDE_SLABS>];
  __shared__ Rule prepared;
  const int d_tiles = (D + BM - 1) / BM, h_tiles = (H + BN - 1) / BN;
  const int tiles = d_tiles * h_tiles;
  const int block = static_cast<int>(blockIdx.x) - output_blocks;
  const bool of_output = block < 0;
  const int tile = block % tiles, split = block / tiles;
  const int d0 = tile % d_tiles * BM, h0 = tile / d_tiles * BN;
  const Flat<Rule> flat{trainable, w, state1, state2};

  if (!of_output) {
    const int n0 = split * chunk, n1 = min(n0 + chunk, N);
    const bool sums_bias = bias && d0 == 0;
    auto a = input_slab<InputSlab<TX, T, P, BM, VD, false>>(X, D, d0, D, n0, n1, scale, shift);
    CopiedSlab<T, P, BN, VH, false> b{dZ1, H, h0, H, n0, n1};
    T column_sum = T(0);
    P product;
    product.clear();
    accumulate<COUNT>(product, a, b, ring, slabs_of<T, P>(n1 - n0), ColumnSums<T, P>{column_sum, sums_bias});
    T* const partial = weight_partials + split * stride;
    product.for_each_group(d0, D, h0, H, Plain<T>{partial, H});
    const int h = h0 + threadIdx.x;
    if (sums_bias && threadIdx.x < BN && h < H) partial[D * H + h] = column_sum;
    if (!last_block(tickets + tile, splits)) return;  // the same in every thread of the block
  }

  if constexpr (UPDATES<Rule>) {
    if (threadIdx.x == 0) prepared = Rule::prepare(hyperparameters, *steps + 1);
    __syncthreads();  // every thread takes a copy of what thread 0 prepared
  }
  const Rule rule = prepared;
  if (of_output) {
    const int weights = H * C, row = weights + C;
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i < (bias ? row : weights))
      flat.template update<1>(rule, i < weights ? offset_W2 + i : offset_b2 + i - weights, output_partials + i,
                              partitions, row);
    if (blockIdx.x == 0) {  // the same in every thread of the block
      flat.clear(D * H, offset_b1, THREADS);
      flat.clear(offset_b1 + (bias ? H : 0), offset_W2, THREADS);
      flat.clear(offset_W2 + weights, offset_b2, THREADS);
      flat.clear(offset_b2 + (bias ? C : 0), flat_size, THREADS);
      const T sum = sum_in_order<THREADS>(loss_partials, partitions, ring);
      if (threadIdx.x == 0) *loss = loss_scale * sum;
    }
  } else {
    for (int i = threadIdx.x; i < BM * BN / VH; i += THREADS) {
      const int d = d0 + i / (BN / VH), h = h0 + i % (BN / VH) * VH;
      if (d < D && h < H) flat.template update<VH>(rule, d * H + h, weight_partials + d * H + h, splits, stride);
    }
    const int h = h0 + threadIdx.x;
    if (bias && d0 == 0 && threadIdx.x < BN && h < H)
      flat.template update<1>(rule, offset_b1 + h, weight_partials + D * H + h, splits, stride);
  }
  // Every finishing block has read *steps before it takes its number, so that the last one may change it.
  if constexpr (UPDATES<Rule>)
    if (last_block(tickets + tiles, tiles + output_blocks) && threadIdx.x == 0) *steps += 1;
}
