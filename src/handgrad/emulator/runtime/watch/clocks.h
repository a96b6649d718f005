// Who knows of whose accesses: vector clocks of CUDA threads.
//
// Every thread counts its own time.  An access at time t of thread a is ordered before one of thread b where b
// knows a's time t.  Knowledge passes
//   - at __syncthreads to every thread of the block, and at __syncwarp to the lanes of its mask;
//   - from a fence to a fence: what a thread knows at its fence it gives away with every atomic (or volatile
//     store) after it; who reads that by an atomic (or volatile load) knows it from its own next fence on.
//     __threadfence_block passes only inside the block.  Barriers pass on what is given and what is received.
// Shuffles and votes order nothing, as CUDA says.
#pragma once
#include "../emulated/barriers.h"
#include "../ready_queue.h"
#include "list.h"

namespace emulated {

using Time = unsigned;

struct Moment {  // one thread up to a time; thread -1: all threads of the block
    unsigned block;
    int thread;
    Time time;
};

// A set of moments, sorted by block and thread.
class Knowledge {
public:
    bool empty() const { return moments_.empty(); }
    void clear() { moments_.clear(); }

    bool has(unsigned block, int thread, Time time) const {
        return time_of(block, -1) >= time || time_of(block, thread) >= time;
    }
    void learn(const Moment& moment) {
        const int place = place_of(moment.block, moment.thread);
        if (place < moments_.size() && moments_[place].block == moment.block &&
            moments_[place].thread == moment.thread) {
            if (moments_[place].time < moment.time) moments_[place].time = moment.time;
            return;
        }
        moments_.add(moment);
        for (int i = moments_.size() - 1; i > place; --i) moments_[i] = moments_[i - 1];
        moments_[place] = moment;
    }
    void join(const Knowledge& other) {
        if (other.empty()) return;
        if (empty()) return moments_.assign(other.moments_);
        static List<Moment> merged;
        merged.clear();
        int i = 0, j = 0;
        while (i < moments_.size() || j < other.moments_.size()) {
            const bool mine = i < moments_.size(), others = j < other.moments_.size();
            const int order = !mine ? 1 : !others ? -1 : compare(moments_[i], other.moments_[j]);
            if (order < 0) merged.add(moments_[i++]);
            else if (order > 0) merged.add(other.moments_[j++]);
            else {
                merged.add(moments_[i].time < other.moments_[j].time ? other.moments_[j] : moments_[i]);
                ++i, ++j;
            }
        }
        moments_.assign(merged);
    }
    void assign(const Knowledge& other) { moments_.assign(other.moments_); }

    // What all `threads` of a block have in common becomes one moment.
    void condense(unsigned block, int threads) {
        int count = 0;
        Time least = ~Time(0);
        for (const Moment& moment : moments_)
            if (moment.block == block && moment.thread >= 0) {
                ++count;
                if (moment.time < least) least = moment.time;
            }
        if (count < threads) return;
        learn({block, -1, least});
        int kept = 0;
        for (const Moment& moment : moments_)
            if (moment.block != block || moment.thread < 0 || moment.time > least) moments_[kept++] = moment;
        moments_.shrink(kept);
    }

private:
    static int compare(const Moment& a, const Moment& b) {
        if (a.block != b.block) return a.block < b.block ? -1 : 1;
        return a.thread < b.thread ? -1 : a.thread > b.thread;
    }
    int place_of(unsigned block, int thread) const {
        const Moment sought = {block, thread, 0};
        int low = 0, high = moments_.size();
        while (low < high) {
            const int middle = (low + high) / 2;
            if (compare(moments_[middle], sought) < 0) low = middle + 1;
            else high = middle;
        }
        return low;
    }
    Time time_of(unsigned block, int thread) const {
        const int place = place_of(block, thread);
        if (place == moments_.size()) return 0;
        const Moment& moment = moments_[place];
        return moment.block == block && moment.thread == thread ? moment.time : 0;
    }

    List<Moment> moments_;
};

// What is known, given away with atomics, and received through atomics but not yet ordered by a fence.
struct Knowing {
    Knowledge known;                      // of other blocks, and of this one where a fence told
    Knowledge given, given_in_block;
    Knowledge received, received_in_block;

    bool empty() const { return known.empty() && given_in_block.empty() && received_in_block.empty(); }
    void clear() {
        known.clear();
        given.clear();
        given_in_block.clear();
        received.clear();
        received_in_block.clear();
    }
    void join(const Knowing& other) {
        known.join(other.known);
        given.join(other.given);
        given_in_block.join(other.given_in_block);
        received.join(other.received);
        received_in_block.join(other.received_in_block);
    }
};

// What an atomic variable carries from thread to thread.
struct Carried {
    Knowledge everywhere, in_block;
    unsigned block = 0;  // of in_block
};

class Clocks {
public:
    void begin_block(unsigned block, int threads) {
        block_ = block;
        threads_ = threads;
        met_ = 0;
        together_.clear();
        for (int i = 0; i < threads; ++i) {
            threads_of_block_[i].now = 1;
            memset(threads_of_block_[i].lanes, 0, sizeof threads_of_block_[i].lanes);
            threads_of_block_[i].own.clear();
        }
    }
    unsigned block() const { return block_; }
    Time now(int thread) const { return threads_of_block_[thread].now; }

    // Whether `thread` of the running block knows the moment.
    bool knows(int thread, const Moment& moment) const {
        const One& one = threads_of_block_[thread];
        if (moment.block == block_) {
            if (moment.thread == thread || moment.time <= met_) return true;
            if (moment.thread / 32 == thread / 32 && moment.time <= one.lanes[moment.thread % 32]) return true;
        }
        return together_.known.has(moment.block, moment.thread, moment.time) ||
               one.own.known.has(moment.block, moment.thread, moment.time);
    }

    void barrier() {
        Time latest = 0;
        bool any = false;
        for (int i = 0; i < threads_; ++i) {
            if (threads_of_block_[i].now > latest) latest = threads_of_block_[i].now;
            any = any || !threads_of_block_[i].own.empty();
        }
        if (any) {
            for (int i = 0; i < threads_; ++i) {
                together_.join(threads_of_block_[i].own);
                threads_of_block_[i].own.clear();
            }
            together_.given.condense(block_, threads_);
            together_.given_in_block.condense(block_, threads_);
        }
        met_ = latest;
        for (int i = 0; i < threads_; ++i) threads_of_block_[i].now = latest + 1;
    }

    void warp_barrier(const int* threads, int count) {
        Time lanes[32] = {};
        static Knowing shared;
        shared.clear();
        for (int i = 0; i < count; ++i) {
            const One& one = threads_of_block_[threads[i]];
            for (int lane = 0; lane < 32; ++lane)
                if (lanes[lane] < one.lanes[lane]) lanes[lane] = one.lanes[lane];
            if (!one.own.empty()) shared.join(one.own);
        }
        for (int i = 0; i < count; ++i) lanes[threads[i] % 32] = threads_of_block_[threads[i]].now;
        for (int i = 0; i < count; ++i) {
            One& one = threads_of_block_[threads[i]];
            memcpy(one.lanes, lanes, sizeof lanes);
            if (!shared.empty()) one.own.join(shared);
            ++one.now;
        }
    }

    void fence(int thread, Scope scope) {
        One& one = threads_of_block_[thread];
        Knowing& own = one.own;
        own.known.join(own.received_in_block);
        own.known.join(together_.received_in_block);
        if (scope == Scope::device) {
            own.known.join(own.received);
            own.known.join(together_.received);
        }
        give(own.given_in_block, thread);
        if (scope == Scope::device) give(own.given, thread);
        ++one.now;
    }

    void release(int thread, Carried& carried, bool replaces) {
        if (replaces) carried.everywhere.clear(), carried.in_block.clear();
        if (carried.block != block_) carried.in_block.clear(), carried.block = block_;
        const Knowing& own = threads_of_block_[thread].own;
        carried.everywhere.join(own.given);
        carried.everywhere.join(together_.given);
        carried.in_block.join(own.given_in_block);
        carried.in_block.join(together_.given_in_block);
    }
    void acquire(int thread, const Carried& carried) {
        Knowing& own = threads_of_block_[thread].own;
        own.received.join(carried.everywhere);
        own.received_in_block.join(carried.everywhere);
        if (carried.block == block_) own.received_in_block.join(carried.in_block);
    }
    bool gives(int thread) const {
        return !threads_of_block_[thread].own.given_in_block.empty() || !together_.given_in_block.empty();
    }

private:
    struct One {
        Time now;
        Time lanes[32];  // of its warp's lanes, since the block last met
        Knowing own;     // since the block last met
    };

    // All that the thread knows.
    void give(Knowledge& given, int thread) {
        const One& one = threads_of_block_[thread];
        if (met_) given.learn({block_, -1, met_});
        const int first = thread / 32 * 32;
        for (int lane = 0; lane < 32; ++lane)
            if (one.lanes[lane] > met_) given.learn({block_, first + lane, one.lanes[lane]});
        given.learn({block_, thread, one.now});
        given.join(together_.known);
        given.join(one.own.known);
    }

    unsigned block_ = 0;
    int threads_ = 0;
    Time met_ = 0;       // every thread knows every other up to here
    Knowing together_;   // what all threads of the block have
    One threads_of_block_[max_threads];
};

}  // namespace emulated
