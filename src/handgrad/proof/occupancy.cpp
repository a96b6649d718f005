// NVIDIA's own occupancy calculator, cuda_occupancy.h, as a host function that Python calls.
#include <stddef.h>

#include "cuda_occupancy.h"

extern "C" struct Query {
  int major, minor;              // compute capability
  int threads_per_sm;            // resident at once, at most
  int shared_per_sm;             // bytes
  int shared_per_block;          // bytes that a kernel may opt in to
  int reserved_shared;           // bytes that the driver takes of each block
  int threads;                   // of a block
  int registers;                 // of a thread
  int static_shared, dynamic_shared;  // bytes of a block
};

// Blocks resident on a multiprocessor; `limits` gets the bits of cudaOccLimitingFactor.  Negative: an error.
extern "C" __attribute__((visibility("default"))) int handgrad_occupancy(const Query* query, unsigned* limits) {
  cudaOccDeviceProp device;
  device.computeMajor = query->major;
  device.computeMinor = query->minor;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = query->threads_per_sm;
  device.regsPerBlock = 65536;
  device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 * 1024;
  device.sharedMemPerMultiprocessor = query->shared_per_sm;
  device.numSms = 1;
  device.sharedMemPerBlockOptin = query->shared_per_block;
  device.reservedSharedMemPerBlock = query->reserved_shared;

  cudaOccFuncAttributes kernel;
  kernel.maxThreadsPerBlock = query->threads;
  kernel.numRegs = query->registers;
  kernel.sharedSizeBytes = query->static_shared;
  kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
  kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  kernel.maxDynamicSharedSizeBytes = query->dynamic_shared;
  kernel.numBlockBarriers = 1;

  cudaOccDeviceState state;  // no preference between shared memory and L1
  cudaOccResult result;
  const cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(
      &result, &device, &kernel, &state, query->threads, query->dynamic_shared);
  if (error != CUDA_OCC_SUCCESS) return -static_cast<int>(error);
  *limits = result.limitingFactors;
  return result.activeBlocksPerMultiprocessor;
}
