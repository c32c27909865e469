// Pages on CUDA: the same bytes as on the CPU, and the same numbers out of them.

#include <algorithm>
#include <array>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include <kvcondense/backend/cpu/bipolar_int.hpp>
#include <kvcondense/backend/cpu/block_codes.hpp>
#include <kvcondense/backend/cpu/cluster_rows.hpp>
#include <kvcondense/backend/cpu/complex_vq.hpp>
#include <kvcondense/backend/cpu/exact_rows.hpp>
#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/backend/cpu/level_codes.hpp>
#include <kvcondense/backend/cpu/nuq_rows.hpp>
#include <kvcondense/backend/cpu/polar_tree.hpp>
#include <kvcondense/backend/cpu/row_transform.hpp>
#include <kvcondense/backend/cuda/words.cuh>

#include "page_pair.hpp"

using namespace kvcondense;
using cuda_pages::compare;
using cuda_pages::rows_of;
using test::at;

namespace {

template <int Bits>
void all_forms() {
  using enum prim::GroupForm;
  for (const prim::GroupForm form : {minimum, integer_zero, float_zero, symmetric, mid_rise}) {
    if (Bits == 1 && form == symmetric) continue;
    prim::GroupInt<Bits> codec;
    codec.form = form;
    codec.rounding = static_cast<prim::Rounding>(static_cast<int>(form) % 3);
    codec.params = static_cast<prim::ParamType>((static_cast<int>(form) + Bits) % 3);
    codec.axis = prim::GroupAxis::token;
    codec.group_size = 24;
    compare(codec, 20, 72, {{0, 20}, {3, 9}});
    codec.axis = prim::GroupAxis::channel;
    codec.group_size = 12;
    compare(codec, 48, 50, {{12, 36}, {0, 12}});
  }
}

}  // namespace

TEST_CASE("cuda pages: exact numbers") {
  for (const DType t : {DType::f32, DType::f16, DType::bf16})
    for (const index_t dim : {1, 33, 128, 256})
      compare(prim::ExactRows{t}, 17, dim, {{0, 17}, {5, 3}, {2, 0}}, false);
}

TEMPLATE_TEST_CASE_SIG("cuda pages: codes of every width and form", "", ((int Bits), Bits), 1, 2, 3, 4, 5, 6, 7, 8) {
  all_forms<Bits>();
}

TEST_CASE("cuda pages: sizes of heads and groups") {
  for (const index_t dim : {64, 80, 96, 112, 128, 256}) {
    compare(prim::GroupInt<4>{.axis = prim::GroupAxis::token, .group_size = dim / 2}, 64, dim, {{0, 64}, {63, 1}});
    compare(prim::GroupInt<2>{.axis = prim::GroupAxis::token, .group_size = 0}, 64, dim, {{10, 50}});
    compare(prim::GroupInt<4>{.axis = prim::GroupAxis::channel, .group_size = 64}, 64, dim, {{0, 64}});
    compare(prim::GroupInt<2>{.axis = prim::GroupAxis::channel, .group_size = 32}, 256, dim, {{32, 96}, {224, 32}});
  }
}

TEMPLATE_TEST_CASE_SIG("cuda pages: codes in lanes", "", ((int Bits), Bits), 2, 4, 8) {
  using enum prim::GroupForm;
  for (const prim::GroupForm form : {minimum, float_zero, symmetric}) {
    prim::GroupInt<Bits> codec;
    codec.form = form;
    codec.group_size = 32;
    for (const auto& c : {codec.for_scores(), codec.for_sums()})
      for (const index_t dim : {64, 80, 128}) {  // 80: channels in rows where they do not fill lanes
        codec = c;
        codec.axis = prim::GroupAxis::channel;
        compare(codec, 64, dim, {{0, 64}, {32, 32}});
        codec.axis = prim::GroupAxis::token;
        codec.group_size = dim / 2;
        compare(codec, 64, dim, {{0, 64}, {5, 1}, {17, 40}});
      }
  }
}

TEST_CASE("cuda pages: small codes with block scales, every element, scale and rounding") {
  using prim::BlockElement;
  using prim::BlockScale;
  // The numbers of blocks and of dims have no factor in common with the count of a loop: every scale and rounding meets every block and factor,
  // every block every dim.
  constexpr index_t blocks[] = {0, 8, 16, 32, 64, 128, 256}, dims[] = {64, 80, 50, 128, 256};
  std::set<std::array<index_t, 3>> with_block, with_factor;
  std::set<std::array<index_t, 2>> block_of_dim;
  index_t n = 0;
  for (const BlockElement element : {BlockElement::e2m1, BlockElement::e2m3, BlockElement::e3m2, BlockElement::e4m3, BlockElement::e5m2, BlockElement::int2,
                                     BlockElement::int3, BlockElement::int4, BlockElement::int5, BlockElement::int6, BlockElement::int7, BlockElement::int8})
    for (const BlockScale scale : {BlockScale::fixed, BlockScale::f32, BlockScale::f32_power, BlockScale::e8m0, BlockScale::e8m0_ceil, BlockScale::e4m3})
      for (const prim::Rounding rounding : {prim::Rounding::half_even, prim::Rounding::half_away}) {
        const index_t block = blocks[n % 7], dim = dims[n % 5];
        const prim::BlockCodes codec{.element = element, .scale = scale, .block = block, .factor = n / 12 % 2 == 0 ? 0.03f : 1.0f, .rounding = rounding};
        compare(codec, 12, dim, {{0, 12}, {4, 2}, {8, 0}});
        const auto s = static_cast<index_t>(scale), r = static_cast<index_t>(rounding);
        with_block.insert({s, r, block}), with_factor.insert({s, r, n / 12 % 2}), block_of_dim.insert({block, dim});
        ++n;
      }
  CHECK(with_block.size() == 6 * 2 * 7);
  CHECK(with_factor.size() == 6 * 2 * 2);
  CHECK(block_of_dim.size() == 7 * 5);
  test::Device device;
  CHECK(prim::PageCodec<Cuda, prim::BlockCodes>::decode(device, {.block = 12}, {nullptr, 1, 8, 64, 64}) == Status::invalid_argument);
}

TEST_CASE("cuda pages: blocks of ggml") {
  using prim::GgmlType;
  for (const GgmlType type : {GgmlType::q4_0, GgmlType::q4_1, GgmlType::q5_0, GgmlType::q5_1, GgmlType::q8_0, GgmlType::mxfp4, GgmlType::nvfp4})
    for (const index_t dim : {64, 96, 256}) {
      const prim::BlockCodes codec{.element = prim::BlockElement::ggml, .ggml = type};
      if (!codec.valid(dim)) continue;
      compare(codec, 20, dim, {{0, 20}, {4, 2}, {8, 0}});
    }
}

TEST_CASE("cuda pages: levels of a direction") {
  using prim::LevelScale;
  for (const index_t dim : {64, 80, 128, 256})
    for (const int bits : {1, 2, 3, 4})
      for (const LevelScale scale : {LevelScale::norm, LevelScale::unit, LevelScale::least_squares})
        compare(prim::LevelCodes{bits, scale, prim::fit_levels(bits, dim, bits == 3)}, 12, dim, {{0, 12}, {4, 2}, {8, 0}});
}

TEST_CASE("cuda pages: levels in ranges of channels and of rows, and outliers") {
  for (const index_t dim : {64, 80, 256}) {
    std::vector<float> lower(at(dim)), upper(at(dim));
    for (std::size_t c = 0; c < lower.size(); ++c) lower[c] = -1.0f - 0.01f * static_cast<float>(c), upper[c] = c % 9 == 0 ? lower[c] : 1.5f;
    for (const int bits : {1, 2, 3, 4})
      for (const int outliers : {0, 2, static_cast<int>(dim / 4 * 2)}) {
        compare(prim::NuqRows{bits, outliers, static_cast<std::int32_t>(dim), lower.data(), upper.data(), prim::normal_levels(bits)}, 9, dim, {{0, 9}, {4, 2}});
        compare(prim::NuqRows{bits, outliers, 0, nullptr, nullptr, prim::normal_levels(bits)}, 9, dim, {{0, 9}, {4, 2}});
      }
  }
}

TEST_CASE("cuda pages: clusters of channels") {
  using prim::ClusterParam;
  for (const index_t dim : {64, 80, 256}) {
    std::vector<float> cluster(at(dim));
    for (std::size_t c = 0; c < cluster.size(); ++c) cluster[c] = static_cast<float>((c + c / 3) % 7 % 4);
    for (const int levels : {2, 3, 4, 8, 16})
      for (const ClusterParam params : {ClusterParam::f16, ClusterParam::f32, ClusterParam::e4m3}) {
        prim::ClusterRows codec{.levels = levels, .clip = 0.9f, .params = params, .rounding = static_cast<prim::Rounding>(levels % 3), .group_size = 24};
        compare(codec, 8, dim, {{0, 8}, {3, 2}});
        codec.form = prim::GroupForm::integer_zero, codec.clip = 1.0f, codec.cluster = cluster.data(), codec.channels = static_cast<std::int32_t>(dim);
        compare(codec, 8, dim, {{0, 8}, {3, 2}});
      }
  }
}

TEST_CASE("cuda pages: complex codewords") {
  for (const index_t dim : {64, 80})
    for (const int base : {16, 50}) {
      std::mt19937 random(3);
      std::normal_distribution<float> normal(0.0f, 0.1f);
      std::vector<float> book(at(3 * base * dim));
      for (float& x : book) x = normal(random);
      for (const bool lengths : {true, false}) {
        const prim::ComplexVq codec{.book = book.data(), .stages = 3, .base = base, .channels = static_cast<std::int32_t>(dim), .beam = lengths ? 4 : base,
                                    .pairing = lengths ? prim::RopePairing::half_split : prim::RopePairing::interleaved, .lengths = lengths};
        compare(codec, 6, dim, {{0, 6}, {3, 2}});
      }
    }
}

TEST_CASE("cuda pages: recursive angles") {
  for (const index_t dim : {64, 96, 256})
    for (const index_t levels : {3, 4, 5})
      for (const int bits : {1, 2, 3}) compare(prim::PolarTree::of(levels, 2 * bits, bits), 8, dim, {{0, 8}, {3, 2}});
}

TEST_CASE("cuda pages: rows behind a map, whose bad numbers are counted") {
  constexpr index_t dim = 64, slots = 4;
  const prim::Hadamard map{0, 7};
  const prim::LevelCodes levels{3, prim::LevelScale::unit, prim::fit_levels(3, dim)};
  std::vector<float> rows = rows_of(slots, dim, 5);
  for (index_t c = 0; c < 2 * dim; ++c) rows[at(c)] = c < dim ? 0.5f : 3e38f;  // the second overflows in the map
  rows[3] = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> mapped = rows;
  prim::RowTransform<Cpu, prim::Hadamard>::forward(map, dim, {mapped.data(), slots, dim});
  std::vector<std::byte> page(levels.page_bytes(slots, dim));
  const index_t repaired = prim::PageCodec<Cpu, prim::LevelCodes>::encode(levels, {page.data(), slots, dim}, 0, slots, {mapped.data(), slots, dim});
  REQUIRE(repaired > dim);
  test::each_way([&] {
    test::Device device;
    using Codec = prim::Transformed<prim::Hadamard, prim::LevelCodes>;
    using Form = prim::DeviceForm<Codec>;
    const Codec codec{map, levels};
    std::vector<float> table(at(Form::floats(codec, dim)));
    Form::fill(codec, dim, table.data());
    test::OnDevice<float> tables(device, table), in(device, rows);
    test::OnDevice<std::byte> store(device, std::vector<std::byte>(page.size()));
    test::OnDevice<prim::PageRows> jobs(device, {{store.data(), in.data(), dim, 0, slots}});
    test::OnDevice<index_t> sum(device, {0});
    const prim::DeviceCodec<Codec> there = Form::of(codec, tables.data(), 0, dim);
    REQUIRE(prim::PageCodec<Cuda, prim::DeviceCodec<Codec>>::encode(device, there, {jobs.data(), 1, slots, slots, dim}, sum.data()) == Status::ok);
    CHECK(store.read() == page);
    CHECK(sum.read()[0] == repaired);
  });
}

TEMPLATE_TEST_CASE_SIG("cuda pages: planes of bits", "", ((int Bits), Bits), 1, 2, 3, 8) {
  for (const index_t dim : {64, 80, 256}) {
    compare(prim::BipolarInt<Bits>{.group_size = 16}, 8, dim, {{0, 8}, {3, 2}});
    compare(prim::BipolarInt<Bits>{.group_size = 0, .form = prim::GroupForm::mid_rise}, 8, dim, {{0, 8}, {3, 2}});
  }
}

TEST_CASE("cuda pages: nothing to do, and what cannot be meant") {
  test::Device device;
  const prim::GroupInt<4> codec{.group_size = 32};
  using Codec = prim::PageCodec<Cuda, prim::GroupInt<4>>;
  CHECK(Codec::encode(device, codec, {nullptr, 0, 8, 64, 64}) == Status::ok);
  CHECK(Codec::encode(device, codec, {nullptr, 3, 0, 64, 64}) == Status::ok);
  CHECK(Codec::encode(device, codec, {nullptr, 1, 8, 64, 65}) == Status::invalid_argument);
  CHECK(Codec::decode(device, codec, {nullptr, 1, 8, 64, 512}) == Status::invalid_argument);
  CHECK(Codec::decode(device, codec, {nullptr, 70000, 8, 64, 64}) == Status::invalid_argument);
  CHECK(Codec::decode(device, codec, {nullptr, 1, 8, 0, 64}) == Status::invalid_argument);
}
