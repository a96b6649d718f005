// Races and initialisation: what the code of -fsanitize=thread calls before every access.
//
// Instead of the sanitizer's runtime, which knows threads of the operating system, these functions know CUDA's.
// The first fault ends the grid; a read of memory that nobody wrote is noted, for the launch is then repeated
// with other contents of that memory to see whether the result depends on them (launch.py).
#include <stdlib.h>
#include <string.h>

#include "../emulated/barriers.h"
#include "initialisation.h"
#include "races.h"
#include "regions.h"
#include "watch.h"

namespace emulated {
namespace {

Memory memory;
Launch* watched;  // null where no grid runs
CarriedByAddress carried;
Shadow argument_shadows[Memory::most_arguments];
Contents argument_contents[Memory::most_arguments];

// What is known of a block that is resident, and of its shared memory: static, dynamic.
struct Resident {
    Clocks clocks;
    Shadow shared_shadows[2];
    Contents shared_contents[2];
    CopiesUnderWay copies_under_way[max_threads];
};
List<Resident*> residents;  // by slot; kept from launch to launch

Resident& resident() { return *residents[static_cast<int>(current->slot)]; }

struct CopyPlace {
    Address target;
    unsigned place;
};
List<CopyPlace> copy_places;

unsigned offset_of(const void* place) { return static_cast<unsigned>(address_of(place) - memory.kernel_start()); }

ThreadName running_thread() { return {current->index, current->block}; }

ThreadName thread_of(const Moment& moment) {
    const unsigned thread = static_cast<unsigned>(moment.thread);
    const dim3 b = block_dimensions, g = grid_dimensions;
    return {uint3{thread % b.x, thread / b.x % b.y, thread / b.x / b.y},
            uint3{moment.block % g.x, moment.block / g.x % g.y, moment.block / g.x / g.y}};
}

const char* remedy(const Moment& before, Access kind, const char* did) {
    const bool atomic = kind >= Access::atomic_load || strchr(did, '(') || strstr(did, "atomically");
    if (before.block != resident().clocks.block())
        return atomic ? "one access is atomic or volatile, the other is not, and no fences order the two blocks"
                      : "nothing orders the two blocks: it takes a __threadfence on both sides of an atomic";
    if (atomic) return "one access is atomic or volatile, the other is not, and no barrier lies between";
    if (static_cast<unsigned>(before.thread) / 32 == current->warp)
        return "no __syncwarp or __syncthreads lies between";
    return "no __syncthreads lies between";
}

void check_race(Shadow& shadow, Address address, size_t bytes, Access kind, unsigned place) {
    static const char* const does[] = {"reads", "writes", "reads (volatile)", "writes (volatile)",
                                       "updates atomically"};
    const int thread = static_cast<int>(current->linear);
    const Clocks& clocks = resident().clocks;
    const Mark mark = {{clocks.block(), thread, clocks.now(thread)}, place, 0, false};
    const Race race = shadow.access(address, bytes, kind, mark, thread, clocks);
    if (!race.before) return;
    watched->places[0] = place;
    watched->places[1] = race.before->place;
    const Moment before = race.before->moment;
    stop_grid(Fault::races, "%s %s %s at <place 0>, which %s %s at <place 1>: %s", running_thread().text,
              does[static_cast<int>(kind)], memory.name_of(address, 1).text, thread_of(before).text, race.did,
              remedy(before, kind, race.did));
}

void check_contents(Contents& contents, Address address, size_t bytes, Access kind, unsigned place) {
    if (kind == Access::write || kind == Access::atomic_store) return contents.set(address, bytes, Written::by_kernel);
    const Written state = contents.obstacle(address, bytes);
    if (state == Written::by_copy_under_way) {
        watched->places[0] = watched->places[1] = place;
        for (const CopyPlace& copy : copy_places)
            if (address + bytes > copy.target && address < copy.target + 16) watched->places[1] = copy.place;
        stop_grid(Fault::initialisation,
                  "%s reads %s at <place 0>, where the asynchronous copy of <place 1> has not been waited for",
                  running_thread().text, memory.name_of(address, 1).text);
    }
    if (state == Written::no && !watched->unwritten_read) {
        watched->unwritten_read = 1;
        watched->places[0] = place;
        snprintf(watched->message, sizeof watched->message, "%s reads %s at <place 0>, which nobody wrote",
                 running_thread().text, memory.name_of(address, 1).text);
    }
    if (kind == Access::atomic_update) contents.set(address, bytes, Written::by_kernel);
}

// Atomics pass on what fences gave and receive it.
void pass_knowledge(Address address, Access kind) {
    const int thread = static_cast<int>(current->linear);
    Clocks& clocks = resident().clocks;
    Carried* found = carried.find(address);
    if (found && kind != Access::atomic_store) clocks.acquire(thread, *found);
    if (kind != Access::atomic_load && (found || clocks.gives(thread)))
        clocks.release(thread, carried.make(address), kind == Access::atomic_store);
}

void note(Address address, size_t bytes, Access kind, unsigned place) {
    if (!watched || bytes == 0 || memory.is_private(address)) return;
    const int shared = memory.shared_with(address, bytes);
    const int argument = shared < 0 ? memory.argument_with(address, bytes) : -1;
    if (shared < 0 && argument < 0) {
        if (memory.is_of_kernel(address)) return;  // constants
        watched->places[0] = place;
        stop_grid(Fault::memory, "%s %s %zu bytes, %s, at <place 0>", running_thread().text,
                  kind == Access::read || kind == Access::atomic_load ? "reads" : "writes", bytes,
                  memory.name_of(address, bytes).text);
    }
    if (watched->search == Search::initialisation) {
        check_contents(shared >= 0 ? resident().shared_contents[shared] : argument_contents[argument], address, bytes, kind,
                       place);
        return;
    }
    if (argument >= 0 && memory.argument(argument).constant && kind == Access::read) return;
    if (kind >= Access::atomic_load) pass_knowledge(address, kind);
    check_race(shared >= 0 ? resident().shared_shadows[shared] : argument_shadows[argument], address, bytes, kind, place);
}

void note(const void* address, size_t bytes, Access kind, const void* place) {
    if (watched) note(address_of(address), bytes, kind, offset_of(place));
}

}  // namespace

void fence(Scope scope) {
    if (watched && watched->search == Search::races) resident().clocks.fence(static_cast<int>(current->linear), scope);
}

void watch_grid(Launch& launch, void (*body)(void*)) {
    memory.begin(launch, body);
    carried.clear();
    for (int i = 0; i < memory.argument_count(); ++i) {
        const Region& region = memory.argument(i);
        argument_shadows[i].begin(memory.argument_range(i), region.itemsize <= 8 ? region.itemsize : 4);
        if (launch.search != Search::initialisation) continue;
        argument_contents[i].begin(memory.argument_range(i), Written::before);
        if (!region.constant) find_poison(region, argument_contents[i]);
    }
    watched = &launch;
}

void watch_block(unsigned slot, unsigned block, void* static_shared, void* dynamic_shared) {
    memory.begin_block(slot, static_shared, watched->static_shared.bytes, dynamic_shared, watched->dynamic_shared);
    const int threads = static_cast<int>(block_dimensions.x * block_dimensions.y * block_dimensions.z);
    while (residents.size() <= static_cast<int>(slot)) residents.add(make<Resident>());
    Resident& one = *residents[static_cast<int>(slot)];
    one.clocks.begin_block(block, threads);
    copy_places.clear();
    for (int i = 0; i < threads; ++i) one.copies_under_way[i].begin_block();
    for (int i = 0; i < 2; ++i) {
        const Range& range = memory.shared_range(i, slot);
        one.shared_shadows[i].begin(range, 4);
        if (watched->search == Search::initialisation) one.shared_contents[i].begin(range, Written::no);
    }
}

void watch_barrier() { resident().clocks.barrier(); }
void watch_warp_barrier(const int* threads, int count) { resident().clocks.warp_barrier(threads, count); }

void watch_blocks_end() {}
int watch_static_shared(StaticPiece*, int) { return -1; }
void watch_collective(unsigned, bool, const char*) {}

void watch_copy(const Copy& copy, const void* place) {
    note(copy.source, copy.valid, Access::read, place);
    note(copy.target, copy.bytes, Access::write, place);
    Copy noted = copy;
    noted.source = static_cast<const char*>(place);  // what is kept of it
    if (!resident().copies_under_way[current->linear].add(noted)) abort();
    copy_places.add({address_of(copy.target), offset_of(place)});
    const int shared = memory.shared_with(address_of(copy.target), copy.bytes);
    if (shared >= 0 && watched->search == Search::initialisation)
        resident().shared_contents[shared].set(address_of(copy.target), copy.bytes, Written::by_copy_under_way);
}
void watch_commit() { resident().copies_under_way[current->linear].commit(); }
void watch_wait(int newest) {
    // A copy is a write at any time until the wait: at its end it counts once more.
    const auto landed = [](const Copy& copy) { note(copy.target, copy.bytes, Access::write, copy.source); };
    CopiesUnderWay& mine = resident().copies_under_way[current->linear];
    if (newest < 0) mine.wait_all(landed);
    else mine.wait(newest, landed);
}

void watch_end() {
    for (int i = 0; i < memory.argument_count(); ++i) argument_shadows[i].begin({}, 1);
    for (Resident* one : residents)
        for (Shadow& shadow : one->shared_shadows) shadow.begin({}, 1);
    watched = nullptr;
}

}  // namespace emulated

// ---- what instrumented code calls -----------------------------------------------------------------------

using emulated::Access;
using emulated::note;

#define EMULATED_ENTRY extern "C" __attribute__((visibility("default")))
#define EMULATED_NOTE(address, bytes, kind) note(address, bytes, Access::kind, __builtin_return_address(0))

EMULATED_ENTRY void __tsan_init() {}
EMULATED_ENTRY void __tsan_func_entry(void*) {}
EMULATED_ENTRY void __tsan_func_exit() {}
EMULATED_ENTRY void __tsan_vptr_update(void**, void*) {}
EMULATED_ENTRY void __tsan_vptr_read(void**) {}
EMULATED_ENTRY void __tsan_read_range(void* a, size_t n) { EMULATED_NOTE(a, n, read); }
EMULATED_ENTRY void __tsan_write_range(void* a, size_t n) { EMULATED_NOTE(a, n, write); }

#define EMULATED_ACCESSES_OF(n)                                                                        \
    EMULATED_ENTRY void __tsan_read##n(void* a) { EMULATED_NOTE(a, n, read); }                         \
    EMULATED_ENTRY void __tsan_write##n(void* a) { EMULATED_NOTE(a, n, write); }                       \
    EMULATED_ENTRY void __tsan_read_write##n(void* a) {                                                \
        EMULATED_NOTE(a, n, read);                                                                     \
        EMULATED_NOTE(a, n, write);                                                                    \
    }                                                                                                  \
    EMULATED_ENTRY void __tsan_unaligned_read##n(void* a) { EMULATED_NOTE(a, n, read); }               \
    EMULATED_ENTRY void __tsan_unaligned_write##n(void* a) { EMULATED_NOTE(a, n, write); }             \
    EMULATED_ENTRY void __tsan_volatile_read##n(void* a) { EMULATED_NOTE(a, n, atomic_load); }         \
    EMULATED_ENTRY void __tsan_volatile_write##n(void* a) { EMULATED_NOTE(a, n, atomic_store); }       \
    EMULATED_ENTRY void __tsan_unaligned_volatile_read##n(void* a) { EMULATED_NOTE(a, n, atomic_load); } \
    EMULATED_ENTRY void __tsan_unaligned_volatile_write##n(void* a) { EMULATED_NOTE(a, n, atomic_store); }
EMULATED_ACCESSES_OF(1) EMULATED_ACCESSES_OF(2) EMULATED_ACCESSES_OF(4) EMULATED_ACCESSES_OF(8)
EMULATED_ACCESSES_OF(16)

// atomics.h reads before it compares and exchanges: the load is part of the update, and not noted by itself.
#define EMULATED_ATOMICS_OF(bits, T)                                                                          \
    EMULATED_ENTRY T __tsan_atomic##bits##_load(const T* a, int) { return __atomic_load_n(a, __ATOMIC_SEQ_CST); } \
    EMULATED_ENTRY int __tsan_atomic##bits##_compare_exchange_strong(T* a, T* expected, T value, int, int) {  \
        EMULATED_NOTE(a, sizeof(T), atomic_update);                                                           \
        return __atomic_compare_exchange_n(a, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);    \
    }                                                                                                         \
    EMULATED_ENTRY T __tsan_atomic##bits##_compare_exchange_val(T* a, T expected, T value, int, int) {        \
        EMULATED_NOTE(a, sizeof(T), atomic_update);                                                           \
        __atomic_compare_exchange_n(a, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);          \
        return expected;                                                                                      \
    }
EMULATED_ATOMICS_OF(8, unsigned char) EMULATED_ATOMICS_OF(16, unsigned short) EMULATED_ATOMICS_OF(32, unsigned)
EMULATED_ATOMICS_OF(64, unsigned long long)
EMULATED_ENTRY void __tsan_atomic_thread_fence(int) {}
EMULATED_ENTRY void* __tsan_memcpy(void* to, const void* from, size_t n) {
    EMULATED_NOTE(from, n, read);
    EMULATED_NOTE(to, n, write);
    return memcpy(to, from, n);
}
EMULATED_ENTRY void* __tsan_memset(void* to, int value, size_t n) {
    EMULATED_NOTE(to, n, write);
    return memset(to, value, n);
}
