// Path R1: forward, loss and backward of a batch in one launch; two_layer_reduce.cu sums what it leaves.
//
//   A1 = f(X W1 + b1), Z2 = A1 W2 + b2, loss, dZ2, dZ1 = (dZ2 W2^T) * f'(A1),
//   partials[p] = dW1, db1, dW2, db2 and loss_partials[p] = loss of the samples of partition p
//
// X (N, D) of T or uint8, which is scaled and shifted; W1 (D, H), b1 (H,), W2 (H, C), b2 (C,), y (N, C) or labels
// (N,).  A row of partials is laid out as the flat parameters; its padding is not written.
//
// A partition's samples go through a block in tiles of ROWS.  Rows of X come into shared memory once, by
// asynchronous copies while the tile before is worked on, and serve Z1 and then dW1.  A1 stays on chip; dW1 stays in
// registers from the first tile to the last.  W1 comes from the L2 cache, once a tile.
//
//   Z1    every warp takes slabs of BK steps of k, the slabs w, w + WARPS, ..., and brings them itself; lane (r, c)
//         owns ROWS/4 rows x HN columns of its warp's sum.  The warps' sums are then added in one order.
//   dW1   thread (g, h) owns TM x TN elements: TM rows d in groups of 16 bytes, the groups of all threads side by
//         side, and TN neighbouring columns.
//
// Where dW1 does not fit the registers (float64), `slices` blocks share a partition: each goes through all of it for
// its own rows of dW1, and the first alone leaves the rest.
//
// Deterministic: partitions depend on the shape alone, and a block takes those numbered blockIdx.x + i gridDim.x;
// every sum has one order.
#include "intrinsics.cuh"
#include "two_layer_output.cuh"

constexpr int STEP_THREADS = 256;
constexpr int STEP_WARPS = STEP_THREADS / WARP;
constexpr int BK = 8;             // rows of W1 in a slab
constexpr int STAGES = 2;         // slabs that a warp holds: one that it multiplies, one on its way
constexpr int COLUMN_LANES = 8;   // of a warp, along the hidden units
constexpr int ROW_LANES = WARP / COLUMN_LANES;
constexpr int SUMS = STEP_WARPS / 2;  // of Z1, that are in shared memory at once

// ROWS samples a tile; TM x TN elements of dW1 a thread; HN columns of Z1 a lane.
template <int ROWS_, int TM_, int TN_, int HN_>
struct StepTile {
  static constexpr int ROWS = ROWS_, TM = TM_, TN = TN_, HN = HN_;
  static constexpr int RM = ROWS / ROW_LANES;  // rows of Z1 a lane
  static constexpr int COLUMNS = COLUMN_LANES * HN;  // of Z1 that are summed in one go over k
  // Blocks that have to fit on a multiprocessor: two where the accumulators leave room in 128 registers.
  static constexpr int BLOCKS = TM * TN <= 64 && TM * TN + RM * HN < 96 ? 2 : 1;
  static_assert(ROWS % ROW_LANES == 0, "every lane has as many rows");
};

__device__ __forceinline__ constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

// Rows n0 .. n0 + ROWS of X, zero from N on, to rows `pitch` elements apart; V elements a copy.
template <int ROWS, int V, class TX>
__device__ __forceinline__ void fetch_rows(TX* to, int pitch, const TX* __restrict__ X, int D, int n0, int N) {
  const int thread = thread_in_block(), lane = thread % WARP;
#pragma unroll 1
  for (int row = thread / WARP; row < ROWS; row += STEP_WARPS) {
    const bool inside = n0 + row < N;
    const TX* const from = X + static_cast<long long>(inside ? n0 + row : 0) * D;
#pragma unroll 1
    for (int d = lane * V; d < D; d += WARP * V) {
      TX* const place = to + row * pitch + d;
      if constexpr (V * sizeof(TX) == COPY_BYTES)
        copy_async(place, from + d, inside ? COPY_BYTES : 0);
      else if constexpr (sizeof(TX) >= 4)
        copy_element_async(place, from + d, inside);
      else
        *place = inside ? from[d] : TX(0);
    }
  }
}

// BK rows of W1 from row k0 on, zero from row D on.  W1 is contiguous and a slab begins at a multiple of 16 bytes.
template <class T>
__device__ __forceinline__ void fetch_slab(T* to, const T* __restrict__ W1, int k0, int D, int H) {
  constexpr int V = COPY_BYTES / sizeof(T);
  const int left = max(D - k0, 0) * H;
  const T* const from = W1 + static_cast<long long>(left > 0 ? k0 : 0) * H;
#pragma unroll 1
  for (int i = thread_in_block() % WARP * V; i < BK * H; i += WARP * V)
    copy_async(to + i, from + (i < left ? i : 0), min(max(left - i, 0), V) * static_cast<int>(sizeof(T)));
}

// The first slab of this warp, to where its ring begins.
template <class T>
__device__ __forceinline__ void fetch_first_slab(T* rings, const T* __restrict__ W1, int D, int H) {
  const int warp = thread_in_block() / WARP;
  fetch_slab(rings + warp * STAGES * BK * H, W1, warp * BK, D, H);
}

// Column of Z1 that is number j of lane c: pairs where VW is 2, so that one load takes both.
template <int HN, int VW>
__device__ __forceinline__ int column_of(int c, int j) {
  return VW == 2 && j < HN / 2 * 2 ? j / 2 * (2 * COLUMN_LANES) + 2 * c + j % 2 : j * COLUMN_LANES + c;
}

// z += X W1 over the slabs of this warp, columns h0 on.
template <class T, class TILE, int VW>
__device__ __forceinline__ void multiply_slabs(T (&z)[TILE::RM][TILE::HN], const T* X, int pitch, T* rings,
                                               const T* __restrict__ W1, int D, int H, int h0) {
  constexpr int G = VECTOR_BYTES / sizeof(T), HN = TILE::HN, PAIRS = VW == 2 ? HN / 2 * 2 : 0;
  const int thread = thread_in_block(), lane = thread % WARP, warp = thread / WARP;
  T* const ring = rings + warp * STAGES * BK * H;
  int at[HN];  // of the lane's columns in a row of the slab; columns that are not there repeat the last
#pragma unroll
  for (int j = 0; j < HN; ++j) {
    const int column = h0 + column_of<HN, VW>(lane % COLUMN_LANES, j);
    at[j] = j < PAIRS ? min(column, H - VW + j % 2) : min(column, H - 1);
  }
  const T* x = X + lane / COLUMN_LANES * pitch;
  int stage = 0;
#pragma unroll 1
  for (int k0 = warp * BK; k0 < D; k0 += STEP_WARPS * BK, stage ^= 1) {
    wait_copies<STAGES - 2>();
    __syncwarp();  // every lane's part of the slab is there, and the slab before has been multiplied
    const int next = k0 + STEP_WARPS * BK * (STAGES - 1);
    if (next < D) fetch_slab(ring + (stage ^ 1) * BK * H, W1, next, D, H);
    commit_copies();
    const T* const slab = ring + stage * BK * H;
#pragma unroll 1
    for (int k = 0; k < BK; k += G) {
      Vector<T, G> a[TILE::RM];
#pragma unroll
      for (int i = 0; i < TILE::RM; ++i) a[i] = load_vector<G>(x + i * ROW_LANES * pitch + k0 + k);
#pragma unroll
      for (int e = 0; e < G; ++e) {
        T w[HN];
#pragma unroll
        for (int j = 0; j < PAIRS; j += 2) {
          const Vector<T, 2> pair = load_vector<2>(slab + (k + e) * H + at[j]);
          w[j] = pair[0];
          w[j + 1] = pair[1];
        }
#pragma unroll
        for (int j = PAIRS; j < HN; ++j) w[j] = slab[(k + e) * H + at[j]];
#pragma unroll
        for (int i = 0; i < TILE::RM; ++i)
#pragma unroll
          for (int j = 0; j < HN; ++j) z[i][j] += a[i][e] * w[j];
      }
    }
  }
}

template <class T, class TX, class TILE, class F, class L, int VX, int VW>
__global__ void __launch_bounds__(STEP_THREADS, TILE::BLOCKS)
    two_layer_step(const TX* __restrict__ X, const typename L::template Target<T>* __restrict__ y,
                   const T* __restrict__ W1, const T* __restrict__ b1, const T* __restrict__ W2,
                   const T* __restrict__ b2, T* __restrict__ partials, T* __restrict__ loss_partials, int N, int D,
                   int H, int C, int chunk, int partitions, int slices, int buffers, int pitch, int d_groups,
                   int offset_b1, int offset_W2, int offset_b2, long long stride, T scale, T x_scale, T x_shift) {
  constexpr bool CONVERTS = sizeof(TX) != sizeof(T);
  constexpr int ROWS = TILE::ROWS, TM = TILE::TM, TN = TILE::TN, HN = TILE::HN, RM = TILE::RM;
  constexpr int G = VECTOR_BYTES / sizeof(T);
  constexpr int ZP = (round_up(TN, G) / G | 1) * G;  // of a thread's columns in a row of dZ1: an odd number of groups
  const int h_groups = (H + TN - 1) / TN, z_pitch = h_groups * ZP;
  const int a_pitch = round_up(H - 16, 32) + 16;  // rows of A1 begin 16 banks apart

  // Shared memory: X, the rings of W1 (then sums of Z1), and, over both of them at the end, dW1 on its way out.
  DYN_SHARED(T, shared);
  T* const ring = shared + buffers * ROWS * pitch;
  const int ring_size = max(STEP_WARPS * STAGES * BK * H, SUMS * RM * HN * WARP);
  OutputLayer<T, F, L, ROWS, STEP_THREADS> out;
  out.pitch = a_pitch;
  out.H = H;
  out.C = C;
  out.A1 = shared + max(buffers * ROWS * pitch + round_up(ring_size, G), round_up(G * d_groups * H, G));
  T* const dZ1 = out.A1 + ROWS * a_pitch;
  out.W2 = dZ1 + ROWS * z_pitch;
  out.dW2 = out.W2 + C * H;
  out.b2 = out.dW2 + C * H;
  out.Z2 = out.b2 + C;
  out.dZ2 = out.Z2 + ROWS * C;
  T* const bias = out.dZ2 + ROWS * C;
  T* const scratch = bias + H;
  TX* const staged = reinterpret_cast<TX*>(shared + (scratch - shared + STEP_WARPS + G - 1) / G * G);
  const int staged_pitch = round_up(D, COPY_BYTES);

#pragma unroll 1
  for (int item = blockIdx.x; item < partitions * slices; item += gridDim.x) {
    const int partition = item / slices, slice = item % slices;
    const int n_begin = partition * chunk, n_end = min(n_begin + chunk, N);
    __syncthreads();  // what the item before had here has been written out
    out.begin(W2, b2);
#pragma unroll 1
    for (int h = threadIdx.x; h < H; h += STEP_THREADS) bias[h] = b1 == nullptr ? T(0) : b1[h];
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * z_pitch; i += STEP_THREADS) dZ1[i] = T(0);
#pragma unroll 1
    for (int row = threadIdx.x / WARP; row < buffers * ROWS; row += STEP_WARPS)
#pragma unroll 1
      for (int d = D + threadIdx.x % WARP; d < pitch; d += WARP) shared[row * pitch + d] = T(0);

    T dW1[TM][TN];
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
      for (int j = 0; j < TN; ++j) dW1[i][j] = T(0);
    T bias_sum = T(0), loss = T(0);  // of column threadIdx.x of db1 then db2

    if constexpr (CONVERTS)
      fetch_rows<ROWS, VX>(staged, staged_pitch, X, D, n_begin, N);
    else
      fetch_rows<ROWS, VX>(shared, pitch, X, D, n_begin, N);
    fetch_first_slab(ring, W1, D, H);
    commit_copies();

    int buffer = 0;
#pragma unroll 1
    for (int n0 = n_begin; n0 < n_end; n0 += ROWS) {
      T* const rows = shared + buffer * ROWS * pitch;
      wait_all_copies();
      __syncthreads();  // the tile is there, whoever brought it
      if constexpr (CONVERTS) {
        const int thread = thread_in_block(), lane = thread % WARP;
#pragma unroll 1
        for (int row = thread / WARP; row < ROWS; row += STEP_WARPS)
#pragma unroll 1
          for (int d = lane * G; d < D; d += WARP * G) {
            const Vector<TX, G> pixels = load_vector<G>(staged + row * staged_pitch + d);
            Vector<T, G> scaled;
#pragma unroll
            for (int e = 0; e < G; ++e)
              scaled[e] = d + e < D ? static_cast<T>(pixels[e]) * x_scale + x_shift : T(0);
            store_vector<G>(rows + row * pitch + d, scaled);
          }
        __syncthreads();  // the converted tile is whole, and its bytes may be overwritten
      }

#pragma unroll 1
      for (int h0 = 0; h0 < H; h0 += TILE::COLUMNS) {
        if (h0 > 0) {
          __syncthreads();  // the sums of the columns before have been read: the ring is free
          fetch_first_slab(ring, W1, D, H);
          commit_copies();
        }
        T z[RM][HN];
#pragma unroll
        for (int i = 0; i < RM; ++i)
#pragma unroll
          for (int j = 0; j < HN; ++j) z[i][j] = T(0);
        multiply_slabs<T, TILE, VW>(z, rows, pitch, ring, W1, D, H, h0);

        const int thread = thread_in_block(), lane = thread % WARP, warp = thread / WARP;
        T* const sums = ring + (warp % SUMS * RM * HN) * WARP + lane;
        __syncthreads();  // no warp reads its ring any more: it takes the sums
        if (warp >= SUMS) {
#pragma unroll
          for (int i = 0; i < RM * HN; ++i) sums[i * WARP] = z[i / HN][i % HN];
        }
        __syncthreads();  // the upper warps' sums are there
        if (warp < SUMS) {
#pragma unroll
          for (int i = 0; i < RM * HN; ++i) sums[i * WARP] += z[i / HN][i % HN];
        }
        __syncthreads();  // the sums of two warps each are there
#pragma unroll 1
        for (int i = warp; i < RM * HN; i += STEP_WARPS) {
          const int row = i / HN * ROW_LANES + lane / COLUMN_LANES;
          const int h = h0 + column_of<HN, VW>(lane % COLUMN_LANES, i % HN);
          T sum = ring[i * WARP + lane];
#pragma unroll
          for (int s = 1; s < SUMS; ++s) sum += ring[(s * RM * HN + i) * WARP + lane];
          if (h < H) out.A1[row * a_pitch + h] = n0 + row < N ? F::forward(sum + bias[h]) : T(0);
        }
      }
      __syncthreads();  // A1 is whole
      loss += out.loss(y, n0, N, scale);
      __syncthreads();  // dZ2 is whole
      out.hidden_gradient(n0, N, [=](T dZ, int row, int h) { dZ1[row * z_pitch + h / TN * ZP + h % TN] = dZ; });
      out.add_weight_gradient();
      __syncthreads();  // dZ1 is whole; nobody reads the sums of Z1, nor the other buffer of X

      const bool more = n0 + ROWS < n_end;
      if (more) {
        fetch_first_slab(ring, W1, D, H);
        if constexpr (CONVERTS)
          fetch_rows<ROWS, VX>(staged, staged_pitch, X, D, n0 + ROWS, N);
        else if (buffers == 2)
          fetch_rows<ROWS, VX>(shared + (buffer ^ 1) * ROWS * pitch, pitch, X, D, n0 + ROWS, N);
      }
      const int column = thread_in_block();
      if (column < H) {
#pragma unroll 4
        for (int row = 0; row < ROWS; ++row) bias_sum += dZ1[row * z_pitch + column / TN * ZP + column % TN];
      } else if (column - H < C) {
        bias_sum += out.bias_gradient(column - H);
      }
      const int thread = thread_in_block(), d_group = thread / h_groups, h_group = thread % h_groups;
      if (d_group < d_groups) {
        const T* x = rows + (slice * TM * d_groups + d_group * G);
        const T* dz = dZ1 + h_group * ZP;
#pragma unroll 1
        for (int row = 0; row < ROWS; ++row, x += pitch, dz += z_pitch) {
          T b[TN];
#pragma unroll
          for (int j = 0; j + G <= TN; j += G) {
            const Vector<T, G> part = load_vector<G>(dz + j);
#pragma unroll
            for (int e = 0; e < G; ++e) b[j + e] = part[e];
          }
          if constexpr (TN % G == 2) {
            const Vector<T, 2> part = load_vector<2>(dz + TN / G * G);
            b[TN - 2] = part[0];
            b[TN - 1] = part[1];
          }
#pragma unroll
          for (int i = 0; i < TM; i += G) {
            const Vector<T, G> a = load_vector<G>(x + i * d_groups);
#pragma unroll
            for (int e = 0; e < G; ++e)
#pragma unroll
              for (int j = 0; j < TN; ++j) dW1[i + e][j] += a[e] * b[j];
          }
        }
      }
      if constexpr (!CONVERTS) {
        if (more && buffers == 1) {
          __syncthreads();  // dW1 has taken in these rows: the next ones may come over them
          fetch_rows<ROWS, VX>(shared, pitch, X, D, n0 + ROWS, N);
        }
      }
      commit_copies();
      if (buffers == 2) buffer ^= 1;
    }

    // The partition is done: dW1 goes out by way of shared memory, so that neighbours are written together.
    T* const partial = partials + partition * stride;
    const int group_rows = G * d_groups;
    const int thread = thread_in_block(), d_group = thread / h_groups, h_group = thread % h_groups;
#pragma unroll
    for (int i = 0; i < TM; i += G) {
      __syncthreads();  // X, the rings, and the rows of dW1 before these have been read
      if (d_group < d_groups) {
#pragma unroll
        for (int e = 0; e < G; ++e)
#pragma unroll
          for (int j = 0; j < TN; ++j) {
            const int h = h_group * TN + j;
            if (h < H) shared[(d_group * G + e) * H + h] = dW1[i + e][j];
          }
      }
      __syncthreads();  // these rows are whole
      const int d = slice * TM * d_groups + i * d_groups;
      const int count = min(group_rows, D - d) * H;
      T* const to = partial + static_cast<long long>(d) * H;
#pragma unroll 1
      for (int k = threadIdx.x * G; k + G <= count; k += STEP_THREADS * G)
        store_vector<G>(to + k, load_vector<G>(shared + k));
#pragma unroll 1
      for (int k = count / G * G + threadIdx.x; k < count; k += STEP_THREADS) to[k] = shared[k];
    }
    if (slice == 0) {  // the same in every thread of the block
      const int column = threadIdx.x;
      if (b1 != nullptr) {
        if (column < H)
          partial[offset_b1 + column] = bias_sum;
        else if (column - H < C)
          partial[offset_b2 + column - H] = bias_sum;
      }
      out.store_weight_gradient(partial + offset_W2);
      loss = block_sum<STEP_THREADS>(loss, scratch);
      if (threadIdx.x == 0) loss_partials[partition] = loss;
    }
  }
}
