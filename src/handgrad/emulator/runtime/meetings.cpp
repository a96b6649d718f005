// What threads meet in: barriers of a block and of the grid, warp collectives; and the deadlocks there.
#include "emulated/barriers.h"
#include "emulated/warp.h"

#include "scheduler.h"

namespace emulated {

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

}  // namespace emulated
