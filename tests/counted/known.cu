// Kernels whose memory traffic is known by hand; test_counters.py holds the counters to it.

__global__ void copy(const float* in, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = in[i];
}

__global__ void strided(const float* in, float* out, int stride) { out[threadIdx.x] = in[threadIdx.x * stride]; }

__global__ void broadcast(const float* in, float* out) { out[threadIdx.x] = in[0]; }

__global__ void vectors(const float4* in, float4* out) {
  float4 v = in[threadIdx.x];
  v.x += v.y;
  v.z *= 2.0f;
  out[threadIdx.x] = v;
}

// The words that lanes read lie STRIDE apart.
template <int STRIDE>
__global__ void banks(float* out) {
  __shared__ float words[32 * STRIDE];
  for (int i = threadIdx.x; i < 32 * STRIDE; i += 32) words[i] = i;
  __syncthreads();  // every word is written before it is read
  out[threadIdx.x] = words[threadIdx.x * STRIDE];
}
