// Kernels whose memory traffic is known by hand; test_counters.py holds the counters to it.

// ---- global memory ----------------------------------------------------------------------------------------

__global__ void copy(const float* in, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = in[i];
}

template <class T>
__global__ void strided(const T* in, T* out, int stride) {
  out[threadIdx.x] = in[threadIdx.x * stride];
}

__global__ void broadcast(const float* in, float* out) { out[threadIdx.x] = in[0]; }

template <class V>
__global__ void vectors(const V* in, V* out) {
  V v = in[threadIdx.x];
  v.x += v.y;
  out[threadIdx.x] = v;
}

// Stores built on the spot: one access each, like the loads.
__global__ void quads(const float* in, float* out) {
  const float4 v = reinterpret_cast<const float4*>(in)[threadIdx.x];
  reinterpret_cast<float4*>(out)[threadIdx.x] = make_float4(v.w, v.z, 0.0f, v.x);
  reinterpret_cast<float4*>(out)[threadIdx.x + 32] = {v.x, 1.0f, v.y, v.z};
}

struct alignas(16) Pack {
  float x, y, z, w;
};

// A type of one's own: three floats go one by one.
__global__ void triples(const float3* in, float3* out) { out[threadIdx.x] = in[threadIdx.x]; }

__global__ void accumulate(const float* in, float* out) { out[threadIdx.x] += in[threadIdx.x]; }

// Rows of n elements, 32 apart; the lanes meet after each row, so that row 1 is no part of row 0's request.
__global__ void rows(const float* in, float* out, int n, int count) {
  float sum = 0;
  for (int row = 0; row < count; ++row) {
    for (int j = threadIdx.x; j < n; j += 32) sum += in[row * 64 + j];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  }
  out[threadIdx.x] = sum;
}

__device__ float twice(const float* p) { return 2 * p[threadIdx.x]; }

// The function is called from two places, and the first one has half of the lanes.
__global__ void diverged(const float* in, float* out) {
  float sum = 0;
  if (threadIdx.x < 16) sum = twice(in);
  sum += twice(in + 64);
  out[threadIdx.x] = sum;
}

// One load, of which every other lane goes to another array.
__global__ void two_arrays(const float* a, const float* b, float* out) {
  const float* from = threadIdx.x % 2 ? a : b;
  out[threadIdx.x] = from[threadIdx.x];
}

__global__ void early(const float* in, float* out) {
  if (threadIdx.x % 32 < 24) return;
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void atomics(int* one, int* each) {
  __shared__ int block;
  if (threadIdx.x == 0) block = 0;
  __syncthreads();  // it is 0 before it is counted in
  atomicAdd(one, 1);
  atomicMax(each + threadIdx.x, 3);
  atomicAdd(&block, 1);
}

__device__ float table[32] = {1.0f};

__global__ void variables(float* out) { out[threadIdx.x] = table[31 - threadIdx.x] + 0.0f * (table[0] = 2.0f); }

__global__ void local(float* out, int shift) {
  float own[16];
  for (int i = 0; i < 16; ++i) own[i] = i;
  out[threadIdx.x] = own[(threadIdx.x + shift) % 16];
}

__global__ void refused(float* out) {
  out[threadIdx.x] = 0;
  if (threadIdx.x == 0) __syncthreads();  // the others return
}

// ---- shared memory ----------------------------------------------------------------------------------------

// Lane i reads and writes element (i STRIDE) % SIZE of T.
template <class T, int STRIDE, int SIZE>
__global__ void banks(T* out) {
  DYN_SHARED(T, elements);
  const int place = threadIdx.x * STRIDE % SIZE;
  elements[place] = T{};
  __syncthreads();  // every element is written before it is read
  out[threadIdx.x] = elements[place];
}

// Half of the lanes read word 0, the others word 32: the same bank.
__global__ void two_words(float* out) {
  __shared__ float words[64];
  words[threadIdx.x] = words[threadIdx.x + 32] = 1;
  __syncthreads();  // every word is written before it is read
  out[threadIdx.x] = words[threadIdx.x % 2 * 32];
}

__global__ void asynchronous(const float* in, float* out) {
  __shared__ __align__(16) float words[128];
  emulated::copy_async(words + 4 * threadIdx.x, in + 4 * threadIdx.x, 16, 12, emulated::Site::here());
  emulated::wait_all_copies();
  __syncthreads();  // every thread's copy has landed
  out[threadIdx.x] = words[threadIdx.x];
}

// ---- barriers and collectives -----------------------------------------------------------------------------

__global__ void meetings(float* out) {
  float sum = out[threadIdx.x];
  for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
  __syncthreads();  // counted
  if (__any_sync(0xffffffffu, sum > 0)) __syncwarp();
  __syncthreads();  // counted
  out[threadIdx.x] = sum;
}
