// __syncthreads and its voting variants; memory fences.
#pragma once
#include "threads.h"

namespace emulated {

enum class Vote { none, count, all, any };

// Waits for every thread of the block; returns the vote's outcome, the same for all of them.
EMULATED_API int block_barrier(Vote vote, bool predicate, const char* name, Site site);

// One thread of a block at a barrier of several blocks, which they know by the address of its counter.  The
// last to arrive lets all others go on, whose loops then look at the counter again; only in a cooperative launch
// are they sure to run at the same time.
EMULATED_API void grid_meeting(const void* counter, bool last, const char* name, Site site);

}  // namespace emulated

inline void __syncthreads(emulated::Site site = emulated::Site::here()) {
    emulated::block_barrier(emulated::Vote::none, false, "__syncthreads", site);
}
inline int __syncthreads_count(int predicate, emulated::Site site = emulated::Site::here()) {
    return emulated::block_barrier(emulated::Vote::count, predicate != 0, "__syncthreads_count", site);
}
inline int __syncthreads_and(int predicate, emulated::Site site = emulated::Site::here()) {
    return emulated::block_barrier(emulated::Vote::all, predicate != 0, "__syncthreads_and", site);
}
inline int __syncthreads_or(int predicate, emulated::Site site = emulated::Site::here()) {
    return emulated::block_barrier(emulated::Vote::any, predicate != 0, "__syncthreads_or", site);
}

namespace emulated {
enum class Scope { block, device };
EMULATED_API void fence(Scope scope);  // defined where accesses are watched
}  // namespace emulated
#ifdef EMULATED_ACCESSES
inline void __threadfence_block() { emulated::fence(emulated::Scope::block); }
inline void __threadfence() { emulated::fence(emulated::Scope::device); }
inline void __threadfence_system() { emulated::fence(emulated::Scope::device); }
#else
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
#endif
