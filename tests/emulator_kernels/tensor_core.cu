// One warp's tensor-core products, and what happens where a lane is missing.
#include "../../kernels/common.cuh"
#include "../../kernels/tensor_core.cuh"

enum class Kind { tf32, tf32_unrounded, three_tf32, bfloat16 };

template <Kind KIND_, int DEPTH_>
struct Precision {
  static constexpr Kind KIND = KIND_;
  static constexpr int DEPTH = DEPTH_;
};
using Tf32 = Precision<Kind::tf32, 8>;
using Tf32Unrounded = Precision<Kind::tf32_unrounded, 8>;  // the instruction itself drops the lower bits
using ThreeTf32 = Precision<Kind::three_tf32, 8>;
using Bfloat16 = Precision<Kind::bfloat16, 16>;

template <class P>
__device__ void product(float (&d)[4], const float* a, const float* b, int g, int t) {
  if constexpr (P::DEPTH == 8) {
    const float x[4] = {a[g * 8 + t], a[(g + 8) * 8 + t], a[g * 8 + t + 4], a[(g + 8) * 8 + t + 4]};
    const float y[2] = {b[t * 8 + g], b[(t + 4) * 8 + g]};
    unsigned big_a[4], small_a[4], big_b[2], small_b[2];
    for (int i = 0; i < 4; ++i) split_tf32(x[i], big_a[i], small_a[i]);
    for (int i = 0; i < 2; ++i) split_tf32(y[i], big_b[i], small_b[i]);
    if constexpr (P::KIND == Kind::three_tf32) {
      multiply_3xtf32(d, big_a, small_a, big_b, small_b);
    } else if constexpr (P::KIND == Kind::tf32_unrounded) {
      for (int i = 0; i < 4; ++i) big_a[i] = __float_as_uint(x[i]);
      for (int i = 0; i < 2; ++i) big_b[i] = __float_as_uint(y[i]);
      multiply_tf32(d, big_a, big_b);
    } else {
      multiply_tf32(d, big_a, big_b);
    }
  } else {
    unsigned pairs_a[4], pairs_b[2];
    for (int i = 0; i < 4; ++i) {
      const float* at = a + (g + 8 * (i % 2)) * 16 + 2 * t + 8 * (i / 2);
      pairs_a[i] = to_bfloat16(at[0], at[1]);
    }
    for (int i = 0; i < 2; ++i) {
      const float* at = b + (2 * t + 8 * i) * 8 + g;
      pairs_b[i] = to_bfloat16(at[0], at[8]);
    }
    multiply_bfloat16(d, pairs_a, pairs_b);
  }
}

// d (16, 8) = c + a (16, DEPTH) b (DEPTH, 8), one product for each warp of the block
template <class P>
__global__ void products(const float* a, const float* b, const float* c, float* d) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
  a += warp * 16 * P::DEPTH, b += warp * 8 * P::DEPTH, c += warp * 128, d += warp * 128;
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
  product<P>(sum, a, b, g, t);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = sum[i];
}

__global__ void roundings(const float* x, unsigned* tf32, unsigned* bfloat16, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    tf32[i] = to_tf32(x[i]);
    bfloat16[i] = to_bfloat16(x[i], -x[i]);
  }
}

// registers (COUNT, 32) of COUNT matrices (COUNT, 8, 8), whose rows lie `pitch` elements apart in shared memory
template <int COUNT, bool TRANSPOSED>
__global__ void loads(const unsigned short* matrices, unsigned* registers, int pitch) {
  __shared__ __align__(16) unsigned short rows[32 * 24];
  for (int i = threadIdx.x; i < COUNT * 64; i += WARP) rows[i / 8 * pitch + i % 8] = matrices[i];
  __syncthreads();  // every row is there
  unsigned mine[COUNT];
  load_matrices<COUNT, TRANSPOSED>(mine, rows + threadIdx.x % (8 * COUNT) * pitch);
  for (int i = 0; i < COUNT; ++i) registers[i * WARP + threadIdx.x] = mine[i];
}

__global__ void rows_one_element_late(unsigned* registers) {
  __shared__ __align__(16) unsigned short rows[72];
  for (int i = threadIdx.x; i < 72; i += WARP) rows[i] = 1;
  __syncthreads();
  unsigned mine[1];
  load_matrices(mine, rows + threadIdx.x % 8 * 8 + 1);
  registers[threadIdx.x] = mine[0];
}

__global__ void rows_not_waited_for(unsigned* registers) {
  __shared__ __align__(16) unsigned short rows[64];
  for (int i = threadIdx.x; i < 64; i += WARP) rows[i] = 1;
  unsigned mine[1];
  load_matrices(mine, rows + threadIdx.x % 8 * 8);
  registers[threadIdx.x] = mine[0];
}

__global__ void lane_missing(float* d) {
  float sum[4] = {};
  const unsigned a[4] = {}, b[2] = {};
  if (threadIdx.x != 5) multiply_tf32(sum, a, b);
  d[threadIdx.x] = sum[0];
}

__global__ void two_places(float* d) {
  float sum[4] = {};
  const unsigned a[4] = {}, b[2] = {};
  if (threadIdx.x < 16)
    multiply_bfloat16(sum, a, b);
  else
    multiply_bfloat16(sum, a, b);
  d[threadIdx.x] = sum[0];
}

__global__ void loads_and_products_at_once(float* d) {
  __shared__ __align__(16) unsigned short rows[64];
  rows[2 * threadIdx.x] = rows[2 * threadIdx.x + 1] = 0;
  __syncthreads();
  float sum[4] = {};
  unsigned a[4] = {}, b[1] = {}, two[2] = {};
  if (threadIdx.x < 16)
    load_matrices(b, rows + threadIdx.x % 8 * 8);
  else
    multiply_tf32(sum, a, two);
  d[threadIdx.x] = sum[0] + b[0];
}
