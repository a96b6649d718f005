// Exact counts of memory traffic, from what the code of -fsanitize=thread calls before every access.
//
// A place is an instruction of the kernel's code that accesses memory.  A request is the k-th access of a place
// by the lanes of a warp, counted from the last barrier or collective that all of its lanes passed: what a GPU
// does as one instruction of a warp whose lanes have not diverged.  Lanes run one after another, so requests
// are kept until that barrier or collective, and counted then (traffic.h).
#include "../emulated/counted.h"
#include "traffic.h"
#include "watch.h"

namespace emulated {

struct DistinctSectors {
    unsigned long long of[3];  // by Direction
};

// The counts of the last launch; read by emulator/counting.py.
struct LaunchCounts {
    const PlaceCounts* places;
    const DistinctSectors* distinct;  // of each argument
    const char* const* collectives;   // their names
    const unsigned long long* collective_counts;
    unsigned long long barriers;
    int place_count, argument_count, collective_count;
};

namespace {

constexpr long long most_kept = 4'000'000;  // requests not yet counted: about a gigabyte
constexpr Site nowhere = {nullptr, 0};

struct Place {
    Address key;
    Site site;
    Direction direction;
    unsigned bytes;
    int counts;  // the first of its PlaceCounts, or -1; next_counts chains them
};

// What a warp has begun at one place.
struct Begun {
    unsigned accesses[32];  // of each lane
    List<Request> requests;
};

struct WarpPlaces {
    List<Begun> places;
    List<int> begun;  // numbers of those with requests
};

Memory memory;
Launch* launch_counted;
bool watched;  // blocks run
Sectors touched[Memory::most_arguments][3];  // by Direction
List<Place> places;
List<int> slots;  // places by key, a hash table: the place's number + 1, or 0
List<PlaceCounts> counts;
List<int> next_counts;
constexpr int warps_of_block = max_threads / 32;
WarpPlaces* warps;  // of each slot
int warp_count;
long long kept;
List<const char*> collectives;
List<unsigned long long> collective_counts;
unsigned long long barriers;
List<DistinctSectors> distinct;
LaunchCounts result;

// ---- counting what is complete ---------------------------------------------------------------------------

struct Whereabouts {
    int memory;
    Range range;  // of the same memory
};

Whereabouts find(Address address, unsigned slot) {
    const int shared = memory.shared_with(address, 1, slot);
    if (shared >= 0) return {shared_memory, memory.shared_range(shared, slot)};
    const int argument = memory.argument_with(address, 1);
    if (argument >= 0) return {argument, memory.argument_range(argument)};
    return {memory.is_of_kernel(address) ? module_variables : elsewhere, {address, address + 1}};
}

PlaceCounts& counts_of(int place, int where) {
    int* link = &places[place].counts;
    for (; *link >= 0; link = &next_counts[*link])
        if (counts[*link].memory == where) return counts[*link];
    *link = counts.size();
    next_counts.add(-1);
    const Place& p = places[place];
    const unsigned long long code = p.site.file ? 0 : (p.key >> 8) - memory.kernel_start();
    return counts.add({code, p.site.file, p.site.line, where, p.direction, p.bytes, 0, 0, 0, 0, 0, 0});
}

void count(int place, const Request& request, unsigned slot) {
    const unsigned bytes = places[place].bytes;
    for (unsigned left = request.mask; left;) {
        const Whereabouts first = find(request.address[__builtin_ctz(left)], slot);
        const int where = first.memory;
        Address addresses[32];
        int lanes = 0;
        unsigned members = 0;
        for (unsigned others = left; others; others &= others - 1) {
            const int lane = __builtin_ctz(others);
            const Address address = request.address[lane];
            if (!first.range.contains(address) && find(address, slot).memory != where) continue;
            members |= 1u << lane;
            addresses[lanes++] = address;
        }
        left &= ~members;
        PlaceCounts& into = counts_of(place, where);
        ++into.requests;
        into.lanes += static_cast<unsigned>(lanes);
        if (where == shared_memory) {
            count_wavefronts(into, request, members, bytes);
            continue;
        }
        count_sectors(into, addresses, lanes, bytes, [&](Address sector) {
            if (where >= 0) touched[where][static_cast<int>(into.direction)].mark(sector);
        });
    }
}

// Counts all that the warp has begun: its lanes go on together.
void complete(int number) {
    WarpPlaces& warp = warps[number];
    const auto slot = static_cast<unsigned>(number / warps_of_block);
    for (const int place : warp.begun) {
        Begun& begun = warp.places[place];
        for (const Request& request : begun.requests) count(place, request, slot);
        kept -= begun.requests.size();
        begun.requests.clear();
        memset(begun.accesses, 0, sizeof begun.accesses);
    }
    warp.begun.clear();
}

// ---- collecting requests ---------------------------------------------------------------------------------

int slot_of(Address key) {
    return static_cast<int>((key * 0x9E3779B97F4A7C15ull >> 32) & static_cast<unsigned>(slots.size() - 1));
}

int following(int slot) { return (slot + 1) & (slots.size() - 1); }

int add_place(const Place& place) {
    places.add(place);
    if (places.size() * 2 > slots.size()) {
        const int size = slots.size() ? 2 * slots.size() : 256;
        slots.clear();
        slots.reach(size);
        for (int i = 0; i < places.size(); ++i) {
            int slot = slot_of(places[i].key);
            while (slots[slot]) slot = following(slot);
            slots[slot] = i + 1;
        }
    } else {
        int slot = slot_of(place.key);
        while (slots[slot]) slot = following(slot);
        slots[slot] = places.size();
    }
    return places.size() - 1;
}

int place_of(Address key, Site site, Direction direction, unsigned bytes) {
    if (slots.size())
        for (int slot = slot_of(key); slots[slot]; slot = following(slot))
            if (places[slots[slot] - 1].key == key) return slots[slot] - 1;
    return add_place({key, site, direction, bytes, -1});
}

int warp_of(unsigned warp) { return static_cast<int>(current->slot) * warps_of_block + static_cast<int>(warp); }

void keep(Address key, Site site, Direction direction, Address address, unsigned bytes) {
    const int place = place_of(key, site, direction, bytes);
    WarpPlaces& warp = warps[warp_of(current->warp)];
    warp.places.reach(place + 1);
    Begun& begun = warp.places[place];
    const int k = static_cast<int>(begun.accesses[current->lane]++);
    if (k >= begun.requests.size()) {
        if (k == 0) warp.begun.add(place);
        begun.requests.reach(k + 1);
        if (++kept > most_kept)
            stop_grid(Fault::other, "more accesses between two barriers than can be counted; take a smaller shape");
    }
    Request& request = begun.requests[k];
    request.address[current->lane] = address;
    request.mask |= 1u << current->lane;
}

bool is_counted(Address address) { return watched && !memory.is_private(address); }

// One access of 1, 2, 4, 8 or 16 bytes, by the call that returns to `code`.
void note(const void* code, Direction direction, const void* pointer, unsigned bytes) {
    const Address address = address_of(pointer);
    if (is_counted(address)) keep(address_of(code) << 8, nowhere, direction, address, bytes);
}

// An access of any size, as a GPU would make it: by aligned pieces of a power of two of up to 16 bytes.
void note_pieces(const void* code, Direction direction, const void* pointer, size_t bytes) {
    const Address address = address_of(pointer);
    if (!is_counted(address) || bytes == 0) return;
    unsigned size = 4;  // as a power of two
    while ((bytes | address) & ((1u << size) - 1)) --size;
    const unsigned piece = 1u << size;
    Address key = address_of(code) << 8 | (direction == Direction::load ? 0u : 128u) | size << 4;
    for (size_t done = 0; done < bytes; done += piece) {
        keep(key, nowhere, direction, address + done, piece);
        if ((key & 15) < 15) ++key;
    }
}

}  // namespace

// ---- what the kernel itself reports (counted.h) ----------------------------------------------------------

void count_load(const void* pointer, unsigned bytes, const void* call, Site site) {
    const Address address = address_of(pointer);
    if (is_counted(address)) keep(address_of(call) << 8, site, Direction::load, address, bytes);
}

void count_store(const void* pointer, unsigned bytes, const void* call, Site site) {
    const Address address = address_of(pointer);
    if (is_counted(address)) keep(address_of(call) << 8, site, Direction::store, address, bytes);
}

void count_atomic(const void* pointer, unsigned bytes, Site site) {
    const Address address = address_of(pointer);
    if (!is_counted(address)) return;
    // Its place is the line, for the function around the call may not be inlined; odd, unlike those of calls.
    const Address key = (address_of(site.file) + static_cast<unsigned>(site.line)) << 8 | 255;
    keep(key, site, Direction::atomic, address, bytes);
}

void counted_copy(void* to, const void* from, size_t bytes) {
    note_pieces(__builtin_return_address(0), Direction::load, from, bytes);
    note_pieces(__builtin_return_address(0), Direction::store, to, bytes);
    memcpy(to, from, bytes);
}

// ---- what the scheduler reports (watch.h) ----------------------------------------------------------------

void watch_grid(Launch& launch, void (*body)(void*)) {
    memory.begin(launch, body);
    launch_counted = &launch;
    for (int i = 0; i < memory.argument_count(); ++i)
        for (Sectors& sectors : touched[i]) sectors.begin(memory.argument_range(i));
    for (int i = 0; i < warp_count; ++i) complete(i);  // what a launch that failed has left
    places.clear();
    memset(slots.begin(), 0, sizeof(int) * static_cast<size_t>(slots.size()));
    counts.clear();
    next_counts.clear();
    collectives.clear();
    collective_counts.clear();
    barriers = 0;
}

void watch_block(unsigned slot, unsigned, void* static_shared, void* dynamic_shared) {
    memory.begin_block(slot, static_shared, launch_counted->static_shared.bytes, dynamic_shared,
                       launch_counted->dynamic_shared);
    const int wanted = (static_cast<int>(slot) + 1) * warps_of_block;
    if (wanted > warp_count) {
        const size_t bytes = static_cast<size_t>(wanted) * sizeof(WarpPlaces);
        warps = static_cast<WarpPlaces*>(realloc(static_cast<void*>(warps), bytes));
        if (!warps) abort();
        memset(static_cast<void*>(warps + warp_count), 0, bytes - static_cast<size_t>(warp_count) * sizeof(WarpPlaces));
        warp_count = wanted;
    }
    watched = true;
}

void watch_blocks_end() {
    watched = false;  // what the launch itself reads is not the kernel's
    for (int i = 0; i < warp_count; ++i) complete(i);
}

void watch_barrier() {
    ++barriers;
    for (int i = 0; i < warps_of_block; ++i) complete(warp_of(static_cast<unsigned>(i)));
}
void watch_warp_barrier(const int*, int) {}

void watch_collective(unsigned warp, bool whole, const char* name) {
    if (whole) complete(warp_of(warp));
    int i = 0;
    while (i < collectives.size() && strcmp(collectives[i], name) != 0) ++i;
    if (i == collectives.size()) {
        collectives.add(name);
        collective_counts.add(0);
    }
    ++collective_counts[i];
}

void watch_copy(const Copy& copy, const void* code) {
    note_pieces(code, Direction::load, copy.source, copy.valid);
    note_pieces(code, Direction::store, copy.target, copy.bytes);
}
void watch_commit() {}
void watch_wait(int) {}

int watch_static_shared(StaticPiece*, int) { return -1; }

void watch_end() {
    distinct.clear();
    for (int i = 0; i < memory.argument_count(); ++i)
        distinct.add({{touched[i][0].marked(), touched[i][1].marked(), touched[i][2].marked()}});
    result = {counts.begin(), distinct.begin(), collectives.begin(), collective_counts.begin(), barriers,
              counts.size(), distinct.size(), collectives.size()};
}

}  // namespace emulated

#define EMULATED_ENTRY extern "C" __attribute__((visibility("default")))

EMULATED_ENTRY const emulated::LaunchCounts* emulated_counts() { return &emulated::result; }

// ---- what instrumented code calls ------------------------------------------------------------------------

using emulated::Direction;
using emulated::note;
using emulated::note_pieces;

#define EMULATED_CODE __builtin_return_address(0)
#define EMULATED_ACCESSES_OF(n)                                                                              \
    EMULATED_ENTRY void __tsan_read##n(void* a) { note(EMULATED_CODE, Direction::load, a, n); }              \
    EMULATED_ENTRY void __tsan_write##n(void* a) { note(EMULATED_CODE, Direction::store, a, n); }            \
    EMULATED_ENTRY void __tsan_unaligned_read##n(void* a) { note_pieces(EMULATED_CODE, Direction::load, a, n); } \
    EMULATED_ENTRY void __tsan_unaligned_write##n(void* a) { note_pieces(EMULATED_CODE, Direction::store, a, n); }
EMULATED_ACCESSES_OF(1) EMULATED_ACCESSES_OF(2) EMULATED_ACCESSES_OF(4) EMULATED_ACCESSES_OF(8)
EMULATED_ACCESSES_OF(16)

EMULATED_ENTRY void __tsan_read_range(void* a, size_t n) { note_pieces(EMULATED_CODE, Direction::load, a, n); }
EMULATED_ENTRY void __tsan_write_range(void* a, size_t n) { note_pieces(EMULATED_CODE, Direction::store, a, n); }
EMULATED_ENTRY void* __tsan_memcpy(void* to, const void* from, size_t n) {
    note_pieces(EMULATED_CODE, Direction::load, from, n);
    note_pieces(EMULATED_CODE, Direction::store, to, n);
    return memcpy(to, from, n);
}
EMULATED_ENTRY void* __tsan_memmove(void* to, const void* from, size_t n) {
    note_pieces(EMULATED_CODE, Direction::load, from, n);
    note_pieces(EMULATED_CODE, Direction::store, to, n);
    return memmove(to, from, n);
}
EMULATED_ENTRY void* __tsan_memset(void* to, int value, size_t n) {
    note_pieces(EMULATED_CODE, Direction::store, to, n);
    return memset(to, value, n);
}

// atomics.h reports atomics; these carry them out.
#define EMULATED_ATOMICS_OF(bits, T)                                                                          \
    EMULATED_ENTRY T __tsan_atomic##bits##_load(const T* a, int) { return __atomic_load_n(a, __ATOMIC_SEQ_CST); } \
    EMULATED_ENTRY int __tsan_atomic##bits##_compare_exchange_strong(T* a, T* expected, T value, int, int) {  \
        return __atomic_compare_exchange_n(a, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);    \
    }                                                                                                         \
    EMULATED_ENTRY T __tsan_atomic##bits##_compare_exchange_val(T* a, T expected, T value, int, int) {        \
        __atomic_compare_exchange_n(a, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);          \
        return expected;                                                                                      \
    }
EMULATED_ATOMICS_OF(8, unsigned char) EMULATED_ATOMICS_OF(16, unsigned short) EMULATED_ATOMICS_OF(32, unsigned)
EMULATED_ATOMICS_OF(64, unsigned long long)
EMULATED_ENTRY void __tsan_atomic_thread_fence(int) {}

EMULATED_ENTRY void __tsan_init() {}
EMULATED_ENTRY void __tsan_func_entry(void*) {}
EMULATED_ENTRY void __tsan_func_exit() {}
EMULATED_ENTRY void __tsan_vptr_read(void**) {}
EMULATED_ENTRY void __tsan_vptr_update(void**, void*) {}
