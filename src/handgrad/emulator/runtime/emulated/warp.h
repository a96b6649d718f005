// Warp collectives: shuffles, votes, matches and reductions over the lanes of a mask.
//
// The last lane of the mask to arrive computes every lane's result, from the arguments that all of them
// left.  A shuffle that reads a lane outside the mask has no defined value on a GPU: here it gets all-one
// bytes (a NaN, or -1), so that its use shows.
#pragma once
#include "threads.h"

namespace emulated {

using CollectiveFunction = void (*)(void** arguments, unsigned mask);  // arguments[lane], for lanes in mask

// Waits for all lanes of `mask`; one of them calls `function`.  `name` is what messages call it.
EMULATED_API void warp_collective(unsigned mask, void* argument, CollectiveFunction function, const char* name,
                                  Site site);

template <typename T>
struct Exchange {
    T value;
    int source;
    T result;
};

template <typename T>
void exchange(void** arguments, unsigned mask) {
    for (int lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        auto* mine = static_cast<Exchange<T>*>(arguments[lane]);
        if (mask >> mine->source & 1)
            mine->result = static_cast<Exchange<T>*>(arguments[mine->source])->value;
        else
            __builtin_memset(&mine->result, 0xff, sizeof(T));
    }
}

template <typename T>
T shuffle(unsigned mask, T value, int source, const char* name, Site site) {
    Exchange<T> argument{value, source, value};
    warp_collective(mask, &argument, exchange<T>, name, site);
    return argument.result;
}

// A reduction or vote: `result` is the fold of every lane's `value`, in lane order.
template <typename T>
struct Contribution {
    T value;
    T result;
};

template <typename T, T (*combine)(T, T)>
void fold(void** arguments, unsigned mask) {
    T result{};
    bool first = true;
    for (int lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        const T value = static_cast<Contribution<T>*>(arguments[lane])->value;
        result = first ? value : combine(result, value);
        first = false;
    }
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) static_cast<Contribution<T>*>(arguments[lane])->result = result;
}

template <typename T, T (*combine)(T, T)>
T reduce(unsigned mask, T value, const char* name, Site site) {
    Contribution<T> argument{value, value};
    warp_collective(mask, &argument, fold<T, combine>, name, site);
    return argument.result;
}

template <typename T>
void match(void** arguments, unsigned mask) {
    for (int lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        auto* mine = static_cast<Contribution<T>*>(arguments[lane]);
        unsigned equal = 0;
        for (int other = 0; other < 32; ++other)
            if (mask >> other & 1 && static_cast<Contribution<T>*>(arguments[other])->value == mine->value)
                equal |= 1u << other;
        mine->result = static_cast<T>(equal);
    }
}

inline void nothing(void**, unsigned) {}

template <typename T>
T sum(T a, T b) {
    return a + b;
}
template <typename T>
T smaller(T a, T b) {
    return b < a ? b : a;
}
template <typename T>
T larger(T a, T b) {
    return a < b ? b : a;
}
inline unsigned bits_and(unsigned a, unsigned b) { return a & b; }
inline unsigned bits_or(unsigned a, unsigned b) { return a | b; }
inline unsigned bits_xor(unsigned a, unsigned b) { return a ^ b; }

}  // namespace emulated

inline void __syncwarp(unsigned mask = 0xffffffffu, emulated::Site site = emulated::Site::here()) {
    emulated::warp_collective(mask, nullptr, emulated::nothing, "__syncwarp", site);
}

// No convergence is promised in CUDA, so the lane alone is a legal answer, and the most demanding one.
inline unsigned __activemask() { return 1u << emulated::current->lane; }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, emulated::Site site = emulated::Site::here()) {
    const int segment = static_cast<int>(emulated::current->lane) & ~(width - 1);
    return emulated::shuffle(mask, value, segment | (source & (width - 1)), "__shfl_sync", site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 emulated::Site site = emulated::Site::here()) {
    const int lane = static_cast<int>(emulated::current->lane);
    const bool inside = (lane & (width - 1)) >= static_cast<int>(delta);
    return emulated::shuffle(mask, value, inside ? lane - static_cast<int>(delta) : lane, "__shfl_up_sync", site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   emulated::Site site = emulated::Site::here()) {
    const int lane = static_cast<int>(emulated::current->lane);
    const bool inside = (lane & (width - 1)) + static_cast<int>(delta) < width;
    return emulated::shuffle(mask, value, inside ? lane + static_cast<int>(delta) : lane, "__shfl_down_sync", site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  emulated::Site site = emulated::Site::here()) {
    const int lane = static_cast<int>(emulated::current->lane);
    const int source = lane ^ lane_mask;
    const bool inside = source < (lane & ~(width - 1)) + width;
    return emulated::shuffle(mask, value, inside ? source : lane, "__shfl_xor_sync", site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, emulated::Site site = emulated::Site::here()) {
    const unsigned mine = predicate ? 1u << emulated::current->lane : 0u;
    return emulated::reduce<unsigned, emulated::bits_or>(mask, mine, "__ballot_sync", site);
}
inline int __any_sync(unsigned mask, int predicate, emulated::Site site = emulated::Site::here()) {
    return emulated::reduce<unsigned, emulated::bits_or>(mask, predicate != 0, "__any_sync", site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulated::Site site = emulated::Site::here()) {
    return emulated::reduce<unsigned, emulated::bits_and>(mask, predicate != 0, "__all_sync", site) != 0;
}

template <typename T>
unsigned __match_any_sync(unsigned mask, T value, emulated::Site site = emulated::Site::here()) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA matches values of 4 and 8 bytes");
    unsigned long long bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    emulated::Contribution<unsigned long long> argument{bits, 0};
    emulated::warp_collective(mask, &argument, emulated::match<unsigned long long>, "__match_any_sync", site);
    return static_cast<unsigned>(argument.result);
}

template <typename T>
T __reduce_add_sync(unsigned mask, T value, emulated::Site site = emulated::Site::here()) {
    return emulated::reduce<T, emulated::sum<T>>(mask, value, "__reduce_add_sync", site);
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value, emulated::Site site = emulated::Site::here()) {
    return emulated::reduce<T, emulated::smaller<T>>(mask, value, "__reduce_min_sync", site);
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value, emulated::Site site = emulated::Site::here()) {
    return emulated::reduce<T, emulated::larger<T>>(mask, value, "__reduce_max_sync", site);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, emulated::Site site = emulated::Site::here()) {
    return emulated::reduce<unsigned, emulated::bits_and>(mask, value, "__reduce_and_sync", site);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, emulated::Site site = emulated::Site::here()) {
    return emulated::reduce<unsigned, emulated::bits_or>(mask, value, "__reduce_or_sync", site);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, emulated::Site site = emulated::Site::here()) {
    return emulated::reduce<unsigned, emulated::bits_xor>(mask, value, "__reduce_xor_sync", site);
}
