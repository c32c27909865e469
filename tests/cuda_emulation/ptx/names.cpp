#include "names.hpp"

#include <algorithm>

namespace ptx {

void Names::add_register(std::string const& name, u8 width) {
  u32 const bytes = width == 1 ? 4 : width / 8U * warp_size, align = std::min(bytes, 64U);
  Operand o;
  o.form = Operand::Form::reg, o.width = width;
  o.at = (function_->register_bytes + align - 1) / align * align;
  function_->register_bytes = o.at + bytes;
  scopes_.back()[name] = std::move(o);
}

void Names::add_variable(std::string const& name, Operand::Form form, u64 offset, u32 bytes) {
  Operand o;
  o.form = form, o.value = offset, o.bytes = bytes, o.name = name;
  o.function = function_;
  scopes_.back()[name] = std::move(o);
}

Operand const* Names::declared(std::string const& name) const {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
    if (auto const found = scope->find(name); found != scope->end()) return &found->second;
  return nullptr;
}

Operand Names::meaning(std::string const& name) const {
  Operand o;
  if (name == "_") return o;
  if (Operand const* const found = declared(name)) return *found;
  o.name = name;
  o.form = Operand::Form::immediate;
  if (name == "WARP_SZ") {
    o.value = warp_size;
  } else if (auto const v = module_.variables.find(name); v != module_.variables.end()) {
    o.value = v->second;
  } else if (auto const special = special_named(name)) {
    o.form = Operand::Form::special, o.special = *special;
  } else if (auto const shared = module_.shared.find(name); shared != module_.shared.end()) {
    o.form = Operand::Form::shared_name, o.value = shared->second;
  } else if (module_.dynamic_shared.contains(name)) {
    o.form = Operand::Form::dynamic_name;
  } else {
    o.form = Operand::Form::name;
  }
  return o;
}

}  // namespace ptx
