#pragma once

#include <concepts>

namespace kvcondense {

/// Host memory, host code.
struct Cpu {
  static constexpr const char* name = "cpu";
  /// Whether attention multiplies codes in lanes: caches store codes so where a method asks for it, else in rows (prim::CodeLayout). Files have pages as the CPU stores them.
  static constexpr bool code_lanes = true;
};

/// CUDA device memory, CUDA kernels.
struct Cuda {
  static constexpr const char* name = "cuda";
  /// Tensor cores take codes row by row, and so do loads that many threads share.
  static constexpr bool code_lanes = false;
};

template <class B>
concept Backend = std::same_as<B, Cpu> || std::same_as<B, Cuda>;

/// Threads or stream, and scratch memory, of one backend. Defined only in that backend's header, so
/// that nothing can run before `kvcondense/cpu.hpp` or `kvcondense/cuda.cuh` is included.
template <Backend B>
class Context;

/// Complete where the backend's umbrella header is included, and all words with it: for whoever wants to say so first.
template <Backend B>
struct Words;

}  // namespace kvcondense
