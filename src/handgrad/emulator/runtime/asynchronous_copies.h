// The copies that every thread of a block has under way.
//
// A copy is carried out when it is issued, when the wait that covers it comes, or at either by chance; until
// then its destination holds NaN.  All three are what hardware may do.
#pragma once
#include <stdlib.h>
#include <string.h>

#include "ready_queue.h"

namespace emulated {

enum class Landing : int { late, early, random };

struct Copy {
    char* target;
    const char* source;
    unsigned bytes, valid;
    unsigned group;

    void land() const {
        memcpy(target, source, valid);
        memset(target + valid, 0, bytes - valid);
    }
};

class CopiesUnderWay {
public:
    void begin_block() { count_ = first_ = 0, group_ = 0; }

    bool add(const Copy& copy) {
        if (count_ == capacity_) {
            const int larger = capacity_ ? 2 * capacity_ : 16;
            auto* grown = static_cast<Copy*>(realloc(copies_, static_cast<size_t>(larger) * sizeof(Copy)));
            if (!grown) return false;
            copies_ = grown;
            capacity_ = larger;
        }
        copies_[count_] = copy;
        copies_[count_++].group = group_;
        return true;
    }
    void commit() { ++group_; }

    // Gives the copies of all groups but the `newest` latest to landed(copy), oldest first.
    template <class Landed>
    void wait(int newest, Landed landed) {
        const unsigned kept = static_cast<unsigned>(newest);
        while (first_ < count_ && copies_[first_].group + kept < group_) landed(copies_[first_++]);
        if (first_ == count_) first_ = count_ = 0;
    }
    template <class Landed>
    void wait_all(Landed landed) {
        while (first_ < count_) landed(copies_[first_++]);
        first_ = count_ = 0;
    }

private:
    Copy* copies_ = nullptr;  // kept from launch to launch
    int first_ = 0, count_ = 0, capacity_ = 0;
    unsigned group_ = 0;  // of the copies not yet committed
};

}  // namespace emulated
