// Instructions that CUDA C++ has no function for: inline PTX, each with an emulated body.
//
// Asynchronous copies from global to shared memory, 16 bytes at a time (cp.async, from sm_80 on; sm_75 copies at
// once).  A thread issues copies, commits them as a group, and waits until all but its N latest groups have
// landed; then, and after a barrier, its block may read them.
#pragma once

constexpr int COPY_BYTES = 16;  // of one copy; both addresses are aligned to it

#ifdef HANDGRAD_EMULATED

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
