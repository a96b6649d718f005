// Memory: what the code of -fsanitize=kernel-address and of -fsanitize=alignment,bounds,... calls.
//
// The compiler puts a call before every access, and room around every variable; here an access is compared
// with the memory that the kernel was given.  The first that is wrong ends the grid before it happens.
#include <stdlib.h>
#include <string.h>

#include "regions.h"
#include "watch.h"

namespace emulated {
namespace {

// What the compiler tells of a variable: its size, and its size with the room that follows it.
struct Variable {
    Address start;
    size_t bytes, bytes_with_room;
    const char* name;
    size_t unused[4];  // file, initialisation, place, one-definition indicator
};
static_assert(sizeof(Variable) == 64, "as the compilers lay it out");

struct Variables {  // of one library
    const Variable* first;
    size_t count;
};

constexpr int most_libraries = 4096;
Variables libraries[most_libraries];
int library_count;

Memory memory;
Launch* watched;             // null where no grid runs
const Variables* variables;  // of the running kernel's library

const Variable* variable_around(Address address) {
    if (!variables) return nullptr;
    for (size_t i = 0; i < variables->count; ++i) {
        const Variable& variable = variables->first[i];
        if (address >= variable.start && address < variable.start + variable.bytes_with_room) return &variable;
    }
    return nullptr;
}

// Whether it lies in a segment that the dynamic linker lets one write to.
bool is_writable(Address address) {
    struct Sought {
        Address address;
        bool writable, read_only;
    } sought = {address, false, false};
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* argument) {
            auto* sought = static_cast<Sought*>(argument);
            for (int i = 0; i < info->dlpi_phnum; ++i) {
                const auto& segment = info->dlpi_phdr[i];
                const Address start = info->dlpi_addr + segment.p_vaddr;
                if (!Range{start, start + segment.p_memsz}.contains(sought->address)) continue;
                if (segment.p_type == PT_LOAD) sought->writable = segment.p_flags & PF_W;
                if (segment.p_type == PT_GNU_RELRO) sought->read_only = true;
            }
            return 0;
        },
        &sought);
    return sought.writable && !sought.read_only;
}

[[noreturn]] void report(const char* what, size_t bytes, const char* where, const void* place) {
    watched->places[0] = address_of(place) - memory.kernel_start();
    const ThreadName thread(current->index, current->block);
    stop_grid(Fault::memory, "%s %s %zu bytes, %s, at <place 0>", thread.text, what, bytes, where);
}

void check(Address address, size_t bytes, bool writes, const void* place) {
    if (!watched || bytes == 0 || memory.is_private(address)) return;
    if (memory.argument_with(address, bytes) >= 0 || memory.shared_with(address, bytes) >= 0) return;
    const char* what = writes ? "writes" : "reads";
    const Variable* variable = variable_around(address);
    if (variable) {
        if (address + bytes <= variable->start + variable->bytes) return;
        char text[200];
        const size_t end = variable->start + variable->bytes;
        if (address == end)
            snprintf(text, sizeof text, "just past the end of %s (%zu bytes)", variable->name, variable->bytes);
        else if (address > end)
            snprintf(text, sizeof text, "%zu bytes past the end of %s (%zu bytes)", address - end, variable->name,
                     variable->bytes);
        else
            snprintf(text, sizeof text, "across the end of %s (%zu bytes)", variable->name, variable->bytes);
        report(what, bytes, text, place);
    }
    if (memory.is_of_kernel(address)) return;  // constants
    report(what, bytes, memory.name_of(address, bytes).text, place);
}

}  // namespace

void watch_grid(Launch& launch, void (*body)(void*)) {
    memory.begin(launch, body);
    variables = nullptr;
    for (int i = 0; i < library_count; ++i)
        if (libraries[i].count && memory.is_of_kernel(address_of(libraries[i].first))) variables = &libraries[i];
    watched = &launch;
}
void watch_block(unsigned slot, unsigned, void* static_shared, void* dynamic_shared) {
    memory.begin_block(slot, static_shared, watched->static_shared.bytes, dynamic_shared, watched->dynamic_shared);
}
void watch_blocks_end() {}
void watch_barrier() {}
void watch_warp_barrier(const int*, int) {}
void watch_collective(unsigned, bool, const char*) {}
void watch_copy(const Copy& copy, const void* place) {
    check(address_of(copy.source), copy.valid, false, place);
    check(address_of(copy.target), copy.bytes, true, place);
}
void watch_commit() {}
void watch_wait(int) {}
void watch_end() { watched = nullptr; }

// In this mode shared variables are ordinary ones, and nothing tells them from __device__ variables.
int watch_static_shared(StaticPiece* pieces, int most) {
    int count = 0;
    for (size_t i = 0; variables && i < variables->count && count < most; ++i) {
        const Variable& variable = variables->first[i];
        if (is_writable(variable.start)) pieces[count++] = {reinterpret_cast<void*>(variable.start), variable.bytes};
    }
    return count;
}

}  // namespace emulated

// ---- what instrumented code calls -----------------------------------------------------------------------

using emulated::Address;

#define EMULATED_ENTRY extern "C" __attribute__((visibility("default")))
#define EMULATED_PLACE __builtin_return_address(0)

EMULATED_ENTRY void __asan_register_globals(const emulated::Variable* variables, size_t count) {
    if (emulated::library_count < emulated::most_libraries)
        emulated::libraries[emulated::library_count++] = {variables, count};
}
EMULATED_ENTRY void __asan_unregister_globals(const emulated::Variable*, size_t) {}
EMULATED_ENTRY void __asan_handle_no_return() {}
EMULATED_ENTRY void __asan_init() {}
EMULATED_ENTRY void __asan_version_mismatch_check_v8() {}

#define EMULATED_CHECKS(size)                                                                                    \
    EMULATED_ENTRY void __asan_load##size##_noabort(Address a) { emulated::check(a, size, false, EMULATED_PLACE); } \
    EMULATED_ENTRY void __asan_store##size##_noabort(Address a) { emulated::check(a, size, true, EMULATED_PLACE); } \
    EMULATED_ENTRY void __asan_load##size(Address a) { emulated::check(a, size, false, EMULATED_PLACE); }           \
    EMULATED_ENTRY void __asan_store##size(Address a) { emulated::check(a, size, true, EMULATED_PLACE); }
EMULATED_CHECKS(1) EMULATED_CHECKS(2) EMULATED_CHECKS(4) EMULATED_CHECKS(8) EMULATED_CHECKS(16)

EMULATED_ENTRY void __asan_loadN_noabort(Address a, size_t n) { emulated::check(a, n, false, EMULATED_PLACE); }
EMULATED_ENTRY void __asan_storeN_noabort(Address a, size_t n) { emulated::check(a, n, true, EMULATED_PLACE); }
EMULATED_ENTRY void __asan_loadN(Address a, size_t n) { emulated::check(a, n, false, EMULATED_PLACE); }
EMULATED_ENTRY void __asan_storeN(Address a, size_t n) { emulated::check(a, n, true, EMULATED_PLACE); }

EMULATED_ENTRY void* __asan_memcpy(void* to, const void* from, size_t n) {
    emulated::check(emulated::address_of(from), n, false, EMULATED_PLACE);
    emulated::check(emulated::address_of(to), n, true, EMULATED_PLACE);
    return memcpy(to, from, n);
}
EMULATED_ENTRY void* __asan_memmove(void* to, const void* from, size_t n) {
    emulated::check(emulated::address_of(from), n, false, EMULATED_PLACE);
    emulated::check(emulated::address_of(to), n, true, EMULATED_PLACE);
    return memmove(to, from, n);
}
EMULATED_ENTRY void* __asan_memset(void* to, int value, size_t n) {
    emulated::check(emulated::address_of(to), n, true, EMULATED_PLACE);
    return memset(to, value, n);
}

// ---- UndefinedBehaviorSanitizer's handlers, for the checks that are asked for -----------------------------

namespace {

struct SourceLocation {
    const char* file;
    unsigned line, column;
};
struct TypeDescriptor {
    unsigned short kind, info;
    char name[1];
};
struct TypeMismatch {
    SourceLocation location;
    const TypeDescriptor* type;
    unsigned char log_alignment;
    unsigned char access;
};
struct OutOfBounds {
    SourceLocation location;
    const TypeDescriptor* array;
    const TypeDescriptor* index;
};

const char* base_name(const char* path) {
    const char* slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

void misaligned(const TypeMismatch& check, Address pointer) {
    if (!emulated::watched || emulated::memory.is_private(pointer)) return;
    const size_t alignment = size_t(1) << check.log_alignment;
    if (pointer % alignment == 0) return;  // a null pointer: the access itself will show
    const emulated::ThreadName thread(emulated::current->index, emulated::current->block);
    emulated::stop_grid(emulated::Fault::memory, "%s accesses %s as %s, which is aligned to %zu bytes, not %zu, at %s:%u",
                        thread.text, emulated::memory.name_of(pointer, 1).text, check.type->name,
                        size_t(pointer & -pointer), alignment, base_name(check.location.file), check.location.line);
}

void out_of_bounds(const OutOfBounds& check, Address index) {
    if (!emulated::watched) return;
    const emulated::ThreadName thread(emulated::current->index, emulated::current->block);
    const unsigned bits = 1u << (check.index->info >> 1);  // of the index's type
    const bool is_signed = check.index->info & 1;
    const long long value = bits < 64 && is_signed ? static_cast<long long>(index << (64 - bits)) >> (64 - bits)
                                                   : static_cast<long long>(index);
    emulated::stop_grid(emulated::Fault::memory, "%s takes element %lld of an array %s at %s:%u", thread.text, value,
                        check.array->name, base_name(check.location.file), check.location.line);
}

void divided_by_zero(const SourceLocation& location) {
    if (!emulated::watched) return;
    const emulated::ThreadName thread(emulated::current->index, emulated::current->block);
    emulated::stop_grid(emulated::Fault::memory, "%s divides an integer by zero at %s:%u", thread.text,
                        base_name(location.file), location.line);
}

}  // namespace

EMULATED_ENTRY void __ubsan_handle_type_mismatch_v1(const TypeMismatch* c, Address p) { misaligned(*c, p); }
EMULATED_ENTRY void __ubsan_handle_type_mismatch_v1_abort(const TypeMismatch* c, Address p) { misaligned(*c, p); }
EMULATED_ENTRY void __ubsan_handle_out_of_bounds(const OutOfBounds* c, Address i) { out_of_bounds(*c, i); }
EMULATED_ENTRY void __ubsan_handle_out_of_bounds_abort(const OutOfBounds* c, Address i) { out_of_bounds(*c, i); }
EMULATED_ENTRY void __ubsan_handle_divrem_overflow(const SourceLocation* l, Address, Address) { divided_by_zero(*l); }
EMULATED_ENTRY void __ubsan_handle_divrem_overflow_abort(const SourceLocation* l, Address, Address) { divided_by_zero(*l); }
EMULATED_ENTRY void __ubsan_handle_builtin_unreachable(const SourceLocation*) {}
