#pragma once
// PTX text, loaded and launched without a CUDA runtime: for tests of the interpreter itself.

#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "machine.hpp"
#include "program.hpp"

namespace ptx {

class Session {
 public:
  explicit Session(std::string_view text) : module_(parse(text, memory_)) {}

  /// Device memory that holds `values`; its address.
  template <class T>
  u64 put(std::vector<T> const& values) {
    u64 const at = memory_.allocate(values.size() * sizeof(T));
    std::memcpy(memory_.at(at, values.size() * sizeof(T)), values.data(), values.size() * sizeof(T));
    return at;
  }
  template <class T>
  std::vector<T> get(u64 address, std::size_t count) const {
    std::vector<T> values(count);
    std::memcpy(values.data(), memory_.at(address, count * sizeof(T)), count * sizeof(T));
    return values;
  }
  /// Launches with parameters of 64 bits.
  Counters launch(std::string_view kernel, Dim3 grid, Dim3 block, std::vector<u64> const& params,
                  u32 dynamic_shared = 0, bool counting = false) {
    Launch launch;
    launch.kernel = module_->find(kernel);
    if (!launch.kernel) throw Fault("no kernel " + std::string(kernel));
    launch.grid = grid, launch.block = block, launch.dynamic_shared = dynamic_shared;
    launch.params.resize(params.size() * 8);
    std::memcpy(launch.params.data(), params.data(), launch.params.size());
    return run(*module_, launch, memory_, counting);
  }
  Module const& module() const { return *module_; }
  Memory& memory() { return memory_; }

 private:
  Memory memory_;
  std::unique_ptr<Module> module_;
};

}  // namespace ptx
