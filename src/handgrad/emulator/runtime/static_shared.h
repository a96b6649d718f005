// Static shared memory: the thread-local segment of a kernel's library (see __shared__ in types.h).
#pragma once
#include <elf.h>
#include <link.h>

#include "emulated/kernel.h"

extern "C" void* __tls_get_addr(void*);  // the dynamic linker's: allocates the segment at first use

namespace emulated {

struct SegmentSearch {
    uintptr_t address;
    StaticShared found;
};

inline int inspect_library(dl_phdr_info* info, size_t, void* argument) {
    auto* search = static_cast<SegmentSearch*>(argument);
    bool contains = false;
    unsigned long long bytes = 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const auto& segment = info->dlpi_phdr[i];
        const uintptr_t start = info->dlpi_addr + segment.p_vaddr;
        if (segment.p_type == PT_LOAD && search->address >= start && search->address - start < segment.p_memsz)
            contains = true;
        if (segment.p_type == PT_TLS) bytes = segment.p_memsz;
    }
    if (!contains) return 0;
    search->found = {info->dlpi_tls_modid, bytes};
    return 1;
}

// The calling OS thread's copy.
inline void* static_shared_memory(StaticShared shared) {
    if (shared.bytes == 0) return nullptr;
    unsigned long index[2] = {static_cast<unsigned long>(shared.module), 0};  // module and offset
    return __tls_get_addr(index);
}

}  // namespace emulated
