// Loss and its gradient with respect to the logits, in one pass.  z: (N, C); dZ2: (N, C); loss: one element.
//
//   mse            sum (g(z) - y)^2,  dz = 2 (g(z) - y) g'(z)                    y: (N, C), g an activation
//   bce            sum max(z, 0) - z y + log(1 + e^-|z|),  dz = sigmoid(z) - y   y: (N, C)
//   cross_entropy  sum_n log sum_j e^(z_j) - z_label,  dz = softmax(z) - 1_label         labels: (N,) int
//   hinge          sum_n sum_(j != label) max(0, z_j - z_label + 1)                      labels: (N,) int
//
// each times `scale`: 1 for the sum, 1 / (N C) or 1 / N for the mean.  Exponents are of numbers <= 0, so that
// logits of +-1e4 neither overflow nor lose the gradient.
//
// Map: elementwise losses, thread t takes elements t, t + threads, ...; losses of a row, LANES neighbouring lanes
// share a row.  Every block leaves one partial sum; the last block to arrive (an integer ticket) adds them in
// rising order.  The grid depends on the shape alone: the same bits on every run, on any GPU of an architecture.
#include "loss.cuh"

constexpr int LOSS_THREADS = 256;

// Adds the partial sums of all blocks, in order, and writes loss = scale * sum.
template <class T>
__device__ __forceinline__ void finish_loss(T sum, T* loss, T* partials, int* ticket, T scale) {
  __shared__ T scratch[LOSS_THREADS / WARP];
  sum = block_sum<LOSS_THREADS>(sum, scratch);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
  if (last_block(ticket, gridDim.x)) {
    volatile T* written = partials;  // by other blocks of this launch: never from a stale cache
    T total = T(0);
    for (unsigned b = threadIdx.x; b < gridDim.x; b += LOSS_THREADS) total += written[b];
    total = block_sum<LOSS_THREADS>(total, scratch);
    if (threadIdx.x == 0) *loss = total * scale;
  }
}

template <class T, class L>
__global__ void __launch_bounds__(LOSS_THREADS)
    loss_elementwise(const T* __restrict__ z, const T* __restrict__ y, T* __restrict__ dz, T* loss, T* partials,
                     int* ticket, int n, T scale) {
  T sum = T(0);
  const int threads = gridDim.x * LOSS_THREADS;
  for (int i = blockIdx.x * LOSS_THREADS + threadIdx.x; i < n; i += threads) {
    T gradient;
    sum += L::loss(z[i], y[i], scale, gradient);
    dz[i] = gradient;
  }
  finish_loss(sum, loss, partials, ticket, scale);
}

// A label outside 0 .. C-1 gives its row, and so the loss, NaN: nothing is read out of bounds.
template <class T, class L, int LANES>
__global__ void __launch_bounds__(LOSS_THREADS, sizeof(T) == 4 ? 4 : 3)  // left alone, ptxas spills to have more
    loss_rows(const T* __restrict__ z, const int* __restrict__ labels, T* __restrict__ dz, T* loss, T* partials,
              int* ticket, int N, int C, T scale) {
  constexpr int ROWS = LOSS_THREADS / LANES;  // rows that a block takes at a time
  const int lane = threadIdx.x % LANES;
  T sum = T(0);
  for (int first = blockIdx.x * ROWS; first < N; first += gridDim.x * ROWS) {
    const int n = first + threadIdx.x / LANES;
    const bool inside = n < N;  // lanes past the end go through the last row without writing: shuffles need all
    const int row = inside ? n : N - 1;
    const long long at = static_cast<long long>(row) * C;
    const bool known = 0 <= labels[row] && labels[row] < C;
    const int label = known ? labels[row] : 0;
    const Logits<LANES, T> logits(z + at, C, lane);
    T value = L::template row<LANES>(logits, label, dz + at, C, lane, scale, inside && known);
    if (!known) {
      value = static_cast<T>(__int_as_float(0x7fc00000));
      for (int j = lane; j < C && inside; j += LANES) dz[at + j] = value;
    }
    if (inside && lane == 0) sum += value;
  }
  finish_loss(sum, loss, partials, ticket, scale);
}
