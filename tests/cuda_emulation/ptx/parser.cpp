#include <algorithm>

#include "lexer.hpp"
#include "names.hpp"
#include "opcodes.hpp"
#include "program.hpp"

namespace ptx {
namespace {

u32 round_up(u32 n, u32 to) { return (n + to - 1) / to * to; }

class Parser {
 public:
  Parser(std::string_view text, Memory& memory)
      : lex_(text), memory_(memory), module_(std::make_unique<Module>()) {}

  std::unique_ptr<Module> run() {
    module_->files.emplace_back();
    while (lex_.peek().sort != Token::Sort::end) top_level();
    for (auto const& [at, name] : calls_) {
      Instruction& call = module_->code[at];
      call.callee = module_->find(name);
      if (call.callee)
        owner_of(at).callees.push_back(call.callee);
      else
        call.flow = Flow::not_covered;  // printf and the like
    }
    return std::move(module_);
  }

 private:
  struct Declared {
    Type type;
    u32 align = 1;
    u64 count = 1;
    bool is_array = false;
    std::string name;
    u32 bytes() const { return static_cast<u32>(type.bytes() * count); }
  };

  Function& owner_of(std::size_t at) {
    for (Function& f : module_->functions)
      if (at >= f.start && at < f.end) return f;
    lex_.fail("an instruction outside functions");
  }

  // ".align 4 .b8 name[24]", with the words of pointers passed over.
  Declared declared() {
    Declared d;
    while (lex_.peek().text.starts_with('.')) {
      std::string_view const word = lex_.word().substr(1);
      if (word == "align") {
        d.align = static_cast<u32>(lex_.integer());
      } else if (Type const type = type_named(word); type.kind != Kind::none) {
        d.type = type;
      } else if (word != "ptr" && word != "global" && word != "shared" && word != "const" &&
                 word != "local") {
        lex_.fail("a declaration with ." + std::string(word) + " is not covered");
      }
    }
    d.name = lex_.word();
    if (lex_.take("[")) {
      d.is_array = true;
      d.count = lex_.at("]") ? 0 : lex_.integer();
      lex_.expect("]");
    }
    d.align = std::max(d.align, d.type.bytes());
    return d;
  }

  void top_level() {
    Token const first = lex_.peek();
    if (lex_.take(".version") || lex_.take(".target") || lex_.take(".address_size")) {
      while (lex_.peek().line == first.line && lex_.peek().sort != Token::Sort::end) lex_.next();
    } else if (lex_.take(".file")) {
      file();
    } else if (lex_.take(".section")) {
      while (!lex_.take("{")) lex_.next();
      while (!lex_.take("}")) lex_.next();
    } else if (lex_.take(";")) {
    } else {
      bool is_extern = false;
      while (lex_.at(".visible") || lex_.at(".extern") || lex_.at(".weak"))
        is_extern |= lex_.next().text == ".extern";
      if (lex_.take(".entry"))
        function(true);
      else if (lex_.take(".func"))
        function(false);
      else
        variable(is_extern);
    }
  }

  void file() {
    auto const index = static_cast<std::size_t>(lex_.integer());
    if (module_->files.size() <= index) module_->files.resize(index + 1);
    std::string name(lex_.next().text);
    module_->files[index] = name.substr(name.find_last_of('/') + 1);
    while (lex_.take(",")) lex_.integer();
  }

  void variable(bool is_extern) {
    std::string_view const space = lex_.word();
    Declared const d = declared();
    if (space == ".shared") {
      if (is_extern) {
        module_->dynamic_shared[d.name] = d.align;
      } else {
        u32 const at = round_up(module_->shared_bytes, d.align);
        module_->shared[d.name] = at;
        module_->shared_bytes = at + d.bytes();
      }
    } else if ((space == ".global" || space == ".const") && !is_extern) {
      u64 const address = memory_.allocate(
          d.bytes(), space == ".const" ? Memory::Use::constant : Memory::Use::device);
      module_->variables[d.name] = address;
      std::fill_n(memory_.at(address, d.bytes()), d.bytes(), u8{0});
      if (lex_.take("=")) initializer(memory_.at(address, d.bytes()), d);
    } else {
      lex_.fail("a variable in " + std::string(space) + " is not covered");
    }
    lex_.expect(";");
  }

  void initializer(u8* to, Declared const& d) {
    u32 const size = d.type.bytes();
    u64 at = 0;
    auto const element = [&] {
      if (at >= d.count) lex_.fail("more values than elements");
      u64 value = 0;
      if (lex_.peek().sort == Token::Sort::word) {
        bool const generic = lex_.take("generic");
        if (generic) lex_.expect("(");
        auto const found = module_->variables.find(std::string(lex_.word()));
        if (found == module_->variables.end()) lex_.fail("a value that is no variable");
        value = found->second;
        if (generic) lex_.expect(")");
        if (lex_.take("+")) value += lex_.integer();
      } else {
        value = lex_.integer();
      }
      std::copy_n(reinterpret_cast<u8 const*>(&value), size, to + size * at++);
    };
    if (!lex_.take("{")) return element();
    do element();
    while (lex_.take(","));
    lex_.expect("}");
  }

  std::vector<Variable> parameters(u32& bytes) {
    std::vector<Variable> out;
    if (!lex_.take("(")) return out;
    while (!lex_.take(")")) {
      lex_.expect(".param");
      Declared const d = declared();
      u32 const at = round_up(bytes, d.align);
      out.push_back({d.name, at, d.bytes()});
      bytes = at + d.bytes();
      lex_.take(",");
    }
    return out;
  }

  void function(bool is_entry) {
    Function made;
    made.is_entry = is_entry;
    if (!is_entry) made.results = parameters(made.frame_bytes);
    made.name = lex_.word();
    made.params = parameters(is_entry ? made.param_bytes : made.frame_bytes);
    while (!lex_.at("{") && !lex_.at(";")) {
      std::string_view const directive = lex_.word();
      if (directive == ".maxntid" || directive == ".reqntid") {
        made.max_threads = static_cast<u32>(lex_.integer());
        while (lex_.take(",")) made.max_threads *= static_cast<u32>(lex_.integer());
      } else if (directive == ".minnctapersm" || directive == ".maxnreg") {
        lex_.integer();
      } else if (directive == ".pragma") {
        lex_.next(), lex_.expect(";");
      } else if (directive != ".noreturn") {
        lex_.fail("not covered");
      }
    }
    if (lex_.take(";")) return;  // declared only
    lex_.expect("{");
    made.index = static_cast<u32>(module_->functions.size());
    made.start = static_cast<u32>(module_->code.size());
    module_->functions.push_back(std::move(made));
    function_ = &module_->functions.back();
    names_.begin(*function_);
    labels_.clear(), branches_.clear(), tables_.clear();
    auto const form = is_entry ? Operand::Form::param_name : Operand::Form::frame_name;
    for (auto const* list : {&function_->results, &function_->params})
      for (Variable const& v : *list) names_.add_variable(v.name, form, v.offset, v.bytes);
    for (u32 depth = 1; depth;) {
      if (lex_.take("{"))
        ++depth, names_.open();
      else if (lex_.take("}"))
        --depth, names_.close();
      else
        statement();
    }
    auto const place = [&](std::string const& label) {
      auto const found = labels_.find(label);
      if (found == labels_.end()) lex_.fail("no label " + label);
      return found->second;
    };
    for (auto const& [at, label] : branches_) {
      Instruction& branch = module_->code[at];
      if (branch.flow == Flow::branch)
        branch.target = place(label);
      else
        for (std::string const& each : tables_[label]) branch.targets.push_back(place(each));
    }
    Instruction end;
    end.flow = Flow::ret;
    end.text = "the end of " + function_->name;
    module_->code.push_back(std::move(end));
    function_->end = static_cast<u32>(module_->code.size());
  }

  void registers() {
    Type const type = type_named(lex_.word().substr(1));
    if (type.kind == Kind::none || type.bytes() > 8) lex_.fail("registers of a type not covered");
    u8 const width = type.kind == Kind::predicate ? u8{1} : static_cast<u8>(type.bytes() * 8);
    if (width == 8) lex_.fail("registers of 8 bits are not covered");
    do {
      std::string const name(lex_.word());
      if (lex_.take("<")) {
        u64 const count = lex_.integer();
        lex_.expect(">");
        for (u64 i = 0; i < count; ++i) names_.add_register(name + std::to_string(i), width);
      } else {
        names_.add_register(name, width);
      }
    } while (lex_.take(","));
    lex_.expect(";");
  }

  void statement() {
    if (lex_.take(".reg")) return registers();
    if (lex_.take(".loc")) {
      u32 const line = lex_.peek().line;
      file_ = static_cast<u32>(lex_.integer());
      line_ = static_cast<u32>(lex_.integer());
      while (lex_.peek().line == line) lex_.next();
      return;
    }
    if (lex_.take(".pragma")) {
      std::string_view const text = lex_.next().text, mask = "used_bytes_mask ";
      u64 used = 0;
      if (text.starts_with(mask) && Lexer::number(text.substr(mask.size()), used))
        used_bytes_ = static_cast<u32>(used);
      lex_.expect(";");
      return;
    }
    if (lex_.at(".local") || lex_.at(".shared") || lex_.at(".param")) {
      bool const shared = lex_.next().text == ".shared";
      Declared const d = declared();
      u32& top = shared ? function_->shared_bytes : function_->frame_bytes;
      top = round_up(top, d.align);
      names_.add_variable(d.name, shared ? Operand::Form::shared_name : Operand::Form::frame_name, top,
              d.bytes());
      top += d.bytes();
      lex_.expect(";");
      return;
    }
    if (lex_.at(":", 1)) {
      std::string const label(lex_.word());
      lex_.expect(":");
      if (!lex_.take(".branchtargets")) {
        labels_[label] = static_cast<u32>(module_->code.size());
        return;
      }
      do tables_[label].emplace_back(lex_.word());
      while (lex_.take(","));
      lex_.expect(";");
      return;
    }
    if (lex_.take(";")) return;
    instruction();
  }

  void instruction() {
    Instruction made;
    Token const first = lex_.peek();
    made.line = line_, made.file = file_;
    made.used_bytes = std::exchange(used_bytes_, ~u32{0});
    if (lex_.take("@")) {
      made.guarded = true;
      made.guard_negated = lex_.take("!");
      Operand const* const p = names_.declared(std::string(lex_.word()));
      if (!p || p->width != 1) lex_.fail("a guard that is no predicate");
      made.guard = p->at;
    }
    std::string const opcode(lex_.word());
    while (!lex_.at(";")) {
      made.o.push_back(operand());
      if (!lex_.at(";")) lex_.expect(",");
    }
    made.text = lex_.source_from(first);
    lex_.expect(";");
    auto const [known, fresh] =
        opcodes_.try_emplace(opcode, static_cast<u32>(module_->opcode_names.size()));
    if (fresh) module_->opcode_names.push_back(opcode);
    made.opcode = known->second;
    bind(opcode, made, *module_);
    auto const name_of = [&]() -> std::string const& {
      for (Operand const& o : made.o)
        if (o.form == Operand::Form::name) return o.name;
      lex_.fail("no target");
    };
    auto const here = module_->code.size();
    if (made.flow == Flow::branch || made.flow == Flow::branch_table) branches_.emplace_back(here, name_of());
    if (made.flow == Flow::call) calls_.emplace_back(here, name_of());
    module_->code.push_back(std::move(made));
  }

  Operand immediate(u64 value) {
    Operand o;
    o.form = Operand::Form::immediate, o.value = value;
    return o;
  }

  Operand list(std::string_view end) {
    Operand o;
    o.form = Operand::Form::vector;
    while (!lex_.take(end)) {
      o.parts.push_back(operand());
      lex_.take(",");
    }
    return o;
  }

  Operand operand() {
    if (lex_.take("!")) {
      Operand o = operand();
      o.negated = true;
      return o;
    }
    if (lex_.take("{")) return list("}");
    if (lex_.take("(")) return list(")");
    if (lex_.take("[")) {
      Operand o;
      o.form = Operand::Form::address;
      o.parts.push_back(operand());
      o.value = std::exchange(o.parts[0].value, 0);
      lex_.expect("]");
      return o;
    }
    Operand o = lex_.peek().sort == Token::Sort::word ? named(std::string(lex_.word()))
                                                      : immediate(lex_.integer());
    if (lex_.take("+"))
      o.value += lex_.integer();
    else if (lex_.at("-"))
      o.value += lex_.integer();
    if (lex_.take("|")) {
      Operand const other = named(std::string(lex_.word()));
      if (other.form == Operand::Form::reg) o.second = other.at;
    }
    return o;
  }

  Operand named(std::string const& name) {
    Operand o = names_.meaning(name);
    if (o.form == Operand::Form::name && name.starts_with('%'))
      lex_.fail("register " + name + " is not covered");
    return o;
  }

  Lexer lex_;
  Memory& memory_;
  std::unique_ptr<Module> module_;
  Function* function_ = nullptr;
  Names names_{*module_};
  std::unordered_map<std::string, u32> labels_, opcodes_;
  std::unordered_map<std::string, std::vector<std::string>> tables_;  // of brx.idx
  std::vector<std::pair<std::size_t, std::string>> branches_, calls_;
  u32 file_ = 0, line_ = 0, used_bytes_ = ~u32{0};
};

}  // namespace

std::unique_ptr<Module> parse(std::string_view text, Memory& memory) {
  return Parser(text, memory).run();
}

}  // namespace ptx
