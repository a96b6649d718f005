// Atomic functions, for the types that CUDA has them for.
#pragma once
#include "counted.h"
#include "threads.h"

namespace emulated {

template <typename T, typename... Ts>
inline constexpr bool one_of = (same<T, Ts> || ...);
template <typename T>
inline constexpr bool atomic_integer = one_of<T, int, unsigned, unsigned long long>;
template <typename T>
inline constexpr bool atomic_ordered = one_of<T, int, unsigned, long long, unsigned long long>;

// A thread that waits for another one repeats an atomic that changes nothing: after some of them it lets the
// others run.
template <typename T>
void note_change(T before, T after, const char* name, Site site) {
    if (__builtin_memcmp(&before, &after, sizeof(T)) != 0) idle_turns = 0;
    else if (++current->unchanged % 64 == 0) wait_turn(name, site);
}

// *address = change(*address), as one step; returns the old value.
template <typename T, typename Change>
EMULATED_INLINE T read_modify_write(T* address, Change change, const char* name, Site site) {
    T before, after;
    count_atomic(address, sizeof(T), site);
    __atomic_load(address, &before, __ATOMIC_RELAXED);
    do {
        after = change(before);
    } while (!__atomic_compare_exchange(address, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    note_change(before, after, name, site);
    return before;
}

}  // namespace emulated

#define EMULATED_SITE emulated::Site site = emulated::Site::here()

template <typename T>
EMULATED_INLINE T atomicAdd(T* address, emulated::undeduced<T> value, EMULATED_SITE) {
    static_assert(emulated::atomic_integer<T> || emulated::one_of<T, float, double>,
                  "CUDA has atomicAdd for int, unsigned, unsigned long long, float and double");
    return emulated::read_modify_write(address, [=](T old) -> T { return old + value; }, "atomicAdd", site);
}
template <typename T>
EMULATED_INLINE T atomicSub(T* address, emulated::undeduced<T> value, EMULATED_SITE) {
    static_assert(emulated::one_of<T, int, unsigned>, "CUDA has atomicSub for int and unsigned");
    return emulated::read_modify_write(address, [=](T old) -> T { return old - value; }, "atomicSub", site);
}
template <typename T>
EMULATED_INLINE T atomicMax(T* address, emulated::undeduced<T> value, EMULATED_SITE) {
    static_assert(emulated::atomic_ordered<T>, "CUDA has atomicMax for integers of 4 and 8 bytes");
    return emulated::read_modify_write(address, [=](T old) { return old < value ? value : old; }, "atomicMax", site);
}
template <typename T>
EMULATED_INLINE T atomicMin(T* address, emulated::undeduced<T> value, EMULATED_SITE) {
    static_assert(emulated::atomic_ordered<T>, "CUDA has atomicMin for integers of 4 and 8 bytes");
    return emulated::read_modify_write(address, [=](T old) { return value < old ? value : old; }, "atomicMin", site);
}
template <typename T>
EMULATED_INLINE T atomicExch(T* address, emulated::undeduced<T> value, EMULATED_SITE) {
    static_assert(emulated::atomic_integer<T> || emulated::same<T, float>,
                  "CUDA has atomicExch for int, unsigned, unsigned long long and float");
    return emulated::read_modify_write(address, [=](T) { return value; }, "atomicExch", site);
}
template <typename T>
EMULATED_INLINE T atomicCAS(T* address, emulated::undeduced<T> expected, emulated::undeduced<T> value, EMULATED_SITE) {
    static_assert(emulated::atomic_integer<T> || emulated::same<T, unsigned short>,
                  "CUDA has atomicCAS for int, unsigned, unsigned long long and unsigned short");
    return emulated::read_modify_write(
        address, [=](T old) { return old == expected ? value : old; }, "atomicCAS", site);
}
template <typename T>
EMULATED_INLINE T atomicAnd(T* address, emulated::undeduced<T> value, EMULATED_SITE) {
    static_assert(emulated::atomic_integer<T>, "CUDA has atomicAnd for int, unsigned and unsigned long long");
    return emulated::read_modify_write(address, [=](T old) { return old & value; }, "atomicAnd", site);
}
template <typename T>
EMULATED_INLINE T atomicOr(T* address, emulated::undeduced<T> value, EMULATED_SITE) {
    static_assert(emulated::atomic_integer<T>, "CUDA has atomicOr for int, unsigned and unsigned long long");
    return emulated::read_modify_write(address, [=](T old) { return old | value; }, "atomicOr", site);
}
template <typename T>
EMULATED_INLINE T atomicXor(T* address, emulated::undeduced<T> value, EMULATED_SITE) {
    static_assert(emulated::atomic_integer<T>, "CUDA has atomicXor for int, unsigned and unsigned long long");
    return emulated::read_modify_write(address, [=](T old) { return old ^ value; }, "atomicXor", site);
}
// ((old >= limit) ? 0 : old + 1)
EMULATED_INLINE unsigned atomicInc(unsigned* address, unsigned limit, EMULATED_SITE) {
    return emulated::read_modify_write(
        address, [=](unsigned old) { return old >= limit ? 0u : old + 1u; }, "atomicInc", site);
}
// (((old == 0) || (old > limit)) ? limit : old - 1)
EMULATED_INLINE unsigned atomicDec(unsigned* address, unsigned limit, EMULATED_SITE) {
    return emulated::read_modify_write(
        address, [=](unsigned old) { return old == 0 || old > limit ? limit : old - 1u; }, "atomicDec", site);
}
#undef EMULATED_SITE
