// Names: of types and special registers, of what a module holds.

#include "program.hpp"

#include <algorithm>

namespace ptx {

std::optional<Special> special_named(std::string_view name) {
  static std::unordered_map<std::string_view, Special> const names = {
      {"%tid.x", Special::tid_x}, {"%tid.y", Special::tid_y}, {"%tid.z", Special::tid_z},
      {"%ntid.x", Special::ntid_x}, {"%ntid.y", Special::ntid_y}, {"%ntid.z", Special::ntid_z},
      {"%ctaid.x", Special::ctaid_x}, {"%ctaid.y", Special::ctaid_y}, {"%ctaid.z", Special::ctaid_z},
      {"%nctaid.x", Special::nctaid_x}, {"%nctaid.y", Special::nctaid_y},
      {"%nctaid.z", Special::nctaid_z}, {"%laneid", Special::laneid}, {"%warpid", Special::warpid},
      {"%nwarpid", Special::nwarpid}, {"%smid", Special::smid}, {"%nsmid", Special::nsmid},
      {"%gridid", Special::gridid}, {"%lanemask_eq", Special::lanemask_eq},
      {"%lanemask_lt", Special::lanemask_lt}, {"%lanemask_le", Special::lanemask_le},
      {"%lanemask_gt", Special::lanemask_gt}, {"%lanemask_ge", Special::lanemask_ge},
      {"%clock", Special::clock}, {"%clock64", Special::clock64},
      {"%globaltimer", Special::globaltimer}, {"%dynamic_smem_size", Special::dynamic_smem_size},
      {"%total_smem_size", Special::total_smem_size}};
  auto const found = names.find(name);
  return found == names.end() ? std::nullopt : std::optional(found->second);
}

Type type_named(std::string_view name) {
  static std::unordered_map<std::string_view, Type> const names = {
      {"pred", {Kind::predicate, 8}}, {"b4", {Kind::bits, 4}},
      {"b8", {Kind::bits, 8}}, {"b16", {Kind::bits, 16}}, {"b32", {Kind::bits, 32}},
      {"b64", {Kind::bits, 64}}, {"b128", {Kind::bits, 128}},
      {"u4", {Kind::unsigned_int, 4}}, {"u8", {Kind::unsigned_int, 8}},
      {"u16", {Kind::unsigned_int, 16}}, {"u32", {Kind::unsigned_int, 32}},
      {"u64", {Kind::unsigned_int, 64}}, {"s4", {Kind::signed_int, 4}},
      {"s8", {Kind::signed_int, 8}}, {"s16", {Kind::signed_int, 16}},
      {"s32", {Kind::signed_int, 32}}, {"s64", {Kind::signed_int, 64}},
      {"f16", {Kind::floating, 16}}, {"f16x2", {Kind::floating, 16, true}},
      {"f32", {Kind::floating, 32}}, {"f64", {Kind::floating, 64}},
      {"bf16", {Kind::bfloat, 16}}, {"bf16x2", {Kind::bfloat, 16, true}}};
  auto const found = names.find(name);
  return found == names.end() ? Type{} : found->second;
}

Function const* Module::find(std::string_view name) const {
  for (Function const& f : functions)
    if (f.name == name) return &f;
  return nullptr;
}

void const* Module::spread(u64 value, u8 width) {
  auto& lanes = immediates[{value, width}];
  if (!lanes) {
    lanes = std::make_unique<std::array<u64, warp_size>>();
    for (u32 lane = 0; lane < warp_size; ++lane)
      std::copy_n(reinterpret_cast<u8 const*>(&value), width / 8,
                  reinterpret_cast<u8*>(lanes->data()) + lane * width / 8);
  }
  return lanes->data();
}

}  // namespace ptx
