// The runtime: runs the blocks of a grid one after another, every thread of a block as a fiber.
//
// Compiled once into a library that all kernels share; a kernel calls run_grid through its description.
// A fiber runs until it waits in a barrier or a warp collective, or returns; the next ready one is then
// chosen by the order asked for.  Nothing here allocates memory while fibers run.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emulated/asynchronous_copies.h"
#include "emulated/barriers.h"
#include "emulated/kernel.h"
#include "emulated/memory.h"
#include "emulated/warp.h"

#include "asynchronous_copies.h"
#include "block_order.h"
#include "context.h"
#include "faults.h"
#include "ready_queue.h"
#include "stacks.h"
#include "static_shared.h"
#include "watch/watch.h"

namespace emulated {

Thread* current;
dim3 block_dimensions, grid_dimensions;
unsigned long long idle_turns;

namespace {

enum class State { ready, at_barrier, at_collective, returned };

struct Fiber {
    Thread thread;
    State state;
    Context context;
    const char* operation;  // what it waits in, and where
    Site site;
    bool predicate;         // its vote in a barrier
    int outcome;
    unsigned mask;          // its warp collective
    void* argument;
};

// Lanes of a warp, as bits.
struct Warp {
    unsigned waiting;   // in a collective
    unsigned returned;
};

Fiber fibers[max_threads];
Warp warps[max_threads / 32];
Fiber scheduler;  // the context of the caller: resumed when no thread can run, and after an error
Fiber* running = &scheduler;

int thread_count, returned_count;
int all_threads[max_threads];  // 0, 1, 2, ...
int barrier_count;    // threads that wait in the block's barrier
int barrier_first;    // the first of them to arrive
ReadyQueue ready;
Random random_numbers;
Launch* grid;
void (*body)(void*);
void* body_argument;

CopiesUnderWay copies[max_threads];

// What memory holds before it is written.  0x7ff8 repeated is a NaN as float, as double and as either half type,
// and stays one when rounded to tf32.
void fill(void* memory, size_t bytes, unsigned short pattern = 0x7ff8) {
    auto* halves = static_cast<unsigned short*>(memory);
    for (size_t i = 0; i < bytes / 2; ++i) halves[i] = pattern;
    if (bytes % 2) static_cast<unsigned char*>(memory)[bytes - 1] = static_cast<unsigned char>(pattern >> 7);
}

int number_of(const Fiber& fiber) { return static_cast<int>(&fiber - fibers); }

const char* base_name(const char* path) {
    const char* slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

void switch_to(Fiber& next) {
    Fiber& from = *running;
    if (&next == &from) return;
    running = &next;
    current = &next.thread;
    switch_context(from.context, next.context);
}

void run_next() {
    const int next = grid->failed != Fault::none ? -1 : ready.pop();
    switch_to(next < 0 ? scheduler : fibers[next]);
}

// Text that names a thread: "(3,0,0)".
struct Name {
    char text[48];
    explicit Name(const uint3& index) { snprintf(text, sizeof text, "(%u,%u,%u)", index.x, index.y, index.z); }
};

// Records an error of the grid; the first one stands.
void record_arguments(Fault fault, const char* format, va_list arguments) {
    if (grid->failed != Fault::none) return;
    if (grid->unwritten_read) {  // what follows such a read is its consequence
        grid->failed = Fault::initialisation;
        return;
    }
    vsnprintf(grid->message, sizeof grid->message, format, arguments);
    grid->failed = fault;
}
void record(Fault fault, const char* format, ...) __attribute__((format(printf, 2, 3)));
void record(Fault fault, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    record_arguments(fault, format, arguments);
    va_end(arguments);
}

// Ends the grid with an error of the threads' meeting, from a fiber; the fiber is never resumed.
[[noreturn]] void stop(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void stop(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    record_arguments(Fault::synchronisation, format, arguments);
    va_end(arguments);
    switch_to(scheduler);
    abort();
}

// Where a fiber waits: "__syncthreads at linear.cu:31".
struct Place {
    char text[200];
    explicit Place(const Fiber& fiber) {
        snprintf(text, sizeof text, "%s at %s:%d", fiber.operation, base_name(fiber.site.file), fiber.site.line);
    }
};

bool same_place(const Fiber& a, const Fiber& b) {
    return a.site.line == b.site.line && (a.site.file == b.site.file || strcmp(a.site.file, b.site.file) == 0) &&
           (a.operation == b.operation || strcmp(a.operation, b.operation) == 0);
}

void wait_at(Fiber& fiber, State state, const char* operation, Site site) {
    fiber.state = state;
    fiber.operation = operation;
    fiber.site = site;
}

void release(const int* threads, int count) {
    idle_turns = 0;
    for (int i = 0; i < count; ++i) fibers[threads[i]].state = State::ready;
    ready.release(threads, count);
}

// First function of every fiber.
void run_thread() {
    body(body_argument);
    Fiber& fiber = *running;
    copies[number_of(fiber)].wait_all([](const Copy& copy) { copy.land(); });
    fiber.state = State::returned;
    ++returned_count;
    idle_turns = 0;
    Warp& warp = warps[fiber.thread.warp];
    warp.returned |= 1u << fiber.thread.lane;
    for (unsigned waiting = warp.waiting; waiting; waiting &= waiting - 1) {
        const Fiber& other = fibers[fiber.thread.warp * 32 + __builtin_ctz(waiting)];
        if (other.mask >> fiber.thread.lane & 1)
            stop("thread %s of block %s returned while thread %s waits for it in %s (mask 0x%08x)",
                 Name(fiber.thread.index).text, Name(fiber.thread.block).text, Name(other.thread.index).text,
                 Place(other).text, other.mask);
    }
    if (barrier_count)
        stop("thread %s of block %s returned while %d threads wait in %s", Name(fiber.thread.index).text,
             Name(fiber.thread.block).text, barrier_count, Place(fibers[barrier_first]).text);
    run_next();
    abort();  // a returned fiber is never resumed
}

// No thread can run and some have not returned: names two that wait in different places, where there are two.
void report_deadlock() {
    const Fiber* first = nullptr;
    const Fiber* other = nullptr;
    for (int i = 0; i < thread_count; ++i) {
        const Fiber& fiber = fibers[i];
        if (fiber.state == State::returned) continue;
        if (!first) first = &fiber;
        else if (!other && !same_place(fiber, *first)) other = &fiber;
    }
    char second[300] = "";
    if (other) snprintf(second, sizeof second, ", thread %s in %s", Name(other->thread.index).text, Place(*other).text);
    record(Fault::synchronisation, "deadlock in block %s: %d of %d threads returned, thread %s waits in %s%s", Name(first->thread.block).text,
           returned_count, thread_count, Name(first->thread.index).text, Place(*first).text, second);
}

void run_block(uint3 block, void* dynamic_shared) {
    returned_count = barrier_count = 0;
    ready.start(static_cast<Order>(grid->order), random_numbers);
    for (int i = 0; i < thread_count; ++i) {
        Fiber& fiber = fibers[i];
        fiber.thread.block = block;
        fiber.thread.dynamic_shared = dynamic_shared;
        copies[i].begin_block();
        prepare(fiber.context, stack_of(i), stack_bytes(i), run_thread);
    }
    memset(warps, 0, sizeof warps);
    release(all_threads, thread_count);
    run_next();
    watch_block_end();
    if (grid->failed == Fault::none && returned_count != thread_count) report_deadlock();
}

void number_threads(dim3 block) {
    thread_count = static_cast<int>(block.x * block.y * block.z);
    unsigned linear = 0;
    for (unsigned z = 0; z < block.z; ++z)
        for (unsigned y = 0; y < block.y; ++y)
            for (unsigned x = 0; x < block.x; ++x, ++linear) {
                fibers[linear].thread = {{x, y, z}, {}, linear, linear % 32, linear / 32, nullptr, 0};
                all_threads[linear] = static_cast<int>(linear);
            }
}

}  // namespace

void stop_grid(Fault fault, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    record_arguments(fault, format, arguments);
    va_end(arguments);
    switch_to(scheduler);
    abort();
}

namespace {
[[noreturn]] void fail_at(Fault fault, Site site, const char* format, va_list arguments) {
    char text[512];
    vsnprintf(text, sizeof text, format, arguments);
    stop_grid(fault, "%s by thread %s of block %s at %s:%d", text, Name(current->index).text,
              Name(current->block).text, base_name(site.file), site.line);
}
}  // namespace

void fail(Site site, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fail_at(Fault::other, site, format, arguments);
}

void fail_memory(Site site, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fail_at(Fault::memory, site, format, arguments);
}

void stop_at_fault(int signal, const void* address, bool address_known) {
    const Name thread(current->index), block(current->block);
    if (signal == SIGFPE)
        stop_grid(Fault::other, "integer division by zero in thread %s of block %s", thread.text, block.text);
    if (is_guard(address))
        stop_grid(Fault::other, "thread %s of block %s needs more than %zu KB of stack", thread.text, block.text,
                  stack_size / 1024);
    if (!address_known)
        stop_grid(Fault::memory, "misaligned access, or one to an invalid address, by thread %s of block %s",
                  thread.text, block.text);
    const size_t place = reinterpret_cast<uintptr_t>(address);
    stop_grid(Fault::memory, "access to invalid address 0x%zx%s by thread %s of block %s", place,
              place < 4096 ? " (a null pointer)" : "", thread.text, block.text);
}

bool runs_kernel() { return running != &scheduler; }

StaticShared find_static_shared(const void* address) {
    SegmentSearch search = {reinterpret_cast<uintptr_t>(address), {}};
    dl_iterate_phdr(inspect_library, &search);
    return search.found;
}

void wait_turn(const char* operation, Site site) {
    constexpr unsigned long long turns = 1 << 21;  // seconds of nothing else
    Fiber& fiber = *running;
    wait_at(fiber, State::ready, operation, site);
    if (++idle_turns > turns)
        stop("no progress in block %s: thread %s repeats %s without end", Name(fiber.thread.block).text,
             Name(fiber.thread.index).text, Place(fiber).text);
    ready.defer(number_of(fiber));
    run_next();
}

int block_barrier(Vote vote, bool predicate, const char* name, Site site) {
    Fiber& fiber = *running;
    wait_at(fiber, State::at_barrier, name, site);
    fiber.predicate = predicate;
    if (returned_count)
        stop("%s reached by thread %s of block %s after %d threads returned", Place(fiber).text,
             Name(fiber.thread.index).text, Name(fiber.thread.block).text, returned_count);
    if (barrier_count == 0) barrier_first = number_of(fiber);
    const Fiber& first = fibers[barrier_first];
    if (!same_place(first, fiber))
        stop("divergent barrier in block %s: thread %s waits in %s, thread %s in %s", Name(fiber.thread.block).text,
             Name(first.thread.index).text, Place(first).text, Name(fiber.thread.index).text, Place(fiber).text);
    if (++barrier_count == thread_count) {
        int in_favour = 0;
        for (int i = 0; i < thread_count; ++i) in_favour += fibers[i].predicate;
        const int outcome = vote == Vote::count ? in_favour
                            : vote == Vote::all ? in_favour == thread_count
                                                : in_favour > 0;
        for (int i = 0; i < thread_count; ++i) fibers[i].outcome = outcome;
        barrier_count = 0;
        watch_barrier();
        release(all_threads, thread_count);
    }
    run_next();
    return fiber.outcome;
}

void warp_collective(unsigned mask, void* argument, CollectiveFunction function, const char* name, Site site) {
    Fiber& fiber = *running;
    wait_at(fiber, State::at_collective, name, site);
    fiber.mask = mask;
    fiber.argument = argument;
    Warp& warp = warps[fiber.thread.warp];
    const int base = static_cast<int>(fiber.thread.warp) * 32;
    const int lanes = thread_count - base < 32 ? thread_count - base : 32;
    const unsigned existing = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
    if (!(mask >> fiber.thread.lane & 1))
        stop("%s: lane %u (thread %s of block %s) is not in its own mask 0x%08x", Place(fiber).text, fiber.thread.lane,
             Name(fiber.thread.index).text, Name(fiber.thread.block).text, mask);
    if (mask & ~existing)
        stop("%s: mask 0x%08x of thread %s names lanes that do not exist: warp %u of block %s has %d lanes",
             Place(fiber).text, mask, Name(fiber.thread.index).text, fiber.thread.warp, Name(fiber.thread.block).text,
             lanes);
    if (mask & warp.returned)
        stop("%s: lane %d in mask 0x%08x of thread %s of block %s has already returned", Place(fiber).text,
             __builtin_ctz(mask & warp.returned), mask, Name(fiber.thread.index).text, Name(fiber.thread.block).text);
    const unsigned others = mask & warp.waiting;
    warp.waiting |= 1u << fiber.thread.lane;
    const bool complete = (warp.waiting & mask) == mask;
    for (unsigned left = others; left; left &= left - 1) {
        const Fiber& other = fibers[base + __builtin_ctz(left)];
        if (other.mask != mask || !same_place(other, fiber))
            stop("warp divergence in block %s: thread %s waits in %s with mask 0x%08x, thread %s in %s with mask 0x%08x",
                 Name(fiber.thread.block).text, Name(other.thread.index).text, Place(other).text, other.mask,
                 Name(fiber.thread.index).text, Place(fiber).text, mask);
        if (!complete) break;  // one comparison will do, until the last lane's: masks may overlap in part
    }
    if (complete) {
        void* arguments[32] = {};
        int members[32];
        int count = 0;
        for (unsigned left = mask; left; left &= left - 1) {
            const int lane = __builtin_ctz(left);
            arguments[lane] = fibers[base + lane].argument;
            members[count++] = base + lane;
        }
        function(arguments, mask);
        if (!argument) watch_warp_barrier(members, count);  // __syncwarp: the others do not order memory
        warp.waiting &= ~mask;
        watch_collective(fiber.thread.warp, (mask | warp.returned) == existing, name);
        release(members, count);
    }
    run_next();
}

void copy_async(void* shared, const void* source, unsigned bytes, unsigned valid, Site site) {
    const Copy copy = {static_cast<char*>(shared), static_cast<const char*>(source), bytes, valid, 0};
    if (valid > bytes) fail(site, "an asynchronous copy of %u bytes takes %u from its source", bytes, valid);
    require_aligned(shared, bytes, site.file, site.line);
    require_aligned(source, bytes, site.file, site.line);
    watch_copy(copy, __builtin_return_address(0));
    const auto landing = static_cast<Landing>(grid->landing);
    if (landing == Landing::early || (landing == Landing::random && random_numbers.below(2))) return copy.land();
    fill(shared, bytes, grid->fill);
    if (!copies[current->linear].add(copy)) stop_grid(Fault::other, "out of memory for asynchronous copies");
}

void commit_copies() {
    copies[current->linear].commit();
    watch_commit();
}

void wait_copies(int newest) {
    watch_wait(newest);
    copies[current->linear].wait(newest, [](const Copy& copy) { copy.land(); });
}

void wait_all_copies() {
    watch_wait(-1);
    copies[current->linear].wait_all([](const Copy& copy) { copy.land(); });
}

void run_grid(Launch& launch, void (*kernel_body)(void*), void* argument) {
    grid = &launch;
    body = kernel_body;
    body_argument = argument;
    launch.failed = Fault::none;
    launch.unwritten_read = 0;
    grid_dimensions = {launch.grid[0], launch.grid[1], launch.grid[2]};
    block_dimensions = {launch.block[0], launch.block[1], launch.block[2]};
    random_numbers.seed(launch.seed);
    number_threads(block_dimensions);
    running = &scheduler;

    const unsigned long long blocks = 1ull * launch.grid[0] * launch.grid[1] * launch.grid[2];
    if (blocks > 0xffffffffu) {
        record(Fault::other, "a grid of %llu blocks: the emulator runs up to %u", blocks, 0xffffffffu);
        return;
    }
    const BlockOrder order(static_cast<Order>(launch.order), static_cast<unsigned>(blocks), random_numbers);
    void* static_shared = static_shared_memory(launch.static_shared);
    void* dynamic_shared = nullptr;
    if (launch.dynamic_shared) dynamic_shared = aligned_alloc(1024, (launch.dynamic_shared + 1023) / 1024 * 1024);
    if (!order.has_memory() || (launch.dynamic_shared && !dynamic_shared) || !make_stacks())
        record(Fault::other, "out of memory for a grid of %llu blocks", blocks);
    FaultHandlers handlers;
    watch_grid(launch, kernel_body);
    for (unsigned i = 0; i < blocks && launch.failed == Fault::none; ++i) {
        if (static_shared) fill(static_shared, launch.static_shared.bytes, launch.fill);
        if (dynamic_shared) fill(dynamic_shared, launch.dynamic_shared, launch.fill);
        const unsigned block = order[i];
        watch_block(block, static_shared, dynamic_shared);
        run_block({block % launch.grid[0], block / launch.grid[0] % launch.grid[1],
                   block / launch.grid[0] / launch.grid[1]},
                  dynamic_shared);
    }
    watch_end();
    free(dynamic_shared);
}

}  // namespace emulated
