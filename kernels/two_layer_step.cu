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
//   Z1    every warp takes slabs of BK rows of W1, the slabs w, w + WARPS, ..., and brings them itself; it multiplies
//         all of the tile's rows with them.  The warps' sums are then added in one order.
//   dW1   a thread owns the same elements from the first tile to the last.
//
// Which elements a lane owns, and how it multiplies, is the TILE's: FmaTile (two_layer_step_fma.cuh) or MmaTile
// (two_layer_step_mma.cuh, tensor cores).
//
// Where dW1 does not fit the registers (float64), `slices` blocks share a partition: each goes through all of it for
// its own rows of dW1, and the first alone leaves the rest.
//
// Deterministic: partitions depend on the shape alone, and a block takes those numbered blockIdx.x + i gridDim.x;
// every sum has one order.
#include "two_layer_step_fma.cuh"
#include "two_layer_step_mma.cuh"

template <class TILE, class TX, class F, class L, int VX>
__global__ void __launch_bounds__(STEP_THREADS, TILE::BLOCKS)
    two_layer_step(const TX* __restrict__ X, const typename L::template Target<typename TILE::T>* __restrict__ y,
                   const typename TILE::T* __restrict__ W1, const typename TILE::T* __restrict__ b1,
                   const typename TILE::T* __restrict__ W2, const typename TILE::T* __restrict__ b2,
                   typename TILE::T* __restrict__ partials, typename TILE::T* __restrict__ loss_partials, int N,
                   int D, int H, int C, int chunk, int partitions, int slices, int buffers, int pitch, int d_groups,
                   int offset_b1, int offset_W2, int offset_b2, long long stride, typename TILE::T scale,
                   typename TILE::T x_scale, typename TILE::T x_shift) {
  using T = typename TILE::T;
  constexpr bool CONVERTS = sizeof(TX) != sizeof(T);
  constexpr int ROWS = TILE::ROWS, Z = TILE::Z;
  constexpr int G = VECTOR_BYTES / sizeof(T);
  const int z_pitch = TILE::z_pitch(H);
  const int a_pitch = round_up(H - 16, 32) + 16;  // rows of A1 begin 16 banks apart

  // Shared memory: X, the rings of W1 (then sums of Z1), and, over both of them at the end, dW1 on its way out.
  DYN_SHARED(T, shared);
  T* const ring = shared + buffers * ROWS * pitch;
  const int ring_size = max(STEP_WARPS * STAGES * TILE::slab_size(H), SUMS * Z * WARP);
  OutputLayer<T, F, L, ROWS, STEP_THREADS> out;
  out.pitch = a_pitch;
  out.H = H;
  out.C = C;
  out.A1 = shared + max(buffers * ROWS * pitch + round_up(ring_size, G), round_up(TILE::pass_rows(d_groups) * H, G));
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
    for (int h = thread_in_block(); h < H; h += STEP_THREADS) bias[h] = b1 == nullptr ? T(0) : b1[h];
#pragma unroll 1
    for (int i = thread_in_block(); i < ROWS * z_pitch; i += STEP_THREADS) dZ1[i] = T(0);
#pragma unroll 1
    for (int row = thread_in_block() / WARP; row < buffers * ROWS; row += STEP_WARPS)
#pragma unroll 1
      for (int d = D + thread_in_block() % WARP; d < pitch; d += WARP) shared[row * pitch + d] = T(0);

    TILE gradient;
    gradient.clear();
    T bias_sum = T(0), loss = T(0);  // of the thread: bias_sum of a column of db1 or db2

    if constexpr (CONVERTS)
      fetch_rows<ROWS, VX>(staged, staged_pitch, X, D, n_begin, N);
    else
      fetch_rows<ROWS, VX>(shared + (n_begin / ROWS & (buffers - 1)) * ROWS * pitch, pitch, X, D, n_begin, N);
    fetch_first_slab<TILE>(ring, W1, D, H);
    commit_copies();

#pragma unroll 1
    for (int n0 = n_begin; n0 < n_end; n0 += ROWS) {
      T* const rows = shared + (n0 / ROWS & (buffers - 1)) * ROWS * pitch;  // buffers is 1 or 2
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
          fetch_first_slab<TILE>(ring, W1, D, H);
          commit_copies();
        }
        T z[Z];
#pragma unroll
        for (int i = 0; i < Z; ++i) z[i] = T(0);
        multiply_slabs<TILE>(z, rows, pitch, ring, W1, D, H, h0);

        const int thread = thread_in_block(), lane = thread % WARP, warp = thread / WARP;
        T* const sums = ring + warp % SUMS * Z * WARP + lane;
        __syncthreads();  // no warp reads its ring any more: it takes the sums
        if (warp >= SUMS) {
#pragma unroll
          for (int i = 0; i < Z; ++i) sums[i * WARP] = z[i];
        }
        __syncthreads();  // the upper warps' sums are there
        if (warp < SUMS) {
#pragma unroll
          for (int i = 0; i < Z; ++i) sums[i * WARP] += z[i];
        }
        __syncthreads();  // the sums of two warps each are there
#pragma unroll 1
        for (int i = warp; i < Z; i += STEP_WARPS) {
          int row, h;
          TILE::place(lane, i, row, h);
          h += h0;
          T sum = ring[i * WARP + lane];
#pragma unroll
          for (int s = 1; s < SUMS; ++s) sum += ring[(s * Z + i) * WARP + lane];
          if (h < H) out.A1[row * a_pitch + h] = n0 + row < N ? F::forward(sum + bias[h]) : T(0);
        }
      }
      __syncthreads();  // A1 is whole
      loss += out.loss(y, n0, N, scale);
      __syncthreads();  // dZ2 is whole
      out.hidden_gradient(n0, N, [=](T dZ, int row, int h) { dZ1[row * z_pitch + TILE::z_place(h)] = dZ; });
      out.add_weight_gradient();
      __syncthreads();  // dZ1 is whole; nobody reads the sums of Z1, nor the other buffer of X

      const bool more = n0 + ROWS < n_end;
      if (more) {
        fetch_first_slab<TILE>(ring, W1, D, H);
        if constexpr (CONVERTS)
          fetch_rows<ROWS, VX>(staged, staged_pitch, X, D, n0 + ROWS, N);
        else if (buffers == 2)
          fetch_rows<ROWS, VX>(shared + ((n0 / ROWS + 1) & 1) * ROWS * pitch, pitch, X, D, n0 + ROWS, N);
      }
      const int column = thread_in_block();
      if (column < H) {
#pragma unroll 4
        for (int row = 0; row < ROWS; ++row) bias_sum += dZ1[row * z_pitch + TILE::z_place(column)];
      } else if (column - H < C) {
        bias_sum += out.bias_gradient(column - H);
      }
      gradient.add(rows, pitch, dZ1, slice * TILE::slice_rows(d_groups), D, H, d_groups);
      if constexpr (!CONVERTS) {
        if (more && buffers == 1) {
          __syncthreads();  // dW1 has taken in these rows: the next ones may come over them
          fetch_rows<ROWS, VX>(shared, pitch, X, D, n0 + ROWS, N);
        }
      }
      commit_copies();
    }

    // The partition is done: dW1 goes out by way of shared memory, so that neighbours are written together.
    T* const partial = partials + partition * stride;
#pragma unroll
    for (int pass = 0; pass < TILE::PASSES; ++pass) {
      __syncthreads();  // X, the rings, and the rows of dW1 before these have been read
      gradient.stage(shared, pass, H, d_groups);
      __syncthreads();  // these rows are whole
      const int d = slice * TILE::slice_rows(d_groups) + pass * TILE::pass_rows(d_groups);
      const int count = min(TILE::pass_rows(d_groups), D - d) * H;
      T* const to = partial + static_cast<long long>(d) * H;
#pragma unroll 1
      for (int k = thread_in_block() * G; k + G <= count; k += STEP_THREADS * G)
        store_vector<G>(to + k, load_vector<G>(shared + k));
#pragma unroll 1
      for (int k = count / G * G + thread_in_block(); k < count; k += STEP_THREADS) to[k] = shared[k];
    }
    if (slice == 0) {  // the same in every thread of the block
      const int column = thread_in_block();
      if (b1 != nullptr) {
        if (column < H)
          partial[offset_b1 + column] = bias_sum;
        else if (column - H < C)
          partial[offset_b2 + column - H] = bias_sum;
      }
      out.store_weight_gradient(partial + offset_W2);
      loss = block_sum<STEP_THREADS>(loss, scratch);
      if (thread_in_block() == 0) loss_partials[partition] = loss;
    }
  }
}
