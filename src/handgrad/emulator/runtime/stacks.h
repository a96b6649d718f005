// The fibers' stacks: one mapping, kept from launch to launch, with a guard page below each of the first ones.
#pragma once
#include <stddef.h>
#include <sys/mman.h>

#include "ready_queue.h"

namespace emulated {

constexpr size_t stack_size = 64 * 1024;  // with its guard page; registers and local arrays of one CUDA thread
constexpr size_t guard_size = 4096;
constexpr int most_guards = 8192;  // each splits the mapping, and a process may have 65,530 of them

inline char* stacks = nullptr;
inline int stack_count = 0;

inline char* stack_of(int thread) { return stacks + static_cast<size_t>(thread) * stack_size; }

// Stack tops at equal distances would share a few cache sets: they are spread over a page instead.
inline size_t stack_bytes(int thread) { return stack_size - static_cast<size_t>(thread % 61) * 64; }

// At least `count` of them, for fibers that have yet to start; false where there is no memory.
inline bool make_stacks(int count) {
    if (count <= stack_count) return true;
    const size_t bytes = static_cast<size_t>(count) * stack_size;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    if (stacks) munmap(stacks, static_cast<size_t>(stack_count) * stack_size);
    stacks = static_cast<char*>(memory);
    stack_count = count;
    for (int thread = 0; thread < count && thread < most_guards; ++thread)
        if (mprotect(stack_of(thread), guard_size, PROT_NONE) != 0) return true;  // no guards: only less is found
    return true;
}

// Gives back the memory of all but the first `count` stacks, keeping their addresses.
inline void trim_stacks(int count) {
    if (count < stack_count) madvise(stack_of(count), static_cast<size_t>(stack_count - count) * stack_size, MADV_DONTNEED);
}

inline bool is_stack(const void* address) {
    const char* place = static_cast<const char*>(address);
    return stacks && place >= stacks && place < stacks + static_cast<size_t>(stack_count) * stack_size;
}

inline bool is_guard(const void* address) {
    const size_t place = static_cast<size_t>(static_cast<const char*>(address) - stacks);
    return is_stack(address) && place / stack_size < most_guards && place % stack_size < guard_size;
}

}  // namespace emulated
