// The launch of a grid, its memory, and its threads' asynchronous copies.
#include "emulated/asynchronous_copies.h"
#include "emulated/kernel.h"
#include "emulated/memory.h"

#include "block_order.h"
#include "faults.h"
#include "scheduler.h"
#include "stacks.h"
#include "static_shared.h"

namespace emulated {

namespace {

constexpr int most_residents = 65536;  // threads: 4 GB of addresses for their stacks
constexpr int many_stacks = 4096;      // whose memory is kept
constexpr int most_pieces = 256;

StaticPiece static_pieces[most_pieces];

// What memory holds before it is written.  0x7ff8 repeated is a NaN as float, as double and as either half type,
// and stays one when rounded to tf32.
void fill(void* memory, size_t bytes, unsigned short pattern = 0x7ff8) {
    auto* halves = static_cast<unsigned short*>(memory);
    for (size_t i = 0; i < bytes / 2; ++i) halves[i] = pattern;
    if (bytes % 2) static_cast<unsigned char*>(memory)[bytes - 1] = static_cast<unsigned char>(pattern >> 7);
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

}  // namespace emulated
