// The fibers' stacks: one mapping, made at the first launch and kept, with a guard page below each stack.
#pragma once
#include <stddef.h>
#include <sys/mman.h>

#include "ready_queue.h"

namespace emulated {

constexpr size_t stack_size = 64 * 1024;  // with its guard page; registers and local arrays of one CUDA thread
constexpr size_t guard_size = 4096;

inline char* stacks = nullptr;

inline char* stack_of(int thread) { return stacks + static_cast<size_t>(thread) * stack_size; }

// Stack tops at equal distances would share a few cache sets: they are spread over a page instead.
inline size_t stack_bytes(int thread) { return stack_size - static_cast<size_t>(thread % 61) * 64; }

// False where there is no memory.
inline bool make_stacks() {
    if (stacks) return true;
    const size_t bytes = max_threads * stack_size;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    stacks = static_cast<char*>(memory);
    for (int thread = 0; thread < max_threads; ++thread)
        if (mprotect(stack_of(thread), guard_size, PROT_NONE) != 0) return true;  // no guards: only less is found
    return true;
}

inline bool is_guard(const void* address) {
    const char* place = static_cast<const char*>(address);
    if (!stacks || place < stacks || place >= stacks + max_threads * stack_size) return false;
    return static_cast<size_t>(place - stacks) % stack_size < guard_size;
}

}  // namespace emulated
