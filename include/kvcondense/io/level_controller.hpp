#pragma once

#include <span>

#include <kvcondense/core/config.hpp>

namespace kvcondense::io {

/// Chooses at which level the next chunk of a context is sent, so that the whole arrives in time.
///
/// Idea     Each chunk lies ready at several levels. The throughput that the last chunk met says which of them fits into
///          this chunk's share of the time that is left.
/// Source   CacheGen, arXiv:2310.07240; its released code divides the whole time by all chunks.
/// Needs    sizes of the chunk's levels, the measured throughput.
/// Cost     none.
/// Numbers  the highest level with size / throughput below time left / chunks left. Where none is: recomputing the chunk
///          from its text, unless even the lowest level arrives sooner than that.
/// Differs  the released code always recomputes then, at a constant 0.2 s.
/// Errors   none: a throughput or time that is not positive fits no level.
struct LevelController {
  static constexpr int recompute = -1;

  double recompute_seconds = 0.2;  ///< what a chunk costs the model; 0 prefers it where no level fits, infinity: no text

  /// sizes: bytes of the chunk, the highest level first. Returns an index into them, or `recompute`.
  int choose(std::span<const double> sizes, double bytes_per_second, double seconds_left, index_t chunks_left) const {
    const double share = seconds_left / static_cast<double>(chunks_left < 1 ? 1 : chunks_left);
    const auto seconds = [&](std::size_t i) { return sizes[i] / bytes_per_second; };
    for (std::size_t i = 0; i < sizes.size(); ++i)
      if (bytes_per_second > 0.0 && seconds(i) < share) return static_cast<int>(i);
    const bool sooner = !sizes.empty() && bytes_per_second > 0.0 && seconds(sizes.size() - 1) < recompute_seconds;
    return sooner ? static_cast<int>(sizes.size()) - 1 : recompute;
  }
};

}  // namespace kvcondense::io
