#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <tuple>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/quant/gear.hpp>
#include <kvcondense/quant/hadamard.hpp>
#include <kvcondense/quant/kivi.hpp>

#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>
#include <support/fill.hpp>
#include <support/guarded.hpp>
#include <support/oracle.hpp>
#include <support/singular_values.hpp>

using namespace kvcondense;
using prim::Corrected;
using prim::GroupAxis;
using prim::GroupInt;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

std::vector<float> normal_rows(index_t n, index_t dim, std::uint64_t seed) {
  std::vector<float> x(at(n * dim));
  test::fill_normal(x.data(), x.size(), seed);
  for (index_t i = 0; i < n; ++i) {
    x[at(i * dim + dim / 3)] *= 9.0f;             // a strong channel
    x[at(i * dim + (i * 7) % dim)] += 5.0f;       // something strong in every row
  }
  return x;
}

/// Rows in a page.
template <class Codec>
struct Stored {
  using Page = prim::PageCodec<Cpu, Codec>;

  Codec codec;
  index_t dim, n;
  test::Guarded<std::byte> bytes;
  prim::PageSpan page;
  index_t repaired;

  Stored(const Codec& c, const std::vector<float>& rows, index_t row)
      : codec(c), dim(row), n(static_cast<index_t>(rows.size()) / row), bytes(c.page_bytes(n, row), std::byte{0x7f}),
        page{bytes.data(), n, row} {
    REQUIRE(codec.valid(dim));
    repaired = Page::encode(codec, page, 0, n, {rows.data(), n, dim});
    REQUIRE(bytes.ok());
  }
  std::vector<float> decoded() const {
    std::vector<float> out(at(n * dim));
    Page::decode(codec, page, 0, n, {out.data(), n, dim});
    return out;
  }
  /// Whether folded scores and sums over slots [first, first + count) are those of decoded rows, some of them dead.
  void require_fold(index_t first, index_t count, index_t queries) const {
    const auto back = decoded();
    std::vector<float> q(at(queries * dim)), w(at(queries * count)), s(at(queries * (count + 3)), -5.0f), sums(q.size(), 0.25f);
    test::fill_normal(q.data(), q.size(), 7), test::fill_uniform(w.data(), w.size(), 8);
    for (std::size_t i = 0; i < w.size(); i += 3) w[i] = 0.0f;
    Page::scores(codec, page, first, count, {q.data(), queries, dim}, {s.data(), queries, count + 3});
    Page::accumulate(codec, page, first, count, {w.data(), queries, count}, {sums.data(), queries, dim});
    for (index_t r = 0; r < queries; ++r) {
      std::vector<double> want(at(dim), 0.25), size(at(dim), 0.25);
      for (index_t i = 0; i < count; ++i) {
        double dot = 0, terms = 0;
        for (index_t c = 0; c < dim; ++c) {
          const auto v = static_cast<double>(back[at((first + i) * dim + c)]);
          const double one = static_cast<double>(q[at(r * dim + c)]) * v, two = static_cast<double>(w[at(r * count + i)]) * v;
          dot += one, terms += std::abs(one);
          want[at(c)] += two, size[at(c)] += std::abs(two);
        }
        REQUIRE(std::abs(static_cast<double>(s[at(r * (count + 3) + i)]) - dot) <= 1e-5 * terms);
      }
      REQUIRE(s[at(r * (count + 3) + count)] == -5.0f);
      for (index_t c = 0; c < dim; ++c) REQUIRE(std::abs(static_cast<double>(sums[at(r * dim + c)]) - want[at(c)]) <= 1e-5 * size[at(c)]);
    }
  }
};

template <class Codec>
std::vector<float> coded(const Codec& codec, const std::vector<float>& rows, index_t dim) {
  return Stored<Codec>(codec, rows, dim).decoded();
}

double distance(const std::vector<float>& x, const std::vector<float>& y) {
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
  return std::sqrt(sum);
}

/// The places in [n][dim] of the `each` largest and smallest numbers of every vector, of equal ones the first.
std::set<std::size_t> ends(const std::vector<float>& x, index_t dim, GroupAxis axis, index_t each) {
  const auto n = static_cast<index_t>(x.size()) / dim;
  std::set<std::size_t> out;
  for (index_t v = 0; v < (axis == GroupAxis::channel ? dim : n); ++v) {
    std::vector<std::size_t> places;
    for (index_t i = 0; i < (axis == GroupAxis::channel ? n : dim); ++i)
      places.push_back(at(axis == GroupAxis::channel ? i * dim + v : v * dim + i));
    std::stable_sort(places.begin(), places.end(), [&](auto a, auto b) { return x[a] > x[b]; });
    out.insert(places.begin(), places.begin() + each);
    places.erase(places.begin(), places.begin() + each);
    std::sort(places.begin(), places.end());
    std::stable_sort(places.begin(), places.end(), [&](auto a, auto b) { return x[a] < x[b]; });
    out.insert(places.begin(), places.begin() + each);
  }
  return out;
}

/// The worked example: 5 rows of 8, 2 bits, groups of 4 channels, one outlier of each end of a row. Scales in f32.
struct Example {
  nlohmann::json o = test::load_oracle("quantization.json", "E_gear");
  std::vector<float> x = test::floats(o.at("X"));
  Corrected<GroupInt<2>> codec(double outliers, index_t rank, index_t loops = 3) const {
    return {{.group_size = 4, .params = prim::ParamType::f32}, GroupAxis::token, 5, outliers, rank, loops};
  }
  double error(const char* key) const { return o.at("fro_err").at(key).get<double>(); }
};

}  // namespace

TEST_CASE("gear: errors of codes, with outliers, and with a low-rank part are the worked example's", "[quant][gear][oracle]") {
  const Example e;
  REQUIRE(distance(e.x, coded(e.codec(0, 0), e.x, 8)) == Approx(e.error("quant_only")).epsilon(1e-6));
  const auto sparse = coded(e.codec(0.25, 0), e.x, 8);
  REQUIRE(distance(e.x, sparse) == Approx(e.error("quant+sparse")).epsilon(1e-4));
  // What stays is the example's residual, what is added its product, in fp16 factors.
  const auto residual = test::floats(e.o.at("residual_after_quant_and_sparse"));
  const auto outliers = ends(e.x, 8, GroupAxis::token, 1);
  std::set<std::size_t> want;
  for (std::size_t r = 0; r < 5; ++r)
    for (const auto& c : e.o.at("outlier_positions")[r]) want.insert(8 * r + c.get<std::size_t>());
  REQUIRE(outliers == want);
  for (std::size_t i = 0; i < 40; ++i)
    if (want.count(i) == 0) REQUIRE(e.x[i] - sparse[i] == Approx(residual[i]).margin(1e-6));
  for (const index_t loops : {1, 3, 8}) {
    const auto product = test::floats(e.o.at("power_iteration_r2").at("loops" + std::to_string(loops)).at("QPt"));
    const auto all = coded(e.codec(0.25, 2, loops), e.x, 8);
    double rest = 0;  // the published error counts what the product does to outliers, which ours are stored behind
    for (std::size_t i = 0; i < 40; ++i) {
      if (want.count(i) > 0) {
        REQUIRE(all[i] == Approx(e.x[i]).epsilon(5e-4).margin(1e-3));
        continue;
      }
      REQUIRE(all[i] - sparse[i] == Approx(product[i]).margin(2e-4));
      rest += std::pow(static_cast<double>(residual[i]) - static_cast<double>(product[i]), 2);
    }
    REQUIRE(distance(e.x, all) == Approx(std::sqrt(rest)).epsilon(0.02));
    if (loops > 1) REQUIRE(distance(e.x, all) < e.error("quant+sparse+rank2") * 1.001);
  }
}

TEST_CASE("gear: the codes are those of rows whose outliers are means", "[quant][gear][oracle]") {
  const Example e;
  const Stored<Corrected<GroupInt<2>>> s(e.codec(0.25, 2), e.x, 8);
  const auto filled = test::floats(e.o.at("filled"));
  const GroupInt<2> plain = s.codec.codec;
  const Stored<GroupInt<2>> want(plain, filled, 8);
  for (std::size_t i = 0; i < want.bytes.size(); ++i)
    if (i < 10) REQUIRE(s.bytes[i] == want.bytes[i]);
  for (index_t r = 0; r < 5; ++r)
    for (index_t c = 0; c < 8; ++c)
      REQUIRE((std::to_integer<int>(s.bytes[r * 2 + c / 4]) >> (c % 4 * 2) & 3) == e.o.at("codes")[at(r)][at(c)].get<int>());
}

TEST_CASE("gear: bytes are the published ones", "[quant][gear][oracle]") {
  const auto o = test::load_oracle("merging_lowrank.json", "gear_bytes");
  const index_t tokens = o.at("inputs").at("T"), heads = o.at("inputs").at("heads"), dim = o.at("inputs").at("d");
  const auto want = [&](const char* key) { return o.at("expected").at(key).get<index_t>(); };
  Corrected<GroupInt<2>> codec{{.axis = GroupAxis::channel, .group_size = 64}, GroupAxis::channel, tokens, 0.0, 0, 2};
  const auto bytes = [&] { return heads * static_cast<index_t>(codec.page_bytes(tokens, dim)); };
  REQUIRE(bytes() == want("codes") + want("group_meta"));
  codec.rank = o.at("params").at("rank");
  REQUIRE(bytes() == want("codes") + want("group_meta") + want("low_rank"));
  const index_t before = bytes();
  codec.outliers = o.at("params").at("sparsity");
  // Published: 6 bytes for each of 2 % of all numbers. Ours: 4, for whole numbers of outliers per channel.
  REQUIRE((bytes() - before) % 4 == 0);
  REQUIRE(static_cast<double>(bytes() - before) / 4 * 6 == Approx(want("sparse")).epsilon(1e-3));
}

TEST_CASE("gear: bits per number are the published ones, with shorter places in short vectors", "[quant][gear][oracle]") {
  const auto more = [](const auto& codec, index_t slots, index_t dim) {
    return static_cast<double>(codec.page_bytes(slots, dim) - codec.codec.page_bytes(slots, dim)) * 8 / static_cast<double>(slots * dim);
  };
  const GroupInt<2> keys{.axis = GroupAxis::channel, .group_size = 8};
  REQUIRE(more(Corrected<GroupInt<2>>{keys, GroupAxis::channel, 1024, 0.0, 4}, 1024, 128) == 0.5625);
  REQUIRE(more(Corrected<GroupInt<2>>{keys, GroupAxis::channel, 64, 0.0, 2}, 256, 128) == 0.75);
  REQUIRE(more(Corrected<GroupInt<2>>{keys, GroupAxis::channel, 1000, 0.02, 0}, 1000, 16) == Approx(0.64));
  // Places in 200 numbers need one byte, not two: 24 bits for each of 2 %.
  REQUIRE(more(Corrected<GroupInt<2>>{GroupInt<2>{}, GroupAxis::token, 64, 0.02, 0}, 64, 200) == Approx(0.48));
  const quant::Gear<2> gear{};
  REQUIRE(static_cast<double>(gear.key_codec().page_bytes(64, 128)) * 8 / (64 * 128) == 2.5 + 0.75 + 0.75);
  REQUIRE(static_cast<double>(gear.value_codec().page_bytes(64, 128)) * 8 / (64 * 128) == 2.5 + 0.75 + 0.375);
  const quant::Gear<4> kcvt{.chunk = 32, .rank = 0, .sparse = 0.0, .layout = quant::GearLayout::kcvt};
  REQUIRE(static_cast<double>(kcvt.key_codec().page_bytes(64, 128)) * 8 / (64 * 128) == 5.0);
  REQUIRE(static_cast<double>(kcvt.value_codec().page_bytes(64, 128)) * 8 / (64 * 128) == 4.25);
}

TEST_CASE("gear: outliers come back with the error of an fp16 number, whatever the rank", "[quant][gear]") {
  const index_t dim = GENERATE(64, 80, 128), rank = GENERATE(0, 3);
  const double part = GENERATE(0.04, 0.2, 1.0);
  const auto rows = normal_rows(64, dim, 11);
  const auto axis = GENERATE(GroupAxis::channel, GroupAxis::token);
  const GroupInt<2> codes{.axis = axis, .group_size = 16};
  const Corrected<GroupInt<2>> codec{codes, axis, 64, part, rank};
  const auto back = coded(codec, rows, dim);
  for (const std::size_t i : ends(rows, dim, axis, codec.each_end(dim))) {
    // Half a unit in the last place of what is stored: the number less its code (a mean's) and a small product.
    REQUIRE(std::abs(back[i] - rows[i]) <= 0x1p-11f * (std::abs(rows[i]) + 4.0f));
  }
}

TEST_CASE("gear: every part makes the error smaller, and the low-rank part is nearly the best there is", "[quant][gear]") {
  const auto given = GENERATE(table<index_t, GroupAxis>({{64, GroupAxis::channel}, {128, GroupAxis::token}, {80, GroupAxis::channel}}));
  const index_t dim = std::get<0>(given);
  const GroupAxis axis = std::get<1>(given);
  const auto rows = normal_rows(64, dim, 5);
  const GroupInt<2> codes{.axis = axis, .group_size = 16};
  const auto codec = [&](double part, index_t rank) { return Corrected<GroupInt<2>>{codes, axis, 64, part, rank}; };
  const auto sparse = coded(codec(0.04, 0), rows, dim);
  double last = distance(rows, coded(codec(0, 0), rows, dim));
  REQUIRE(last == distance(rows, coded(codes, rows, dim)));  // nothing to correct with: the codec itself
  REQUIRE(distance(rows, sparse) < last);
  const auto outliers = ends(rows, dim, axis, codec(0.04, 0).each_end(dim));
  std::vector<float> residual(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) residual[i] = outliers.count(i) > 0 ? 0.0f : rows[i] - sparse[i];
  for (const index_t rank : {1, 2, 4, 8}) {
    const double error = distance(rows, coded(codec(0.04, rank), rows, dim));
    REQUIRE(error < last);
    REQUIRE(error <= 1.05 * test::rank_error(residual, 64, dim, rank));
    last = error;
  }
  for (const index_t loops : {2, 8}) {
    auto more = codec(0.04, 2);
    more.loops = 1;
    const double once = distance(rows, coded(more, rows, dim));
    more.loops = loops;
    REQUIRE(distance(rows, coded(more, rows, dim)) < once);
  }
}

TEST_CASE("gear: any part of a page folds to what its rows give, in both layouts", "[quant][gear]") {
  const index_t dim = GENERATE(64, 80, 96, 112, 128, 256);
  const index_t queries = GENERATE(1, 2, 3, 7, 16, 32);
  const auto layout = GENERATE(quant::GearLayout::kivi, quant::GearLayout::kcvt);
  const auto rows = normal_rows(96, dim, 2);
  const quant::Gear<2> gear{.group_size = 16, .chunk = 32, .rank = 4, .sparse = 0.1, .layout = layout};
  const Stored<Corrected<GroupInt<2>>> keys(gear.key_codec(), rows, dim), values(gear.value_codec(), rows, dim);
  for (const auto& [first, count] : {std::pair<index_t, index_t>{0, 96}, {5, 1}, {31, 2}, {40, 50}, {64, 32}}) {
    keys.require_fold(first, count, queries);
    values.require_fold(first, count, queries);
  }
}

TEST_CASE("gear: parts that are off and chunks of other sizes fold too", "[quant][gear]") {
  const index_t dim = 64;
  const auto axis = GENERATE(GroupAxis::channel, GroupAxis::token);
  for (const auto& [chunk, part, rank] :
       {std::tuple<index_t, double, index_t>{16, 0.0, 0}, {16, 0.2, 0}, {16, 0.0, 3}, {1, 0.1, 1}, {2, 1.0, 1}, {128, 0.02, 8}, {256, 1.0, 2}}) {
    CAPTURE(chunk, part, rank);
    const auto rows = normal_rows(256, dim, 3);
    const GroupInt<3> codes{.axis = axis, .group_size = axis == GroupAxis::token ? 32 : std::min<index_t>(chunk, 16)};
    const Stored<Corrected<GroupInt<3>>> s({codes, axis, chunk, part, rank}, rows, dim);
    s.require_fold(0, 256, 3);
    s.require_fold(100, 77, 7);
    const auto all = s.decoded();
    std::vector<float> one(at(dim));
    for (const index_t i : {0, 17, 130, 255}) {  // a row alone is the row among all
      decltype(s)::Page::decode(s.codec, s.page, i, 1, {one.data(), 1, dim});
      for (index_t c = 0; c < dim; ++c) REQUIRE(one[at(c)] == all[at(i * dim + c)]);
    }
  }
}

TEST_CASE("gear: vectors longer than 256 have places of two bytes", "[quant][gear]") {
  const auto rows = normal_rows(512, 32, 4);
  const Corrected<GroupInt<2>> codec{{.axis = GroupAxis::channel, .group_size = 64}, GroupAxis::channel, 512, 0.02, 2};
  const Stored<Corrected<GroupInt<2>>> s(codec, rows, 32);
  const auto back = s.decoded();
  for (const std::size_t i : ends(rows, 32, GroupAxis::channel, 5)) REQUIRE(back[i] == Approx(rows[i]).epsilon(1e-3).margin(1e-3));
  s.require_fold(200, 300, 4);
}

TEST_CASE("gear: slots of chunks of one move with what corrects them", "[quant][gear]") {
  const auto rows = normal_rows(8, 64, 6);
  const Corrected<GroupInt<2>> codec{{.group_size = 16}, GroupAxis::token, 1, 0.1, 1};
  const Stored<Corrected<GroupInt<2>>> s(codec, rows, 64);
  const auto back = s.decoded();
  std::vector<std::byte> other(codec.page_bytes(3, 64));
  std::vector<float> moved(64);
  decltype(s)::Page::move(codec, {other.data(), 3, 64}, 1, s.page, 6);
  decltype(s)::Page::decode(codec, {other.data(), 3, 64}, 1, 1, {moved.data(), 1, 64});
  REQUIRE(moved == std::vector<float>(back.begin() + 6 * 64, back.begin() + 7 * 64));
}

TEST_CASE("gear: an outlier at a damaged place, behind its vector, is nowhere", "[quant][gear]") {
  const index_t dim = 200, chunk = 8;
  const auto rows = normal_rows(chunk, dim, 8);
  const auto axis = GENERATE(GroupAxis::channel, GroupAxis::token);
  const Corrected<GroupInt<2>> codec{{.axis = axis, .group_size = 8}, axis, chunk, 0.25, 1};
  using Rows = Stored<Corrected<GroupInt<2>>>;
  Rows damaged(codec, rows, dim), without(codec, rows, dim);
  const index_t corrections = codec.corrections_at(chunk, dim), outliers = codec.outlier_count(dim);
  std::fill_n(damaged.bytes.data() + corrections + codec.places_at(dim), outliers, std::byte{0xff});
  std::fill_n(without.bytes.data() + corrections + codec.addends_at(dim), 2 * outliers, std::byte{});
  REQUIRE((damaged.decoded() == without.decoded()));
  std::vector<float> ones(256, std::numeric_limits<float>::quiet_NaN());  // behind a row of them
  std::fill_n(ones.begin(), dim, 1.0f);
  const auto folded = [&](const Rows& s) {
    std::vector<float> out(at(chunk + 256), 0.0f);  // scores, and sums with what is behind them
    Rows::Page::scores(codec, s.page, 0, chunk, {ones.data(), 1, dim}, {out.data(), 1, chunk});
    Rows::Page::accumulate(codec, s.page, 0, chunk, {ones.data(), 1, chunk}, {out.data() + chunk, 1, dim});
    return out;
  };
  REQUIRE((folded(damaged) == folded(without)));
}

TEST_CASE("gear: what is no number is repaired and counted, all else comes back finite", "[quant][gear]") {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const auto axis = GENERATE(GroupAxis::channel, GroupAxis::token);
  const double part = GENERATE(0.0, 0.25);
  const index_t dim = 16;
  const Corrected<GroupInt<2>> codec{{.axis = axis, .group_size = 8}, axis, 16, part, 2};
  using Rows = Stored<Corrected<GroupInt<2>>>;
  const auto good = normal_rows(16, dim, 7);
  auto bad = good, want = good;
  // Row 3 and channel 5 are one number's vectors; the ends are those of the others.
  bad[3 * 16 + 5] = nan, want[3 * 16 + 5] = 0.0f;
  REQUIRE(Rows(codec, good, dim).repaired == 0);
  REQUIRE(Rows(codec, bad, dim).repaired == 1);
  REQUIRE(Rows(codec, bad, dim).decoded() == Rows(codec, want, dim).decoded());
  for (const float x : {inf, -inf, 1e38f}) {
    bad = want = good;
    bad[9 * 16 + 2] = x;
    float end = x > 0 ? -1e30f : 1e30f;
    for (index_t i = 0; i < 16; ++i) {
      const std::size_t j = at(axis == GroupAxis::channel ? i * dim + 2 : 9 * dim + i);
      if (j != 9 * 16 + 2) end = x > 0 ? std::max(end, good[j]) : std::min(end, good[j]);
    }
    want[9 * 16 + 2] = end;
    REQUIRE(Rows(codec, bad, dim).repaired == 1);
    REQUIRE(Rows(codec, bad, dim).decoded() == Rows(codec, want, dim).decoded());
  }
  const Rows nothing(codec, std::vector<float>(256, nan), dim);
  REQUIRE(nothing.repaired == 256);
  REQUIRE(nothing.decoded() == std::vector<float>(256, 0.0f));
  REQUIRE(Rows(codec, std::vector<float>(256, 0.0f), dim).decoded() == std::vector<float>(256, 0.0f));
  REQUIRE(Rows(codec, std::vector<float>(256, 2.5f), dim).decoded() == std::vector<float>(256, 2.5f));  // constant: ties
  for (const float size : {1e-30f, 1e-6f, 1e3f, 1e9f, 1e30f, 3e37f}) {
    auto huge = good;
    for (float& x : huge) x *= size;
    const Rows s(codec, huge, dim);
    for (const float x : s.decoded()) REQUIRE(std::isfinite(x));
    if (size > 1e5f) REQUIRE(s.repaired > 0);  // nothing of that size is an fp16 number
    else REQUIRE(s.repaired == 0);
  }
}

TEST_CASE("gear: every field changes what is stored", "[quant][gear]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 64};
  const auto stored = [&](const auto& gear) {
    test::CacheRig rig(shape, recipe(gear), 180, 160);
    std::mt19937 random(3);
    const test::Tokens t(shape, 150, random);
    REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
    std::vector<float> rows(150 * 128);
    REQUIRE(rig.cache.read(0, 0, 0, test::view2(rows.data(), 150, 64), test::view2(rows.data() + 150 * 64, 150, 64)) == Status::ok);
    return rows;
  };
  using Gear = quant::Gear<2>;
  const Gear base{.group_size = 32};
  const auto usual = stored(base);
  REQUIRE((stored(base) == usual));
  REQUIRE((stored(quant::Gear<3>{.group_size = 32}) != usual));
  for (const Gear& other : {Gear{.group_size = 64}, Gear{.group_size = 32, .chunk = 128}, Gear{.group_size = 32, .rank = 1},
                            Gear{.group_size = 32, .loops = 1}, Gear{.group_size = 32, .sparse = 0.1},
                            Gear{.group_size = 32, .layout = quant::GearLayout::kcvt}, Gear{.group_size = 32, .sinks = 3},
                            Gear{.group_size = 32, .keep_window = 30}}) {
    REQUIRE((stored(other) != usual));
    REQUIRE((other.key_codec().fingerprint() != base.key_codec().fingerprint() ||
             other.value_codec().fingerprint() != base.value_codec().fingerprint() || other.sinks > 0 || other.keep_window > 0));
  }
}

TEST_CASE("gear: bad fields are refused", "[quant][gear]") {
  const CacheShape shape{.head_dim = 128};
  using Gear = quant::Gear<2>;
  REQUIRE(Gear{}.validate(shape) == Status::ok);
  REQUIRE(Gear{.chunk = 128, .rank = 8}.validate(shape) == Status::ok);
  REQUIRE(Gear{.group_size = 1, .chunk = 1, .rank = 1}.validate(shape) == Status::ok);
  REQUIRE(Gear{.chunk = 32, .rank = 0, .sparse = 0.0, .layout = quant::GearLayout::kcvt}.validate({.head_dim = 80}) == Status::ok);
  for (const Gear& bad : {Gear{.group_size = 0}, Gear{.group_size = -8}, Gear{.group_size = 48}, Gear{.chunk = 0}, Gear{.chunk = -64}, Gear{.chunk = 32},
                          Gear{.group_size = 16, .chunk = 48}, Gear{.chunk = 256}, Gear{.chunk = 512}, Gear{.rank = -1}, Gear{.rank = 9},
                          Gear{.group_size = 1, .chunk = 1}, Gear{.loops = 0}, Gear{.loops = 65}, Gear{.sparse = -0.1}, Gear{.sparse = 1.1},
                          Gear{.sparse = std::numeric_limits<double>::quiet_NaN()}, Gear{.sinks = -1}, Gear{.keep_window = -1}})
    REQUIRE(bad.validate(shape) == Status::invalid_argument);
  REQUIRE(Gear{}.validate({.head_dim = 80}) == Status::invalid_argument);  // groups of values
}

TEST_CASE("gear: chunks are coded alone, whatever the steps", "[quant][gear][cache]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 64};
  std::mt19937 random(2);
  const test::Tokens all(shape, 200, random);
  const auto stored = [&](index_t step) {
    test::CacheRig rig(shape, recipe(quant::Gear<2>{.sinks = 5, .keep_window = 10}), 240, 200);
    for (index_t i = 0; i < 200; i += step) {
      auto k = all.keys(shape), v = all.values(shape);
      k.data += i * k.stride[1], v.data += i * v.stride[1];
      k.extent[1] = v.extent[1] = std::min(step, 200 - i);
      REQUIRE(rig.cache.append(rig.ctx, 0, k, v) == Status::ok);
      REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
    }
    REQUIRE(rig.cache.layers()[0].heads[1].keys.coded().live() == 128);
    REQUIRE(rig.cache.layers()[0].heads[1].values.coded().live() == 128);
    std::vector<float> rows(200 * 128);
    REQUIRE(rig.cache.read(0, 1, 0, test::view2(rows.data(), 200, 64), test::view2(rows.data() + 200 * 64, 200, 64)) == Status::ok);
    return rows;
  };
  const auto once = stored(200);
  for (const index_t step : {1, 7, 64, 100}) REQUIRE((stored(step) == once));
}

TEST_CASE("gear: attention over pages is attention over what they read as, under any calls", "[quant][gear][cache]") {
  const auto [heads, groups, dim] =
      GENERATE(table<index_t, index_t, index_t>({{2, 1, 64}, {1, 3, 80}, {2, 7, 96}, {1, 16, 112}, {2, 4, 128}}));
  const auto layout = GENERATE(quant::GearLayout::kivi, quant::GearLayout::kcvt);
  const CacheShape shape{.layers = 1, .q_heads = heads * groups, .kv_heads = heads, .head_dim = dim, .page_slots = 64};
  const quant::Gear<3> gear{.group_size = 16, .chunk = 16, .rank = 2, .sparse = 0.1, .layout = layout, .sinks = 2, .keep_window = 3};
  for (std::uint32_t seed = 1; seed <= 4; ++seed) {
    test::exercise(shape, recipe(gear), seed, 24, 4.0);
    test::exercise(shape, recipe(evict::H2O{.heavy = 30, .recent = 30}, gear), seed, 24, 4.0);
    test::exercise(shape, recipe(quant::Hadamard<quant::Gear<3>>{.base = gear, .spread_offsets = true}), seed, 12, 4.0);
  }
}

TEST_CASE("gear: two bits with corrections are nearer than two bits without, and 4 bits nearer than both", "[quant][gear][cache]") {
  const CacheShape shape{.q_heads = 1, .kv_heads = 1, .head_dim = 128};
  const auto error = [&](const auto& stage) {
    test::CacheRig rig(shape, recipe(stage), 300, 260);
    std::mt19937 random(3);
    test::Tokens t(shape, 256, random);
    for (index_t i = 0; i < 256; ++i) t.k[at(i * 128 + 5)] *= 12.0f, t.k[at(i * 128 + (i * 31) % 128)] += 6.0f;
    REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
    std::vector<float> k(t.k.size()), v(t.v.size());
    REQUIRE(rig.cache.read(0, 0, 0, test::view2(k.data(), 256, 128), test::view2(v.data(), 256, 128)) == Status::ok);
    return std::pow(distance(k, t.k), 2) + std::pow(distance(v, t.v), 2);
  };
  const double plain = error(quant::Kivi<2>{.group_size = 64, .residual_window = 64}), gear = error(quant::Gear<2>{});
  REQUIRE(gear < 0.75 * plain);
  REQUIRE(error(quant::Gear<4>{}) < 0.2 * gear);
  REQUIRE(error(quant::Gear<2>{.sparse = 0.0}) < plain);
}
