// The threads that can run, and which of them runs next.
#pragma once
#include <stdlib.h>

namespace emulated {

constexpr int max_threads = 1024;  // a block, on every architecture

enum class Order : int { forward, reverse, lifo, random };

// xorshift64*
class Random {
public:
    void seed(unsigned long long seed) { state_ = seed * 0x9E3779B97F4A7C15ull + 0x2545F4914F6CDD1Dull; }
    unsigned below(unsigned bound) {
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return static_cast<unsigned>(((state_ * 0x2545F4914F6CDD1Dull) >> 32) * bound >> 32);
    }

private:
    unsigned long long state_ = 1;
};

// A ring of thread numbers.  Every thread is in it at most once, so that it takes no more places than threads.
class ReadyQueue {
public:
    // False where there is no memory for `threads` places.
    bool make_room(int threads) {
        if (threads <= capacity_) return true;
        auto* larger = static_cast<int*>(realloc(threads_, static_cast<size_t>(threads) * sizeof(int)));
        if (!larger) return false;
        threads_ = larger;
        capacity_ = threads;
        return true;
    }
    void start(Order order, Random& random) {
        order_ = order;
        random_ = &random;
        head_ = size_ = 0;
    }
    void push(int thread) { at(size_++) = thread; }

    // Adds a thread behind all others.
    void defer(int thread) {
        if (order_ != Order::lifo) return push(thread);
        head_ = (head_ + capacity_ - 1) % capacity_;
        ++size_;
        at(0) = thread;
    }

    // Adds threads that became ready together.
    void release(const int* threads, int count) {
        const bool backwards = order_ == Order::reverse || order_ == Order::lifo;
        for (int i = 0; i < count; ++i) push(threads[backwards ? count - 1 - i : i]);
    }

    // The next thread to run, or -1.  Last in, first out lets a group just released run ahead of the others.
    int pop() {
        if (size_ == 0) return -1;
        if (order_ == Order::lifo) return at(--size_);
        if (order_ == Order::random) {
            int& chosen = at(static_cast<int>(random_->below(static_cast<unsigned>(size_))));
            const int thread = chosen;
            chosen = at(0);
            at(0) = thread;
        }
        const int thread = at(0);
        head_ = (head_ + 1) % capacity_;
        --size_;
        return thread;
    }

private:
    int& at(int place) { return threads_[(head_ + place) % capacity_]; }

    int* threads_ = nullptr;  // kept from launch to launch
    int capacity_ = 0, head_ = 0, size_ = 0;
    Order order_ = Order::forward;
    Random* random_ = nullptr;
};

}  // namespace emulated
