// What CUDA sources count on: built-in variables, vector types, overloads, atomics, votes, parameters by value.

struct Scale {
    float factor;
    int shift;
};

__constant__ float TABLE[4] = {1, 10, 100, 1000};

// one row a thread: threadIdx, blockIdx, blockDim, gridDim, and the linear number
__global__ void coordinates(unsigned* rows) {
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    unsigned* row = rows + 12 * (block * blockDim.x * blockDim.y * blockDim.z + thread);
    const uint3 t = threadIdx, b = blockIdx;
    const dim3 d = blockDim, g = gridDim;
    const unsigned values[12] = {t.x, t.y, t.z, b.x, b.y, b.z, d.x, d.y, d.z, g.x, g.y, g.z};
    for (int i = 0; i < 12; ++i) row[i] = values[i];
}

// y[row] = one function of x, in the overload for T
template <typename T>
__global__ void mathematics(const T* x, T* y, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const T v = x[i];
        y[0 * n + i] = exp(v);
        y[1 * n + i] = expm1(v);
        y[2 * n + i] = log1p(v);
        y[3 * n + i] = tanh(v);
        y[4 * n + i] = sqrt(v);
        y[5 * n + i] = rsqrt(v);
        y[6 * n + i] = fma(v, v, T(-1));
        y[7 * n + i] = pow(v, T(1.5));
        y[8 * n + i] = log(v);
        y[9 * n + i] = abs(T(-1) * v);
        y[10 * n + i] = max(v, T(1)) - min(v, T(1));
        y[11 * n + i] = fmax(v, T(0)) + floor(v) + copysign(T(1), -v);
    }
}

__global__ void single_precision(const float* x, float* y) {
    const float v = x[threadIdx.x];
    y[threadIdx.x] = expf(v) + __expf(v) + rsqrtf(v) + __fdividef(1.0f, v) + __frcp_rn(v) + fmaf(v, v, 1.0f) + logf(v);
}

// x[1] is minus the rounded square of x[0]: their sum is 0 unless the product is fused into it
__global__ void contraction(const float* x, float* y) {
    y[0] = __fmul_rn(x[0], x[0]) + x[1];
    y[1] = __fmaf_rn(x[0], x[0], x[1]);
}

__global__ void mixed_minimum(int* y, unsigned u, long long wide, unsigned char byte) {
    y[0] = min(3, 5u);
    y[1] = max(-1, u) == 0xffffffffu;  // int and unsigned compare as unsigned
    y[2] = static_cast<int>(min(wide, 7));
    y[3] = max(byte, 4);
    y[4] = isnan(__int_as_float(0x7fc00000)) && max(__int_as_float(0x7fc00000), 2.0f) == 2.0f;
    y[5] = sizeof(max(1.0f, 2.0)) == 8;
}

__global__ void vectors(const float* x, float* y, const double* p, double* q, int* sizes) {
    float4 v = reinterpret_cast<const float4*>(x)[threadIdx.x];
    v.w += v.x;
    reinterpret_cast<float4*>(y)[threadIdx.x] = make_float4(v.w, v.z, v.y, v.x);
    const double2 d = reinterpret_cast<const double2*>(p)[threadIdx.x];
    reinterpret_cast<double2*>(q)[threadIdx.x] = make_double2(d.y, d.x);
    sizes[0] = alignof(float4), sizes[1] = alignof(float2), sizes[2] = sizeof(uchar4), sizes[3] = alignof(double2);
    sizes[4] = sizeof(float3), sizes[5] = alignof(int4), sizes[6] = alignof(uint3), sizes[7] = alignof(ushort4);
}

__global__ void atomics(int* i, unsigned* u, unsigned long long* l, float* f, double* d) {
    const int t = threadIdx.x;
    atomicAdd(&i[0], t);
    atomicMax(&i[1], t);
    atomicMin(&i[2], -t);
    atomicSub(&i[3], 1);
    atomicExch(&i[4], 9);
    atomicCAS(&i[5], 0, t + 1);
    atomicAdd(&u[0], 1);
    atomicInc(&u[1], 9);
    atomicOr(&u[2], 1u << t % 32);
    atomicAnd(&u[3], ~(1u << t % 32));
    atomicDec(&u[4], 9);
    atomicAdd(&l[0], 1ull << 33);
    atomicMax(&l[1], static_cast<unsigned long long>(t));
    atomicAdd(f, 0.5f);
    atomicAdd(d, 0.25);
}

__global__ void votes(int* y) {
    const int t = threadIdx.x;
    int* row = y + 10 * t;
    row[0] = __syncthreads_count(t % 3 == 0);
    row[1] = __syncthreads_and(t < 40);
    row[2] = __syncthreads_or(t == 39);
    row[3] = __ballot_sync(0xffffffffu, t % 2);
    row[4] = __any_sync(0xffffffffu, t == 5);
    row[5] = __all_sync(0xffffffffu, t < 32);
    row[6] = __match_any_sync(0xffffffffu, t % 4);
    row[7] = __reduce_add_sync(0xffffffffu, t);
    row[8] = __reduce_max_sync(0xffffffffu, t);
    row[9] = __popc(__activemask());
}

template <typename T>
__global__ void shuffles(const T* x, T* y, int width) {
    const int t = threadIdx.x, n = blockDim.x;
    const T v = x[t];
    y[0 * n + t] = __shfl_sync(0xffffffffu, v, 3, width);
    y[1 * n + t] = __shfl_up_sync(0xffffffffu, v, 2, width);
    y[2 * n + t] = __shfl_down_sync(0xffffffffu, v, 2, width);
    y[3 * n + t] = __shfl_xor_sync(0xffffffffu, v, 5, width);
}

// the halves of a warp are in different collectives at the same time, each with its own mask
__global__ void half_warps(int* y) {
    const int t = threadIdx.x;
    if (t % 32 < 16)
        y[t] = __shfl_xor_sync(0x0000ffffu, t, 1);
    else
        y[t] = __reduce_add_sync(0xffff0000u, t);
}

// each thread adds to an unprotected sum inside a lock; thread 0 then waits for all others to have done so
__global__ void locked(int* lock, int* sum, unsigned* done, int* total) {
    for (bool added = false; !added;) {
        if (atomicCAS(lock, 0, 1) == 0) {
            *sum += threadIdx.x;
            __threadfence_block();
            atomicExch(lock, 0);
            added = true;
        }
    }
    atomicAdd(done, 1u);
    if (threadIdx.x == 0) {
        while (atomicAdd(done, 0u) < blockDim.x) __nanosleep(20);
        *total = *sum;
    }
}

__global__ void by_value(float* y, Scale scale, bool negative, const void* absent) {
    const float sign = negative ? -1.0f : 1.0f;
    y[threadIdx.x] = absent ? 0.0f : sign * scale.factor * TABLE[(threadIdx.x + scale.shift) % 4];
}

__global__ void architecture(int* y) { y[0] = __CUDA_ARCH__; }
