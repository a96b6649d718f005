// Kernels whose machine code is known: what each of them must count is in tests/test_sass.py.
#include <cuda_bf16.h>

// ---- multiply-adds and loops ------------------------------------------------------------------------------

__global__ void float_chain(const float* x, float* y, int n) {  // 24 FFMA, all in the loop
  float s = y[threadIdx.x];
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    const float a = x[i];
#pragma unroll
    for (int j = 0; j < 24; ++j) s = s * a + 1.5f;
  }
  y[threadIdx.x] = s;
}

__global__ void double_chain(const double* x, double* y, int n) {  // 10 DFMA
  double s = y[threadIdx.x];
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    const double a = x[i];
#pragma unroll
    for (int j = 0; j < 10; ++j) s = s * a + 1.5;
  }
  y[threadIdx.x] = s;
}

// Every turn of the loop: an LDS.128 and an LDS, so 5 elements, for 20 FFMA.  Some turns: one element more.
__global__ void __launch_bounds__(128) shared_loop(const float* x, float* y, int n) {
  __shared__ __align__(16) float quads[512];
  __shared__ float singles[512];
  for (int i = threadIdx.x; i < 512; i += 128) {
    quads[i] = x[i];
    singles[i] = x[512 + i];
  }
  __syncthreads();
  float sum[4] = {1, 2, 3, 4}, rest = 0;
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    const float4 a = reinterpret_cast<const float4*>(quads)[(i + threadIdx.x) & 127];
    const float b = singles[(i * 7 + threadIdx.x) & 511];
#pragma unroll
    for (int j = 0; j < 5; ++j) {
      sum[0] = sum[0] * a.x + b;
      sum[1] = sum[1] * a.y + b;
      sum[2] = sum[2] * a.z + b;
      sum[3] = sum[3] * a.w + b;
    }
    if (x[i] > 0) rest += singles[(i * 3 + threadIdx.x) & 511];
  }
  y[threadIdx.x] = sum[0] + sum[1] + sum[2] + sum[3] + rest;
}

__global__ void no_loop(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x] * 3.0f + 1.0f; }  // 1 FFMA

__global__ void tensor_core(const unsigned* a, const unsigned* b, float* d) {  // 1 HMMA
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

// ---- memory -----------------------------------------------------------------------------------------------

__global__ void quads(const float4* x, float4* y) {  // an LDG.128 and an LDS.128, 1 barrier
  __shared__ float4 s[256];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x ^ 32];
}

__global__ void singles(const float* x, float* y) {  // neither; 3 barriers
  __shared__ float s[256];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  const float a = s[threadIdx.x ^ 32];
  __syncthreads();
  s[threadIdx.x] = a + 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x ^ 64];
}

__global__ void local_array(const int* x, float* y) {  // an array indexed at run time lies in local memory
  float v[32];
  for (int i = 0; i < 32; ++i) v[i] = i * y[i];
  for (int i = 0; i < 32; ++i) y[i] = v[x[i] & 31];
}

__global__ void __launch_bounds__(1024) spills(const float* x, float* y) {  // 96 values, 64 registers
  float v[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) v[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) y[i * 1024 + threadIdx.x] = v[i] * v[(7 * i + 3) % 96];
}

__global__ void __launch_bounds__(192) bounded(float* x) { x[threadIdx.x] = 1; }

// ---- atomics ----------------------------------------------------------------------------------------------

__global__ void global_float(float* x) { atomicAdd(x, 1.5f * threadIdx.x); }
__global__ void global_float_returned(float* x, float* y) { y[threadIdx.x] = atomicAdd(x, 1.5f * threadIdx.x); }
__global__ void global_double(double* x) { atomicAdd(x, 1.5 * threadIdx.x); }
__global__ void global_bfloat16(__nv_bfloat16* x) { atomicAdd(x, static_cast<__nv_bfloat16>(threadIdx.x)); }
__global__ void global_int(int* x) { atomicAdd(x, 3 * threadIdx.x); }
__global__ void global_int_returned(int* x, int* y) { y[threadIdx.x] = atomicAdd(x, 3 * threadIdx.x); }

template <class T>
__global__ void shared_sum(const T* x, T* y) {
  __shared__ T s;
  if (threadIdx.x == 0) s = 0;
  __syncthreads();
  atomicAdd(&s, x[threadIdx.x]);
  __syncthreads();
  if (threadIdx.x == 0) *y = s;
}

__global__ void swapped_product(int* x, const float* y) {  // a float product by compare-and-swap
  int old = *x, seen;
  do {
    seen = old;
    old = atomicCAS(x, seen, __float_as_int(__int_as_float(seen) * y[threadIdx.x]));
  } while (old != seen);
}

__global__ void swapped_or(int* x, const int* y) {  // an integer one
  int old = *x, seen;
  do {
    seen = old;
    old = atomicCAS(x, seen, (seen | y[threadIdx.x]) ^ 5);
  } while (old != seen);
}

__global__ void warp_sum(int* x) {  // no atomic, though its instruction is called REDUX
#if __CUDA_ARCH__ >= 800
  x[threadIdx.x] = __reduce_add_sync(0xffffffffu, x[threadIdx.x]);
#endif
}
