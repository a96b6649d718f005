// The runtime: runs the blocks of a grid one after another, or all of them at once where the launch is
// cooperative, every thread of a block as a fiber.
//
// Compiled once into a library that all kernels share; a kernel calls run_grid through its description.
// A fiber runs until it waits in a barrier or a warp collective, or returns; the next ready one is then
// chosen by the order asked for.  Nothing here allocates memory while fibers run.
#include "scheduler.h"
#include "faults.h"
#include "stacks.h"
#include "static_shared.h"

namespace emulated {

Thread* current;
dim3 block_dimensions, grid_dimensions;
unsigned long long idle_turns;

namespace {

void switch_to(Fiber& next) {
    Fiber& from = *running;
    if (&next == &from) return;
    if (&next != &scheduler) static_memory.show(static_cast<int>(next.thread.slot));
    running = &next;
    current = &next.thread;
    switch_context(from.context, next.context);
}

}  // namespace

void run_next() {
    const int next = grid->failed != Fault::none ? -1 : ready.pop();
    switch_to(next < 0 ? scheduler : fibers[next]);
}

namespace {

// The first error stands.
void record_arguments(Fault fault, const char* format, va_list arguments) {
    if (grid->failed != Fault::none) return;
    if (grid->unwritten_read) {  // what follows such a read is its consequence
        grid->failed = Fault::initialisation;
        return;
    }
    vsnprintf(grid->message, sizeof grid->message, format, arguments);
    grid->failed = fault;
}

}  // namespace

void record(Fault fault, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    record_arguments(fault, format, arguments);
    va_end(arguments);
}

void stop(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    record_arguments(Fault::synchronisation, format, arguments);
    va_end(arguments);
    switch_to(scheduler);
    abort();
}

void release(const int* threads, int count) {
    idle_turns = 0;
    for (int i = 0; i < count; ++i) fibers[threads[i]].state = State::ready;
    ready.release(threads, count);
}

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

}  // namespace emulated
