// What one request of a warp costs: sectors of global memory, wavefronts of shared memory.
#pragma once
#include "list.h"
#include "regions.h"

namespace emulated {

constexpr int sector_bytes = 32;
constexpr int banks = 32;  // of 4 bytes each

// Where an access goes: an argument of the launch (its number), or one of these.
enum : int { shared_memory = -1, module_variables = -2, elsewhere = -3 };

enum class Direction : int { load, store, atomic };

// What one place of the kernel's code did to one memory; read by emulator/counting.py.
struct PlaceCounts {
    unsigned long long code;  // offset in the kernel's library, past the call; 0 where file and line say it
    const char* file;
    int line;
    int memory;
    Direction direction;
    unsigned bytes;           // of one lane's access
    unsigned long long requests, lanes;
    unsigned long long sectors, least_sectors;
    unsigned long long wavefronts, least_wavefronts;
};

// The accesses of a warp's lanes that one instruction makes.
struct Request {
    unsigned mask;
    Address address[32];
};

// The sectors of one argument that have been touched, a bit each.
class Sectors {
public:
    void begin(const Range& range) {
        first_ = range.start / sector_bytes;
        count_ = range.end > range.start ? (range.end - 1) / sector_bytes + 1 - first_ : 0;
        words_.clear();
        words_.reach(static_cast<int>((count_ + 63) / 64));
    }
    void mark(Address sector) {
        const Address i = sector - first_;
        if (i < count_) words_[static_cast<int>(i / 64)] |= 1ull << i % 64;
    }
    unsigned long long marked() const {
        unsigned long long total = 0;
        for (const unsigned long long word : words_) total += static_cast<unsigned>(__builtin_popcountll(word));
        return total;
    }

private:
    Address first_ = 0, count_ = 0;
    List<unsigned long long> words_;
};

inline void sort(Address* values, int count) {  // mostly in order already
    for (int i = 1; i < count; ++i) {
        const Address value = values[i];
        int place = i;
        for (; place > 0 && values[place - 1] > value; --place) values[place] = values[place - 1];
        values[place] = value;
    }
}

// `addresses` are of accesses of `bytes` bytes, in any order; touched(sector) is called for each distinct sector.
template <class Touched>
void count_sectors(PlaceCounts& into, Address* addresses, int count, unsigned bytes, Touched touched) {
    sort(addresses, count);
    Address counted_to = 0, distinct = 0, next_sector = 0;
    for (int i = 0; i < count; ++i) {
        const Address end = addresses[i] + bytes;
        const Address start = addresses[i] > counted_to ? addresses[i] : counted_to;
        if (start < end) distinct += end - start, counted_to = end;
        const Address first = addresses[i] / sector_bytes;
        for (Address sector = first > next_sector ? first : next_sector; sector * sector_bytes < end; ++sector) {
            ++into.sectors;
            touched(sector);
            next_sector = sector + 1;
        }
    }
    into.least_sectors += (distinct + sector_bytes - 1) / sector_bytes;
}

// The lanes of `mask` are served together: as often as the busiest bank has a word to give.
inline void count_part(PlaceCounts& into, const Request& request, unsigned mask, unsigned bytes) {
    if (!mask) return;
    Address words[32 * 2];  // of 32 lanes with 4 bytes, 16 with 8 or 8 with 16; more where misaligned
    int count = 0;
    for (unsigned left = mask; left; left &= left - 1) {
        const Address address = request.address[__builtin_ctz(left)];
        for (Address word = address / 4; word * 4 < address + bytes; ++word) words[count++] = word;
    }
    sort(words, count);
    unsigned of_bank[banks] = {}, most = 0, distinct = 0;
    for (int i = 0; i < count; ++i) {
        if (i && words[i] == words[i - 1]) continue;  // one word goes to all lanes that want it
        ++distinct;
        const unsigned taken = ++of_bank[words[i] % banks];
        if (taken > most) most = taken;
    }
    into.wavefronts += most;
    into.least_wavefronts += (distinct + banks - 1) / banks;
}

// Accesses of 16 bytes are served by quarters of a warp, those of 8 by halves, others whole.
inline void count_wavefronts(PlaceCounts& into, const Request& request, unsigned members, unsigned bytes) {
    const int part = bytes <= 4 ? 32 : bytes <= 8 ? 16 : 8;
    const unsigned lanes = part == 32 ? ~0u : (1u << part) - 1;
    for (int first = 0; first < 32; first += part) count_part(into, request, members & lanes << first, bytes);
}

}  // namespace emulated
