// Slabs of a matrix product's operands on their way to shared memory: BK steps of k of a tile's rows or columns.
//
// A source brings slab number n (k from k0 + n BK on) in two parts, so that the product of another slab lies between:
// fetch(n, to) begins, finish(n, to) ends.  Elements outside the matrix are 0.  Three sources:
//
//   CopiedSlab   asynchronous copies, 16 bytes at a time where V = 16 / sizeof(T), else element by element
//   ScaledSlab   uint8 through registers: element * scale + shift
//   and what a kernel computes itself (two_layer_general.cuh)
//
// In shared memory a slab lies as in global memory, along k (K_CONTIGUOUS) or along the tile's side i, without
// padding: the product's `place` swaps groups of neighbours, so that its reads and these writes never meet in a bank.
#pragma once
#include "common.cuh"
#include "intrinsics.cuh"

// Groups of 16 bytes change places in rows of BK elements: the eight groups that are read together, of neighbouring
// rows, then lie in different banks.
template <class T, int BK>
__device__ __forceinline__ int swapped(int i, int k) {
  constexpr int G = VECTOR_BYTES / int(sizeof(T)), GROUPS = BK / G;
  constexpr int AROUND = GROUPS < 8 ? 8 / GROUPS : 1;  // rows that fill all banks
  static_assert(BK % G == 0 && (GROUPS & (GROUPS - 1)) == 0, "a power of two of groups");
  return i * BK + ((k / G ^ i / AROUND % GROUPS) * G | k % G);
}

// One vector of a slab: element (i, k) of a tile, and where it lies in global memory.
template <int LENGTH, int BK, int V, bool K_CONTIGUOUS, int THREADS>
struct SlabMap {
  static constexpr int LINE = (K_CONTIGUOUS ? BK : LENGTH) / V;  // vectors of neighbouring elements
  static constexpr int LINES = K_CONTIGUOUS ? LENGTH : BK;
  static constexpr int SHARE = (LINE * LINES + THREADS - 1) / THREADS;
  static_assert((K_CONTIGUOUS ? BK : LENGTH) % V == 0, "whole vectors");

  int i, k;

  // Vector s of this thread; false where it lies past the slab.
  __device__ __forceinline__ bool locate(int s) {
    const int v = threadIdx.x + s * THREADS;
    i = K_CONTIGUOUS ? v / LINE : v % LINE * V;
    k = K_CONTIGUOUS ? v % LINE * V : v / LINE;
    return LINE * LINES % THREADS == 0 || v < LINE * LINES;
  }
};

// P has BK, THREADS and place<K_CONTIGUOUS, LENGTH>(i, k); for accumulate also BM, BN, multiply, EXCHANGED and combine.
template <class T, class P, int LENGTH, int V, bool K_CONTIGUOUS>
struct CopiedSlab {
  static constexpr bool PRIMED = false;
  using Map = SlabMap<LENGTH, P::BK, V, K_CONTIGUOUS, P::THREADS>;

  const T* p;
  int ld, i0, i_end, k0, k_end;

  __device__ __forceinline__ void prime() {}

  __device__ __forceinline__ void fetch(int n, T* to) {
    constexpr int AT_A_TIME = V == 1 ? 4 : Map::SHARE;  // the addresses of single elements take many registers
#pragma unroll AT_A_TIME
    for (int s = 0; s < Map::SHARE; ++s) {
      Map at;
      if (!at.locate(s)) continue;
      const int i = i0 + at.i, k = k0 + n * P::BK + at.k;
      const bool inside = i < i_end && k < k_end;
      const T* from = inside ? p + (K_CONTIGUOUS ? static_cast<long long>(i) * ld + k
                                                 : static_cast<long long>(k) * ld + i)
                             : p;
      T* const target = to + P::template place<K_CONTIGUOUS, LENGTH>(at.i, at.k);
      if constexpr (V * sizeof(T) == COPY_BYTES)
        copy_async(target, from, inside ? COPY_BYTES : 0);
      else
        copy_element_async(target, from, inside);
    }
  }

  __device__ __forceinline__ void finish(int, T*) {}
};

template <class T, class P, int LENGTH, int V, bool K_CONTIGUOUS>
struct ScaledSlab {
  static constexpr bool PRIMED = false;
  static constexpr int G = V * int(sizeof(T)) > VECTOR_BYTES ? VECTOR_BYTES / int(sizeof(T)) : V;  // of one store
  using Map = SlabMap<LENGTH, P::BK, V, K_CONTIGUOUS, P::THREADS>;

  const unsigned char* __restrict__ p;
  int ld, i0, i_end, k0, k_end;
  T scale, shift;
  Vector<unsigned char, V> staged[Map::SHARE];

  __device__ __forceinline__ void prime() {}

  __device__ __forceinline__ bool inside(const Map& at, int n) const {
    return i0 + at.i < i_end && k0 + n * P::BK + at.k < k_end;
  }

  __device__ __forceinline__ void fetch(int n, T*) {
#pragma unroll
    for (int s = 0; s < Map::SHARE; ++s) {
      Map at;
      if (!at.locate(s) || !inside(at, n)) continue;
      const long long i = i0 + at.i, k = k0 + n * P::BK + at.k;
      staged[s] = load_vector<V>(p + (K_CONTIGUOUS ? i * ld + k : k * ld + i));
    }
  }

  __device__ __forceinline__ void finish(int n, T* to) {
#pragma unroll
    for (int s = 0; s < Map::SHARE; ++s) {
      Map at;
      if (!at.locate(s)) continue;
      const bool within = inside(at, n);
#pragma unroll
      for (int first = 0; first < V; first += G) {
        Vector<T, G> values;
#pragma unroll
        for (int j = 0; j < G; ++j) values[j] = within ? static_cast<T>(staged[s][first + j]) * scale + shift : T(0);
        store_vector<G>(to + P::template place<K_CONTIGUOUS, LENGTH>(at.i + (K_CONTIGUOUS ? 0 : first),
                                                                     at.k + (K_CONTIGUOUS ? first : 0)),
                        values);
      }
    }
  }
};

// What a block has of static shared memory, as slabs of A and B in a ring.
constexpr int STATIC_SHARED = 48 * 1024;
constexpr int MOST_STAGES = 4;

// Slabs in flight and in use that fit beside OTHER bytes.
template <class T, class P, int OTHER = 0>
constexpr int STAGES = (STATIC_SHARED - OTHER) / ((P::BM + P::BN) * P::BK * int(sizeof(T))) < MOST_STAGES
                           ? (STATIC_SHARED - OTHER) / ((P::BM + P::BN) * P::BK * int(sizeof(T)))
                           : MOST_STAGES;

// Elements of a ring of slabs, beside OTHER bytes.
template <class T, class P, int OTHER = 0>
constexpr int RING_SIZE = STAGES<T, P, OTHER> * (P::BM + P::BN) * P::BK;

// product += A B over k of the sources' k0 .. k_end: `slabs` slabs.  COUNT - 1 of them are under way while one is
// multiplied; one barrier a slab; slices of k are combined at the end.  on_slab(Bs) sees each slab of B after its
// product.  ring: COUNT slabs of A and then of B, free again at the end.
template <int COUNT, class T, class P, class A, class B, class OnSlab>
__device__ __forceinline__ void accumulate(P& product, A& a, B& b, T* ring, int slabs, const OnSlab& on_slab) {
  static_assert(COUNT >= 2, "one slab is multiplied while the next one comes");
  constexpr int SIZE_A = P::BM * P::BK, SIZE_B = P::BN * P::BK;
  constexpr bool PRIMED = A::PRIMED || B::PRIMED;
  T* const As = ring;
  T* const Bs = ring + COUNT * SIZE_A;
  a.prime();
  b.prime();
  if constexpr (PRIMED) __syncthreads();  // what a source needs for slab 0 is there
#pragma unroll 1
  for (int n = 0; n < COUNT - 1; ++n) {
    if (n < slabs) {
      a.fetch(n, As + n * SIZE_A);
      b.fetch(n, Bs + n * SIZE_B);
      a.finish(n, As + n * SIZE_A);
      b.finish(n, Bs + n * SIZE_B);
    }
    commit_copies();
    if constexpr (PRIMED) __syncthreads();  // what a source needs for slab n + 1 is there
  }
  int now = 0, next = COUNT - 1;  // places in the ring
#pragma unroll 1
  for (int t = 0; t < slabs; ++t) {
    wait_copies<COUNT - 2>();
    __syncthreads();  // slab t is whole; every thread is done with slab t - 1, whose place is taken next
    const bool more = t + COUNT - 1 < slabs;
    if (more) {
      a.fetch(t + COUNT - 1, As + next * SIZE_A);
      b.fetch(t + COUNT - 1, Bs + next * SIZE_B);
    }
    commit_copies();
    product.multiply(As + now * SIZE_A, Bs + now * SIZE_B);
    on_slab(Bs + now * SIZE_B);
    if (more) {
      a.finish(t + COUNT - 1, As + next * SIZE_A);
      b.finish(t + COUNT - 1, Bs + next * SIZE_B);
    }
    now = now + 1 == COUNT ? 0 : now + 1;
    next = next + 1 == COUNT ? 0 : next + 1;
  }
  __syncthreads();  // every thread is done with the slabs: their memory may be used for other things
  static_assert(P::EXCHANGED <= COUNT * (SIZE_A + SIZE_B), "what slices of k exchange fits where the slabs were");
  product.combine(ring);
}

template <class T>
struct Nothing {
  __device__ __forceinline__ void operator()(const T*) const {}
};
