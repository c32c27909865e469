#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/simd/choose.hpp>

// The loops of group quantization, of every instruction set that this processor has: the same bits as the rules in
// prim/group_quant.hpp.

using namespace kvcondense;
using namespace kvcondense::prim;
using cpu::CodingOps;

namespace {

constexpr GroupForm forms[] = {GroupForm::minimum, GroupForm::integer_zero, GroupForm::float_zero, GroupForm::symmetric,
                               GroupForm::mid_rise};
constexpr Rounding roundings[] = {Rounding::half_even, Rounding::half_up, Rounding::half_away};
constexpr ParamType types[] = {ParamType::f16, ParamType::bf16, ParamType::f32};

template <class F>
void for_isas(F&& use) {
  for (const cpu::Isa isa : cpu::all_isas)
    if (cpu::can_run(isa)) {
      CAPTURE(cpu::row_ops(isa).name);
      use(cpu::coding_ops(isa));
    }
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Numbers of every kind: usual ones, large and tiny ones, ties, halves, NaN, infinities, and any bits at all.
std::vector<float> numbers(std::size_t n, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& e : x) {
    const std::uint32_t kind = random() % 8;
    if (kind < 3) e = normal(random);
    else if (kind == 3) e = std::ldexp(normal(random), static_cast<int>(random() % 250) - 125);
    else if (kind == 4) e = 0.5f * static_cast<float>(static_cast<int>(random() % 64) - 32);
    else if (kind == 5) e = detail::half_value(static_cast<std::uint16_t>(random()));
    else if (kind == 6) e = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    else e = random() % 4 == 0 ? std::numeric_limits<float>::quiet_NaN() : random() % 2 == 0 ? std::numeric_limits<float>::infinity() : 0.0f;
  }
  return x;
}

template <int Bits, GroupForm Form>
void require_codes(const CodingOps& ops, const std::vector<float>& x, const std::vector<float>& offset, const std::vector<float>& inverse) {
  for (const Rounding rule : roundings) {
    std::vector<std::uint8_t> got(x.size() + 1, 0xee);
    ops.code_row(Form, rule, Bits, x.data(), offset.data(), inverse.data(), static_cast<index_t>(x.size()), got.data());
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::int32_t want = rule == Rounding::half_even ? code_of<Bits, Form, Rounding::half_even>(x[i], offset[i], inverse[i])
                                : rule == Rounding::half_up ? code_of<Bits, Form, Rounding::half_up>(x[i], offset[i], inverse[i])
                                                            : code_of<Bits, Form, Rounding::half_away>(x[i], offset[i], inverse[i]);
      wrong += got[i] != want;
    }
    CAPTURE(Bits, static_cast<int>(Form), static_cast<int>(rule));
    REQUIRE(wrong == 0);
    REQUIRE(got.back() == 0xee);
  }
}

template <int Bits, GroupForm Form>
void require_fits(const CodingOps& ops, const std::vector<float>& lo, const std::vector<float>& hi) {
  for (const ParamType type : types) {
    const std::size_t n = lo.size();
    std::vector<float> scale(n), offset = lo, inverse(n), want_scale(n), want_offset(n), want_inverse(n);
    const index_t got = ops.fit_groups(Form, Bits, type, offset.data(), hi.data(), static_cast<index_t>(n), scale.data(), offset.data(), inverse.data());
    index_t saturated = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const GroupParams p = fit_group(Form, Bits, type, {lo[i], hi[i]});
      want_scale[i] = p.scale, want_offset[i] = p.offset, want_inverse[i] = p.inverse;
      saturated += p.saturated;
    }
    CAPTURE(Bits, static_cast<int>(Form), static_cast<int>(type));
    REQUIRE(got == saturated);
    REQUIRE(same_bits(scale, want_scale));
    REQUIRE(same_bits(offset, want_offset));
    REQUIRE(same_bits(inverse, want_inverse));
  }
}

template <int Bits, class F>
void for_forms(F&& use) {
  use(std::integral_constant<GroupForm, GroupForm::minimum>{});
  use(std::integral_constant<GroupForm, GroupForm::integer_zero>{});
  use(std::integral_constant<GroupForm, GroupForm::float_zero>{});
  if constexpr (Bits > 1) use(std::integral_constant<GroupForm, GroupForm::symmetric>{});
  use(std::integral_constant<GroupForm, GroupForm::mid_rise>{});
}

}  // namespace

TEST_CASE("coding_ops: ranges and their repairs are those of GroupRange", "[prim][group_quant][coding_ops]") {
  for_isas([](const CodingOps& ops) {
    for (index_t n = 0; n <= 70; ++n) {
      const auto size = static_cast<std::size_t>(n);
      std::vector<float> lo(size, GroupRange{}.lo), hi(size, GroupRange{}.hi), want_lo = lo, want_hi = hi;
      index_t repaired = 0, want = 0;
      for (std::uint32_t row = 0; row < 5; ++row) {
        const std::vector<float> x = numbers(size, 31 * static_cast<std::uint32_t>(n) + row);
        repaired += ops.widen_ranges(x.data(), n, lo.data(), hi.data());
        for (std::size_t c = 0; c < size; ++c) {
          GroupRange range{want_lo[c], want_hi[c]};
          range.include(x[c]);
          want_lo[c] = range.lo, want_hi[c] = range.hi;
          want += needs_repair(x[c]);
        }
      }
      CAPTURE(n);
      REQUIRE(repaired == want);
      REQUIRE(same_bits(lo, want_lo));
      REQUIRE(same_bits(hi, want_hi));
    }
  });
}

TEMPLATE_TEST_CASE_SIG("coding_ops: parameters are those of fit_group", "[prim][group_quant][coding_ops]", ((int Bits), Bits), 1, 2, 3, 4, 8) {
  for_isas([](const CodingOps& ops) {
    for (const std::size_t n : {std::size_t{1}, std::size_t{7}, std::size_t{16}, std::size_t{1003}}) {
      std::vector<float> lo = numbers(n, 1), hi = numbers(n, 2);
      for (std::size_t i = 0; i < n; ++i) {  // ranges as they occur: some empty, some constant
        GroupRange range;
        range.include(lo[i]);
        if (i % 5 != 0) range.include(hi[i]);
        lo[i] = range.lo, hi[i] = range.hi;
      }
      for_forms<Bits>([&](auto form) { require_fits<Bits, form.value>(ops, lo, hi); });
    }
  });
}

TEMPLATE_TEST_CASE_SIG("coding_ops: codes are those of code_of", "[prim][group_quant][coding_ops]", ((int Bits), Bits), 1, 2, 3, 4, 5, 6, 7, 8) {
  for_isas([](const CodingOps& ops) {
    for (const std::size_t n : {std::size_t{1}, std::size_t{5}, std::size_t{64}, std::size_t{4001}}) {
      for_forms<Bits>([&](auto form) {
        std::vector<float> x = numbers(n, 3), lo = numbers(n, 4), hi = numbers(n, 5), offset(n), inverse(n);
        for (std::size_t i = 0; i < n; ++i) {
          GroupRange range;
          range.include(lo[i]), range.include(hi[i]);
          const GroupParams p = fit_group(form.value, Bits, ParamType::f16, range);
          offset[i] = p.offset, inverse[i] = p.inverse;
          if (i % 3 == 0 && p.scale > 0.0f) x[i] = 0.5f * p.scale * static_cast<float>(static_cast<int>(i % 600)) + p.offset;  // ties
        }
        require_codes<Bits, form.value>(ops, x, offset, inverse);
      });
    }
    // All halves, coded by one range.
    std::vector<float> x(65536);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = detail::half_value(static_cast<std::uint16_t>(i));
    for_forms<Bits>([&](auto form) {
      const GroupParams p = fit_group(form.value, Bits, ParamType::f16, {-3.25f, 7.5f});
      require_codes<Bits, form.value>(ops, x, std::vector<float>(x.size(), p.offset), std::vector<float>(x.size(), p.inverse));
    });
  });
}

TEST_CASE("coding_ops: numbers within a bound, at every place", "[prim][coding_ops]") {
  for_isas([](const CodingOps& ops) {
    for (index_t n = 1; n < 40; ++n)
      for (index_t at = 0; at < n; ++at) {
        std::vector<float> x(static_cast<std::size_t>(n), -65519.0f);
        REQUIRE(ops.within(x.data(), n, 65519.0f));
        for (const float wrong : {65520.0f, -65520.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
          x[static_cast<std::size_t>(at)] = wrong;
          REQUIRE_FALSE(ops.within(x.data(), n, 65519.0f));
        }
      }
    REQUIRE(ops.within(nullptr, 0, 1.0f));
  });
}
