// Which bytes have been written: by the kernel, or not at all, or by a copy that is still under way.
#pragma once
#include <stdlib.h>
#include <string.h>

#include "regions.h"

namespace emulated {

enum class Written : unsigned char { no, before, by_kernel, by_copy_under_way };

class Contents {
public:
    Contents() = default;
    Contents(const Contents&) = delete;
    Contents& operator=(const Contents&) = delete;
    ~Contents() { free(states_); }

    void begin(Range range, Written state) {
        range_ = range;
        const size_t bytes = range.end - range.start;
        states_ = static_cast<Written*>(realloc(states_, bytes + 1));
        if (!states_) abort();
        memset(static_cast<void*>(states_), static_cast<int>(state), bytes);
    }
    void set(Address address, size_t bytes, Written state) {
        memset(static_cast<void*>(states_ + (address - range_.start)), static_cast<int>(state), bytes);
    }
    Written at(Address address) const { return states_[address - range_.start]; }

    // The first state that a read may not meet, of the bytes that it reads; `by_kernel` where there is none.
    Written obstacle(Address address, size_t bytes) const {
        for (size_t i = 0; i < bytes; ++i) {
            const Written state = states_[address - range_.start + i];
            if (state == Written::no || state == Written::by_copy_under_way) return state;
        }
        return Written::by_kernel;
    }

private:
    Range range_;
    Written* states_ = nullptr;
};

// Elements that hold what proof/guarded.py and emulator.empty fill memory with: nobody has written them.
inline void find_poison(const Region& region, Contents& contents) {
    const auto mark = [&](auto first, auto second) {
        using Element = decltype(first);
        for (size_t i = 0; (i + 1) * sizeof(Element) <= region.bytes; ++i) {
            Element element;
            memcpy(&element, region.start + i * sizeof(Element), sizeof(Element));
            if (element == first || element == second)
                contents.set(address_of(region.start) + i * sizeof(Element), sizeof(Element), Written::no);
        }
    };
    if (region.itemsize == 4) mark(0x7FC00BADu, 0xCDCDCDCDu);
    if (region.itemsize == 8) mark(0x7FF80BAD0BAD0BADull, 0xCDCDCDCDCDCDCDCDull);
    if (region.itemsize == 2) mark(static_cast<unsigned short>(0x7FFAu), static_cast<unsigned short>(0xCDCDu));
}

}  // namespace emulated
