// CUDA's mathematical functions: overloads for float and double under the C names, the `f` functions, and
// the intrinsics, whose results here are the accurate ones.
//
// The overloads are templates, so that a source may include <cmath> beside them without ambiguity.
#pragma once
#include "memory.h"
#include "types.h"

namespace emulated {

template <typename T>
using real = conditional<same<T, float>, float, double>;  // integers are computed as double, as in CUDA
template <typename A, typename B>
using common_real = conditional<same<A, float> && same<B, float>, float, double>;

}  // namespace emulated

#define EMULATED_UNARY(name)                                                  \
    extern "C" float name##f(float) noexcept;                                 \
    extern "C" double name(double) noexcept;                                  \
    template <typename T>                                                     \
    inline emulated::real<T> name(T x) {                                      \
        if constexpr (emulated::same<T, float>) return __builtin_##name##f(x); \
        else return __builtin_##name(static_cast<double>(x));                 \
    }
EMULATED_UNARY(exp) EMULATED_UNARY(exp2) EMULATED_UNARY(expm1)
EMULATED_UNARY(log) EMULATED_UNARY(log2) EMULATED_UNARY(log10) EMULATED_UNARY(log1p)
EMULATED_UNARY(sqrt) EMULATED_UNARY(cbrt)
EMULATED_UNARY(sin) EMULATED_UNARY(cos) EMULATED_UNARY(tan)
EMULATED_UNARY(asin) EMULATED_UNARY(acos) EMULATED_UNARY(atan)
EMULATED_UNARY(sinh) EMULATED_UNARY(cosh) EMULATED_UNARY(tanh)
EMULATED_UNARY(asinh) EMULATED_UNARY(acosh) EMULATED_UNARY(atanh)
EMULATED_UNARY(erf) EMULATED_UNARY(erfc) EMULATED_UNARY(lgamma) EMULATED_UNARY(tgamma)
EMULATED_UNARY(floor) EMULATED_UNARY(ceil) EMULATED_UNARY(trunc) EMULATED_UNARY(round)
EMULATED_UNARY(rint) EMULATED_UNARY(nearbyint) EMULATED_UNARY(fabs)
#undef EMULATED_UNARY

#define EMULATED_BINARY(name)                                                             \
    extern "C" float name##f(float, float) noexcept;                                      \
    extern "C" double name(double, double) noexcept;                                      \
    template <typename A, typename B>                                                     \
    inline emulated::common_real<A, B> name(A a, B b) {                                   \
        if constexpr (emulated::same<A, float> && emulated::same<B, float>)               \
            return __builtin_##name##f(a, b);                                             \
        else return __builtin_##name(static_cast<double>(a), static_cast<double>(b));     \
    }
EMULATED_BINARY(pow) EMULATED_BINARY(fmod) EMULATED_BINARY(atan2) EMULATED_BINARY(hypot)
EMULATED_BINARY(copysign) EMULATED_BINARY(fmin) EMULATED_BINARY(fmax) EMULATED_BINARY(fdim)
#undef EMULATED_BINARY

extern "C" float fmaf(float, float, float) noexcept;
extern "C" double fma(double, double, double) noexcept;
template <typename A, typename B, typename C>
inline emulated::common_real<emulated::common_real<A, B>, C> fma(A a, B b, C c) {
    if constexpr (emulated::same<emulated::common_real<emulated::common_real<A, B>, C>, float>)
        return __builtin_fmaf(a, b, c);
    else return __builtin_fma(static_cast<double>(a), static_cast<double>(b), static_cast<double>(c));
}

extern "C" float ldexpf(float, int) noexcept;
extern "C" double ldexp(double, int) noexcept;

extern "C" inline float rsqrtf(float x) noexcept { return 1.0f / __builtin_sqrtf(x); }
template <typename T>
inline emulated::real<T> rsqrt(T x) {
    return emulated::real<T>(1) / sqrt(static_cast<emulated::real<T>>(x));
}
extern "C" inline float exp10f(float x) noexcept { return __builtin_powf(10.0f, x); }

template <typename T>
inline T abs(T x) {
    if constexpr (emulated::same<T, float>) return __builtin_fabsf(x);
    else if constexpr (emulated::same<T, double>) return __builtin_fabs(x);
    else return x < 0 ? -x : x;
}

// min and max of any two arithmetic types, of their common type; for floats they skip NaN, as fmin does.
template <typename A, typename B>
inline constexpr auto min(A a, B b) -> decltype(a + b) {  // a value: of two ints, "true ? a : b" would be a reference
    using T = decltype(a + b);
    if constexpr (emulated::same<decltype(a + b), float>) return __builtin_fminf(a, b);
    else if constexpr (emulated::same<decltype(a + b), double>) return __builtin_fmin(a, b);
    else return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <typename A, typename B>
inline constexpr auto max(A a, B b) -> decltype(a + b) {  // a value: of two ints, "true ? a : b" would be a reference
    using T = decltype(a + b);
    if constexpr (emulated::same<decltype(a + b), float>) return __builtin_fmaxf(a, b);
    else if constexpr (emulated::same<decltype(a + b), double>) return __builtin_fmax(a, b);
    else return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

template <typename T>
inline bool isnan(T x) {
    return __builtin_isnan(x);
}
template <typename T>
inline bool isinf(T x) {
    return __builtin_isinf(x);
}
template <typename T>
inline bool isfinite(T x) {
    return __builtin_isfinite(x);
}
template <typename T>
inline bool signbit(T x) {
    return __builtin_signbit(x);
}

// Some C libraries declare these names for themselves, so these are declarations, too, bound to the accurate
// functions.
#define EMULATED_FAST(name, accurate) extern "C" float name(float) noexcept __asm__(accurate);
EMULATED_FAST(__expf, "expf") EMULATED_FAST(__exp10f, "exp10f")
EMULATED_FAST(__logf, "logf") EMULATED_FAST(__log2f, "log2f") EMULATED_FAST(__log10f, "log10f")
EMULATED_FAST(__sinf, "sinf") EMULATED_FAST(__cosf, "cosf") EMULATED_FAST(__tanf, "tanf")
#undef EMULATED_FAST
extern "C" float __powf(float, float) noexcept __asm__("powf");

// The _rn functions are never contracted into a fused multiply-add: the empty statement hides the value.
namespace emulated {
template <typename T>
inline T uncontracted(T x) {
    __asm__("" : "+m"(x));
    return x;
}
}  // namespace emulated
inline float __fadd_rn(float a, float b) { return emulated::uncontracted(a + b); }
inline float __fsub_rn(float a, float b) { return emulated::uncontracted(a - b); }
inline float __fmul_rn(float a, float b) { return emulated::uncontracted(a * b); }
inline double __dadd_rn(double a, double b) { return emulated::uncontracted(a + b); }
inline double __dsub_rn(double a, double b) { return emulated::uncontracted(a - b); }
inline double __dmul_rn(double a, double b) { return emulated::uncontracted(a * b); }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1.0f / __builtin_sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __saturatef(float x) { return __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f); }
inline int __float2int_rn(float x) { return static_cast<int>(__builtin_rintf(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1u) << (31 - bit);
    return reversed;
}
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<long long>(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
