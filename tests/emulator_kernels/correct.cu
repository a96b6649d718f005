// Correct kernels: sums by warp shuffles and a tiled matrix product, to be compared with NumPy.

#ifndef HANDGRAD_EMULATED
extern __shared__ unsigned char dynamic_shared[];
#define DYN_SHARED(T, name) T* name = reinterpret_cast<T*>(dynamic_shared)
#endif

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

// partial[blockIdx.x] = sum of the block's share of x; one T a warp of dynamic shared memory
template <typename T>
__global__ void block_sum(const T* __restrict__ x, T* __restrict__ partial, int n) {
    DYN_SHARED(T, warps);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    T value = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) value += x[i];
    value = warp_sum(value);
    if (lane == 0) warps[warp] = value;
    __syncthreads();  // every warp's sum is written before warp 0 reads them
    if (warp == 0) {
        value = lane < static_cast<int>(blockDim.x) / 32 ? warps[lane] : T(0);
        value = warp_sum(value);
        if (lane == 0) partial[blockIdx.x] = value;
    }
}

// C = A B   (M, K) (K, N) -> (M, N), 64x64 tiles, 256 threads, 4x4 accumulators each
template <typename T, int BK>
__global__ void __launch_bounds__(256) matmul(const T* __restrict__ A, const T* __restrict__ B, T* __restrict__ C,
                                              int M, int N, int K) {
    constexpr int BM = 64, BN = 64;
    __shared__ T As[BK][BM + 4];
    __shared__ T Bs[BK][BN];
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, row0 = blockIdx.x * BM, column0 = blockIdx.y * BN;
    T sums[4][4] = {};
    for (int k0 = 0; k0 < K; k0 += BK) {
        for (int i = threadIdx.x; i < BM * BK; i += 256) {
            const int row = i / BK, k = i % BK;
            As[k][row] = row0 + row < M && k0 + k < K ? A[static_cast<size_t>(row0 + row) * K + k0 + k] : T(0);
        }
        for (int i = threadIdx.x; i < BN * BK; i += 256) {
            const int k = i / BN, column = i % BN;
            Bs[k][column] = column0 + column < N && k0 + k < K ? B[static_cast<size_t>(k0 + k) * N + column0 + column] : T(0);
        }
        __syncthreads();  // the tiles are whole before they are read
#pragma unroll
        for (int k = 0; k < BK; ++k)
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sums[i][j] += As[k][ty * 4 + i] * Bs[k][tx + 16 * j];
        __syncthreads();  // nobody reads the tiles any more when the next ones are written
    }
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) {
            const int row = row0 + ty * 4 + i, column = column0 + tx + 16 * j;
            if (row < M && column < N) C[static_cast<size_t>(row) * N + column] = sums[i][j];
        }
}
