#pragma once
// The whitelist: which whole opcodes are covered, with which operands, and by what function.
//
// A pattern is an opcode with alternatives in braces: "add{,.rn,.rz}{,.ftz}.f32". Operands are
// letters, results before '=':
//   p h r l   a predicate, or 16, 32, 64 bits    P  a predicate or a pair p|q
//   S         32 bits, perhaps with a predicate: d|p
//   M         32 bits: the mask of lanes that must run this together
//   Vn        a vector of n registers of 32 bits  i  an immediate
//   a         an address                          x  anything    *  whatever follows

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "program.hpp"

namespace ptx {

struct Opcode {
  std::string pattern, operands;
  Handler run = nullptr;
  Flow flow = Flow::next;
  Together together = Together::none;
};

class Opcodes {
 public:
  static Opcodes const& all();

  void add(std::string pattern, std::string operands, Handler run, Flow flow = Flow::next,
           Together together = Together::none);
  /// Those whose pattern is this opcode.
  std::vector<Opcode const*> const& named(std::string const& opcode) const;
  std::vector<Opcode> const& list() const { return list_; }

 private:
  std::vector<Opcode> list_;
  mutable std::unordered_map<std::string, std::vector<Opcode const*>> found_;
};

bool matches(std::string_view pattern, std::string_view opcode);

inline constexpr std::string_view compare_names[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",
                                                     "lo",  "ls",  "hi",  "hs",  "equ", "neu",
                                                     "ltu", "leu", "gtu", "geu", "num", "nan"};

/// Gives `instruction` its function and modifiers, or Flow::not_covered.
void bind(std::string const& opcode, Instruction& instruction, Module& module);

// One per family, each in its own file.
void define_integer(Opcodes&);
void define_bits(Opcodes&);
void define_float(Opcodes&);
void define_half(Opcodes&);
void define_approximate(Opcodes&);
void define_convert(Opcodes&);
void define_compare(Opcodes&);
void define_move(Opcodes&);
void define_memory(Opcodes&);
void define_atomic(Opcodes&);
void define_copy(Opcodes&);
void define_warp(Opcodes&);
void define_matrix(Opcodes&);
void define_flow(Opcodes&);

}  // namespace ptx
