// The losses and their gradients with respect to the logits, as functors for kernels that have the logits.
//
//   mse, bce               Loss::loss(z, y, scale, dz)            of one element
//   cross_entropy, hinge   Loss::row<LANES>(logits, label, ...)   of a row of C logits that LANES lanes share
//
// The formulas are those of loss.cu.  Each gives the loss without `scale`, and the gradient with it.
#pragma once
#include "activation.cuh"
#include "common.cuh"

template <class G>
struct MeanSquaredError {
  static constexpr bool OF_ROWS = false;
  template <class T>
  using Target = T;  // an element of y
  template <class T>
  __device__ __forceinline__ static T loss(T z, T y, T scale, T& dz) {
    const T output = G::forward(z), residual = output - y;
    dz = G::backward(output, T(2) * residual * scale);
    return residual * residual;
  }
};

struct BinaryCrossEntropy {
  static constexpr bool OF_ROWS = false;
  template <class T>
  using Target = T;
  template <class T>
  __device__ __forceinline__ static T loss(T z, T y, T scale, T& dz) {
    dz = (Sigmoid::forward(z) - y) * scale;
    return (z > T(0) ? z : T(0)) - z * y + log1p(exp(-fabs(z)));
  }
};

// A row's logits as its lanes hold them: those up to LANES stay in registers, since each is needed several times.
template <int LANES, class T>
struct Logits {
  const T* __restrict__ z;
  T first;  // z[lane]; of lanes past the row, z[0]

  __device__ __forceinline__ Logits(const T* __restrict__ z, int C, int lane) : z(z), first(z[lane < C ? lane : 0]) {}
  // z[j] for j = lane, lane + LANES, ...
  __device__ __forceinline__ T operator[](int j) const { return j < LANES ? first : z[j]; }
  // z[label], in all lanes; every lane of the warp has to come here.
  __device__ __forceinline__ T at(int label) const {
    const T held = __shfl_sync(FULL_WARP, first, label % LANES, LANES);
    return label < LANES ? held : z[label];
  }
};

struct CrossEntropy {
  static constexpr bool OF_ROWS = true;
  template <class T>
  using Target = int;  // the label of a row
  template <int LANES, class T>
  __device__ __forceinline__ static T row(const Logits<LANES, T>& z, int label, T* __restrict__ dz, int C, int lane,
                                          T scale, bool writes) {
    T largest = z.first;
    for (int j = lane + LANES; j < C; j += LANES) largest = Maximum::combine(largest, z[j]);
    largest = combine_lanes<Maximum, LANES>(largest);
    T denominator = T(0);
    for (int j = lane; j < C; j += LANES) denominator += exp(z[j] - largest);
    denominator = combine_lanes<Sum, LANES>(denominator);
    for (int j = lane; j < C && writes; j += LANES) {
      const T probability = exp(z[j] - largest) / denominator;
      dz[j] = (j == label ? probability - T(1) : probability) * scale;
    }
    return log(denominator) + (largest - z.at(label));
  }
};

struct Hinge {
  static constexpr bool OF_ROWS = true;
  template <class T>
  using Target = int;
  template <class T>
  __device__ __forceinline__ static bool violates(T margin, int j, int label) {
    return j != label && !(margin <= T(0));  // a NaN margin counts, and makes the loss NaN
  }
  template <int LANES, class T>
  __device__ __forceinline__ static T row(const Logits<LANES, T>& z, int label, T* __restrict__ dz, int C, int lane,
                                          T scale, bool writes) {
    const T right = z.at(label);
    T sum = T(0), violations = T(0);
    for (int j = lane; j < C; j += LANES) {
      const T margin = z[j] - right + T(1);
      if (!violates(margin, j, label)) continue;
      sum += margin;
      violations += T(1);
    }
    violations = combine_lanes<Sum, LANES>(violations);
    for (int j = lane; j < C && writes; j += LANES) {
      const T one = violates(z[j] - right + T(1), j, label) ? scale : T(0);
      dz[j] = j == label ? -violations * scale : one;
    }
    return combine_lanes<Sum, LANES>(sum);
  }
};
