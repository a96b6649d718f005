// Optimizer step over the flat parameter buffer, in one launch; in two with clipping by the norm.
//
//   1. gradient_squares     partials[b] = sum of g^2 over the vectors of block b       (only for clipping)
//   2. optimizer_update     c = min(1, max_norm / (sqrt(sum of partials) + 1e-6));  g <- c g;  then the rule:
//        Sgd                g <- g + L2 w;  w <- w - lr g
//        Momentum           g <- g + L2 w;  u <- mu u + g;  w <- w - lr (nesterov ? g + mu u : u)
//        Adam               g <- g + L2 w;  w <- (1 - lr decoupled) w
//                           m <- m + (1 - beta1)(g - m);  v <- beta2 v + (1 - beta2) g^2
//                           w <- w - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//
// Layout: w, g and the state are flat buffers of whole 256-byte chunks, their padding zero, so that every access
// is a vector of 16 bytes and there is no tail.  trainable holds a flag a chunk: where it is 0 nothing is read
// for the norm and nothing is written.  lr and the number of steps live in device memory, so that a captured
// launch goes on counting.
//
// Map: thread i of the grid takes the vectors i, i + threads, ...  Deterministic: elements do not meet; the
// partials are as many as the size of the buffer says, and every block adds them in the same order; the ticket
// that tells the last block to count the step is an integer.
#include "common.cuh"

constexpr int OPTIMIZER_THREADS = 256;  // also the largest number of partials: a block takes one a thread
constexpr int CHUNK_BYTES = 256;        // what one trainable flag stands for
constexpr int CHUNK_VECTORS = CHUNK_BYTES / VECTOR_BYTES;
constexpr double NORM_EPSILON = 1e-6;   // as in torch.nn.utils.clip_grad_norm_

// Places in the array of hyperparameters (float64), as ops/optimizer.py writes it.
constexpr int LR = 0, MOMENTUM = 1, BETA1 = 1, NESTEROV = 2, BETA2 = 2, EPSILON = 3, L2 = 4, DECOUPLED = 5;

// A rule is prepared in float64 by one thread a block for step t = 1, 2, ... and then applied in T.
template <class T>
struct Sgd {
  using Element = T;
  static constexpr int STATES = 0;
  T lr, l2;

  __device__ static Sgd prepare(const double* h, int) {
    return {static_cast<T>(h[LR]), static_cast<T>(h[L2])};
  }
  __device__ __forceinline__ void apply(T& w, T g, T&, T&) const {
    if (l2 != T(0)) g += l2 * w;
    w -= lr * g;
  }
};

template <class T>
struct Momentum {
  using Element = T;
  static constexpr int STATES = 1;
  T lr, l2, mu;
  bool nesterov;

  __device__ static Momentum prepare(const double* h, int) {
    return {static_cast<T>(h[LR]), static_cast<T>(h[L2]), static_cast<T>(h[MOMENTUM]), h[NESTEROV] != 0};
  }
  __device__ __forceinline__ void apply(T& w, T g, T& u, T&) const {
    if (l2 != T(0)) g += l2 * w;
    u = mu * u + g;
    w -= lr * (nesterov ? g + mu * u : u);
  }
};

template <class T>
struct Adam {
  using Element = T;
  static constexpr int STATES = 2;
  T step_size, l2, keep, towards_g, beta2, towards_g2, root, epsilon;

  __device__ static Adam prepare(const double* h, int t) {
    // 1 - beta^t without cancellation; beta = 0 gives 1
    const double correction1 = -expm1(t * log(h[BETA1])), correction2 = -expm1(t * log(h[BETA2]));
    return {static_cast<T>(h[LR] / correction1), static_cast<T>(h[L2]),
            static_cast<T>(1 - h[LR] * h[DECOUPLED]), static_cast<T>(1 - h[BETA1]),
            static_cast<T>(h[BETA2]), static_cast<T>(1 - h[BETA2]),
            static_cast<T>(sqrt(correction2)), static_cast<T>(h[EPSILON])};
  }
  __device__ __forceinline__ void apply(T& w, T g, T& m, T& v) const {
    if (l2 != T(0)) g += l2 * w;
    w *= keep;
    m += towards_g * (g - m);
    v = beta2 * v + towards_g2 * (g * g);
    w -= step_size * (m / (sqrt(v) / root + epsilon));
  }
};

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
