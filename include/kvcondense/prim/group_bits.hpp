#pragma once

#include <cstddef>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::prim {

/// GroupInt whose width is a number: heads of one cache may have different ones. Pages are those of GroupInt<bits>.
struct GroupBits {
  int bits = 4;  ///< 1 to 8
  GroupAxis axis = GroupAxis::token;
  index_t group_size = 0;
  GroupForm form = GroupForm::minimum;
  ParamType params = ParamType::f16;
  Rounding rounding = Rounding::half_even;

  /// Calls f with the codec of this width.
  template <class F>
  constexpr auto with(F&& f) const {
    switch (bits) {
      case 1: return f(of<1>());
      case 2: return f(of<2>());
      case 3: return f(of<3>());
      case 4: return f(of<4>());
      case 5: return f(of<5>());
      case 6: return f(of<6>());
      case 7: return f(of<7>());
      default: return f(of<8>());
    }
  }

  constexpr std::size_t page_bytes(index_t slots, index_t dim) const {
    return with([&](const auto& c) { return c.page_bytes(slots, dim); });
  }
  constexpr index_t group_slots() const { return of<8>().group_slots(); }
  constexpr bool valid(index_t dim) const {
    return bits >= 1 && bits <= 8 && with([&](const auto& c) { return c.valid(dim); });
  }
  constexpr std::int64_t fingerprint() const {
    return with([](const auto& c) { return c.fingerprint(); });
  }

 private:
  template <int Bits>
  constexpr GroupInt<Bits> of() const {
    return {axis, group_size, form, params, rounding};
  }
};

static_assert(CodecDescription<GroupBits>);

}  // namespace kvcondense::prim
