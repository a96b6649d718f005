// The blocks that are resident, with a fiber for each of their threads: one block at a time in an ordinary
// launch, all of them in a cooperative one.
#pragma once
#include <stdlib.h>
#include <string.h>

#include "asynchronous_copies.h"
#include "context.h"
#include "emulated/threads.h"
#include "ready_queue.h"
#include "watch/watch.h"

namespace emulated {

enum class State { ready, at_barrier, at_collective, at_grid_meeting, returned };

struct Fiber {
    Thread thread;
    State state;
    Context context;
    const char* operation;  // what it waits in, and where
    Site site;
    bool predicate;         // its vote in a barrier
    int outcome;
    unsigned mask;          // its warp collective
    void* argument;
    const void* counter;    // of its grid meeting
};

// Lanes of a warp, as bits.
struct Warp {
    unsigned waiting;   // in a collective
    unsigned returned;
};

struct Block {
    int first;     // its threads' fibers are those from this number on
    int returned;  // threads
    int waiting;   // threads in the block's barrier
    int first_waiting;  // linear number of the first of them to arrive
    Warp warps[max_threads / 32];
    void* dynamic_shared;
};

// An array that is kept from launch to launch and grows between them; new items are zero bytes.
template <typename T>
class Kept {
public:
    bool make_room(int count) {
        if (count <= count_) return true;
        auto* larger = static_cast<T*>(realloc(static_cast<void*>(items_), static_cast<size_t>(count) * sizeof(T)));
        if (!larger) return false;
        memset(static_cast<void*>(larger + count_), 0, static_cast<size_t>(count - count_) * sizeof(T));
        items_ = larger;
        count_ = count;
        return true;
    }
    T& operator[](int i) { return items_[i]; }
    T* all() { return items_; }
    bool contains(const void* address) const {
        return address >= items_ && address < items_ + count_;
    }

private:
    T* items_ = nullptr;
    int count_ = 0;
};

// Static shared memory lies at one address: it holds what the running block has there, and copies hold what
// the other resident blocks have.
class StaticMemory {
public:
    // Takes `pieces`, whose contents every block starts with; false where there is no memory for the copies.
    bool begin(const StaticPiece* pieces, int count, int blocks) {
        pieces_ = pieces;
        count_ = blocks > 1 ? count : 0;
        shown_ = 0;
        bytes_ = 0;
        for (int i = 0; i < count_; ++i) bytes_ += pieces[i].bytes;
        if (bytes_ == 0) return true;
        free(copies_);
        copies_ = static_cast<char*>(malloc(bytes_ * static_cast<size_t>(blocks)));
        if (!copies_) return false;
        for (int block = 0; block < blocks; ++block) save(block);
        return true;
    }
    void show(int block) {
        if (block == shown_ || bytes_ == 0) return;
        save(shown_);
        const char* copy = copy_of(block);
        for (int i = 0; i < count_; copy += pieces_[i++].bytes) memcpy(pieces_[i].start, copy, pieces_[i].bytes);
        shown_ = block;
    }

private:
    char* copy_of(int block) { return copies_ + bytes_ * static_cast<size_t>(block); }
    void save(int block) {
        char* copy = copy_of(block);
        for (int i = 0; i < count_; copy += pieces_[i++].bytes) memcpy(copy, pieces_[i].start, pieces_[i].bytes);
    }

    const StaticPiece* pieces_ = nullptr;
    int count_ = 0, shown_ = 0;
    size_t bytes_ = 0;
    char* copies_ = nullptr;
};

}  // namespace emulated
