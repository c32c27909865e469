#pragma once
// What a name means where it stands in a function: scopes of registers and variables, then the
// module's.

#include <string>
#include <unordered_map>
#include <vector>

#include "program.hpp"

namespace ptx {

class Names {
 public:
  explicit Names(Module& module) : module_(module) {}

  void begin(Function& function) {
    function_ = &function;
    scopes_.assign(1, {});
  }
  void open() { scopes_.emplace_back(); }
  void close() { scopes_.pop_back(); }
  /// A register of this many bits (1: a predicate), with a place in the function's frame.
  void add_register(std::string const& name, u8 width);
  /// A variable of the function.
  void add_variable(std::string const& name, Operand::Form form, u64 offset, u32 bytes);

  Operand const* declared(std::string const& name) const;
  /// The operand a name stands for; Form::name if it may be a label or a function.
  Operand meaning(std::string const& name) const;

 private:
  Module& module_;
  Function* function_ = nullptr;
  std::vector<std::unordered_map<std::string, Operand>> scopes_;
};

}  // namespace ptx
