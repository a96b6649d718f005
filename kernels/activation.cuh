// The activation functions, as functors for the epilogues of other kernels.
//
// forward(z) is f(z).  backward(a, da) is da * f'(z), with f' computed from the output a = f(z), so that only A
// is kept.  Derivatives of relu select, they do not multiply: inf * 0 never becomes NaN.
#pragma once

struct Identity {
  template <class T>
  __device__ __forceinline__ static T forward(T z) {
    return z;
  }
  template <class T>
  __device__ __forceinline__ static T backward(T, T da) {
    return da;
  }
};

struct Relu {  // f'(0) = 0
  template <class T>
  __device__ __forceinline__ static T forward(T z) {
    return z < T(0) ? T(0) : z;
  }
  template <class T>
  __device__ __forceinline__ static T backward(T a, T da) {
    return a > T(0) ? da : T(0);
  }
};

struct Sigmoid {
  template <class T>
  __device__ __forceinline__ static T forward(T z) {
    return T(1) / (T(1) + exp(-z));
  }
  template <class T>
  __device__ __forceinline__ static T backward(T a, T da) {
    return da * (a * (T(1) - a));
  }
};

struct Tanh {
  template <class T>
  __device__ __forceinline__ static T forward(T z) {
    return tanh(z);
  }
  template <class T>
  __device__ __forceinline__ static T backward(T a, T da) {
    return da * ((T(1) - a) * (T(1) + a));
  }
};

struct Softplus {  // log(1 + e^z), without overflow
  template <class T>
  __device__ __forceinline__ static T forward(T z) {
    return (z > T(0) ? z : T(0)) + log1p(exp(-fabs(z)));
  }
  template <class T>
  __device__ __forceinline__ static T backward(T a, T da) {
    return da * -expm1(-a);
  }
};
