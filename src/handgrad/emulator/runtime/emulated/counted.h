// What a kernel reports itself in the counting mode (watch/counters.cpp); all other accesses the compiler reports.
//
// A vector of several elements has to count as one access, but compilers split it where single elements are
// used: so its loads and stores are calls, of which the compiler sees nothing.
#pragma once
#include <stddef.h>

#include "threads.h"

namespace emulated {

#ifdef EMULATED_COUNTED

#define EMULATED_UNCOUNTED __attribute__((noinline, no_sanitize("thread")))

// One access of `bytes` bytes by the line `site`; `call` tells apart those that one line became.
EMULATED_API void count_load(const void* address, unsigned bytes, const void* call, Site site);
EMULATED_API void count_store(const void* address, unsigned bytes, const void* call, Site site);
EMULATED_API void count_atomic(const void* address, unsigned bytes, Site site);

// memcpy, which counts as one load and one store.
EMULATED_API void counted_copy(void* to, const void* from, size_t bytes);

template <typename V>
EMULATED_UNCOUNTED V load_whole(const V* address, Site site) {
    count_load(address, sizeof(V), __builtin_return_address(0), site);
    return *address;
}
template <typename V>
EMULATED_UNCOUNTED void store_whole(V* address, V value, Site site) {
    count_store(address, sizeof(V), __builtin_return_address(0), site);
    *address = value;
}

#else

// One access of sizeof(V) bytes, for a kernel's own wrapper of vector loads and stores.
template <typename V>
__forceinline__ V load_whole(const V* address, Site) {
    return *address;
}
template <typename V>
__forceinline__ void store_whole(V* address, V value, Site) {
    *address = value;
}
inline void count_atomic(const void*, unsigned, Site) {}

#endif

}  // namespace emulated
