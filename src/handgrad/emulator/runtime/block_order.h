// The order in which the blocks of a grid run.
#pragma once
#include <stdlib.h>

#include "ready_queue.h"

namespace emulated {

class BlockOrder {
public:
    BlockOrder(Order order, unsigned count, Random& random) : order_(order), count_(count) {
        if (order != Order::random) return;
        shuffled_ = static_cast<unsigned*>(malloc(count * sizeof(unsigned)));
        if (!shuffled_) return;
        for (unsigned i = 0; i < count; ++i) {
            const unsigned place = random.below(i + 1);
            shuffled_[i] = shuffled_[place];
            shuffled_[place] = i;
        }
    }
    ~BlockOrder() { free(shuffled_); }
    bool has_memory() const { return order_ != Order::random || shuffled_; }
    unsigned operator[](unsigned i) const {
        if (order_ == Order::random) return shuffled_[i];
        return order_ == Order::forward ? i : count_ - 1 - i;
    }

private:
    Order order_;
    unsigned count_;
    unsigned* shuffled_ = nullptr;
};

}  // namespace emulated
