// Tensor cores: matrix products of a warp and the loads of their operands, as inline PTX with emulated bodies.
//
//   multiply_tf32      d[16 x 8] += a[16 x 8] b[8 x 8]      mma.sync.m16n8k8, operands tf32
//   multiply_3xtf32    the same, operands split in two: nearly float32, since d is added to outside the tensor core
//   multiply_bfloat16  d[16 x 8] += a[16 x 16] b[16 x 8]    mma.sync.m16n8k16, operands pairs of bfloat16
//   load_matrices      1, 2 or 4 matrices of 8 rows of 16 bytes from shared memory: ldmatrix
//
// All 32 lanes take part.  Sums are float32, but a tensor core cuts them off toward zero, once an instruction: of a
// long chain of them the error grows as its length.  Lane 4 g + t (g = 0..7, t = 0..3) holds, in registers 0, 1, ...
//   a, tf32      (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)          as (row, column)
//   b, tf32      (t, g), (t + 4, g)
//   a, bfloat16  pairs (g, 2t..), (g + 8, 2t..), (g, 2t + 8..), (g + 8, 2t + 8..), lower column in the lower half
//   b, bfloat16  pairs (2t.., g), (2t + 8.., g), lower row in the lower half
//   d            (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
//   load_matrices  of matrix i: the 4 bytes at (g, 4t) of its rows, two 2-byte elements or one of 4 bytes;
//                  transposed, the elements (2t, g) and (2t + 1, g) of 2 bytes
//
// From sm_80 on.  Before, every function ends the kernel: launch code refuses these precisions there.
#pragma once

#ifdef HANDGRAD_EMULATED

// The nearest tf32, of two equally near ones that of the larger magnitude; a NaN stays one.
__device__ __forceinline__ unsigned to_tf32(float x) { return emulated::round_to_tf32(x); }

// Two floats as bfloat16, of two equally near ones the even: `low` in the lower half.
__device__ __forceinline__ unsigned to_bfloat16(float low, float high) {
  return emulated::round_to_bfloat16(low) | emulated::round_to_bfloat16(high) << 16;
}

__device__ __forceinline__ void multiply_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                              emulated::Site site = emulated::Site::here()) {
  emulated::multiply_matrices(emulated::Operands::tf32, d, a, b, site);
}

__device__ __forceinline__ void multiply_bfloat16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                                  emulated::Site site = emulated::Site::here()) {
  emulated::multiply_matrices(emulated::Operands::bfloat16, d, a, b, site);
}

// Lane 8 i + r gives the address of row r of matrix i, a multiple of 16 bytes; addresses of further lanes are
// not looked at.
template <int COUNT, bool TRANSPOSED = false>
__device__ __forceinline__ void load_matrices(unsigned (&registers)[COUNT], const void* row,
                                              emulated::Site site = emulated::Site::here()) {
  static_assert(COUNT == 1 || COUNT == 2 || COUNT == 4, "matrices of one ldmatrix");
  emulated::MatrixRow mine = {};
  if (emulated::current->lane < 8 * COUNT) {
    emulated::require_aligned(row, sizeof mine, site.file, site.line);
    mine = emulated::load_whole(static_cast<const emulated::MatrixRow*>(row), site);
  }
  emulated::exchange_matrices(mine, registers, COUNT, TRANSPOSED, site);
}

#else

__device__ __forceinline__ unsigned to_tf32(float x) {
  unsigned rounded = 0;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
#else
  __trap();
#endif
  return rounded;
}

__device__ __forceinline__ unsigned to_bfloat16(float low, float high) {
  unsigned pair = 0;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
  __trap();
#endif
  return pair;
}

__device__ __forceinline__ void multiply_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

__device__ __forceinline__ void multiply_bfloat16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

template <int COUNT, bool TRANSPOSED = false>
__device__ __forceinline__ void load_matrices(unsigned (&registers)[COUNT], const void* row) {
  static_assert(COUNT == 1 || COUNT == 2 || COUNT == 4, "matrices of one ldmatrix");
#if __CUDA_ARCH__ >= 800
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (COUNT == 4 && TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(from)
                 : "memory");
  else if constexpr (COUNT == 4)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(from)
                 : "memory");
  else if constexpr (COUNT == 2 && TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(registers[0]), "=r"(registers[1])
                 : "r"(from)
                 : "memory");
  else if constexpr (COUNT == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(registers[0]), "=r"(registers[1])
                 : "r"(from)
                 : "memory");
  else if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(registers[0])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(registers[0])
                 : "r"(from)
                 : "memory");
#else
  __trap();
#endif
}

#endif

// x = big + small up to 2^-22 |x|, both tf32.  Of an infinite x, small is NaN.
__device__ __forceinline__ void split_tf32(float x, unsigned& big, unsigned& small) {
  big = to_tf32(x);
  small = to_tf32(x - __uint_as_float(big));
}

// d += (a + a_small)(b + b_small), but for the product of the small parts; these come first, being smaller.  The
// products start from zero and are added to d by an addition that rounds: chained through d, thousands of sums cut off
// toward zero would leave less than plain float32 keeps.
#ifdef HANDGRAD_EMULATED
__device__ __forceinline__ void multiply_3xtf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&a_small)[4],
                                                const unsigned (&b)[2], const unsigned (&b_small)[2],
                                                emulated::Site site = emulated::Site::here()) {
  float products[4] = {};
  multiply_tf32(products, a_small, b, site);
  multiply_tf32(products, a, b_small, site);
  multiply_tf32(products, a, b, site);
#pragma unroll
  for (int i = 0; i < 4; ++i) d[i] += products[i];
}
#else
__device__ __forceinline__ void multiply_3xtf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&a_small)[4],
                                                const unsigned (&b)[2], const unsigned (&b_small)[2]) {
  float products[4] = {};
  multiply_tf32(products, a_small, b);
  multiply_tf32(products, a, b_small);
  multiply_tf32(products, a, b);
#pragma unroll
  for (int i = 0; i < 4; ++i) d[i] += products[i];
}
#endif
