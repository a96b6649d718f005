// What the scheduler tells the builds that watch every access; nothing in the others.
#pragma once
#include "../asynchronous_copies.h"
#include "../emulated/kernel.h"

namespace emulated {

// Ends the grid with an error, from a fiber; the fiber is never resumed.
[[noreturn]] void stop_grid(Fault fault, const char* format, ...) __attribute__((format(printf, 2, 3)));

// A part of the memory that holds the static shared memory of the running block.
struct StaticPiece {
    void* start;
    size_t bytes;
};

#ifdef EMULATED_WATCHED
void watch_grid(Launch& launch, void (*body)(void*));
void watch_block(unsigned slot, unsigned block, void* static_shared, void* dynamic_shared);  // becomes resident
void watch_blocks_end();  // of all that are resident
void watch_barrier();  // all threads of the running block meet
void watch_warp_barrier(const int* threads, int count);
void watch_collective(unsigned warp, bool whole, const char* name);  // `whole`: of all lanes that are left
void watch_copy(const Copy& copy, const void* place);
void watch_commit();
void watch_wait(int newest);  // -1: for all copies
void watch_end();
int watch_static_shared(StaticPiece* pieces, int most);  // -1: the thread-local segment is all
#else
inline void watch_grid(Launch&, void (*)(void*)) {}
inline void watch_block(unsigned, unsigned, void*, void*) {}
inline void watch_blocks_end() {}
inline void watch_barrier() {}
inline void watch_warp_barrier(const int*, int) {}
inline void watch_collective(unsigned, bool, const char*) {}
inline void watch_copy(const Copy&, const void*) {}
inline void watch_commit() {}
inline void watch_wait(int) {}
inline void watch_end() {}
inline int watch_static_shared(StaticPiece*, int) { return -1; }
#endif

}  // namespace emulated
