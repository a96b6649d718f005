// The second launch of a fused training step: partial gradients summed, and the optimizer's rule on the sums.
//
//   g[i] = sum over s = 0 .. S - 1, in rising order, of partials[s * stride + i]
//   w, state <- the rule of optimizer_rules.cuh with g;   Store: the flat gradient buffer <- g
//   loss = scale * (sum over s = 0 .. loss_count - 1, in rising order, of loss_partials[s])
//
// Layout: w, state and a row of partials are laid out as the flat parameters, W1 (D, H), b1 (H,), W2 (H, C),
// b2 (C,), each from a multiple of 256 bytes on.  The elements from b2's offset on have partials of their own:
// b2_partials[s * b2_stride + j], s < b2_count, since another launch may have left them.  Padding is never read
// in the partials, and counts as zero.
//
// Map: thread i of the grid takes the vectors i, i + threads, ...; block 0 adds the losses besides.
// Deterministic: every sum has one order; the ticket that tells the last block to count the step is an integer.
#include "optimizer_rules.cuh"

constexpr int REDUCE_THREADS = 64;  // few, so that the vectors of a small network spread over the chip
constexpr int IN_FLIGHT = 8;        // loads of a thread under way at once

// Where the parameter of an element starts and ends, and where the partial sums of its elements lie.
struct Segment {
  int start, end;
  bool last;  // b2
};

// The segment of element `first` among parameters of these sizes; a size of 0 takes no room.
__device__ __forceinline__ Segment segment_of(int first, int W1, int b1, int W2, int b2, int chunk) {
  const int sizes[4] = {W1, b1, W2, b2};
  int start = 0;
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    const int next = start + (sizes[k] + chunk - 1) / chunk * chunk;
    if (first < next) return {start, start + sizes[k], false};
    start = next;
  }
  return {start, start + b2, true};
}

// The ordered sums of `count` partials of the V elements at p, p + stride, ...; of the first `valid` alone.
template <class T, int V>
__device__ __forceinline__ Vector<T, V> sum_partials(const T* __restrict__ p, long long stride, int count, int valid) {
  Vector<T, V> sum;
#pragma unroll
  for (int j = 0; j < V; ++j) sum[j] = T(0);
  if (valid >= V) {
    int s = 0;
    for (; s + IN_FLIGHT <= count; s += IN_FLIGHT) {
      Vector<T, V> parts[IN_FLIGHT];
#pragma unroll
      for (int k = 0; k < IN_FLIGHT; ++k) parts[k] = load_vector<V>(p + (s + k) * stride);
#pragma unroll
      for (int k = 0; k < IN_FLIGHT; ++k)
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += parts[k][j];
    }
    for (; s < count; ++s) {
      const Vector<T, V> part = load_vector<V>(p + s * stride);
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] += part[j];
    }
  } else {  // the end of a parameter: what lies behind it may not have been written
#pragma unroll
    for (int j = 0; j < V; ++j)
      if (j < valid)
        for (int s = 0; s < count; ++s) sum[j] += p[s * stride + j];
  }
  return sum;
}

// trainable, hyperparameters, steps and ticket are null with Store; state1 and state2 where the rule has none.
template <class Rule>
__global__ void __launch_bounds__(REDUCE_THREADS)
    reduce_and_update(const typename Rule::Element* __restrict__ partials,
                      const typename Rule::Element* __restrict__ b2_partials,
                      const typename Rule::Element* __restrict__ loss_partials,
                      const unsigned char* __restrict__ trainable, const double* __restrict__ hyperparameters,
                      typename Rule::Element* __restrict__ w, typename Rule::Element* __restrict__ state1,
                      typename Rule::Element* __restrict__ state2, typename Rule::Element* __restrict__ loss,
                      int* steps, int* ticket, int W1, int b1, int W2, int b2, int vectors, int count, int b2_count,
                      int loss_count, long long stride, long long b2_stride, typename Rule::Element scale) {
  using T = typename Rule::Element;
  constexpr int V = VECTOR_BYTES / sizeof(T);
  __shared__ Rule prepared;
  __shared__ T losses[REDUCE_THREADS];
  if constexpr (UPDATES<Rule>) {
    if (threadIdx.x == 0) prepared = Rule::prepare(hyperparameters, *steps + 1);
    __syncthreads();  // every thread takes a copy of what thread 0 prepared
  }
  const Rule rule = prepared;

  for (int i = blockIdx.x * REDUCE_THREADS + threadIdx.x; i < vectors; i += gridDim.x * REDUCE_THREADS) {
    if constexpr (UPDATES<Rule>)
      if (!trainable[i / CHUNK_VECTORS]) continue;
    const int first = V * i;
    const Segment segment = segment_of(first, W1, b1, W2, b2, CHUNK_BYTES / sizeof(T));
    const int valid = segment.end - first;
    if (UPDATES<Rule> && valid <= 0) continue;  // padding stays zero
    const Vector<T, V> gradient =
        segment.last ? sum_partials<T, V>(b2_partials + (first - segment.start), b2_stride, b2_count, valid)
                     : sum_partials<T, V>(partials + first, stride, count, valid);
    Vector<T, V> weight, s1, s2;
    if constexpr (UPDATES<Rule>) weight = load_vector<V>(w + first);
    if constexpr (Rule::STATES > 0) s1 = load_vector<V>(state1 + first);
    if constexpr (Rule::STATES > 1) s2 = load_vector<V>(state2 + first);
#pragma unroll
    for (int j = 0; j < V; ++j) rule.apply(weight[j], gradient[j], s1[j], s2[j]);
    store_vector<V>(w + first, weight);
    if constexpr (Rule::STATES > 0) store_vector<V>(state1 + first, s1);
    if constexpr (Rule::STATES > 1) store_vector<V>(state2 + first, s2);
  }

  if (blockIdx.x == 0) {  // the same in every thread of the block
    T sum = T(0);         // written out, not sum_in_order: by that, ptxas spills on sm_100
    for (int begin = 0; begin < loss_count; begin += REDUCE_THREADS) {
      const int s = begin + threadIdx.x;
      if (s < loss_count) losses[threadIdx.x] = loss_partials[s];
      __syncthreads();  // thread 0 reads what every thread loaded
      if (threadIdx.x == 0)
        for (int k = 0; k < REDUCE_THREADS && begin + k < loss_count; ++k) sum += losses[k];
      __syncthreads();  // thread 0 is done with them before the next ones come
    }
    if (threadIdx.x == 0) *loss = scale * sum;
  }
  // Every block has read *steps before it takes its number, so that the last one may change it.
  if constexpr (UPDATES<Rule>)
    if (last_block(ticket, gridDim.x) && threadIdx.x == 0) *steps += 1;
}
