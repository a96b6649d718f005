// What the tensor-core instructions compute; emulated/tensor_core.h says what they are given.
//
// Layouts: PTX ISA, "Matrix Fragments for mma.m16n8k8", "... mma.m16n8k16" and "ldmatrix".  Lane 4 g + t holds of
//   a, tf32       rows g, g + 8, g, g + 8;  columns t, t, t + 4, t + 4
//   a, bfloat16   the same rows;  columns 2 t and 2 t + 1, in the last two registers 8 further on
//   b             column g;  rows as the columns of a
//   d             rows g, g, g + 8, g + 8;  columns 2 t, 2 t + 1, 2 t, 2 t + 1
#include "emulated/tensor_core.h"

#include <string.h>

#include "emulated/warp.h"

namespace emulated {
namespace {

constexpr unsigned all_lanes = 0xffffffffu;
constexpr int rows = 16, columns = 8;

float float_of(unsigned bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

float tf32(unsigned bits) { return float_of(bits & ~0x1fffu); }  // the other bits are not looked at
float lower(unsigned pair) { return float_of(pair << 16); }
float upper(unsigned pair) { return float_of(pair & 0xffff0000u); }

struct Product {
    float* d;
    const unsigned* a;
    const unsigned* b;
};

typedef double Row __attribute__((vector_size(columns * sizeof(double))));

// The float32 next to `sum` on the side of zero; what is too large becomes infinite.
float toward_zero(double sum) {
    const float nearest = static_cast<float>(sum);
    if (!(__builtin_fabs(nearest) > __builtin_fabs(sum)) || __builtin_isinf(nearest)) return nearest;
    unsigned bits;
    memcpy(&bits, &nearest, sizeof bits);
    return float_of(bits - 1);  // one less in magnitude
}

template <int depth>
struct Matrices {
    double a[rows][depth];
    Row b[depth];
    Row d[rows];

    // Products of tf32 or bfloat16 are exact in float64, and so is their sum but for its last bits.
    void multiply() {
        for (int row = 0; row < rows; ++row) {
            for (int k = 0; k < depth; ++k) d[row] += a[row][k] * b[k];
            for (int column = 0; column < columns; ++column) d[row][column] = toward_zero(d[row][column]);
        }
    }
};

// The element of d that a lane holds in register i.
int row_of(int lane, int i) { return lane / 4 + 8 * (i / 2); }
int column_of(int lane, int i) { return 2 * (lane % 4) + i % 2; }

template <int depth>
void run(void** arguments, Matrices<depth>& matrices) {
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i)
            matrices.d[row_of(lane, i)][column_of(lane, i)] = static_cast<Product*>(arguments[lane])->d[i];
    matrices.multiply();
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i)
            static_cast<Product*>(arguments[lane])->d[i] =
                static_cast<float>(matrices.d[row_of(lane, i)][column_of(lane, i)]);
}

void multiply_tf32(void** arguments, unsigned) {
    Matrices<8> matrices;
    for (int lane = 0; lane < 32; ++lane) {
        const Product& mine = *static_cast<Product*>(arguments[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; ++i) matrices.a[g + 8 * (i % 2)][t + 4 * (i / 2)] = tf32(mine.a[i]);
        for (int i = 0; i < 2; ++i) matrices.b[t + 4 * i][g] = tf32(mine.b[i]);
    }
    run(arguments, matrices);
}

void multiply_bfloat16(void** arguments, unsigned) {
    Matrices<16> matrices;
    for (int lane = 0; lane < 32; ++lane) {
        const Product& mine = *static_cast<Product*>(arguments[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; ++i) {
            double* pair = &matrices.a[g + 8 * (i % 2)][2 * t + 8 * (i / 2)];
            pair[0] = lower(mine.a[i]);
            pair[1] = upper(mine.a[i]);
        }
        for (int i = 0; i < 2; ++i) {
            matrices.b[2 * t + 8 * i][g] = lower(mine.b[i]);
            matrices.b[2 * t + 8 * i + 1][g] = upper(mine.b[i]);
        }
    }
    run(arguments, matrices);
}

struct Exchanged {
    const MatrixRow* row;
    unsigned* registers;
    int count;
    bool transposed;
};

void exchange_rows(void** arguments, unsigned) {
    const auto element = [arguments](int matrix, int row, int column) -> unsigned {
        const Exchanged& owner = *static_cast<Exchanged*>(arguments[8 * matrix + row]);
        return owner.row->words[column / 2] >> 16 * (column % 2) & 0xffffu;
    };
    for (int lane = 0; lane < 32; ++lane) {
        Exchanged& mine = *static_cast<Exchanged*>(arguments[lane]);
        const int g = lane / 4, t = 2 * (lane % 4);
        for (int i = 0; i < mine.count; ++i)
            mine.registers[i] = mine.transposed ? element(i, t, g) | element(i, t + 1, g) << 16
                                                : element(i, g, t) | element(i, g, t + 1) << 16;
    }
}

}  // namespace

void multiply_matrices(Operands operands, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], Site site) {
    Product argument = {d, a, b};
    if (operands == Operands::tf32) warp_collective(all_lanes, &argument, multiply_tf32, "mma.m16n8k8.tf32", site);
    else warp_collective(all_lanes, &argument, multiply_bfloat16, "mma.m16n8k16.bf16", site);
}

void exchange_matrices(const MatrixRow& row, unsigned* registers, int count, bool transposed, Site site) {
    Exchanged argument = {&row, registers, count, transposed};
    warp_collective(all_lanes, &argument, exchange_rows, transposed ? "ldmatrix.trans" : "ldmatrix", site);
}

}  // namespace emulated
