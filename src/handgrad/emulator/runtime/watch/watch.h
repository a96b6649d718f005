// What the scheduler tells the builds that watch every access; nothing in the others.
#pragma once
#include "../asynchronous_copies.h"
#include "../emulated/kernel.h"

namespace emulated {

// Ends the grid with an error, from a fiber; the fiber is never resumed.
[[noreturn]] void stop_grid(Fault fault, const char* format, ...) __attribute__((format(printf, 2, 3)));

#ifdef EMULATED_WATCHED
void watch_grid(Launch& launch, void (*body)(void*));
void watch_block(unsigned block, void* static_shared, void* dynamic_shared);
void watch_block_end();
void watch_barrier();  // all threads of the block meet
void watch_warp_barrier(const int* threads, int count);
void watch_collective(unsigned warp, bool whole, const char* name);  // `whole`: of all lanes that are left
void watch_copy(const Copy& copy, const void* place);
void watch_commit();
void watch_wait(int newest);  // -1: for all copies
void watch_end();
#else
inline void watch_grid(Launch&, void (*)(void*)) {}
inline void watch_block(unsigned, void*, void*) {}
inline void watch_block_end() {}
inline void watch_barrier() {}
inline void watch_warp_barrier(const int*, int) {}
inline void watch_collective(unsigned, bool, const char*) {}
inline void watch_copy(const Copy&, const void*) {}
inline void watch_commit() {}
inline void watch_wait(int) {}
inline void watch_end() {}
#endif

}  // namespace emulated
