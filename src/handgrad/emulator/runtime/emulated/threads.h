// What a CUDA thread knows of itself, and how the emulator reports a fault of the kernel.
#pragma once
#include "types.h"

// Accesses in such a function count as those of the line that calls it.
#define EMULATED_INLINE inline __attribute__((always_inline))

#define EMULATED_API __attribute__((visibility("default")))  // defined by the runtime library

namespace emulated {

// A place in the source.  As a default argument, `Site::here()` is the place of the outermost call.
struct Site {
    const char* file;
    int line;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

struct Thread {
    uint3 index;           // threadIdx
    uint3 block;           // blockIdx
    unsigned linear;       // number of the thread in its block, x fastest
    unsigned lane;         // linear % 32
    unsigned warp;         // linear / 32
    void* dynamic_shared;  // the block's dynamic shared memory
    unsigned unchanged;    // atomics so far that changed nothing: those of a waiting loop
    unsigned slot;         // number of its block among those that are resident
};

EMULATED_API extern Thread* current;  // the thread that runs now
EMULATED_API extern dim3 block_dimensions;
EMULATED_API extern dim3 grid_dimensions;

// Ends the grid with this message; the thread that calls it never goes on.
[[noreturn]] EMULATED_API void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// The same for an access to memory.
[[noreturn]] EMULATED_API void fail_memory(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// One turn of a loop that waits for other threads of the block: lets them run.  A grid in which nothing else
// happens for long ends with an error that names the operation.
EMULATED_API void wait_turn(const char* operation, Site site);
EMULATED_API extern unsigned long long idle_turns;  // since a thread last got anywhere

}  // namespace emulated

#define threadIdx (emulated::current->index)
#define blockIdx (emulated::current->block)
#define blockDim (emulated::block_dimensions)
#define gridDim (emulated::grid_dimensions)
inline constexpr int warpSize = 32;

inline void __nanosleep(unsigned, emulated::Site site = emulated::Site::here()) {
    emulated::wait_turn("__nanosleep", site);
}
extern "C" int printf(const char* format, ...);
#define assert(condition) \
    ((condition) ? (void)0 : emulated::fail(emulated::Site::here(), "assertion `%s` failed", #condition))
[[noreturn]] inline void __trap(emulated::Site site = emulated::Site::here()) { emulated::fail(site, "__trap"); }
