// What every kernel shares: 16-byte loads and stores, fixed-order reductions, the last-block ticket.
//
// Everything here is deterministic: a reduction adds its values in one order, fixed by the number of threads,
// whatever the schedule.  There is no floating-point atomic; the ticket is an integer.
#pragma once

#ifndef HANDGRAD_EMULATED
// Declared once, at file scope: block-scope declarations in several kernels draw a warning.
extern __shared__ __align__(16) unsigned char dynamic_shared[];
#define DYN_SHARED(T, name) T* name = reinterpret_cast<T*>(dynamic_shared)
#endif

constexpr int WARP = 32;
constexpr unsigned FULL_WARP = 0xffffffffu;
constexpr int VECTOR_BYTES = 16;  // the widest load and store of one thread

// V elements that are loaded and stored as one.
template <class T, int V>
struct alignas(sizeof(T) * V) Vector {
  static_assert(sizeof(T) * V <= VECTOR_BYTES, "one access moves at most 16 bytes");
  T element[V];
  __device__ __forceinline__ T& operator[](int i) { return element[inside(i)]; }
  __device__ __forceinline__ const T& operator[](int i) const { return element[inside(i)]; }
  // i, which the emulator's search for memory faults compares with V: past the end nothing is defined.
  __device__ __forceinline__ static int inside(int i) {
#ifdef HANDGRAD_EMULATED
    emulated::require_index(i, V);
#endif
    return i;
  }
};

// The one wrapper of all vector access.  `p` is aligned to V elements; the emulator checks that it is.
#ifdef HANDGRAD_EMULATED
template <int V, class T>
__device__ __forceinline__ Vector<T, V> load_vector(const T* p, const char* file = __builtin_FILE(),
                                                    int line = __builtin_LINE()) {
  emulated::require_aligned(p, sizeof(Vector<T, V>), file, line);
  return emulated::load_whole(reinterpret_cast<const Vector<T, V>*>(p), {file, line});
}
template <int V, class T>
__device__ __forceinline__ void store_vector(T* p, const Vector<T, V>& v, const char* file = __builtin_FILE(),
                                             int line = __builtin_LINE()) {
  emulated::require_aligned(p, sizeof(Vector<T, V>), file, line);
  emulated::store_whole(reinterpret_cast<Vector<T, V>*>(p), v, {file, line});
}
#else
template <int V, class T>
__device__ __forceinline__ Vector<T, V> load_vector(const T* p) {
  return *reinterpret_cast<const Vector<T, V>*>(p);
}
template <int V, class T>
__device__ __forceinline__ void store_vector(T* p, const Vector<T, V>& v) {
  *reinterpret_cast<Vector<T, V>*>(p) = v;
}
#endif

struct Sum {
  template <class T>
  __device__ __forceinline__ static T combine(T a, T b) {
    return a + b;
  }
};

struct Maximum {  // a NaN wins, as in NumPy's maximum
  template <class T>
  __device__ __forceinline__ static T combine(T a, T b) {
    return a > b || a != a ? a : b;
  }
};

// Every one of LANES neighbouring lanes (a power of two) gets the combination of all their values.
template <class Op, int LANES, class T>
__device__ __forceinline__ T combine_lanes(T value) {
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2)
    value = Op::combine(value, __shfl_xor_sync(FULL_WARP, value, offset));
  return value;
}

// The sum over a block of THREADS threads, valid in thread 0.  `scratch` holds THREADS / 32 values.
template <int THREADS, class T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
  static_assert(THREADS % WARP == 0, "whole warps");
  value = combine_lanes<Sum, WARP>(value);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  if (lane == 0) scratch[warp] = value;
  __syncthreads();  // thread 0 reads the sum of every warp
  if (threadIdx.x == 0)
    for (int w = 1; w < THREADS / WARP; ++w) value += scratch[w];
  return value;
}

// The sum of values[0] .. values[count - 1], added one after another by thread 0, where it is valid; the block loads
// THREADS of them at a time.  `scratch` holds THREADS values.  Every thread of the block calls it.
template <int THREADS, class T>
__device__ __forceinline__ T sum_in_order(const T* __restrict__ values, int count, T* scratch) {
  T sum = T(0);
  for (int begin = 0; begin < count; begin += THREADS) {
    const int i = begin + threadIdx.x;
    if (i < count) scratch[threadIdx.x] = values[i];
    __syncthreads();  // thread 0 reads what every thread loaded
    if (threadIdx.x == 0)
      for (int k = 0; k < THREADS && begin + k < count; ++k) sum += scratch[k];
    __syncthreads();  // thread 0 is done with them before the next ones come
  }
  return sum;
}

// True in every thread of the block that is the last of `blocks` to come here; what the others wrote before is
// then visible to it.  The ticket is left at 0 for the next launch.
__device__ __forceinline__ bool last_block(int* ticket, int blocks) {
  __shared__ int arrived;
  __syncthreads();  // every thread of the block has written
  if (threadIdx.x == 0) {
    __threadfence();  // the block's writes become visible before it counts as arrived
    arrived = atomicAdd(ticket, 1);
    __threadfence();  // reads after this see what the other blocks wrote before their fence
    if (arrived == blocks - 1) *ticket = 0;
  }
  __syncthreads();  // the block learns its number
  return arrived == blocks - 1;
}
