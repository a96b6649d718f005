// Optimizer step over the flat parameter buffer, in one launch; in two with clipping by the norm.
//
//   1. gradient_squares     partials[b] = sum of g^2 over the vectors of block b       (only for clipping)
//   2. optimizer_update     c = min(1, max_norm / (sqrt(sum of partials) + 1e-6));  g <- c g;  then the rule
//
// The rules, Sgd, Momentum and Adam: optimizer_rules.cuh.
//
// Layout: w, g and the state are flat buffers of whole 256-byte chunks, their padding zero, so that every access
// is a vector of 16 bytes and there is no tail.  trainable holds a flag a chunk: where it is 0 nothing is read
// for the norm and nothing is written.  lr and the number of steps live in device memory, so that a captured
// launch goes on counting.
//
// Map: thread i of the grid takes the vectors i, i + threads, ...  Deterministic: elements do not meet; the
// partials are as many as the size of the buffer says, and every block adds them in the same order; the ticket
// that tells the last block to count the step is an integer.
#include "optimizer_rules.cuh"

constexpr int OPTIMIZER_THREADS = 256;  // also the largest number of partials: a block takes one a thread
constexpr double NORM_EPSILON = 1e-6;   // as in torch.nn.utils.clip_grad_norm_

template <class T>
__global__ void __launch_bounds__(OPTIMIZER_THREADS)
    gradient_squares(const T* __restrict__ g, const unsigned char* __restrict__ trainable,
                     double* __restrict__ partials, int vectors) {
  constexpr int V = VECTOR_BYTES / sizeof(T);
  __shared__ double scratch[OPTIMIZER_THREADS / WARP];
  double squares = 0;
  for (int i = blockIdx.x * OPTIMIZER_THREADS + threadIdx.x; i < vectors; i += gridDim.x * OPTIMIZER_THREADS) {
    if (!trainable[i / CHUNK_VECTORS]) continue;
    const Vector<T, V> gradient = load_vector<V>(g + static_cast<long long>(V) * i);
#pragma unroll
    for (int j = 0; j < V; ++j) squares += static_cast<double>(gradient[j]) * static_cast<double>(gradient[j]);
  }
  squares = block_sum<OPTIMIZER_THREADS>(squares, scratch);
  if (threadIdx.x == 0) partials[blockIdx.x] = squares;
}

// state1 and state2 are null where the rule has none; partial_count is 0 where nothing is clipped.
template <class Rule>
__global__ void __launch_bounds__(OPTIMIZER_THREADS)
    optimizer_update(const typename Rule::Element* __restrict__ g, const unsigned char* __restrict__ trainable,
                     const double* __restrict__ hyperparameters, const double* __restrict__ partials,
                     typename Rule::Element* __restrict__ w, typename Rule::Element* __restrict__ state1,
                     typename Rule::Element* __restrict__ state2, int* steps, int* ticket, int vectors,
                     int partial_count, double max_norm) {
  using T = typename Rule::Element;
  constexpr int V = VECTOR_BYTES / sizeof(T);
  __shared__ double scratch[OPTIMIZER_THREADS / WARP];
  __shared__ Rule prepared;
  __shared__ T prepared_scale;

  double squares = 0;
  if (partial_count > 0) {  // the same in every thread of the grid
    squares = static_cast<int>(threadIdx.x) < partial_count ? partials[threadIdx.x] : 0.0;
    squares = block_sum<OPTIMIZER_THREADS>(squares, scratch);
  }
  if (threadIdx.x == 0) {
    prepared = Rule::prepare(hyperparameters, *steps + 1);
    const double clip = max_norm / (sqrt(squares) + NORM_EPSILON);
    prepared_scale = static_cast<T>(partial_count == 0 || clip > 1 ? 1.0 : clip);  // a NaN is not hidden
  }
  __syncthreads();  // every thread takes a copy of what thread 0 prepared
  const Rule rule = prepared;
  const T scale = prepared_scale;

  for (int i = blockIdx.x * OPTIMIZER_THREADS + threadIdx.x; i < vectors; i += gridDim.x * OPTIMIZER_THREADS) {
    if (!trainable[i / CHUNK_VECTORS]) continue;
    const long long first = static_cast<long long>(V) * i;
    const Vector<T, V> gradient = load_vector<V>(g + first);
    Vector<T, V> weight = load_vector<V>(w + first), s1, s2;
    if constexpr (Rule::STATES > 0) s1 = load_vector<V>(state1 + first);
    if constexpr (Rule::STATES > 1) s2 = load_vector<V>(state2 + first);
#pragma unroll
    for (int j = 0; j < V; ++j) rule.apply(weight[j], scale * gradient[j], s1[j], s2[j]);
    store_vector<V>(w + first, weight);
    if constexpr (Rule::STATES > 0) store_vector<V>(state1 + first, s1);
    if constexpr (Rule::STATES > 1) store_vector<V>(state2 + first, s2);
  }
  // Every block has read *steps before it takes its number, so that the last one may change it.
  if (last_block(ticket, gridDim.x) && threadIdx.x == 0) *steps += 1;
}
