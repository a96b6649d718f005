// Whose memory an address is: what a kernel may touch, and what a message calls it.
#pragma once
#include <link.h>
#include <stdio.h>

#include "../emulated/kernel.h"
#include "../stacks.h"
#include "list.h"

namespace emulated {

using Address = uintptr_t;

inline Address address_of(const void* pointer) { return reinterpret_cast<Address>(pointer); }

struct Range {
    Address start = 0, end = 0;
    bool contains(Address address, size_t bytes = 1) const { return address >= start && address + bytes <= end; }
};

// All segments of the library that contains `address`.
inline Range library_with(const void* address) {
    struct Sought {
        Address address;
        Range found;
    } sought = {address_of(address), {}};
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* argument) {
            auto* sought = static_cast<Sought*>(argument);
            Range whole = {~Address(0), 0};
            bool contains = false;
            for (int i = 0; i < info->dlpi_phnum; ++i) {
                const auto& segment = info->dlpi_phdr[i];
                if (segment.p_type != PT_LOAD) continue;
                const Range range = {info->dlpi_addr + segment.p_vaddr,
                                     info->dlpi_addr + segment.p_vaddr + segment.p_memsz};
                contains = contains || range.contains(sought->address);
                if (range.start < whole.start) whole.start = range.start;
                if (range.end > whole.end) whole.end = range.end;
            }
            if (contains) sought->found = whole;
            return contains ? 1 : 0;
        },
        &sought);
    return sought.found;
}

bool is_thread(const void* address);  // of those that run, which kernels read their threadIdx from

struct SharedOfBlock {
    Range of[2];  // static, dynamic
};

// The memory of one launch.
class Memory {
public:
    static constexpr int most_arguments = 64;

    void begin(Launch& launch, void (*body)(void*)) {
        arguments_ = launch.regions;
        count_ = launch.region_count < most_arguments ? launch.region_count : most_arguments;
        for (int i = 0; i < count_; ++i) {
            const Address start = address_of(launch.regions[i].start);
            ranges_[i] = {start, start + launch.regions[i].bytes};
        }
        kernel_ = library_with(reinterpret_cast<const void*>(body));
        runtime_ = library_with(&current);
        const Address values = count_or_null(launch) ? address_of(launch.arguments[0]) : 0;
        values_ = {values, values + launch.value_bytes};
        const Address pointers = address_of(launch.arguments);
        pointers_ = {pointers, pointers + 8 * (launch.value_bytes / 16 + 1)};
    }
    void begin_block(unsigned slot, void* static_shared, size_t static_bytes, void* dynamic_shared,
                     size_t dynamic_bytes) {
        shared_.reach(static_cast<int>(slot) + 1);
        Range* of = shared_[static_cast<int>(slot)].of;
        of[0] = {address_of(static_shared), address_of(static_shared) + (static_shared ? static_bytes : 0)};
        of[1] = {address_of(dynamic_shared), address_of(dynamic_shared) + (dynamic_shared ? dynamic_bytes : 0)};
    }

    // Registers, local arrays, parameters, and what belongs to the emulator: nobody else's business.
    bool is_private(Address address) const {
        const auto* place = reinterpret_cast<const void*>(address);
        return is_stack(place) || is_thread(place) || runtime_.contains(address) || values_.contains(address) ||
               pointers_.contains(address);
    }
    bool is_of_kernel(Address address) const { return kernel_.contains(address); }
    Address kernel_start() const { return kernel_.start; }

    // The argument whose memory holds the whole access, or -1.
    int argument_with(Address address, size_t bytes) const {
        for (int i = 0; i < count_; ++i)
            if (ranges_[i].contains(address, bytes)) return i;
        return -1;
    }
    // 0 static, 1 dynamic, -1 neither: of the block in `slot`, that of the running thread by default.
    int shared_with(Address address, size_t bytes) const { return shared_with(address, bytes, current->slot); }
    int shared_with(Address address, size_t bytes, unsigned slot) const {
        for (int i = 0; i < 2; ++i)
            if (shared_range(i, slot).contains(address, bytes)) return i;
        return -1;
    }
    const Range& argument_range(int i) const { return ranges_[i]; }
    const Range& shared_range(int i, unsigned slot) const { return shared_[static_cast<int>(slot)].of[i]; }
    const Region& argument(int i) const { return arguments_[i]; }
    int argument_count() const { return count_; }

    // "x[12]", "dynamic shared memory, byte 48", or how far beyond which memory.
    struct Name {
        char text[200];
    };
    Name name_of(Address address, size_t bytes) const {
        Name name;
        const int argument = argument_with(address, 1), shared = shared_with(address, 1);
        if (argument >= 0 && ranges_[argument].contains(address, bytes))
            snprintf(name.text, sizeof name.text, "%s[%zu]", arguments_[argument].name,
                     (address - ranges_[argument].start) / arguments_[argument].itemsize);
        else if (shared >= 0 && shared_range(shared, current->slot).contains(address, bytes))
            snprintf(name.text, sizeof name.text, "%s shared memory at byte %zu", shared ? "dynamic" : "static",
                     address - shared_range(shared, current->slot).start);
        else
            describe_outside(name, address);
        return name;
    }

private:
    static bool count_or_null(const Launch& launch) { return launch.arguments && launch.value_bytes; }

    void describe_outside(Name& name, Address address) const {
        size_t nearest = ~size_t(0);
        const Range* range = nullptr;
        const char* owner = nullptr;
        const auto consider = [&](const Range& candidate, const char* text) {
            if (candidate.start == candidate.end) return;
            const size_t distance = address >= candidate.end ? address - candidate.end
                                    : address < candidate.start ? candidate.start - address
                                                                : 0;
            if (distance < nearest) nearest = distance, range = &candidate, owner = text;
        };
        for (int i = 0; i < count_; ++i) consider(ranges_[i], arguments_[i].name);
        consider(shared_range(0, current->slot), "static shared memory");
        consider(shared_range(1, current->slot), "dynamic shared memory");
        if (address < 4096)
            snprintf(name.text, sizeof name.text, "address 0x%zx (a null pointer)", static_cast<size_t>(address));
        else if (!range || nearest > (1u << 20))
            snprintf(name.text, sizeof name.text, "address 0x%zx, in no memory that the kernel was given",
                     static_cast<size_t>(address));
        else if (address < range->start)
            snprintf(name.text, sizeof name.text, "%zu bytes before the start of %s (%zu bytes)", nearest, owner,
                     range->end - range->start);
        else if (nearest > 0)
            snprintf(name.text, sizeof name.text, "%zu bytes past the end of %s (%zu bytes)", nearest, owner,
                     range->end - range->start);
        else if (address >= range->end)
            snprintf(name.text, sizeof name.text, "just past the end of %s (%zu bytes)", owner,
                     range->end - range->start);
        else
            snprintf(name.text, sizeof name.text, "across the end of %s (%zu bytes)", owner,
                     range->end - range->start);
    }

    const Region* arguments_ = nullptr;
    int count_ = 0;
    Range ranges_[most_arguments];
    Range kernel_, runtime_, values_, pointers_;
    List<SharedOfBlock> shared_;  // by slot
};

// "thread (3,0,0) of block (1,0,0)"
struct ThreadName {
    char text[100];
    ThreadName(const uint3& index, const uint3& block) {
        snprintf(text, sizeof text, "thread (%u,%u,%u) of block (%u,%u,%u)", index.x, index.y, index.z, block.x,
                 block.y, block.z);
    }
};

}  // namespace emulated
