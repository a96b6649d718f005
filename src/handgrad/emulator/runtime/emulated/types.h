// CUDA's qualifiers, vector types and the few type traits that the other headers need.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __managed__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
// Static shared memory is thread-local: the thread-local segment of a kernel's library then holds nothing
// else, so its size is the kernel's static shared memory, and it can be filled with NaN before each block.
#ifdef EMULATED_STATIC_SHARED  // AddressSanitizer guards ordinary variables alone
#define __shared__ static
#else
#define __shared__ thread_local
#endif

namespace emulated {

template <typename A, typename B>
inline constexpr bool same = false;
template <typename A>
inline constexpr bool same<A, A> = true;

template <typename T>
struct Identity {
    using type = T;
};
// A parameter of this type converts to T and takes no part in deducing it.
template <typename T>
using undeduced = typename Identity<T>::type;

template <bool condition, typename A, typename B>
struct Conditional {
    using type = A;
};
template <typename A, typename B>
struct Conditional<false, A, B> {
    using type = B;
};
template <bool condition, typename A, typename B>
using conditional = typename Conditional<condition, A, B>::type;

}  // namespace emulated

// In the counting mode, copies of a vector are calls (see counted.h).
#ifdef EMULATED_COUNTED
namespace emulated {
__attribute__((visibility("default"))) void counted_copy(void* to, const void* from, size_t bytes);
}
#define EMULATED_ARTIFICIAL __forceinline__ __attribute__((artificial))
#define EMULATED_COPIES(name)                                                                      \
    EMULATED_ARTIFICIAL name(const name& other) { emulated::counted_copy(this, &other, sizeof(name)); } \
    EMULATED_ARTIFICIAL name& operator=(const name& other) {                                           \
        emulated::counted_copy(this, &other, sizeof(name));                                        \
        return *this;                                                                              \
    }
#define EMULATED_COUNTED_PAIR(T, name) \
    name() = default;                  \
    constexpr name(T x, T y = {}) : x(x), y(y) {} EMULATED_COPIES(name)
#define EMULATED_COUNTED_QUAD(T, name) \
    name() = default;                  \
    constexpr name(T x, T y = {}, T z = {}, T w = {}) : x(x), y(y), z(z), w(w) {} EMULATED_COPIES(name)
#else
#define EMULATED_COUNTED_PAIR(T, name)
#define EMULATED_COUNTED_QUAD(T, name)
#endif

// Alignments as in CUDA's vector_types.h: 2- and 4-vectors are aligned to their size, at most 16 bytes.
#define EMULATED_VECTOR_TYPE(T, name, align2, align4)                                             \
    struct name##1 { T x; };                                                                      \
    struct __attribute__((aligned(align2))) name##2 { T x, y; EMULATED_COUNTED_PAIR(T, name##2) }; \
    struct name##3 { T x, y, z; };                                                                \
    struct __attribute__((aligned(align4))) name##4 { T x, y, z, w; EMULATED_COUNTED_QUAD(T, name##4) }; \
    inline constexpr name##1 make_##name##1(T x) { return {x}; }                                  \
    inline constexpr name##2 make_##name##2(T x, T y) { return {x, y}; }                          \
    inline constexpr name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                  \
    inline constexpr name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTOR_TYPE(signed char, char, 2, 4)
EMULATED_VECTOR_TYPE(unsigned char, uchar, 2, 4)
EMULATED_VECTOR_TYPE(short, short, 4, 8)
EMULATED_VECTOR_TYPE(unsigned short, ushort, 4, 8)
EMULATED_VECTOR_TYPE(int, int, 8, 16)
EMULATED_VECTOR_TYPE(unsigned, uint, 8, 16)
EMULATED_VECTOR_TYPE(long long, longlong, 16, 16)
EMULATED_VECTOR_TYPE(unsigned long long, ulonglong, 16, 16)
EMULATED_VECTOR_TYPE(float, float, 8, 16)
EMULATED_VECTOR_TYPE(double, double, 16, 16)
#undef EMULATED_VECTOR_TYPE

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
