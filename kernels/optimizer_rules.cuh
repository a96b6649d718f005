// The optimizers' rules, element by element, as optimizer_update and the fused training steps apply them.
//
//   Sgd                g <- g + L2 w;  w <- w - lr g
//   Momentum           g <- g + L2 w;  u <- mu u + g;  w <- w - lr (nesterov ? g + mu u : u)
//   Adam               g <- g + L2 w;  w <- (1 - lr decoupled) w
//                      m <- m + (1 - beta1)(g - m);  v <- beta2 v + (1 - beta2) g^2
//                      w <- w - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//   Store              w <- g: no rule, w being the buffer of the gradient
//
// Parameters, gradients and state are flat buffers of whole 256-byte chunks; a trainable flag stands for each.
#pragma once

#include "common.cuh"

constexpr int CHUNK_BYTES = 256;        // what one trainable flag stands for
constexpr int CHUNK_VECTORS = CHUNK_BYTES / VECTOR_BYTES;

// Places in the array of hyperparameters (float64), as ops/optimizer.py writes it.
constexpr int LR = 0, MOMENTUM = 1, BETA1 = 1, NESTEROV = 2, BETA2 = 2, EPSILON = 3, L2 = 4, DECOUPLED = 5;

// A rule is prepared in float64 by one thread a block for step t = 1, 2, ... and then applied in T.  fma is written out:
// what is fused is then the same in every kernel that applies it, whatever the compiler makes of the code around.
template <class T>
struct Sgd {
  using Element = T;
  static constexpr int STATES = 0;
  T lr, l2;

  __device__ static Sgd prepare(const double* h, int) {
    return {static_cast<T>(h[LR]), static_cast<T>(h[L2])};
  }
  __device__ __forceinline__ void apply(T& w, T g, T&, T&) const {
    if (l2 != T(0)) g = fma(l2, w, g);
    w = fma(-lr, g, w);
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
    if (l2 != T(0)) g = fma(l2, w, g);
    u = fma(mu, u, g);
    w = fma(-lr, nesterov ? fma(mu, u, g) : u, w);
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
    if (l2 != T(0)) g = fma(l2, w, g);
    w *= keep;
    m = fma(towards_g, g - m, m);
    v = fma(beta2, v, towards_g2 * (g * g));
    w = fma(-step_size, m / (sqrt(v) / root + epsilon), w);
  }
};

// The gradient itself is wanted: it takes the place of the weight, frozen or not, and no step is counted.
template <class T>
struct Store {
  using Element = T;
  static constexpr int STATES = 0;

  __device__ static Store prepare(const double*, int) { return {}; }
  __device__ __forceinline__ void apply(T& w, T g, T&, T&) const { w = g; }
};

template <class Rule>
constexpr bool UPDATES = true;
template <class T>
constexpr bool UPDATES<Store<T>> = false;
