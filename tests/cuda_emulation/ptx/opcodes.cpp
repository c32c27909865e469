#include "opcodes.hpp"

#include <algorithm>
#include <cctype>

namespace ptx {
namespace {

// Where the brace opened at `at` closes.
std::size_t closing(std::string_view pattern, std::size_t at) {
  for (u32 depth = 0;; ++at) {
    if (pattern[at] == '{') ++depth;
    if (pattern[at] == '}' && --depth == 0) return at;
  }
}

Modifiers modifiers(std::string const& opcode) {
  Modifiers m;
  for (std::size_t from = 0; from <= opcode.size();) {
    std::size_t const dot = std::min(opcode.find('.', from), opcode.size());
    m.words.push_back(opcode.substr(from, dot - from));
    from = dot + 1;
  }
  for (std::size_t i = 1; i < m.words.size(); ++i) {
    std::string_view const word = m.words[i];
    if (Type const type = type_named(word); type.kind != Kind::none) {
      if (m.type_count < m.types.size()) m.types[m.type_count++] = type;
    } else if (word.size() >= 2 && word[0] == 'r' && std::string_view("nzmp").find(word[1]) != word.npos &&
               (word.size() == 2 || (word.size() == 3 && word[2] == 'i'))) {
      m.rounding = word[1] == 'n'   ? Rounding::nearest
                   : word[1] == 'z' ? Rounding::zero
                   : word[1] == 'm' ? Rounding::down
                                    : Rounding::up;
      m.to_integer = word.size() == 3;
    } else if (word == "global") {
      m.space = Space::global;
    } else if (word.starts_with("shared")) {
      m.space = Space::shared;
    } else if (word == "local") {
      m.space = Space::local;
    } else if (word == "param") {
      m.space = Space::param;
    } else if (word == "const") {
      m.space = Space::constant;
    } else if (word == "v2" || word == "v4") {
      m.vector = static_cast<u8>(word[1] - '0');
    } else if (auto const* const c = std::find(std::begin(compare_names), std::end(compare_names), word);
               c != std::end(compare_names)) {
      m.compare = static_cast<u8>(c - std::begin(compare_names));
    }
  }
  m.ftz = m.has("ftz"), m.sat = m.has("sat"), m.relu = m.has("relu");
  m.propagate_nan = m.has("NaN");
  m.strong = m.has("volatile") || m.has("relaxed") || m.has("acquire") || m.has("release");
  m.combine = m.has("and") ? '&' : m.has("or") ? '|' : m.has("xor") ? '^' : '\0';
  return m;
}

bool fits(Operand const& o, char letter) {
  using Form = Operand::Form;
  u8 const width = letter == 'h' ? 16 : letter == 'l' ? 64 : 32;
  switch (letter) {
    case 'h': case 'r': case 'l': case 'M': case 'S':
      return o.form == Form::immediate ||
             (o.form == Form::reg && o.width == width && (letter == 'S' || o.second == Operand::none));
    case 'P': case 'p': return o.form == Form::reg && o.width == 1 &&
                               (letter == 'P' || o.second == Operand::none);
    case 'i': return o.form == Form::immediate;
    case 'a': return o.form == Form::address;
    default: return letter == 'x';
  }
}

// Whether the operands are as `letters` say; immediates get their lanes, the mask its place.
bool accept(Instruction& instruction, std::string_view letters, Module& module) {
  std::size_t at = 0;
  for (std::size_t i = 0; i < letters.size(); ++i) {
    char const letter = letters[i];
    if (letter == '=') continue;
    if (letter == '*') return true;
    if (at == instruction.o.size()) return false;
    Operand& o = instruction.o[at++];
    if (letter == 'V') {
      std::size_t const count = static_cast<std::size_t>(letters[++i] - '0');
      if (o.form != Operand::Form::vector || o.parts.size() != count) return false;
      for (Operand& part : o.parts) {
        if (!fits(part, 'r')) return false;
        if (part.form == Operand::Form::immediate) part.lanes = module.spread(part.value, 32);
      }
      continue;
    }
    if (!fits(o, letter)) return false;
    if (letter == 'M') instruction.mask_operand = static_cast<u32>(at - 1);
    auto const spread = [&](Operand& x, u8 width) {
      if (x.form == Operand::Form::immediate) x.width = width, x.lanes = module.spread(x.value, width);
    };
    if (letter == 'h') spread(o, 16);
    if (letter == 'r' || letter == 'M') spread(o, 32);
    if (letter == 'l' || letter == 'x') spread(o, 64);
    if (letter == 'x')
      for (Operand& part : o.parts) spread(part, 64);
  }
  return at == instruction.o.size();
}

}  // namespace

bool Modifiers::has(std::string_view word) const {
  return std::find(words.begin() + 1, words.end(), word) != words.end();
}

bool matches(std::string_view pattern, std::string_view opcode) {
  std::size_t const brace = std::min(pattern.find('{'), pattern.size());
  if (!opcode.starts_with(pattern.substr(0, brace))) return false;
  opcode.remove_prefix(brace);
  if (brace == pattern.size()) return opcode.empty();
  std::size_t const end = closing(pattern, brace);
  std::string_view const rest = pattern.substr(end + 1);
  for (std::size_t from = brace + 1, at = from;; ++at) {
    if (pattern[at] == '{') at = closing(pattern, at);
    if (pattern[at] != ',' && at != end) continue;
    if (matches(std::string(pattern.substr(from, at - from)) + std::string(rest), opcode)) return true;
    if (at == end) return false;
    from = at + 1;
  }
}

void Opcodes::add(std::string pattern, std::string operands, Handler run, Flow flow, Together together) {
  list_.push_back({std::move(pattern), std::move(operands), run, flow, together});
}

std::vector<Opcode const*> const& Opcodes::named(std::string const& opcode) const {
  auto [at, fresh] = found_.try_emplace(opcode);
  if (fresh)
    for (Opcode const& each : list_)
      if (matches(each.pattern, opcode)) at->second.push_back(&each);
  return at->second;
}

Opcodes const& Opcodes::all() {
  static Opcodes const made = [] {
    Opcodes all;
    for (auto define : {define_integer, define_bits, define_float, define_half, define_approximate,
                        define_convert, define_compare, define_move, define_memory, define_atomic,
                        define_copy, define_warp, define_matrix, define_flow})
      define(all);
    return all;
  }();
  return made;
}

void bind(std::string const& opcode, Instruction& instruction, Module& module) {
  instruction.flow = Flow::not_covered;
  for (Opcode const* const each : Opcodes::all().named(opcode)) {
    if (!accept(instruction, each->operands, module)) continue;
    instruction.mod = modifiers(opcode);
    instruction.run = each->run;
    instruction.flow = each->flow;
    instruction.together = each->together;
    return;
  }
}

}  // namespace ptx
