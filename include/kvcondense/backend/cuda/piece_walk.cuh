#pragma once

#include <cstddef>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/config.hpp>

// How a call of attention is shared out among blocks, from lengths that only the device knows.
//
// Cuts: a head is cut into pieces by its own length and the rows of the call, nothing else, and
// pieces are joined in their order: results are the same bits on every device, beside any other
// heads.
//
// Shares: as many blocks are started as the device holds at once. All pieces stand in a line, heads
// in order, as long as the work they are; each block walks through an equal length of it, and takes
// the pieces that begin there. So a block ends one head and begins the next, and none has more than
// its share and a piece. Every block finds its place by itself: that is one pass over the lengths,
// where a kernel that plans would be one launch more in every call.

namespace kvcondense::prim::cuda_kernels {

inline constexpr index_t row_block = 8;   ///< query rows (tokens x group) of one block
inline constexpr index_t work_tile = 64;  ///< slots that work is counted by
/// A head has at most so many pieces of the least length, twice as many of twice that, up to
/// `most_pieces`.
inline constexpr index_t first_pieces = 16;
inline constexpr index_t most_pieces = 128;

/// How heads are cut. Eight heads fill a device of 132 multiprocessors from 16 pieces on; what a
/// piece costs beside its slots, and what is left of a share, ask for long and for many pieces, so
/// both grow with a head. Rows beyond the first `row_block` bring blocks of their own, so pieces
/// are the fewer.
struct PieceRule {
  int least = 6;           ///< logarithm of the slots of the shortest piece
  index_t row_blocks = 1;  ///< that go over each piece

  /// Logarithm of the slots of a head's pieces.
  KVCONDENSE_HD constexpr int shift(index_t slots) const {
    int s = least;
    for (index_t most = first_pieces, n = cut(slots, s); n > 1 && n * row_blocks > most;
         n = cut(slots, ++s))
      most = 2 * most < most_pieces ? 2 * most : most_pieces;
    return s;
  }
  KVCONDENSE_HD constexpr index_t piece_slots(index_t slots) const {
    return index_t{1} << shift(slots);
  }
  /// A head of no slots has a piece too: its results are written as others' are.
  KVCONDENSE_HD constexpr index_t pieces(index_t slots) const { return cut(slots, shift(slots)); }

  /// Pieces that a head of up to so many slots may have. Longer heads may have fewer.
  constexpr index_t most(index_t max_slots) const {
    index_t n = 1, fit = first_pieces;
    const index_t blocks = row_blocks > 0 ? row_blocks : 1;
    for (int s = least;; ++s) {
      const index_t all = cut(max_slots, s), own = fit / blocks < all ? fit / blocks : all;
      n = own < n ? n : own;
      if (all <= 1 || all * blocks <= fit) return n;
      fit = 2 * fit < most_pieces ? 2 * fit : most_pieces;
    }
  }

  /// Work is counted in tiles; what a piece costs beside its slots is about one.
  KVCONDENSE_HD constexpr index_t head_work(index_t slots) const {
    return cut(slots, work_shift) * (slots > 0) + pieces(slots);
  }
  /// Of every piece of a head but the last.
  KVCONDENSE_HD constexpr index_t piece_work(index_t slots) const {
    return (index_t{1} << (shift(slots) - work_shift)) + 1;
  }

 private:
  static constexpr int work_shift = 6;
  static_assert(work_tile == 1 << work_shift);
  KVCONDENSE_HD static constexpr index_t cut(index_t slots, int shift) {
    return slots <= 1 ? 1 : ((slots - 1) >> shift) + 1;
  }
};

/// (Piece, row) pairs that a head may have, of calls with up to so many rows: fewer rows may have
/// more.
constexpr index_t most_partials(index_t max_slots, index_t rows) {
  index_t n = rows;
  for (index_t blocks = 1; blocks <= most_pieces && (blocks - 1) * row_block < rows; ++blocks) {
    const index_t parts = PieceRule{.row_blocks = blocks}.most(max_slots) *
                          (blocks * row_block < rows ? blocks * row_block : rows);
    n = parts < n ? n : parts;
  }
  return n;
}

/// Blocks that share the pieces of a call: of rows, and of each of these as many as the device
/// holds at once where a kernel promises `each` per multiprocessor by its registers. `most`: pieces
/// that there are at most. Where that would leave more than an eighth of the device idle, some
/// waves of blocks even it out.
inline cuda::Grid walk_grid(const cuda::DeviceFacts& facts, int each, std::size_t shared,
                            index_t row_blocks, index_t most) {
  constexpr std::size_t of_system = 1024;  // of a block's shared memory
  constexpr index_t waves = 4, idle = 8;
  if (row_blocks == 0) return {0};
  const auto room = static_cast<index_t>(facts.shared_per_multiprocessor / (shared + of_system));
  const index_t held = index_t{facts.multiprocessors} * (room < 1 ? 1 : room < each ? room : each);
  const index_t runs = held % row_blocks * idle <= held ? held / row_blocks
                                                        : cuda::covering(waves * held, row_blocks);
  return {row_blocks, runs < 1 ? 1 : runs < most ? runs : most};
}

/// A block's way through its share: of blockIdx.y among gridDim.y. All threads; barriers; the first
/// bytes of dynamic shared memory are its own until it is made. Two registers, since kernels of
/// attention have none to spare.
template <int Threads>
class PieceWalk {
 public:
  __device__ PieceWalk(const index_t* slots, index_t heads, const PieceRule& rule)
      : slots_(slots), rule_(rule) {
    auto& shared = cuda::shared_as<Share>();
    const index_t each = (heads + Threads - 1) / Threads, first = threadIdx.x * each,
                  end = first + each < heads ? first + each : heads;
    index_t own = 0;
    for (index_t h = first; h < end; ++h) own += rule.head_work(slots[h]);
    const auto [before, all] = cuda::block_running(own, shared.sums);
    if (threadIdx.x == 0) shared.bound[1] = static_cast<int>(heads * most_pieces);
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {  // where this block begins, where the next one does
      const index_t bound = all * (blockIdx.y + i) / gridDim.y;
      if (before <= bound && bound < before + own)  // one thread has the head
        shared.bound[i] = place_behind(bound - before, first);
    }
    __syncthreads();
    place_ = shared.bound[0], end_ = shared.bound[1];
    cuda::forget_shared();
    __syncthreads();
  }
  __device__ bool any() const { return place_ < end_; }
  __device__ index_t head() const { return place_ / most_pieces; }
  __device__ index_t piece() const { return place_ % most_pieces; }
  /// All threads are done with the piece before, and with what it left in shared memory.
  __device__ void next() {
    cuda::forget_shared();
    __syncthreads();
    const bool last = piece() + 1 >= rule_.pieces(slots_[head()]);
    place_ = last ? (place_ / static_cast<int>(most_pieces) + 1) * static_cast<int>(most_pieces)
                  : place_ + 1;
  }

 private:
  struct Share {
    cuda::BlockScratch<index_t, Threads> sums;
    int bound[2];
  };
  /// The first piece that begins so much work behind the beginning of head h, or later.
  __device__ int place_behind(index_t work, index_t h) const {
    for (index_t n = rule_.head_work(slots_[h]); n <= work; n = rule_.head_work(slots_[++h]))
      work -= n;
    const index_t each = rule_.piece_work(slots_[h]), piece = (work + each - 1) / each;
    const bool here = piece < rule_.pieces(slots_[h]);
    return static_cast<int>(here ? h * most_pieces + piece : (h + 1) * most_pieces);
  }

  const index_t* slots_;
  const PieceRule& rule_;
  int place_, end_;  ///< head times `most_pieces`, and the piece
};

}  // namespace kvcondense::prim::cuda_kernels
