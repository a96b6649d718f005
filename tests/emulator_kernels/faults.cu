// One planted fault a kernel; `FAULT name` marks the line that the message must give.

#ifndef HANDGRAD_EMULATED
extern __shared__ unsigned char dynamic_shared[];
#define DYN_SHARED(T, name) T* name = reinterpret_cast<T*>(dynamic_shared)
#endif

__global__ void divergent_barrier(float* x) {
    if (threadIdx.x < 16) {
        __syncthreads();  // FAULT divergent_barrier first
    } else {
        x[threadIdx.x] = 1;
        __syncthreads();  // FAULT divergent_barrier second
    }
}

__global__ void barrier_in_branch(float* x) {
    if (threadIdx.x < 16) {
        x[threadIdx.x] = 1;
        __syncthreads();  // FAULT barrier_in_branch
    }
}

__global__ void return_before_barrier(float* x, int n) {
    if (threadIdx.x >= n) return;
    x[threadIdx.x] = 1;
    __syncthreads();  // FAULT return_before_barrier
}

__global__ void lane_outside_mask(float* x) {
    x[threadIdx.x] = __shfl_xor_sync(0xffffu, x[threadIdx.x], 1);  // FAULT lane_outside_mask
}

__global__ void missing_lanes(float* x) {
    x[threadIdx.x] = __shfl_down_sync(0xffffffffu, x[threadIdx.x], 1);  // FAULT missing_lanes
}

__global__ void returned_lane(float* x, int n) {
    if (threadIdx.x >= n) return;
    x[threadIdx.x] = __shfl_down_sync(0xffffffffu, x[threadIdx.x], 1);  // FAULT returned_lane
}

__global__ void warp_divergence(float* x) {
    if (threadIdx.x < 16)
        x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);  // FAULT warp_divergence first
    else
        __syncwarp();  // FAULT warp_divergence second
}

__global__ void warp_divergence_of_two(float* x) {
    if (threadIdx.x == 3)
        __syncwarp();  // FAULT warp_divergence_of_two first
    else if (threadIdx.x == 7)
        x[7] = __shfl_xor_sync(0xffffffffu, x[7], 1);  // FAULT warp_divergence_of_two second
    __syncthreads();  // the others wait here
}

__global__ void masks_differ(int* x) {
    const unsigned mask = threadIdx.x < 16 ? 0xffffffffu : 0xffff0000u;
    x[threadIdx.x] = __ballot_sync(mask, 1);  // FAULT masks_differ
}

__global__ void masks_overlap(int* x) {
    x[threadIdx.x] = __ballot_sync(threadIdx.x == 0 ? 0x3u : 0xffffffffu, 1);  // FAULT masks_overlap
}

__global__ void deadlock(float* x) {
    if (threadIdx.x < 16) x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);  // FAULT deadlock shuffle
    __syncthreads();  // FAULT deadlock barrier
}

__global__ void misaligned(float* x, int offset) {
#ifdef HANDGRAD_EMULATED
    emulated::require_aligned(x + offset, 16, __FILE__, __LINE__);  // FAULT misaligned
#endif
    x[0] = reinterpret_cast<float4*>(x + offset)->x;
}

__global__ void store_through(float* x) { x[threadIdx.x] = 1; }

__global__ void divide(int* x, int by) { x[threadIdx.x] = 7 / by; }

__global__ void deep_stack(float* x, int depth) {
    volatile float local[64 * 1024];
    for (int i = 64 * 1024 - 1; i >= 0; --i) local[i] = depth;
    x[0] = local[depth];
}

__global__ void trap(float* x) {
    if (x[threadIdx.x] < 0) __trap();  // FAULT trap
}

// y[i] = x[i - 1], through shared memory
template <bool BARRIER>
__global__ void shift(const float* x, float* y) {
    __shared__ float s[256];
    s[threadIdx.x] = x[threadIdx.x];
    if (BARRIER) __syncthreads();  // s is whole before a neighbour's element is read
    y[threadIdx.x] = threadIdx.x ? s[threadIdx.x - 1] : 0.0f;
}

// the sum of a block's x by a tree in shared memory; the barrier of a level may be missing
template <bool BARRIER>
__global__ void tree_sum(const float* x, float* y) {
    DYN_SHARED(float, s);
    s[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();  // s is whole before it is summed
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) s[threadIdx.x] += s[threadIdx.x + half];
        if (BARRIER) __syncthreads();  // a level is whole before the next one reads it
    }
    if (threadIdx.x == 0) y[blockIdx.x] = s[0];
}

// two tiles after another in one buffer; without the barrier the second overwrites the first too early
template <bool BARRIER>
__global__ void reused_tile(const float* x, float* y) {
    __shared__ float s[128];
    float sum = 0;
    for (int tile = 0; tile < 4; ++tile) {
        s[threadIdx.x] = x[tile * 128 + threadIdx.x];
        __syncthreads();  // the tile is whole before it is read
        sum += s[127 - threadIdx.x];
        if (BARRIER) __syncthreads();  // nobody reads the tile any more when it is overwritten
    }
    y[threadIdx.x] = sum;
}

// neighbouring lanes exchange through shared memory
template <bool BARRIER>
__global__ void warp_exchange(const float* x, float* y) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    if (BARRIER) __syncwarp();  // the neighbour has written
    y[threadIdx.x] = s[threadIdx.x ^ 1];
}

// what nobody wrote is NaN
__global__ void uninitialised(float* from_static, double* from_dynamic, int written) {
    __shared__ float s[64];
    DYN_SHARED(double, d);
    if (threadIdx.x < written) s[threadIdx.x] = d[threadIdx.x] = 1;
    __syncthreads();  // what is written is written
    from_static[threadIdx.x] = s[threadIdx.x];
    from_dynamic[threadIdx.x] = d[threadIdx.x];
}

__global__ void read_outside_mask(float* x) {
    if (threadIdx.x < 16) x[threadIdx.x] = __shfl_sync(0xffffu, x[threadIdx.x], 20);
}

template <int THREADS>
__global__ void __launch_bounds__(THREADS * 2, 1) bounded(float* x) {
    x[threadIdx.x] = 1;
}

__global__ void large_static(float* x) {
    __shared__ float s[16 * 1024];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();  // s is whole
    x[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
}

__global__ void misaligned_unchecked(float* x) {
    float4* vectors = reinterpret_cast<float4*>(x + 1);
    vectors[threadIdx.x + 1] = vectors[threadIdx.x];
}

__global__ void failed_assertion(float* x) {
    assert(x[threadIdx.x] >= 0);  // FAULT failed_assertion
}

__global__ void endless_wait(unsigned* flag) {
    if (threadIdx.x == 1)
        while (atomicAdd(flag, 0) == 0) {}  // FAULT endless_wait
}
