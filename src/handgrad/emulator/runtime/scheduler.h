// What the parts of the runtime share: the fibers, which of them runs, and how one waits or ends the grid.
//
// scheduler.cpp starts, switches and ends fibers; meetings.cpp has what they wait for; run_grid.cpp the launch.
#pragma once
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "asynchronous_copies.h"
#include "emulated/kernel.h"
#include "ready_queue.h"
#include "residents.h"
#include "watch/watch.h"

namespace emulated {

inline Kept<Fiber> fibers;
inline Kept<Block> blocks;  // those that are resident
inline Kept<int> numbers;   // 0, 1, 2, ...
inline Kept<int> meeting;   // fibers that wait in a grid meeting
inline Kept<CopiesUnderWay> copies;
inline StaticMemory static_memory;
inline Fiber scheduler;  // the context of the caller: resumed when no thread can run, and after an error
inline Fiber* running = &scheduler;

inline int thread_count;  // of a block
inline int resident_count, meeting_count;
inline ReadyQueue ready;
inline Random random_numbers;
inline Launch* grid;
inline void (*body)(void*);
inline void* body_argument;

inline int number_of(const Fiber& fiber) { return static_cast<int>(&fiber - fibers.all()); }
inline Block& block_of(const Fiber& fiber) { return blocks[static_cast<int>(fiber.thread.slot)]; }

// First function of every fiber.
void run_thread();

// Goes on with the next thread that can run; returns when the calling fiber's turn comes again.
void run_next();

// Lets threads go on that have waited.
void release(const int* threads, int count);

// Records an error of the grid; the first one stands.
void record(Fault fault, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Ends the grid with an error of the threads' meeting, from a fiber; the fiber is never resumed.
[[noreturn]] void stop(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Names a deadlock: no thread can run, and some have not returned.
void report_deadlock(const Block& block);
void report_grid_deadlock();

inline void wait_at(Fiber& fiber, State state, const char* operation, Site site) {
    fiber.state = state;
    fiber.operation = operation;
    fiber.site = site;
}

inline bool same_place(const Fiber& a, const Fiber& b) {
    return a.site.line == b.site.line && (a.site.file == b.site.file || strcmp(a.site.file, b.site.file) == 0) &&
           (a.operation == b.operation || strcmp(a.operation, b.operation) == 0);
}

inline const char* base_name(const char* path) {
    const char* slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

// Text that names a thread: "(3,0,0)".
struct Name {
    char text[48];
    explicit Name(const uint3& index) { snprintf(text, sizeof text, "(%u,%u,%u)", index.x, index.y, index.z); }
};

// Where a fiber waits: "__syncthreads at linear.cu:31".
struct Place {
    char text[200];
    explicit Place(const Fiber& fiber) {
        snprintf(text, sizeof text, "%s at %s:%d", fiber.operation, base_name(fiber.site.file), fiber.site.line);
    }
};

}  // namespace emulated
