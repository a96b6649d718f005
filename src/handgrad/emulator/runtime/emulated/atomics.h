// Atomic functions, for the types that CUDA has them for.
#pragma once
#include "types.h"

namespace emulated {

template <typename T, typename... Ts>
inline constexpr bool one_of = (same<T, Ts> || ...);
template <typename T>
inline constexpr bool atomic_integer = one_of<T, int, unsigned, unsigned long long>;
template <typename T>
inline constexpr bool atomic_ordered = one_of<T, int, unsigned, long long, unsigned long long>;

// *address = change(*address), as one step; returns the old value.
template <typename T, typename Change>
T read_modify_write(T* address, Change change) {
    T before, after;
    __atomic_load(address, &before, __ATOMIC_RELAXED);
    do {
        after = change(before);
    } while (!__atomic_compare_exchange(address, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return before;
}

}  // namespace emulated

template <typename T>
T atomicAdd(T* address, emulated::undeduced<T> value) {
    static_assert(emulated::atomic_integer<T> || emulated::one_of<T, float, double>,
                  "CUDA has atomicAdd for int, unsigned, unsigned long long, float and double");
    return emulated::read_modify_write(address, [=](T old) -> T { return old + value; });
}
template <typename T>
T atomicSub(T* address, emulated::undeduced<T> value) {
    static_assert(emulated::one_of<T, int, unsigned>, "CUDA has atomicSub for int and unsigned");
    return emulated::read_modify_write(address, [=](T old) -> T { return old - value; });
}
template <typename T>
T atomicMax(T* address, emulated::undeduced<T> value) {
    static_assert(emulated::atomic_ordered<T>, "CUDA has atomicMax for integers of 4 and 8 bytes");
    return emulated::read_modify_write(address, [=](T old) -> T { return old < value ? value : old; });
}
template <typename T>
T atomicMin(T* address, emulated::undeduced<T> value) {
    static_assert(emulated::atomic_ordered<T>, "CUDA has atomicMin for integers of 4 and 8 bytes");
    return emulated::read_modify_write(address, [=](T old) -> T { return value < old ? value : old; });
}
template <typename T>
T atomicExch(T* address, emulated::undeduced<T> value) {
    static_assert(emulated::atomic_integer<T> || emulated::same<T, float>,
                  "CUDA has atomicExch for int, unsigned, unsigned long long and float");
    return emulated::read_modify_write(address, [=](T) -> T { return value; });
}
template <typename T>
T atomicCAS(T* address, emulated::undeduced<T> expected, emulated::undeduced<T> value) {
    static_assert(emulated::atomic_integer<T> || emulated::same<T, unsigned short>,
                  "CUDA has atomicCAS for int, unsigned, unsigned long long and unsigned short");
    __atomic_compare_exchange(address, &expected, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
template <typename T>
T atomicAnd(T* address, emulated::undeduced<T> value) {
    static_assert(emulated::atomic_integer<T>, "CUDA has atomicAnd for int, unsigned and unsigned long long");
    return __atomic_fetch_and(address, value, __ATOMIC_RELAXED);
}
template <typename T>
T atomicOr(T* address, emulated::undeduced<T> value) {
    static_assert(emulated::atomic_integer<T>, "CUDA has atomicOr for int, unsigned and unsigned long long");
    return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
template <typename T>
T atomicXor(T* address, emulated::undeduced<T> value) {
    static_assert(emulated::atomic_integer<T>, "CUDA has atomicXor for int, unsigned and unsigned long long");
    return __atomic_fetch_xor(address, value, __ATOMIC_RELAXED);
}
// ((old >= limit) ? 0 : old + 1)
inline unsigned atomicInc(unsigned* address, unsigned limit) {
    return emulated::read_modify_write(address, [=](unsigned old) { return old >= limit ? 0u : old + 1u; });
}
// (((old == 0) || (old > limit)) ? limit : old - 1)
inline unsigned atomicDec(unsigned* address, unsigned limit) {
    return emulated::read_modify_write(
        address, [=](unsigned old) { return old == 0 || old > limit ? limit : old - 1u; });
}
