#pragma once

#include <concepts>

namespace kvcondense {

/// Host memory, host code.
struct Cpu {
  static constexpr const char* name = "cpu";
};

/// CUDA device memory, CUDA kernels.
struct Cuda {
  static constexpr const char* name = "cuda";
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
