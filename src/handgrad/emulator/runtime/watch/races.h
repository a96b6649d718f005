// Data races: two accesses to the same bytes, one of them a write, not both atomic, that nothing orders.
//
// Each cell of a buffer (its element, or a byte where elements are accessed in part) keeps its last write, the
// reads since then, and its atomic accesses.  Volatile accesses count as atomic.
#pragma once
#include <stdlib.h>

#include "clocks.h"
#include "regions.h"

namespace emulated {

// new and delete, without the C++ library: all that is made here starts as zero bytes.
template <typename T>
T* make() {
    void* memory = calloc(1, sizeof(T));
    if (!memory) abort();
    return static_cast<T*>(memory);
}
template <typename T>
void destroy(T* made) {
    if (!made) return;
    made->~T();
    free(made);
}

enum class Access { read, write, atomic_load, atomic_store, atomic_update };

struct Mark {  // one access
    Moment moment;
    unsigned place;     // code, from the start of the kernel's library
    unsigned sequence;  // of atomic accesses to the cell
    bool loads;         // an atomic load
};

struct Race {
    const Mark* before;
    const char* did;  // what the other thread did
};

class Cell {
public:
    ~Cell() { destroy(more_); }

    // The race of an access by a thread with an earlier one, if there is one; else the access is remembered.
    Race access(Access kind, const Mark& mark, int thread, const Clocks& clocks) {
        if (has_write_ && !clocks.knows(thread, write_.moment)) return {&write_, "wrote"};
        const bool is_atomic = kind >= Access::atomic_load;
        if (kind != Access::read && kind != Access::atomic_load) {
            if (has_read_ && !clocks.knows(thread, read_.moment)) return {&read_, "read"};
            if (more_)
                for (const Mark& read : more_->reads)
                    if (!clocks.knows(thread, read.moment)) return {&read, "read"};
        }
        if (!is_atomic && more_ && !more_->atomics.empty()) {
            // The cell's own order orders all atomics before one that this thread knows.
            unsigned known = 0;
            for (const Mark& atomic : more_->atomics)
                if (atomic.sequence > known && clocks.knows(thread, atomic.moment)) known = atomic.sequence;
            for (const Mark& atomic : more_->atomics)
                if (atomic.sequence > known && !(kind == Access::read && atomic.loads))
                    return {&atomic, atomic.loads ? "read (volatile)" : "updated atomically"};
        }
        if (is_atomic) remember_atomic(kind, mark);
        else if (kind == Access::write) remember_write(mark);
        else remember_read(mark, thread, clocks);
        return {nullptr, nullptr};
    }
    void copy_to(Cell& other) const {
        other.write_ = write_;
        other.read_ = read_;
        other.has_write_ = has_write_;
        other.has_read_ = has_read_;
        if (more_) {
            other.more_ = make<More>();
            other.more_->reads.assign(more_->reads);
            other.more_->atomics.assign(more_->atomics);
            other.more_->sequence = more_->sequence;
        }
    }

private:
    struct More {
        List<Mark> reads, atomics;
        unsigned sequence = 0;
    };
    static constexpr int most_atomics = 64;

    void remember_write(const Mark& mark) {
        write_ = mark;
        has_write_ = true;
        has_read_ = false;
        if (more_) more_->reads.clear(), more_->atomics.clear();
    }
    void remember_read(const Mark& mark, int thread, const Clocks& clocks) {
        if (!has_read_ || same_thread(read_, mark) ||
            ((!more_ || more_->reads.empty()) && clocks.knows(thread, read_.moment))) {
            read_ = mark;
            has_read_ = true;
            return;
        }
        if (!more_) more_ = make<More>();
        List<Mark>& reads = more_->reads;
        for (int i = reads.size() - 1; i >= 0 && i >= reads.size() - 4; --i)
            if (same_thread(reads[i], mark)) {
                reads[i] = mark;
                return;
            }
        if (reads.size() >= 64 && (reads.size() & (reads.size() - 1)) == 0) {  // only the latest of each thread
            int kept = 0;
            for (const Mark& read : reads)
                if (!same_thread(read, mark) && !clocks.knows(thread, read.moment)) reads[kept++] = read;
            reads.shrink(kept);
        }
        reads.add(mark);
    }
    void remember_atomic(Access kind, const Mark& mark) {
        if (!more_) more_ = make<More>();
        Mark atomic = mark;
        atomic.sequence = ++more_->sequence;
        atomic.loads = kind == Access::atomic_load;
        List<Mark>& atomics = more_->atomics;
        int place = -1, oldest = 0;
        for (int i = 0; i < atomics.size(); ++i) {
            if (same_thread(atomics[i], mark) && atomics[i].loads == atomic.loads) place = i;
            if (atomics[i].sequence < atomics[oldest].sequence) oldest = i;
        }
        if (place < 0 && atomics.size() == most_atomics) place = oldest;  // one of many is enough
        if (place < 0) atomics.add(atomic);
        else atomics[place] = atomic;
    }
    static bool same_thread(const Mark& a, const Mark& b) {
        return a.moment.block == b.moment.block && a.moment.thread == b.moment.thread;
    }

    Mark write_, read_;
    More* more_;
    bool has_write_, has_read_;
};

// The cells of one buffer.
class Shadow {
public:
    Shadow() = default;
    Shadow(const Shadow&) = delete;
    Shadow& operator=(const Shadow&) = delete;
    ~Shadow() { drop(); }

    void begin(Range range, unsigned cell_bytes) {
        drop();
        range_ = range;
        cell_bytes_ = cell_bytes;
    }
    Race access(Address address, size_t bytes, Access kind, const Mark& mark, int thread, const Clocks& clocks) {
        if (!cells_) allocate();
        const size_t offset = address - range_.start;
        if (cell_bytes_ > 1 && (offset % cell_bytes_ || bytes % cell_bytes_)) split();
        for (size_t i = offset / cell_bytes_; i * cell_bytes_ < offset + bytes; ++i) {
            const Race race = cells_[i].access(kind, mark, thread, clocks);
            if (race.before) return race;
        }
        return {nullptr, nullptr};
    }

private:
    size_t count() const { return (range_.end - range_.start + cell_bytes_ - 1) / cell_bytes_; }
    void allocate() {
        cells_ = static_cast<Cell*>(calloc(count(), sizeof(Cell)));  // zero bytes: nothing happened yet
        if (!cells_) abort();
    }
    void split() {  // into bytes
        Cell* larger = cells_;
        const size_t old_count = count();
        const unsigned old_bytes = cell_bytes_;
        cell_bytes_ = 1;
        allocate();
        for (size_t i = 0; i < count(); ++i) larger[i / old_bytes].copy_to(cells_[i]);
        for (size_t i = 0; i < old_count; ++i) larger[i].~Cell();
        free(larger);
    }
    void drop() {
        if (!cells_) return;
        for (size_t i = 0; i < count(); ++i) cells_[i].~Cell();
        free(cells_);
        cells_ = nullptr;
    }

    Range range_;
    unsigned cell_bytes_ = 1;
    Cell* cells_ = nullptr;
};

// What atomics on an address carry, by address; few addresses carry anything.
class CarriedByAddress {
public:
    Carried* find(Address address) {
        for (One* one = buckets_[bucket(address)]; one; one = one->next)
            if (one->address == address) return &one->carried;
        return nullptr;
    }
    Carried& make(Address address) {
        if (Carried* found = find(address)) return *found;
        One*& first = buckets_[bucket(address)];
        One* made = emulated::make<One>();
        made->address = address;
        made->next = first;
        first = made;
        return made->carried;
    }
    void clear() {
        for (One*& first : buckets_)
            while (first) {
                One* next = first->next;
                destroy(first);
                first = next;
            }
    }

private:
    struct One {
        Address address;
        Carried carried;
        One* next;
    };
    static constexpr int bucket_count = 256;
    static int bucket(Address address) { return static_cast<int>(address / 4 % bucket_count); }
    One* buckets_[bucket_count] = {};
};

}  // namespace emulated
