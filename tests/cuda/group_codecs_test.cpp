// Pages whose groups of slots share more than scales: the same bytes as on the CPU, the same numbers out of them, and pages that are joined.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include <kvcondense/backend/cpu/boosted_int.hpp>
#include <kvcondense/backend/cpu/corrected.hpp>
#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/backend/cpu/polar_pairs.hpp>
#include <kvcondense/backend/cuda/words.cuh>

#include "device.hpp"
#include "joined_pages.hpp"

using namespace kvcondense;
using test::at;

namespace {

/// Normal numbers of channels that are not equally strong, one of them constant and one 0; `odd`: some that must be repaired.
std::vector<float> rows_of(index_t n, index_t dim, unsigned seed, bool odd) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(at(n * dim));
  for (index_t i = 0; i < n * dim; ++i) {
    const index_t c = i % dim;
    x[at(i)] = c == 3 ? 0.25f : c == 5 || c == 4 ? 0.0f : normal(random) * static_cast<float>(1 + c * 7 % 5);
    const auto strange = odd ? random() % 300 : 9;
    if (strange == 0) x[at(i)] = std::numeric_limits<float>::quiet_NaN();
    if (strange == 1) x[at(i)] = -std::numeric_limits<float>::infinity();
    if (strange == 2) x[at(i)] = 3e38f;
    if (strange == 3) x[at(i)] = 70000.0f;
  }
  return x;
}

/// Whether a device makes the very numbers of the host: its sine, cosine and arc tangent are its own.
#if defined(KVCONDENSE_CUDA_FIBERS)
template <class Codec>
constexpr bool exact = true;
#else
template <class Codec>
constexpr bool exact = std::is_same_v<Codec, prim::DeviceCodec<Codec>>;
#endif

template <int Bits>
constexpr bool exact<prim::Corrected<prim::GroupInt<Bits>>> = true;

template <class Codec>
index_t encode(const Codec& codec, prim::PageSpan page, index_t first, index_t count, prim::RowBlock<const float> rows) {
  return prim::PageCodec<Cpu, Codec>::encode(codec, page, first, count, rows);
}
/// Parts of low rank are the portable kernels'.
template <int Bits>
index_t encode(const prim::Corrected<prim::GroupInt<Bits>>& codec, prim::PageSpan page, index_t first, index_t count, prim::RowBlock<const float> rows) {
  return prim::PageCodec<Cpu, prim::Corrected<prim::GroupInt<Bits>>>::encode(codec, page, first, count, rows, prim::cpu::row_ops(prim::cpu::Isa::portable));
}

/// Numbers are the same, or of a codec of angles but for a few whose angle was as near to a bin's edge as rounding.
template <class Codec>
bool same_numbers(const std::vector<float>& got, const std::vector<float>& want) {
  if (exact<Codec>) return std::memcmp(got.data(), want.data(), want.size() * sizeof(float)) == 0;
  std::size_t far = 0;
  for (std::size_t i = 0; i < want.size(); ++i) far += !(std::fabs(got[i] - want[i]) <= 1e-5f * (1.0f + std::fabs(want[i])));
  return far * 200 <= want.size();
}
/// The same, or, of a codec of angles, as near to the rows that were coded: what comes out of bins and is coded again lies on edges of the new ones, where
/// either side is as good.
template <class Codec>
bool as_good_numbers(const std::vector<float>& got, const std::vector<float>& want, const std::vector<float>& rows) {
  if (exact<Codec>) return same_numbers<Codec>(got, want);
  double off = 0, host = 0, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    off += std::pow(static_cast<double>(got[i] - rows[i]), 2), host += std::pow(static_cast<double>(want[i] - rows[i]), 2);
    size += std::pow(static_cast<double>(rows[i]), 2);
  }
  return off <= 1.01 * host + 1e-6 * size;
}
template <class Codec>
std::vector<float> numbers_of(const Codec& codec, std::vector<std::byte> page, index_t slots, index_t dim, index_t count) {
  std::vector<float> rows(at(count * dim));
  prim::PageCodec<Cpu, Codec>::decode(codec, {page.data(), slots, dim}, 0, count, {rows.data(), count, dim});
  return rows;
}

/// Codes two stretches of a page and reads it, in rows that lie apart.
template <class Codec>
void pages_alike(const Codec& codec, index_t slots, index_t dim) {
  INFO("rows of " << dim << ", pages of " << slots << ", groups of " << codec.group_slots());
  using Coder = prim::PageCodec<Cpu, Codec>;
  const index_t group = codec.group_slots(), step = dim + 3;
  for (const bool odd : {false, true}) {
    const std::vector<float> rows = rows_of(slots, step, 5, odd);
    std::vector<std::byte> page(codec.page_bytes(slots, dim));
    const prim::PageSpan host{page.data(), slots, dim};
    index_t repaired = encode(codec, host, 0, group, {rows.data(), group, step});
    repaired += encode(codec, host, group, slots - group, {rows.data() + group * step, slots - group, step});
    CHECK((repaired > 0) == odd);
    std::vector<float> decoded(at(slots * dim));
    Coder::decode(codec, host, 0, slots, {decoded.data(), slots, dim});
    test::each_way([&] {
      test::Device device;
      test::OnDevice<float> in(device, rows), out(device, std::vector<float>(decoded.size(), NAN));
      test::OnDevice<std::byte> there(device, std::vector<std::byte>(page.size()));
      const auto first = static_cast<std::int32_t>(group), all = static_cast<std::int32_t>(slots);
      test::OnDevice<prim::PageRows> jobs(device, {{there.data(), in.data(), step, 0, first}, {there.data(), in.data() + group * step, step, first, all - first}});
      test::OnDevice<prim::PageRows> reads(device, {{there.data(), out.data(), dim, 0, all}});
      test::OnDevice<index_t> count(device, {5});
      using Pages = prim::PageCodec<Cuda, prim::DeviceCodec<Codec>>;
      const auto form = prim::DeviceForm<Codec>::of(codec, nullptr, 0, dim);
      REQUIRE(Pages::encode(device, form, {jobs.data(), 2, slots, slots, dim}, count.data()) == Status::ok);
      REQUIRE(Pages::decode(device, form, {reads.data(), 1, slots, slots, dim}) == Status::ok);
      if (exact<Codec>) REQUIRE((there.read() == page));
      REQUIRE(same_numbers<Codec>(numbers_of(codec, there.read(), slots, dim, slots), decoded));
      REQUIRE(same_numbers<Codec>(out.read(), decoded));
      CHECK(count.read()[0] == 5 + repaired);
    });
  }
}

/// Two pages become one, in place and in a third; then another joins what the first two became.
template <class Codec>
void joins_alike(const Codec& codec, index_t slots, index_t dim) {
  INFO("rows of " << dim << ", pages of " << slots << ", groups of " << codec.group_slots());
  using Coder = prim::PageCodec<Cpu, Codec>;
  const std::size_t each = (codec.page_bytes(slots, dim) + 63) / 64 * 64;
  for (const bool in_place : {true, false}) {
    std::vector<std::byte> pages(3 * each);
    const auto page = [&](index_t p) { return prim::PageSpan{pages.data() + at(p) * each, slots, dim}; };
    for (index_t p = 0; p < 3; ++p) encode(codec, page(p), 0, slots, {rows_of(slots, dim, static_cast<unsigned>(p), false).data(), slots, dim});
    const std::vector<std::byte> before = pages;
    const index_t into = in_place ? 0 : 2;
    std::vector<float> rows(at(2 * slots * dim));
    index_t n = 0;
    for (index_t p = 0; p < 2; ++p)
      for (index_t s = 0; s < slots; ++s)
        if (cuda_pages::lives(p, s, slots)) Coder::decode(codec, page(p), s, 1, {rows.data() + dim * n++, 1, dim});
    const index_t group = codec.group_slots(), full = (n + group - 1) / group * group;
    for (index_t i = n; i < full; ++i) std::copy_n(rows.data() + (n - 1) * dim, dim, rows.data() + i * dim);
    encode(codec, page(into), 0, full, {rows.data(), full, dim});
    test::each_way([&] {
      const std::vector<std::byte> joined = cuda_pages::joined(codec, before, each, into, slots, dim);
      if (exact<Codec>) REQUIRE((joined == pages));
      const auto one = [&](const std::vector<std::byte>& from) {
        const auto begin = from.begin() + into * static_cast<std::ptrdiff_t>(each);
        return numbers_of(codec, {begin, begin + static_cast<std::ptrdiff_t>(each)}, slots, dim, full);
      };
      REQUIRE(as_good_numbers<Codec>(one(joined), one(pages), rows));
    });
  }
}

template <class Codec>
void alike(const Codec& codec, index_t slots, index_t dim) {
  pages_alike(codec, slots, dim);
  joins_alike(codec, slots, dim);
}

}  // namespace

TEST_CASE("cuda group_codecs: strong channels of a group") {
  alike(prim::BoostedInt<2, 2>{.group_size = 16, .boost = 0.25f}, 32, 64);
  alike(prim::BoostedInt<2, 2>{.group_size = 8}, 24, 80);
  alike(prim::BoostedInt<2, 2>{.group_size = 128, .boost = 0.125f}, 256, 128);
  alike(prim::BoostedInt<2, 2>{.group_size = 4, .boost = 1.0f, .rounding = prim::Rounding::half_even}, 12, 256);
  alike(prim::BoostedInt<2, 2>{.group_size = 3, .boost = 0.0f}, 9, 50);
  alike(prim::BoostedInt<2, 2>{.group_size = 5, .boost = 0.1f}, 10, 17);  // 2 strong channels: half a byte of a row
}

TEST_CASE("cuda group_codecs: lengths and angles of a group") {
  using prim::RopePairing;
  alike(prim::PolarPairs<4, 4>{.group_size = 16}, 32, 64);
  alike(prim::PolarPairs<4, 4>{.group_size = 8, .centered = true}, 24, 80);
  alike(prim::PolarPairs<2, 3>{.group_size = 4, .pairing = RopePairing::interleaved, .params = prim::ParamType::f32}, 12, 50);
  alike(prim::PolarPairs<3, 2>{.group_size = 128, .pairing = RopePairing::interleaved, .centered = true}, 256, 128);
  alike(prim::PolarPairs<4, 4>{.group_size = 4, .params = prim::ParamType::bf16}, 8, 256);
}

TEST_CASE("cuda group_codecs: codes of a chunk with a product of low rank and outliers") {
  using prim::GroupAxis;
  using Codes = prim::GroupInt<3>;
  using Codec = prim::Corrected<Codes>;
  const Codes keys{.axis = GroupAxis::channel, .group_size = 8}, values{.group_size = 16};
  alike(Codec{keys, GroupAxis::channel, 16, 0.2, 2}, 32, 64);
  alike(Codec{values, GroupAxis::token, 16, 0.1, 2}, 32, 80);
  alike(Codec{{.group_size = 64}, GroupAxis::token, 8, 0.02, 8, 1}, 16, 256);
  pages_alike(Codec{{.axis = GroupAxis::channel, .group_size = 64}, GroupAxis::channel, 64, 0.02, 2}, 128, 64);
  pages_alike(Codec{{.axis = GroupAxis::channel, .group_size = 60}, GroupAxis::channel, 300, 0.02, 2}, 600, 9);  // places of two bytes
  // Everything is an outlier; nothing is; no product; neither.
  alike(Codec{{.group_size = 10, .params = prim::ParamType::f32}, GroupAxis::token, 4, 1.0, 3, 8}, 8, 30);
  alike(Codec{{.axis = GroupAxis::channel, .group_size = 4, .params = prim::ParamType::bf16}, GroupAxis::channel, 4, 0.0, 4}, 12, 17);
  alike(Codec{{.axis = GroupAxis::channel, .group_size = 2}, GroupAxis::channel, 10, 0.5, 0}, 20, 96);
  alike(Codec{values, GroupAxis::token, 8, 0.0, 0}, 16, 112);
}

TEST_CASE("cuda group_codecs: a chunk of more than 48 KiB of shared memory") {
  using Codes = prim::GroupInt<2>;
  alike(prim::Corrected<Codes>{{.axis = prim::GroupAxis::channel, .group_size = 64}, prim::GroupAxis::channel, 64, 0.02, 2, 1}, 64, 256);
}

TEST_CASE("cuda group_codecs: an outlier at a damaged place, behind its vector, is nowhere") {
  using prim::GroupAxis;
  using Codec = prim::Corrected<prim::GroupInt<2>>;
  const auto compare = [](const Codec& codec, index_t dim) {
    const index_t slots = codec.chunk, corrections = codec.corrections_at(slots, dim), outliers = codec.outlier_count(dim);
    std::vector<std::byte> without(codec.page_bytes(slots, dim));
    encode(codec, {without.data(), slots, dim}, 0, slots, {rows_of(slots, dim, 3, false).data(), slots, dim});
    std::vector<std::byte> damaged = without;
    std::fill_n(damaged.begin() + corrections + codec.places_at(dim), outliers * codec.place_bytes(dim), std::byte{0xff});
    std::fill_n(without.begin() + corrections + codec.addends_at(dim), 2 * outliers, std::byte{});
    const std::vector<float> want = numbers_of(codec, without, slots, dim, slots);
    CHECK((numbers_of(codec, damaged, slots, dim, slots) == want));
    test::Device device;
    test::OnDevice<std::byte> page(device, damaged);
    test::OnDevice<float> out(device, std::vector<float>(want.size(), NAN));
    test::OnDevice<prim::PageRows> jobs(device, {{page.data(), out.data(), dim, 0, static_cast<std::int32_t>(slots)}});
    REQUIRE(prim::PageCodec<Cuda, prim::CorrectedForm>::decode(device, prim::DeviceForm<Codec>::of(codec, nullptr, 0, dim), {jobs.data(), 1, slots, slots, dim}) == Status::ok);
    CHECK((out.read() == want));
  };
  compare({{.group_size = 8}, GroupAxis::token, 8, 0.25, 1}, 200);
  compare({{.axis = GroupAxis::channel, .group_size = 8}, GroupAxis::channel, 8, 0.25, 1}, 200);
  compare({{.axis = GroupAxis::channel, .group_size = 50}, GroupAxis::channel, 300, 0.02, 1}, 9);  // places of two bytes
}

TEST_CASE("cuda group_codecs: chunks that nobody codes are refused") {
  using prim::GroupAxis;
  using Codec = prim::Corrected<prim::GroupInt<2>>;
  const Codec good{{.axis = GroupAxis::channel, .group_size = 8}, GroupAxis::channel, 16, 0.1, 2};
  std::vector<Codec> bad(9, good);
  bad[0].chunk = 65536 + 16, bad[1].chunk = 12, bad[2].rank = 9, bad[3].loops = 256 + 3, bad[4].outliers = 1.5, bad[5].codec.group_size = 65536 + 8;
  bad[6].codec.form = prim::GroupForm::symmetric, bad[7].codec.rounding = prim::Rounding::half_up, bad[8].codec.layout = prim::CodeLayout::slot_lanes;
  test::Device device;
  const auto status = [&](const Codec& codec) {
    return prim::PageCodec<Cuda, prim::CorrectedForm>::encode(device, prim::DeviceForm<Codec>::of(codec, nullptr, 0, 64), {nullptr, 0, 0, 32, 64});
  };
  CHECK(status(good) == Status::ok);
  for (const Codec& codec : bad) CHECK(status(codec) == Status::invalid_argument);
}

TEST_CASE("cuda group_codecs: errors of codes, with outliers, and with a product are those of the worked example of GEAR") {
  constexpr index_t rows = 5, dim = 8;
  const std::vector<float> x{0.61328125f,  1.20703125f, -0.931640625f, 2.09765625f,  0.15234375f,   -1.51953125f,  0.640625f,   0.83203125f,
                             0.900390625f, 2.103515625f, -1.5703125f,   3.716796875f, 0.5234375f,    -2.615234375f, 0.94921875f, 1.8046875f,
                             -0.125f,      0.1953125f,   6.0f,          0.376953125f, 0.28515625f,   -0.33984375f,  0.4375f,     0.408203125f,
                             0.5390625f,   1.7421875f,   -0.802734375f, 2.537109375f, -0.009765625f, -2.083984375f, 0.93359375f, -7.0f,
                             0.41015625f,  0.68359375f,  -0.68359375f,  1.17578125f,  0.111328125f,  -0.787109375f, 0.58203125f, 0.60546875f};
  using Codec = prim::Corrected<prim::GroupInt<2>>;
  const auto error = [&](double outliers, index_t rank) {
    const Codec codec{{.group_size = 4, .params = prim::ParamType::f32}, prim::GroupAxis::token, rows, outliers, rank};
    const auto form = prim::DeviceForm<Codec>::of(codec, nullptr, 0, dim);
    CHECK(form.page_bytes(rows, dim) == codec.page_bytes(rows, dim));
    test::Device device;
    test::OnDevice<std::byte> page(device, std::vector<std::byte>(codec.page_bytes(rows, dim), std::byte{0x7f}));
    test::OnDevice<float> in(device, x), out(device, std::vector<float>(x.size(), NAN));
    test::OnDevice<prim::PageRows> jobs(device, {{page.data(), in.data(), dim, 0, rows}}), reads(device, {{page.data(), out.data(), dim, 0, rows}});
    using Pages = prim::PageCodec<Cuda, prim::CorrectedForm>;
    REQUIRE(Pages::encode(device, form, {jobs.data(), 1, rows, rows, dim}) == Status::ok);
    REQUIRE(Pages::decode(device, form, {reads.data(), 1, rows, rows, dim}) == Status::ok);
    const std::vector<std::byte> written = page.read();
    for (std::size_t i = at(form.corrections_at(rows) + form.places_end()); i < written.size(); ++i) CHECK(written[i] == std::byte{});  // files have it
    const std::vector<float> got = out.read();
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) sum += std::pow(static_cast<double>(got[i] - x[i]), 2);
    return std::sqrt(sum);
  };
  CHECK(error(0, 0) == Approx(1.678685345).epsilon(1e-6));
  CHECK(error(0.25, 0) == Approx(0.463782241).epsilon(1e-4));
  CHECK(error(0.25, 2) == Approx(0.051925618).epsilon(0.02));  // factors in fp16
}
