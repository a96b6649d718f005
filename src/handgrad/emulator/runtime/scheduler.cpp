// The runtime: runs the blocks of a grid one after another, or all of them at once where the launch is
// cooperative, every thread of a block as a fiber.
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
#include "residents.h"
#include "stacks.h"
#include "static_shared.h"
#include "watch/watch.h"

namespace emulated {

Thread* current;
dim3 block_dimensions, grid_dimensions;
unsigned long long idle_turns;

namespace {

constexpr int most_residents = 65536;  // threads: 4 GB of addresses for their stacks
constexpr int many_stacks = 4096;      // whose memory is kept
constexpr int most_pieces = 256;

Kept<Fiber> fibers;
Kept<Block> blocks;  // those that are resident
Kept<int> numbers;   // 0, 1, 2, ...
Kept<int> meeting;   // fibers that wait in a grid meeting
Kept<CopiesUnderWay> copies;
StaticPiece static_pieces[most_pieces];
StaticMemory static_memory;
Fiber scheduler;  // the context of the caller: resumed when no thread can run, and after an error
Fiber* running = &scheduler;

int thread_count;  // of a block
int resident_count, meeting_count;
ReadyQueue ready;
Random random_numbers;
Launch* grid;
void (*body)(void*);
void* body_argument;

// What memory holds before it is written.  0x7ff8 repeated is a NaN as float, as double and as either half type,
// and stays one when rounded to tf32.
void fill(void* memory, size_t bytes, unsigned short pattern = 0x7ff8) {
    auto* halves = static_cast<unsigned short*>(memory);
    for (size_t i = 0; i < bytes / 2; ++i) halves[i] = pattern;
    if (bytes % 2) static_cast<unsigned char*>(memory)[bytes - 1] = static_cast<unsigned char>(pattern >> 7);
}

int number_of(const Fiber& fiber) { return static_cast<int>(&fiber - fibers.all()); }

Block& block_of(const Fiber& fiber) { return blocks[static_cast<int>(fiber.thread.slot)]; }

const char* base_name(const char* path) {
    const char* slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

void switch_to(Fiber& next) {
    Fiber& from = *running;
    if (&next == &from) return;
    if (&next != &scheduler) static_memory.show(static_cast<int>(next.thread.slot));
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
    Block& block = block_of(fiber);
    ++block.returned;
    idle_turns = 0;
    Warp& warp = block.warps[fiber.thread.warp];
    warp.returned |= 1u << fiber.thread.lane;
    for (unsigned waiting = warp.waiting; waiting; waiting &= waiting - 1) {
        const Fiber& other = fibers[block.first + static_cast<int>(fiber.thread.warp) * 32 + __builtin_ctz(waiting)];
        if (other.mask >> fiber.thread.lane & 1)
            stop("thread %s of block %s returned while thread %s waits for it in %s (mask 0x%08x)",
                 Name(fiber.thread.index).text, Name(fiber.thread.block).text, Name(other.thread.index).text,
                 Place(other).text, other.mask);
    }
    if (block.waiting)
        stop("thread %s of block %s returned while %d threads wait in %s", Name(fiber.thread.index).text,
             Name(fiber.thread.block).text, block.waiting, Place(fibers[block.first + block.first_waiting]).text);
    run_next();
    abort();  // a returned fiber is never resumed
}

// No thread can run and some of the block have not returned: names two that wait in different places, where
// there are two.
void report_deadlock(const Block& block) {
    const Fiber* first = nullptr;
    const Fiber* other = nullptr;
    for (int i = 0; i < thread_count; ++i) {
        const Fiber& fiber = fibers[block.first + i];
        if (fiber.state == State::returned) continue;
        if (!first) first = &fiber;
        else if (!other && !same_place(fiber, *first)) other = &fiber;
    }
    char second[300] = "";
    if (other) snprintf(second, sizeof second, ", thread %s in %s", Name(other->thread.index).text, Place(*other).text);
    record(Fault::synchronisation, "deadlock in block %s: %d of %d threads returned, thread %s waits in %s%s", Name(first->thread.block).text,
           block.returned, thread_count, Name(first->thread.index).text, Place(*first).text, second);
}

// The same where threads wait for other blocks: names a block that does not come.
void report_grid_deadlock() {
    const Fiber& first = fibers[meeting[0]];
    int came = 0;
    for (int i = 0; i < meeting_count; ++i) came += fibers[meeting[i]].counter == first.counter;
    char text[400] = "none of which was the last to arrive: is its counter 0 at first, and the number of blocks right?";
    for (int i = 0; i < resident_count; ++i) {
        const Fiber* threads = &fibers[blocks[i].first];
        const Fiber* elsewhere = nullptr;  // a thread that waits in another place
        bool comes = false;
        for (int k = 0; k < thread_count; ++k) {
            if (threads[k].state == State::at_grid_meeting && threads[k].counter == first.counter) comes = true;
            if (threads[k].state == State::returned || (elsewhere && threads[k].state != State::at_grid_meeting)) continue;
            elsewhere = &threads[k];
        }
        if (comes) continue;
        const Name block(threads->thread.block);
        if (!elsewhere) snprintf(text, sizeof text, "block %s has returned", block.text);
        else snprintf(text, sizeof text, "thread %s of block %s waits in %s", Name(elsewhere->thread.index).text, block.text,
                      Place(*elsewhere).text);
        break;
    }
    record(Fault::synchronisation, "deadlock of the grid: %d of %d blocks wait in %s (block %s among them), %s", came,
           resident_count, Place(first).text, Name(first.thread.block).text, text);
}

// The threads of a block are ready to start in place `slot`.
void begin_block(int slot, uint3 index) {
    Block& block = blocks[slot];
    block.returned = block.waiting = 0;
    memset(block.warps, 0, sizeof block.warps);
    for (int i = 0; i < thread_count; ++i) {
        Fiber& fiber = fibers[block.first + i];
        fiber.thread.block = index;
        fiber.thread.dynamic_shared = block.dynamic_shared;
        const int number = block.first + i;
        copies[number].begin_block();
        prepare(fiber.context, stack_of(number), stack_bytes(number), run_thread);
    }
}

// Runs the resident blocks to their end.
void run_residents() {
    meeting_count = 0;
    ready.start(static_cast<Order>(grid->order), random_numbers);
    release(numbers.all(), resident_count * thread_count);
    run_next();
    watch_blocks_end();
    if (grid->failed != Fault::none) return;
    if (meeting_count) return report_grid_deadlock();
    for (int i = 0; i < resident_count && grid->failed == Fault::none; ++i)
        if (blocks[i].returned != thread_count) report_deadlock(blocks[i]);
}

// Memory for `count` resident blocks; false where there is none.
bool make_room(int count, dim3 block) {
    const int threads = static_cast<int>(block.x * block.y * block.z);
    const int all = count * threads;
    if (!fibers.make_room(all) || !numbers.make_room(all) || !copies.make_room(all) || !meeting.make_room(all) ||
        !blocks.make_room(count) || !ready.make_room(all) || !make_stacks(all < max_threads ? max_threads : all))
        return false;
    thread_count = threads;
    resident_count = count;
    int number = 0;
    for (int slot = 0; slot < count; ++slot) {
        blocks[slot].first = number;
        unsigned linear = 0;
        for (unsigned z = 0; z < block.z; ++z)
            for (unsigned y = 0; y < block.y; ++y)
                for (unsigned x = 0; x < block.x; ++x, ++linear, ++number) {
                    fibers[number].thread = {{x, y, z}, {}, linear, linear % 32, linear / 32, nullptr, 0,
                                             static_cast<unsigned>(slot)};
                    numbers[number] = number;
                }
    }
    return true;
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

bool is_thread(const void* address) { return fibers.contains(address); }

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
    Block& block = block_of(fiber);
    wait_at(fiber, State::at_barrier, name, site);
    fiber.predicate = predicate;
    if (block.returned)
        stop("%s reached by thread %s of block %s after %d threads returned", Place(fiber).text,
             Name(fiber.thread.index).text, Name(fiber.thread.block).text, block.returned);
    if (block.waiting == 0) block.first_waiting = static_cast<int>(fiber.thread.linear);
    const Fiber& first = fibers[block.first + block.first_waiting];
    if (!same_place(first, fiber))
        stop("divergent barrier in block %s: thread %s waits in %s, thread %s in %s", Name(fiber.thread.block).text,
             Name(first.thread.index).text, Place(first).text, Name(fiber.thread.index).text, Place(fiber).text);
    if (++block.waiting == thread_count) {
        Fiber* members = &fibers[block.first];
        int in_favour = 0;
        for (int i = 0; i < thread_count; ++i) in_favour += members[i].predicate;
        const int outcome = vote == Vote::count ? in_favour
                            : vote == Vote::all ? in_favour == thread_count
                                                : in_favour > 0;
        for (int i = 0; i < thread_count; ++i) members[i].outcome = outcome;
        block.waiting = 0;
        watch_barrier();
        release(numbers.all() + block.first, thread_count);
    }
    run_next();
    return fiber.outcome;
}

void grid_meeting(const void* counter, bool last, const char* name, Site site) {
    Fiber& fiber = *running;
    wait_at(fiber, State::at_grid_meeting, name, site);
    if (!grid->cooperative && grid_dimensions.x * grid_dimensions.y * grid_dimensions.z > 1)
        stop("%s reached by thread %s of block %s in a launch that is not cooperative: its blocks need not run at the "
             "same time; launch it with cooperative=True", Place(fiber).text, Name(fiber.thread.index).text,
             Name(fiber.thread.block).text);
    fiber.counter = counter;
    if (!last) {
        meeting[meeting_count++] = number_of(fiber);
        return run_next();
    }
    int left = 0;
    for (int i = 0; i < meeting_count; ++i) {
        const Fiber& other = fibers[meeting[i]];
        if (other.counter != counter) continue;
        if (!same_place(other, fiber))
            stop("divergent barrier of the grid: thread %s of block %s waits in %s, thread %s of block %s in %s",
                 Name(other.thread.index).text, Name(other.thread.block).text, Place(other).text,
                 Name(fiber.thread.index).text, Name(fiber.thread.block).text, Place(fiber).text);
    }
    for (int i = 0; i < meeting_count; ++i) {
        const int number = meeting[i];
        if (fibers[number].counter != counter) meeting[left++] = number;
        else release(&number, 1);
    }
    meeting_count = left;
    fiber.state = State::ready;
    watch_collective(fiber.thread.warp, false, name);
}

void warp_collective(unsigned mask, void* argument, CollectiveFunction function, const char* name, Site site) {
    Fiber& fiber = *running;
    wait_at(fiber, State::at_collective, name, site);
    fiber.mask = mask;
    fiber.argument = argument;
    Block& block = block_of(fiber);
    Warp& warp = block.warps[fiber.thread.warp];
    const int first = static_cast<int>(fiber.thread.warp) * 32;  // linear number of lane 0
    const int base = block.first + first;
    const int lanes = thread_count - first < 32 ? thread_count - first : 32;
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
        int members[32], in_block[32];
        int count = 0;
        for (unsigned left = mask; left; left &= left - 1) {
            const int lane = __builtin_ctz(left);
            arguments[lane] = fibers[base + lane].argument;
            in_block[count] = first + lane;
            members[count++] = base + lane;
        }
        function(arguments, mask);
        if (!argument) watch_warp_barrier(in_block, count);  // __syncwarp: the others do not order memory
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
    if (!copies[number_of(*running)].add(copy)) stop_grid(Fault::other, "out of memory for asynchronous copies");
}

void commit_copies() {
    copies[number_of(*running)].commit();
    watch_commit();
}

void wait_copies(int newest) {
    watch_wait(newest);
    copies[number_of(*running)].wait(newest, [](const Copy& copy) { copy.land(); });
}

void wait_all_copies() {
    watch_wait(-1);
    copies[number_of(*running)].wait_all([](const Copy& copy) { copy.land(); });
}

namespace {

// Everything a launch needs; false where it is not to be had, and then the launch has failed.
bool prepare_launch(const Launch& launch, unsigned long long count) {
    const unsigned long long threads = 1ull * launch.block[0] * launch.block[1] * launch.block[2];
    if (count > 0xffffffffu) {
        record(Fault::other, "a grid of %llu blocks: the emulator runs up to %u", count, 0xffffffffu);
    } else if (launch.cooperative && count * threads > most_residents) {
        record(Fault::other, "a cooperative grid of %llu x %llu threads: the emulator runs up to %d at once", count, threads,
               most_residents);
    } else if (!make_room(launch.cooperative ? static_cast<int>(count) : 1, block_dimensions)) {
        record(Fault::other, "out of memory for a grid of %llu blocks", count);
    }
    return launch.failed == Fault::none;
}

// Dynamic shared memory for every resident block, one after another; null where there is none or no memory.
char* make_dynamic_shared(size_t bytes) {
    const size_t distance = (bytes + 1023) / 1024 * 1024;
    char* memory = bytes ? static_cast<char*>(aligned_alloc(1024, distance * static_cast<size_t>(resident_count))) : nullptr;
    for (int slot = 0; slot < resident_count; ++slot)
        blocks[slot].dynamic_shared = memory ? memory + distance * static_cast<size_t>(slot) : nullptr;
    return memory;
}

uint3 index_of(unsigned block) {
    const dim3 size = grid_dimensions;
    return {block % size.x, block / size.x % size.y, block / size.x / size.y};
}

}  // namespace

void run_grid(Launch& launch, void (*kernel_body)(void*), void* argument) {
    grid = &launch;
    body = kernel_body;
    body_argument = argument;
    launch.failed = Fault::none;
    launch.unwritten_read = 0;
    grid_dimensions = {launch.grid[0], launch.grid[1], launch.grid[2]};
    block_dimensions = {launch.block[0], launch.block[1], launch.block[2]};
    random_numbers.seed(launch.seed);
    running = &scheduler;
    current = &scheduler.thread;

    const unsigned long long count = 1ull * launch.grid[0] * launch.grid[1] * launch.grid[2];
    if (!prepare_launch(launch, count)) return;
    const BlockOrder order(static_cast<Order>(launch.order), static_cast<unsigned>(count), random_numbers);
    void* static_shared = static_shared_memory(launch.static_shared);
    char* dynamic_shared = make_dynamic_shared(launch.dynamic_shared);
    if (!order.has_memory() || (launch.dynamic_shared && !dynamic_shared))
        record(Fault::other, "out of memory for a grid of %llu blocks", count);
    FaultHandlers handlers;
    watch_grid(launch, kernel_body);
    const auto together = static_cast<unsigned>(resident_count);
    for (unsigned i = 0; i < count && launch.failed == Fault::none; i += together) {
        if (static_shared) fill(static_shared, launch.static_shared.bytes, launch.fill);
        int pieces = watch_static_shared(static_pieces, most_pieces);
        if (pieces < 0) static_pieces[0] = {static_shared, launch.static_shared.bytes}, pieces = 1;
        if (!static_memory.begin(static_pieces, pieces, resident_count)) {
            record(Fault::other, "out of memory for a grid of %llu blocks", count);
            break;
        }
        for (unsigned slot = 0; slot < together; ++slot) {
            Block& block = blocks[static_cast<int>(slot)];
            if (block.dynamic_shared) fill(block.dynamic_shared, launch.dynamic_shared, launch.fill);
            const unsigned number = order[i + slot];
            watch_block(slot, number, static_shared, block.dynamic_shared);
            begin_block(static_cast<int>(slot), index_of(number));
        }
        run_residents();
    }
    watch_end();
    free(dynamic_shared);
    if (resident_count * thread_count > many_stacks) trim_stacks(many_stacks);
}

}  // namespace emulated
