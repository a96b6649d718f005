// cp.async: copies from global to shared memory that land some time before the wait that covers them.
// kernels/intrinsics.cuh wraps these as it wraps the instructions.
#pragma once
#include "threads.h"

namespace emulated {

// Starts a copy of `bytes` (4, 8 or 16): the first `valid` from `source`, zeros for the rest.
EMULATED_API void copy_async(void* shared, const void* source, unsigned bytes, unsigned valid, Site site);

// Makes the calling thread's copies since the last commit a group.
EMULATED_API void commit_copies();

// Waits until all but the `newest` latest groups of the calling thread have landed.
EMULATED_API void wait_copies(int newest);

// Waits until every copy of the calling thread has landed, committed or not.
EMULATED_API void wait_all_copies();

}  // namespace emulated
