// Path R3: a two-layer step in two launches, for hidden layers that R1 has no registers for.
//
//   1. pair_forward    A1 = f(X W1 + b1), Z2 = A1 W2 + b2, loss, dZ2, dZ1 = (dZ2 W2^T) * f'(A1);  dZ1 (N, H) is
//                      stored, and partition p leaves dW2, db2 and the loss of its samples
//   2. pair_backward   dW1 = X^T dZ1 and db1, split over the samples, and the optimizer's rule on all gradients
//
// X (N, D), W1 (D, H), b1 (H,), W2 (H, C), b2 (C,), y (N, C) or labels (N,); b1 and b2 null without bias.
//
// Map: pair_forward, a block takes partitions blockIdx.x, blockIdx.x + gridDim.x, ..., in tiles of BM samples and all
// H <= BN hidden units (tile_product.cuh); A1 stays in shared memory, where two_layer_output.cuh goes on from it.
// pair_backward, a block sums one tile of dW1 over one of `splits` chunks of the samples; the last block of a tile to
// arrive (an integer ticket) adds the chunks in rising order and applies the rule to its elements.  The first
// `output_blocks` blocks do so for dW2 and db2, the very first for the loss too.  The last of all counts the step.
//
// Deterministic: partitions and chunks depend on the shape alone, and every sum has one order.
#include "optimizer_rules.cuh"
#include "tile_product.cuh"
#include "two_layer_output.cuh"

__device__ __forceinline__ constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

// ---- 1: forward, loss, dZ1 --------------------------------------------------------------------------------------

// A row of output_partials holds dW2 (H, C) and then db2 (C,).
template <class T, class TILE, class F, class L, int VD, int VH>
__global__ void __launch_bounds__(TILE::THREADS, sizeof(T) == 4 ? 2 : 1)
    pair_forward(const T* __restrict__ X, const typename L::template Target<T>* __restrict__ y,
                 const T* __restrict__ W1, const T* __restrict__ b1, const T* __restrict__ W2,
                 const T* __restrict__ b2, T* __restrict__ dZ1, T* __restrict__ output_partials,
                 T* __restrict__ loss_partials, int N, int D, int H, int C, int chunk, int partitions, T scale) {
  constexpr int ROWS = TILE::BM, THREADS = TILE::THREADS;
  constexpr int W = GROUP<T, TILE::TN>;  // neighbouring columns of a thread
  using Output = OutputLayer<T, F, L, ROWS, THREADS>;
  DYN_SHARED(T, shared);
  Output out;
  out.pitch = round_up(max(H - Output::LANES, 0), 32) + Output::LANES;  // the rows of a warp begin in different banks
  out.H = H;
  out.C = C;
  T* const bias = shared;  // and zeros up to a whole group
  out.A1 = bias + round_up(H, Output::LANES);
  out.W2 = out.A1 + ROWS * out.pitch;
  out.dW2 = out.W2 + C * H;
  out.b2 = out.dW2 + C * H;
  out.Z2 = out.b2 + C;
  out.dZ2 = out.Z2 + ROWS * C;
  T* const scratch = out.dZ2 + ROWS * C;

  for (int partition = blockIdx.x; partition < partitions; partition += gridDim.x) {
    const int n_begin = partition * chunk, n_end = min(n_begin + chunk, N);
    __syncthreads();  // what the partition before had here has been read
    out.begin(W2, b2);
    for (int h = threadIdx.x; h < round_up(H, Output::LANES); h += THREADS)
      bias[h] = b1 != nullptr && h < H ? b1[h] : T(0);
    T loss = T(0), bias_sum = T(0);
    for (int n0 = n_begin; n0 < n_end; n0 += ROWS) {
      TileProduct<T, TILE, VD, true, VH, false> product;
      product.template accumulate<false>(X, D, n0, N, W1, H, 0, H, 0, D, false);  // its barriers: A1 has been read
#pragma unroll
      for (int i = 0; i < TILE::TM; ++i)
#pragma unroll
        for (int j = 0; j < TILE::TN; j += W) {
          const int row = product.row(i), h = product.column(j);
          if (h >= H) continue;
          const Vector<T, W> b = load_vector<W>(bias + h);
          Vector<T, W> a;
#pragma unroll
          for (int e = 0; e < W; ++e) a[e] = n0 + row < N ? F::forward(product.sum[i][j + e] + b[e]) : T(0);
          store_vector<W>(out.A1 + row * out.pitch + h, a);
        }
      __syncthreads();  // A1 is whole
      loss += out.loss(y, n0, N, scale);
      __syncthreads();  // dZ2 is whole
      out.hidden_gradient(n0, N, [=](T dZ, int row, int h) {
        if (n0 + row < N) dZ1[static_cast<long long>(n0 + row) * H + h] = dZ;
      });
      out.add_weight_gradient();
      if (static_cast<int>(threadIdx.x) < C) bias_sum += out.bias_gradient(threadIdx.x);
      __syncthreads();  // A1 and dZ2 have been read
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

  // The rule on element i, whose gradient is the ordered sum of `count` numbers `stride` apart; Number is volatile T
  // where other blocks of this launch wrote them: never from a stale cache.
  template <class Number>
  __device__ __forceinline__ void update(const Rule& rule, int i, const Number* part, int count,
                                         long long stride) const {
    if constexpr (UPDATES<Rule>)
      if (!trainable[i / (CHUNK_BYTES / static_cast<int>(sizeof(T)))]) return;
    T gradient = T(0);
#pragma unroll 8
    for (int s = 0; s < count; ++s) gradient += part[s * stride];  // eight loads under way at once
    T weight = T(0), s1 = T(0), s2 = T(0);
    if constexpr (UPDATES<Rule>) weight = w[i];
    if constexpr (Rule::STATES > 0) s1 = state1[i];
    if constexpr (Rule::STATES > 1) s2 = state2[i];
    rule.apply(weight, gradient, s1, s2);
    w[i] = weight;
    if constexpr (Rule::STATES > 0) state1[i] = s1;
    if constexpr (Rule::STATES > 1) state2[i] = s2;
  }

  // With Store, the padding of the gradient is zero.
  __device__ __forceinline__ void clear(int from, int to, int threads) const {
    if constexpr (!UPDATES<Rule>)
      for (int i = from + threadIdx.x; i < to; i += threads) w[i] = T(0);
  }
};

template <class T>
struct Partial {
  T* out;
  int ld;
  template <int W>
  __device__ __forceinline__ void operator()(const Vector<T, W>& value, int row, int column) const {
    store_vector<W>(out + static_cast<long long>(row) * ld + column, value);
  }
};

// tickets: one a tile of dW1, and a last one for all.  A row of weight_partials holds dW1 (D, H) and then db1 (H,),
// `stride` elements from the next; output_partials and loss_partials are what pair_forward left.
template <class Rule, class TILE, int VD, int VH>
__global__ void __launch_bounds__(TILE::THREADS, sizeof(typename Rule::Element) * TILE::TM * TILE::TN < 256 ? 2 : 1)
    pair_backward(const typename Rule::Element* __restrict__ X, const typename Rule::Element* __restrict__ dZ1,
                  const typename Rule::Element* __restrict__ output_partials,
                  const typename Rule::Element* __restrict__ loss_partials,
                  const unsigned char* __restrict__ trainable, const double* __restrict__ hyperparameters,
                  typename Rule::Element* weight_partials, typename Rule::Element* w,
                  typename Rule::Element* state1, typename Rule::Element* state2, typename Rule::Element* loss,
                  int* steps, int* tickets, int N, int D, int H, int C, int chunk, int splits, long long stride,
                  int partitions, int output_blocks, int offset_b1, int offset_W2, int offset_b2, int flat_size,
                  int bias, typename Rule::Element scale) {
  using T = typename Rule::Element;
  __shared__ Rule prepared;
  const int d_tiles = (D + TILE::BM - 1) / TILE::BM, h_tiles = (H + TILE::BN - 1) / TILE::BN;
  const int tiles = d_tiles * h_tiles;
  const int block = static_cast<int>(blockIdx.x) - output_blocks;
  const bool of_output = block < 0;
  const int tile = block % tiles, split = block / tiles;
  const int d0 = tile % d_tiles * TILE::BM, h0 = tile / d_tiles * TILE::BN;
  const Flat<Rule> flat{trainable, w, state1, state2};

  if (!of_output) {
    const int n0 = split * chunk, n1 = min(n0 + chunk, N);
    const bool sums_bias = bias && d0 == 0;
    TileProduct<T, TILE, VD, false, VH, false> product;
    product.template accumulate<true>(X, D, d0, D, dZ1, H, h0, H, n0, n1, sums_bias);
    T* const partial = weight_partials + split * stride;
    product.template for_each_group<VH>(d0, D, h0, H, Partial<T>{partial, H});
    const int h = h0 + threadIdx.x;
    if (sums_bias && threadIdx.x < TILE::BN && h < H) partial[D * H + h] = product.column_sum;
    if (!last_block(tickets + tile, splits)) return;  // the same in every thread of the block
  }

  if constexpr (UPDATES<Rule>) {
    if (threadIdx.x == 0) prepared = Rule::prepare(hyperparameters, *steps + 1);
    __syncthreads();  // every thread takes a copy of what thread 0 prepared
  }
  const Rule rule = prepared;
  if (of_output) {
    const int weights = H * C, row = weights + C;
    const int i = blockIdx.x * TILE::THREADS + threadIdx.x;
    if (i < (bias ? row : weights))
      flat.update(rule, i < weights ? offset_W2 + i : offset_b2 + i - weights, output_partials + i, partitions, row);
    if (blockIdx.x == 0) {  // the same in every thread of the block
      flat.clear(D * H, offset_b1, TILE::THREADS);
      flat.clear(offset_b1 + (bias ? H : 0), offset_W2, TILE::THREADS);
      flat.clear(offset_W2 + weights, offset_b2, TILE::THREADS);
      flat.clear(offset_b2 + (bias ? C : 0), flat_size, TILE::THREADS);
      __shared__ T losses[TILE::THREADS];
      T sum = T(0);
      for (int begin = 0; begin < partitions; begin += TILE::THREADS) {
        const int p = begin + threadIdx.x;
        if (p < partitions) losses[threadIdx.x] = loss_partials[p];
        __syncthreads();  // thread 0 reads what every thread loaded
        if (threadIdx.x == 0)
          for (int k = 0; k < TILE::THREADS && begin + k < partitions; ++k) sum += losses[k];
        __syncthreads();  // thread 0 is done with them before the next ones come
      }
      if (threadIdx.x == 0) *loss = scale * sum;
    }
  } else {
    const volatile T* const written = weight_partials;
    for (int i = threadIdx.x; i < TILE::BM * TILE::BN; i += TILE::THREADS) {
      const int d = d0 + i / TILE::BN, h = h0 + i % TILE::BN;
      if (d < D && h < H) flat.update(rule, d * H + h, written + d * H + h, splits, stride);
    }
    const int h = h0 + threadIdx.x;
    if (bias && d0 == 0 && threadIdx.x < TILE::BN && h < H)
      flat.update(rule, offset_b1 + h, written + D * H + h, splits, stride);
  }
  // Every finishing block has read *steps before it takes its number, so that the last one may change it.
  if constexpr (UPDATES<Rule>)
    if (last_block(tickets + tiles, tiles + output_blocks) && threadIdx.x == 0) *steps += 1;
}
