#pragma once
// A module of PTX after parsing: functions of typed instructions, and its variables.

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "memory.hpp"
#include "types.hpp"

namespace ptx {

struct Warp;
struct Instruction;
struct Function;
using Handler = void (*)(Warp&, Instruction const&, Mask);

enum class Special : u8 {
  tid_x, tid_y, tid_z, ntid_x, ntid_y, ntid_z, ctaid_x, ctaid_y, ctaid_z, nctaid_x, nctaid_y,
  nctaid_z, laneid, warpid, nwarpid, smid, nsmid, gridid, lanemask_eq, lanemask_lt, lanemask_le,
  lanemask_gt, lanemask_ge, clock, clock64, globaltimer, dynamic_smem_size, total_smem_size
};

/// The special register of this name, "%tid.x" say.
std::optional<Special> special_named(std::string_view name);

struct Operand {
  enum class Form : u8 {
    none,
    reg,          // `at` is its place in the frame
    immediate,    // `lanes` are its value for every lane
    special,      // `special`
    vector,       // `parts`
    address,      // [parts[0] + value]
    param_name,   // `value`: offset in the kernel's parameters
    frame_name,   // `value`: offset in the function's frame (.local, .param of calls); `bytes` long
    shared_name,  // `value`: offset in `function`'s shared variables (null: the module's)
    dynamic_name, // extern .shared
    name          // a label or a function, not resolved by the parser of operands
  };
  Form form = Form::none;
  u8 width = 0;  // of a register: 1 for predicates, 16, 32, 64
  bool negated = false;
  Special special{};
  u32 at = 0;
  u32 second = none;  // the other predicate of p|q
  u32 bytes = 0;
  u64 value = 0;
  void const* lanes = nullptr;
  Function const* function = nullptr;
  std::vector<Operand> parts;
  std::string name;

  static constexpr u32 none = ~u32{0};
};

/// What an opcode's words say beyond the first.
struct Modifiers {
  std::vector<std::string> words;
  std::array<Type, 4> types{};  // in order
  u32 type_count = 0;
  Rounding rounding = Rounding::nearest;
  bool to_integer = false;  // rni, rzi, rmi, rpi
  bool ftz = false, sat = false, relu = false, propagate_nan = false;
  bool strong = false;  // volatile, relaxed, acquire ...: racing with its like is allowed
  Space space = Space::generic;
  u8 vector = 1;
  u8 compare = 0;  // index in compare_names
  char combine = 0;  // of setp: & | ^

  bool has(std::string_view word) const;
};

/// How an instruction moves the lanes on. All but `next` are done by the scheduler.
enum class Flow : u8 { next, branch, branch_table, call, ret, exit, block_barrier, not_covered };
/// Which lanes must run an instruction together.
enum class Together : u8 { none, masked, warp };

struct Instruction {
  Handler run = nullptr;
  Flow flow = Flow::next;
  Together together = Together::none;
  bool guarded = false, guard_negated = false;
  u32 guard = 0;          // place of the predicate
  u32 target = 0;         // of a branch
  std::vector<u32> targets;  // of a branch table
  u32 mask_operand = 0;   // where Together::masked finds its mask
  u32 opcode = 0;         // index in the names of Module
  u32 line = 0;           // of the source, by .loc
  u32 file = 0;
  u32 used_bytes = ~u32{0};  // of a load that nvcc widened: the bytes it wants
  Function const* callee = nullptr;
  Modifiers mod;
  std::vector<Operand> o;
  std::string text;
  mutable u64 executed = 0;
  mutable u64 requests = 0, waves = 0, ideal_waves = 0;  // of shared memory
};

struct Variable {
  std::string name;
  u32 offset = 0, bytes = 0;
};

struct Function {
  std::string name;
  bool is_entry = false;
  u32 index = 0;             // in Module::functions
  u32 start = 0, end = 0;    // in Module::code
  std::vector<Variable> params;
  std::vector<Variable> results;
  u32 param_bytes = 0;       // of an entry
  u32 frame_bytes = 0;       // local memory of one call
  u32 register_bytes = 0;    // of one warp
  u32 shared_bytes = 0;      // static, its own
  u32 max_threads = 1024;
  std::vector<Function const*> callees;
};

struct Module {
  std::deque<Function> functions;  // addresses stay
  std::vector<Instruction> code;   // of all functions, one after another
  std::vector<std::string> opcode_names;
  std::vector<std::string> files;
  std::unordered_map<std::string, u64> variables;  // global and const, by address
  std::unordered_map<std::string, u32> shared;     // at module level: offsets
  std::unordered_map<std::string, u32> dynamic_shared;
  u32 shared_bytes = 0;
  std::map<std::pair<u64, u8>, std::unique_ptr<std::array<u64, warp_size>>> immediates;

  Function const* find(std::string_view name) const;
  /// `value` in every lane, at the given width.
  void const* spread(u64 value, u8 width);
};

/// Reads PTX text. Variables are made in `memory`. Throws Fault where the text is not understood;
/// an instruction not covered faults when it runs.
std::unique_ptr<Module> parse(std::string_view text, Memory& memory);

}  // namespace ptx
