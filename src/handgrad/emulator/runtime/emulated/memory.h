// Loads, dynamic shared memory, alignment checks and reinterpretations of bits.
#pragma once
#include "counted.h"
#include "threads.h"

// Dynamic shared memory of the block, as `T* name`; on a GPU `extern __shared__`.
#define DYN_SHARED(T, name) T* name = reinterpret_cast<T*>(emulated::current->dynamic_shared)

#ifdef EMULATED_INDICES
extern "C" EMULATED_API void emulated_index_past_end(int index, int length);  // watch/memory.cpp
#endif

namespace emulated {

// What a GPU does with a misaligned vector access: ends the grid with an error.
inline void require_aligned(const void* pointer, unsigned bytes, const char* file, int line) {
    if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0)
        fail_memory({file, line}, "misaligned %u-byte access to address 0x%zx", bytes, reinterpret_cast<uintptr_t>(pointer));
}

// An index into a thread's own array of `length` elements, which the search for memory faults alone compares: a
// reference to the element past the end is none of what -fsanitize=bounds reports.
EMULATED_INLINE void require_index([[maybe_unused]] int index, [[maybe_unused]] int length) {
#ifdef EMULATED_INDICES
    if (static_cast<unsigned>(index) >= static_cast<unsigned>(length)) emulated_index_past_end(index, length);
#endif
}

template <typename To, typename From>
To reinterpret_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}

}  // namespace emulated

template <typename T>
EMULATED_INLINE T __ldg(const T* address) {
    return *address;
}
template <typename T>
EMULATED_INLINE T __ldcg(const T* address) {
    return *const_cast<const volatile T*>(address);
}
template <typename T>
EMULATED_INLINE T __ldcs(const T* address) {
    return *address;
}
template <typename T>
EMULATED_INLINE void __stcg(T* address, emulated::undeduced<T> value) {
    *address = value;
}
template <typename T>
EMULATED_INLINE void __stcs(T* address, emulated::undeduced<T> value) {
    *address = value;
}

inline int __float_as_int(float x) { return emulated::reinterpret_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulated::reinterpret_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulated::reinterpret_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulated::reinterpret_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulated::reinterpret_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulated::reinterpret_bits<double>(x); }
