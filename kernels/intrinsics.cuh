// Instructions that CUDA C++ has no function for: inline PTX, each with an emulated body.
//
// Asynchronous copies from global to shared memory, 16 bytes at a time (cp.async, from sm_80 on; sm_75 copies at
// once).  A thread issues copies, commits them as a group, and waits until all but its N latest groups have
// landed; then, and after a barrier, its block may read them.
//
// grid_barrier is a barrier of all blocks of a cooperative launch.
//
// thread_in_block is threadIdx.x, read anew: what is computed from it is computed again at every use, instead of
// being kept in registers that a kernel with large accumulators does not have.
#pragma once

constexpr int COPY_BYTES = 16;  // of one copy; both addresses are aligned to it

#ifdef HANDGRAD_EMULATED

__device__ __forceinline__ int thread_in_block() { return threadIdx.x; }

// Copies the first `valid` bytes (0 to 16) of `global` to `shared`, and zeros behind them.
__device__ __forceinline__ void copy_async(void* shared, const void* global, int valid = COPY_BYTES,
                                           emulated::Site site = emulated::Site::here()) {
  emulated::copy_async(shared, global, COPY_BYTES, valid, site);
}

// Copies one element of 4 or 8 bytes, for rows that are not whole 16 bytes; zero where not `valid`.
template <class T>
__device__ __forceinline__ void copy_element_async(T* shared, const T* global, bool valid,
                                                   emulated::Site site = emulated::Site::here()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "what cp.async copies besides 16 bytes");
  emulated::copy_async(shared, global, sizeof(T), valid ? sizeof(T) : 0, site);
}

// Makes the copies since the last commit a group.
__device__ __forceinline__ void commit_copies() { emulated::commit_copies(); }

// Waits until all but the N latest groups of this thread have landed.
template <int N>
__device__ __forceinline__ void wait_copies() {
  emulated::wait_copies(N);
}

// Waits until every copy of this thread has landed, committed or not.
__device__ __forceinline__ void wait_all_copies() { emulated::wait_all_copies(); }

#else

__device__ __forceinline__ int thread_in_block() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

__device__ __forceinline__ void copy_async(void* shared, const void* global, int valid = COPY_BYTES) {
#if __CUDA_ARCH__ >= 800
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(global), "r"(valid) : "memory");
#else
  unsigned char* to = static_cast<unsigned char*>(shared);
  if (valid == COPY_BYTES) {
    *reinterpret_cast<uint4*>(to) = *static_cast<const uint4*>(global);
  } else {
    const unsigned char* from = static_cast<const unsigned char*>(global);
    for (int i = 0; i < COPY_BYTES; ++i) to[i] = i < valid ? from[i] : 0;
  }
#endif
}

template <class T>
__device__ __forceinline__ void copy_element_async(T* shared, const T* global, bool valid) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "what cp.async copies besides 16 bytes");
#if __CUDA_ARCH__ >= 800
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? static_cast<int>(sizeof(T)) : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(target), "l"(global),
               "n"(static_cast<int>(sizeof(T))), "r"(bytes)
               : "memory");
#else
  *shared = valid ? *global : T(0);
#endif
}

__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int N>
__device__ __forceinline__ void wait_copies() {
  static_assert(N >= 0, "a number of groups");
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

__device__ __forceinline__ void wait_all_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

#endif

// Waits until all threads of `blocks` blocks have come here (grid and blocks have one dimension); what any of them
// wrote before is then visible to all.  The counter is 0 before the first barrier of its life and needs no
// resetting: one block adds 2^31 - (blocks - 1) and the others 1, so that the sum of all flips the highest bit and
// leaves the others as they were.
constexpr unsigned BARRIER_PHASE = 0x80000000u;

#ifdef HANDGRAD_EMULATED
#define BARRIER_SITE , emulated::Site site = emulated::Site::here()
#define BARRIER_CALLER site  // messages name the line that calls grid_barrier
#else
#define BARRIER_SITE
#define BARRIER_CALLER
#endif

__device__ __forceinline__ void grid_barrier(unsigned* counter, unsigned blocks BARRIER_SITE) {
  __syncthreads(BARRIER_CALLER);  // every thread of the block has written
  if (threadIdx.x == 0) {
    __threadfence();  // the block's writes become visible before it counts as arrived
    volatile unsigned* phase = counter;
    const unsigned own = blockIdx.x == 0 ? BARRIER_PHASE - (blocks - 1) : 1u;
    const unsigned before = atomicAdd(counter, own);
#ifdef HANDGRAD_EMULATED
    if (((before ^ (before + own)) & BARRIER_PHASE) != 0) emulated::grid_meeting(counter, true, "grid_barrier", site);
#endif
    while (((before ^ *phase) & BARRIER_PHASE) == 0) {
#ifdef HANDGRAD_EMULATED
      emulated::grid_meeting(counter, false, "grid_barrier", site);  // nothing changes before the last arrives
#endif
    }
    __threadfence();  // reads after this see what the other blocks wrote before their fence
  }
  __syncthreads(BARRIER_CALLER);  // every block has arrived
}

#undef BARRIER_SITE
#undef BARRIER_CALLER
