#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/quant/bit_allocation.hpp>
#include <kvcondense/quant/bit_search.hpp>

#include <quant/codec_page.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using prim::GroupAxis;
using prim::GroupBits;
using quant::BitAllocation;
using quant::BitLayout;

namespace {

template <int Bits>
void same_pages(GroupAxis axis, index_t dim) {
  const auto rows = test::normal_rows(32, dim, 5);
  test::CodecPage<GroupBits> any({Bits, axis, 16}, rows, dim);
  test::CodecPage<prim::GroupInt<Bits>> one({axis, 16}, rows, dim);
  REQUIRE(any.bytes.size() == one.bytes.size());
  REQUIRE(std::equal(one.bytes.begin(), one.bytes.end(), any.bytes.begin()));
  REQUIRE(any.decoded() == one.decoded());
  REQUIRE(any.codec.fingerprint() == one.codec.fingerprint());
  REQUIRE(any.codec.group_slots() == one.codec.group_slots());
  test::require_folds(any);
  if (axis != GroupAxis::token) return;
  test::CodecPage<GroupBits> other(any.codec, test::normal_rows(7, dim, 4), dim);
  decltype(any)::Codec::move(any.codec, other.span(), 6, any.span(), 2);
  REQUIRE(other.decoded(6, 1) == any.decoded(2, 1));
}

}  // namespace

TEST_CASE("bit_allocation: a width given as a number has the pages of group_int", "[quant][bit_allocation]") {
  const index_t dim = GENERATE(64, 80, 96, 112, 128, 256);
  const auto axis = GENERATE(GroupAxis::token, GroupAxis::channel);
  same_pages<1>(axis, dim), same_pages<2>(axis, dim), same_pages<3>(axis, dim), same_pages<4>(axis, dim);
  same_pages<5>(axis, dim), same_pages<6>(axis, dim), same_pages<7>(axis, dim), same_pages<8>(axis, dim);
  REQUIRE_FALSE(GroupBits{0}.valid(64));
  REQUIRE_FALSE(GroupBits{9}.valid(64));
}

TEST_CASE("bit_allocation: without tables keys have more than values, and the ends more than the middle", "[quant][bit_allocation]") {
  const CacheShape shape{.layers = 7, .head_dim = 64};
  const auto widths = [&](const BitAllocation& b) {
    std::vector<int> w;
    for (index_t l = 0; l < 7; ++l) w.push_back(10 * b.key_codec(shape, {l, 0}).bits + b.value_codec(shape, {l, 0}).bits);
    return w;
  };
  REQUIRE(widths(BitAllocation{}) == std::vector<int>{84, 84, 42, 42, 42, 84, 84});
  REQUIRE(widths(BitAllocation{.key_bits = 3, .value_bits = 1, .boundary = 1}) == std::vector<int>{42, 31, 31, 31, 31, 31, 42});
  REQUIRE(widths(BitAllocation{.key_bits = 8, .boundary = 0}) == std::vector<int>(7, 82));
  REQUIRE(widths(BitAllocation{.boundary = 100}) == std::vector<int>(7, 84));
}

TEST_CASE("bit_allocation: a table gives every head its bits, in what a cache stores and allocates", "[quant][bit_allocation][cache]") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 64};
  const std::vector<float> keys = {1, 8, 4, 2}, values = {3, 5, 6, 7};
  for (const auto layout : {BitLayout::token, BitLayout::kivi}) {
    const BitAllocation stage{.layout = layout, .key_widths = {keys.data(), 2, 2}, .value_widths = {values.data(), 2, 2}};
    REQUIRE(stage.validate(shape) == Status::ok);
    test::CacheRig rig(shape, recipe(stage), 320, 256);
    std::mt19937 random(3);
    std::vector<double> error;
    for (index_t l = 0; l < 2; ++l) {
      const test::Tokens t(shape, 256, random);
      REQUIRE(rig.cache.append(rig.ctx, l, t.keys(shape), t.values(shape)) == Status::ok);
      REQUIRE(rig.cache.step(rig.ctx, l) == Status::ok);
      std::vector<float> k(256 * 64), v = k;
      for (index_t h = 0; h < 2; ++h) {
        const auto i = static_cast<std::size_t>(l * 2 + h);
        REQUIRE(rig.cache.read(l, h, 0, test::view2(k.data(), 256, 64), test::view2(v.data(), 256, 64)) == Status::ok);
        double off = 0;
        for (std::size_t n = 0; n < k.size(); ++n) off += std::pow(static_cast<double>(k[n] - t.k[static_cast<std::size_t>(h) * 256 * 64 + n]), 2);
        error.push_back(off);
        const auto& head = rig.cache.layers()[l].heads[h];
        const double bits = static_cast<double>(head.keys.coded().page_payload()) * 8 / (64 * 64);
        REQUIRE(bits == static_cast<double>(keys[i]) + 1.0);
        REQUIRE(static_cast<double>(head.values.coded().page_payload()) * 8 / (64 * 64) == static_cast<double>(values[i]) + 1.0);
        REQUIRE(head.values.coded().live() == (layout == BitLayout::kivi ? 224 : 256));
        REQUIRE(head.keys.coded().live() == 256);
      }
    }
    REQUIRE(error[0] > 4 * error[3]);
    REQUIRE(error[3] > 8 * error[2]);
    REQUIRE(error[2] > 100 * error[1]);
  }
}

TEST_CASE("bit_allocation: bits that are found for measured errors beat the same bits for all", "[quant][bit_allocation]") {
  // Heads whose numbers are of different size: errors go with their squares.
  const std::vector<int> widths = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<index_t> cost;
  std::vector<double> distortion;
  const index_t heads = 6;
  for (index_t h = 0; h < heads; ++h) {
    auto rows = test::normal_rows(64, 64, static_cast<std::uint64_t>(h) + 3);
    for (float& x : rows) x *= std::exp2(static_cast<float>(h));
    for (const int bits : widths) {
      const auto back = test::CodecPage<GroupBits>({bits, GroupAxis::token, 32}, rows, 64).decoded();
      double off = 0;
      for (std::size_t i = 0; i < rows.size(); ++i) off += std::pow(static_cast<double>(rows[i] - back[i]), 2);
      cost.push_back(bits), distortion.push_back(off);
    }
  }
  const quant::BitChoices choices{{cost.data(), {heads, 8}, {8, 1}}, {distortion.data(), {heads, 8}, {8, 1}}};
  std::vector<std::int32_t> choice(static_cast<std::size_t>(heads));
  std::vector<std::byte> room(1 << 16);
  REQUIRE(quant::allocate_bits(choices, 3 * heads, choice, Scratch{room}) == Status::ok);
  REQUIRE(choices.total(choice) < choices.total(std::vector<std::int32_t>(static_cast<std::size_t>(heads), 2)) / 3);
  for (std::size_t h = 1; h < choice.size(); ++h) REQUIRE(choice[h] >= choice[h - 1]);
}

TEST_CASE("bit_allocation: settings that fit nothing are refused", "[quant][bit_allocation]") {
  const CacheShape shape{.layers = 1, .kv_heads = 1, .head_dim = 64};
  REQUIRE(BitAllocation{}.validate(shape) == Status::ok);
  REQUIRE(BitAllocation{.key_bits = 0}.validate(shape) == Status::invalid_argument);
  REQUIRE(BitAllocation{.value_bits = 9}.validate(shape) == Status::invalid_argument);
  REQUIRE(BitAllocation{.boundary = -1}.validate(shape) == Status::invalid_argument);
  REQUIRE(BitAllocation{.group_size = 48}.validate(shape) == Status::invalid_argument);
  REQUIRE(BitAllocation{.layout = BitLayout::kivi, .residual_window = 48}.validate(shape) == Status::invalid_argument);
  REQUIRE(BitAllocation{.residual_window = -1}.validate(shape) == Status::invalid_argument);
  REQUIRE(BitAllocation{.sinks = -1}.validate(shape) == Status::invalid_argument);
  for (const float w : {0.0f, 9.0f, 2.5f, std::nanf("")}) {
    REQUIRE(BitAllocation{.key_widths = {&w, 1, 1}}.validate(shape) == Status::invalid_argument);
    REQUIRE(BitAllocation{.value_widths = {&w, 1, 1}}.validate(shape) == Status::invalid_argument);
  }
  const float four = 4.0f;
  REQUIRE(BitAllocation{.key_widths = {&four, 1, 1}}.validate(shape) == Status::ok);
  REQUIRE(BitAllocation{.key_widths = {&four, 1, 1}}.validate({.layers = 2, .head_dim = 64}) == Status::invalid_argument);
}
