// Tensor-core instructions: warp collectives of all 32 lanes, with the fragment layouts that the PTX manual
// documents.  kernels/tensor_core.cuh wraps these as it wraps the instructions.
#pragma once
#include "counted.h"
#include "threads.h"

namespace emulated {

// What multiply_matrices multiplies: m16n8k8 of tf32, or m16n8k16 of pairs of bfloat16.
enum class Operands { tf32, bfloat16 };

// d += a b: the exact sum of d and the products, cut off to a float32 toward zero.
EMULATED_API void multiply_matrices(Operands operands, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                    Site site);

// One row of an 8 x 8 matrix of 2-byte elements, as it lies in shared memory.
struct alignas(16) MatrixRow {
    unsigned words[4];
};

// Register i of every lane gets its part of matrix i, of which lane 8 i + r brings row r.
EMULATED_API void exchange_matrices(const MatrixRow& row, unsigned* registers, int count, bool transposed, Site site);

// A float32 with 10 bits of mantissa: the nearest, of two equally near ones the larger in magnitude.
inline unsigned round_to_tf32(float x) {
    unsigned bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    if (x != x) return 0x7fffffffu;
    return (bits + 0x1000u) & ~0x1fffu;  // the carry out of the largest finite number gives infinity
}

// The upper half of a float32: the nearest, of two equally near ones the even.
inline unsigned round_to_bfloat16(float x) {
    unsigned bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    if (x != x) return 0x7fffu;
    return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

}  // namespace emulated
