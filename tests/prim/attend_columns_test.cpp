#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/attend_columns.hpp>
#include <support/guarded.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using prim::ColumnRequest;
using prim::GroupReduce;
using prim::RowReduce;

namespace {

/// Queries and keys in plain floats; the last `rows` slots are the rows' own tokens.
struct Case {
  CacheShape shape;
  index_t rows, slots;
  std::vector<float> q, k;  // [q_heads, rows, dim], [kv_heads, slots, dim]

  Case(index_t kv_heads, index_t group, index_t rows_, index_t slots_, index_t dim)
      : shape{.q_heads = kv_heads * group, .kv_heads = kv_heads, .head_dim = dim,
              .softmax_scale = 1.0f / std::sqrt(static_cast<float>(dim))},
        rows(rows_), slots(slots_) {
    std::mt19937 random(static_cast<std::uint32_t>(kv_heads + 3 * group + 7 * rows + 11 * slots + dim));
    std::normal_distribution<float> normal;
    q.resize(static_cast<std::size_t>(shape.q_heads * rows * dim));
    k.resize(static_cast<std::size_t>(kv_heads * slots * dim));
    for (auto* x : {&q, &k})
      for (float& e : *x) e = normal(random);
  }

  /// The newest `rows_` of the first eight tokens of the worked fixture.
  explicit Case(index_t rows_) : Case(2, 2, rows_, 8, 4) {
    const auto fx = test::load_oracle("eviction.json", "fixture_FX1");
    shape.softmax_scale = fx.at("scale").get<float>();
    for (std::size_t h = 0; h < 4; ++h)
      for (index_t t = 0; t < rows; ++t)
        for (std::size_t d = 0; d < 4; ++d)
          q[(h * static_cast<std::size_t>(rows) + static_cast<std::size_t>(t)) * 4 + d] =
              fx.at("Q")[h][static_cast<std::size_t>(8 - rows + t)][d].get<float>();
    for (std::size_t h = 0; h < 2; ++h)
      for (std::size_t t = 0; t < 8; ++t)
        for (std::size_t d = 0; d < 4; ++d) k[(h * 8 + t) * 4 + d] = fx.at("K")[h][t][d].get<float>();
  }

  std::vector<float> run(ColumnRequest r) const {
    const index_t series = r.group == GroupReduce::none ? shape.group() : 1;
    std::vector<index_t> offset;
    for (index_t h = 0; h <= shape.kv_heads; ++h) offset.push_back(h * slots);
    std::vector<float> out(static_cast<std::size_t>(shape.kv_heads * slots * series));
    std::vector<std::byte> scratch(1 << 20);
    Context<Cpu> ctx(scratch);
    r.rows = rows, r.out = {out.data(), offset.data(), shape.kv_heads};
    REQUIRE(prim::AttendColumns<Cpu>::run(ctx, r, shape, [&](index_t h) { return Head{this, h}; }) == Status::ok);
    return out;
  }

  struct Head {
    struct Cursor {
      index_t at = 0;
    };
    const Case* c;
    index_t h;
    index_t slots() const { return c->slots; }
    index_t visible(index_t row) const { return std::max<index_t>(0, c->slots - c->rows + row + 1); }
    index_t token(index_t slot) const { return slot; }
    index_t row_token(index_t row) const { return c->slots - c->rows + row; }
    void load_query(index_t row, index_t member, float* out) const {
      const index_t dim = c->shape.head_dim, q_head = h * c->shape.group() + member;
      std::copy_n(c->q.data() + (q_head * c->rows + row) * dim, dim, out);
    }
    void key_scores(Cursor& at, index_t n, prim::RowBlock<const float> queries, prim::RowBlock<float> out, index_t first) const {
      REQUIRE(at.at == first);
      REQUIRE(queries.rows <= 32);
      prim::cpu::dot_rows(c->k.data() + (h * c->slots + first) * c->shape.head_dim, n, c->shape.head_dim, queries, out);
      at.at += n;
    }
  };

  double logit(index_t q_head, index_t row, index_t slot) const {
    const index_t dim = shape.head_dim, h = q_head / shape.group();
    double sum = 0;
    for (index_t d = 0; d < dim; ++d)
      sum += static_cast<double>(q[static_cast<std::size_t>((q_head * rows + row) * dim + d)]) *
             static_cast<double>(k[static_cast<std::size_t>((h * slots + slot) * dim + d)]);
    return sum * static_cast<double>(shape.softmax_scale);
  }

  using Row = std::vector<double>;
  static Row softmax(Row z) {
    double top = -INFINITY, sum = 0;
    for (const double x : z) top = std::max(top, x);
    for (double& x : z) sum += x = std::exp(x - top);
    for (double& x : z) x /= sum;
    return z;
  }

  /// As the card says it, row by row, the whole matrix in double.
  std::vector<double> want(const ColumnRequest& r, index_t h) const {
    const auto counts = [&](index_t row) { return r.chosen.empty() || std::find(r.chosen.begin(), r.chosen.end(), row) != r.chosen.end(); };
    const index_t group = shape.group(), series = r.group == GroupReduce::none ? group : 1;
    std::vector<double> out(static_cast<std::size_t>(series * slots), 0.0);
    for (index_t row = 0; row < rows; ++row) {
      const index_t all = slots - rows + row + 1, seen = r.past ? std::min(all, slots - rows) : all;
      if (seen <= 0 || !counts(row)) continue;
      std::vector<Row> p;
      Row most(static_cast<std::size_t>(seen), -INFINITY);
      for (index_t g = 0; g < group; ++g) {
        Row z;
        for (index_t j = 0; j < seen; ++j) {
          z.push_back(logit(h * group + g, row, j) / static_cast<double>(r.temperature));
          most[static_cast<std::size_t>(j)] = std::max(most[static_cast<std::size_t>(j)], z.back());
        }
        p.push_back(softmax(z));
      }
      if (r.group == GroupReduce::max_logit) {
        p = {softmax(most)};
      } else if (r.group != GroupReduce::none) {
        Row one(static_cast<std::size_t>(seen), 0.0);
        for (std::size_t j = 0; j < one.size(); ++j)
          for (const Row& x : p) one[j] = r.group == GroupReduce::max ? std::max(one[j], x[j]) : one[j] + x[j];
        if (r.group == GroupReduce::mean)
          for (double& x : one) x /= static_cast<double>(group);
        p = {one};
      }
      for (std::size_t s = 0; s < p.size(); ++s)
        for (std::size_t j = 0; j < p[s].size(); ++j) {
          if (r.band > 0 && static_cast<index_t>(j) < seen - r.band) continue;
          double& to = out[s * static_cast<std::size_t>(slots) + j];
          const double x = p[s][j];
          switch (r.row) {
            case RowReduce::sum: to += x; break;
            case RowReduce::mean: to += x / static_cast<double>(r.chosen.empty() ? rows : static_cast<index_t>(r.chosen.size())); break;
            case RowReduce::seen_mean: {
              double see = 0;  // rows that see the slot
              for (index_t other = 0; other < rows; ++other) see += counts(other) && static_cast<index_t>(j) < (r.past ? std::min(slots - rows + other + 1, slots - rows) : slots - rows + other + 1);
              to += x / see;
              break;
            }
            case RowReduce::max: to = std::max(to, x); break;
            case RowReduce::low_count: to += x < 1.0 / static_cast<double>(seen); break;
            case RowReduce::log_decay: break;  // want_logs
          }
        }
    }
    return out;
  }

  /// Runs in exactly the scratch the word asks for, and compares every number.
  void check(ColumnRequest r, double bound = 2e-6) const {
    const index_t series = r.group == GroupReduce::none ? shape.group() : 1;
    std::vector<index_t> offset;
    for (index_t h = 0; h <= shape.kv_heads; ++h) offset.push_back(h * slots);
    test::Guarded<float> out(static_cast<std::size_t>(shape.kv_heads * slots * series), -7.0f);
    r.rows = rows;
    r.out = {out.data(), offset.data(), shape.kv_heads};
    std::vector<std::byte> scratch(prim::AttendColumns<Cpu>::workspace_bytes(1, shape, rows));
    Context<Cpu> ctx(scratch);
    REQUIRE(prim::AttendColumns<Cpu>::run(ctx, r, shape, [&](index_t h) { return Head{this, h}; }) == Status::ok);
    REQUIRE(out.ok());
    // Logits that are kept between the passes, of some slots or of all, are those that keys give again.
    for (const index_t room : {index_t{512}, slots}) {
      std::vector<float> same(static_cast<std::size_t>(out.size()), -7.0f);
      scratch.resize(prim::AttendColumns<Cpu>::workspace_bytes(1, shape, rows, 0, room));
      ctx = Context<Cpu>(scratch), r.out.data = same.data();
      REQUIRE(prim::AttendColumns<Cpu>::run(ctx, r, shape, [&](index_t h) { return Head{this, h}; }) == Status::ok);
      REQUIRE(std::equal(same.begin(), same.end(), out.data()));
    }
    for (index_t h = 0; h < shape.kv_heads; ++h) {
      const auto expected = want(r, h);
      double worst = 0;
      for (std::size_t j = 0; j < expected.size(); ++j) {
        const double off = std::abs(out.data()[static_cast<std::size_t>(h * slots * series) + j] - expected[j]);
        worst = off <= worst ? worst : off == off ? off : INFINITY;
      }
      REQUIRE(worst <= bound * static_cast<double>(rows * shape.group()));
    }
  }
};

}  // namespace

TEST_CASE("attend_columns: every reduction equals the whole matrix in double", "[prim][attend_columns]") {
  const index_t group = GENERATE(1, 3, 7, 16, 40);
  const index_t rows = GENERATE(1, 2, 9, 33);
  const index_t slots = GENERATE(33, 512, 700);
  const Case c(2, group, rows, slots, 24);
  CAPTURE(group, rows, slots);
  for (const auto g : {GroupReduce::none, GroupReduce::sum, GroupReduce::mean, GroupReduce::max, GroupReduce::max_logit})
    for (const auto r : {RowReduce::sum, RowReduce::mean, RowReduce::max})
      for (const bool past : {false, true}) {
        CAPTURE(static_cast<int>(g), static_cast<int>(r), past);
        c.check({.group = g, .row = r, .past = past});
      }
}

TEST_CASE("attend_columns: head sizes, one slot and rows that see nothing", "[prim][attend_columns]") {
  for (const index_t dim : {1, 64, 80, 96, 112, 128, 256}) Case(1, 4, 5, 70, dim).check({});
  Case(3, 2, 1, 1, 16).check({});
  Case(1, 2, 4, 4, 16).check({.past = true});  // nothing is older than the window
  const Case none(1, 1, 0, 5, 16);
  none.check({});
}

TEST_CASE("attend_columns: a band leaves a row's numbers to the newest slots it sees, and the softmax to all", "[prim][attend_columns]") {
  const index_t group = GENERATE(1, 3, 16);
  const index_t rows = GENERATE(1, 9, 33);
  const index_t slots = GENERATE(33, 512, 700);
  const Case c(2, group, rows, slots, 24);
  CAPTURE(group, rows, slots);
  for (const index_t band : {1, 2, 40, 600, 1000})
    for (const auto g : {GroupReduce::none, GroupReduce::mean, GroupReduce::max_logit})
      for (const auto r : {RowReduce::sum, RowReduce::mean, RowReduce::max})
        for (const bool past : {false, true}) {
          CAPTURE(static_cast<int>(g), static_cast<int>(r), past, band);
          c.check({.group = g, .row = r, .past = past, .band = band});
        }
  const auto all = c.run({}), wide = c.run({.band = slots});
  REQUIRE(wide == all);
}

TEST_CASE("attend_columns: low counts are whole numbers below the even share", "[prim][attend_columns]") {
  const Case c(2, 3, 12, 90, 32);
  c.check({.group = GroupReduce::mean, .row = RowReduce::low_count}, 0.0);
  c.check({.group = GroupReduce::none, .row = RowReduce::low_count}, 0.0);
  for (const index_t band : {1, 17, 80, 90}) c.check({.group = GroupReduce::mean, .row = RowReduce::low_count, .band = band}, 0.0);
}

TEST_CASE("attend_columns: sums of exp(logit) that fade from row to row, as logarithms, go on from what is there", "[prim][attend_columns]") {
  const index_t group = GENERATE(1, 3, 16, 40);
  const index_t rows = GENERATE(1, 9, 33);
  const index_t slots = GENERATE(33, 700);
  const float decay = GENERATE(0.0f, 0.5f, 0.98f);
  const bool add = GENERATE(false, true);
  CAPTURE(group, rows, slots, decay, add);
  Case c(2, group, rows, slots, 24);
  for (float& x : c.q) x *= 40.0f;  // exp of such logits is no float
  test::Guarded<float> out(static_cast<std::size_t>(2 * slots), 2.5f);
  const index_t offset[] = {0, slots, 2 * slots};
  std::vector<std::byte> scratch(prim::AttendColumns<Cpu>::workspace_bytes(1, c.shape, rows));
  Context<Cpu> ctx(scratch);
  const ColumnRequest r{.rows = rows, .row = RowReduce::log_decay, .add = add, .decay = decay, .out = {out.data(), offset, 2}};
  REQUIRE(prim::AttendColumns<Cpu>::run(ctx, r, c.shape, [&](index_t h) { return Case::Head{&c, h}; }) == Status::ok);
  REQUIRE(out.ok());
  const auto sum_of = [](double a, double b) { return std::isinf(std::max(a, b)) ? std::max(a, b) : std::max(a, b) + std::log1p(std::exp(-std::abs(a - b))); };
  double worst = 0;
  for (index_t h = 0; h < 2; ++h)
    for (index_t j = 0; j < slots; ++j) {
      double want = add ? 2.5 : -INFINITY;
      for (index_t row = std::max<index_t>(0, j - (slots - rows)); row < rows; ++row) {
        double mean = -INFINITY;
        for (index_t g = 0; g < group; ++g) mean = sum_of(mean, c.logit(h * group + g, row, j));
        mean -= std::log(static_cast<double>(group));
        want = sum_of(want + std::log(static_cast<double>(decay)), mean + std::log(1.0 - static_cast<double>(decay)));
      }
      const double off = std::abs(static_cast<double>(out.data()[h * slots + j]) - want) / std::max(1.0, std::abs(want));
      worst = off <= worst ? worst : off == off ? off : INFINITY;
    }
  REQUIRE(worst < 1e-5);
}

TEST_CASE("attend_columns: temperature flattens, noise is the same every time and follows its seed", "[prim][attend_columns]") {
  const Case c(1, 2, 3, 600, 16);
  c.check({.temperature = 1.75f});
  const auto noisy = [&](std::uint64_t seed) { return c.run({.seed = seed}); };
  REQUIRE(noisy(5) == noisy(5));
  REQUIRE(noisy(5) != noisy(6));
  REQUIRE(noisy(5) != noisy(0));
  double sum = 0;
  for (const float x : noisy(5)) sum += static_cast<double>(x);
  REQUIRE(sum == Approx(3.0).epsilon(1e-5));
}

TEST_CASE("attend_columns: sums go on from what is there, rows may warm", "[prim][attend_columns]") {
  const Case c(2, 3, 4, 40, 16);
  std::vector<float> out(80, 0.0f);
  const index_t offset[] = {0, 40, 80};
  std::vector<std::byte> scratch(1 << 20);
  Context<Cpu> ctx(scratch);
  ColumnRequest r{.rows = 4, .add = true, .out = {out.data(), offset, 2}};
  for (int i = 0; i < 2; ++i)
    REQUIRE(prim::AttendColumns<Cpu>::run(ctx, r, c.shape, [&](index_t h) { return Case::Head{&c, h}; }) == Status::ok);
  const auto once = c.run({});
  for (std::size_t j = 0; j < 80; ++j) REQUIRE(out[j] == Approx(2 * once[j]));

  // Row r at temperature 0.5 + r: one row at a time, of the same four.
  std::vector<double> want(40, 0.0);
  for (index_t row = 0; row < 4; ++row) {
    Case::Row z;
    for (index_t j = 0; j < 40 - 4 + row + 1; ++j) z.push_back(c.logit(0, row, j) / (0.5 + static_cast<double>(row)));
    const auto p = Case::softmax(z);
    for (std::size_t j = 0; j < p.size(); ++j) want[j] += p[j];
  }
  const auto warm = c.run({.group = GroupReduce::none, .temperature = 0.5f, .warming = 1.0f});
  for (std::size_t j = 0; j < 40; ++j) REQUIRE(static_cast<double>(warm[j]) == Approx(want[j]).margin(2e-6));
}

TEST_CASE("attend_columns: what is no number counts as low", "[prim][attend_columns]") {
  Case c(1, 1, 2, 6, 4);
  for (std::size_t d = 0; d < 4; ++d) c.q[d] = std::numeric_limits<float>::quiet_NaN();  // the first row
  Case clean(1, 1, 2, 6, 4);
  const auto got = c.run({.row = RowReduce::low_count}), fine = clean.run({.row = RowReduce::low_count});
  for (std::size_t j = 0; j < 5; ++j) REQUIRE(got[j] >= fine[j]);
  for (std::size_t j = 0; j < 5; ++j) REQUIRE(got[j] >= 1.0f);
}

TEST_CASE("attend_columns: the worked columns of the fixture", "[prim][attend_columns][oracle]") {
  const auto equal = [](const std::vector<float>& got, const nlohmann::json& want, std::size_t rows, std::size_t width) {
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t j = 0; j < want[r].size(); ++j) REQUIRE(got[r * width + j] == Approx(want[r][j].get<double>()).margin(2e-6));
  };
  const auto sums = test::load_oracle("eviction.json", "block_lse_column_sums");
  equal(Case(8).run({.group = GroupReduce::none}), sums.at("column_sums"), 4, 8);
  equal(Case(2).run({.group = GroupReduce::none}), sums.at("last_two_rows_only"), 4, 8);
  const auto gqa = test::load_oracle("eviction.json", "block_gqa_aggregation");
  equal(Case(1).run({.group = GroupReduce::none}), gqa.at("probs"), 4, 8);
  equal(Case(1).run({.group = GroupReduce::mean}), gqa.at("prob_mean"), 2, 8);
  equal(Case(1).run({.group = GroupReduce::max}), gqa.at("prob_max"), 2, 8);
  equal(Case(1).run({.group = GroupReduce::sum}), gqa.at("prob_sum"), 2, 8);
  equal(Case(1).run({.group = GroupReduce::max_logit}), gqa.at("logit_max_then_softmax"), 2, 8);
  // The mean of a group's logits is the logit of its mean query.
  const Case both(1);
  Case mean(2, 1, 1, 8, 4);
  mean.shape.softmax_scale = both.shape.softmax_scale, mean.k = both.k;
  for (std::size_t i = 0; i < 8; ++i) mean.q[i] = (both.q[i / 4 * 8 + i % 4] + both.q[i / 4 * 8 + 4 + i % 4]) / 2;
  equal(mean.run({}), gqa.at("logit_mean_then_softmax"), 2, 8);
  const auto past = Case(2).run({.group = GroupReduce::max_logit, .row = RowReduce::mean, .past = true});
  const auto rkv = test::load_oracle("eviction.json", "rkv").at("heads");
  equal(past, {rkv[0].at("importance"), rkv[1].at("importance")}, 2, 8);
  REQUIRE((past[6] == 0.0f && past[7] == 0.0f));
}

TEST_CASE("attend_columns: too little scratch and a temperature of nothing are refused, untouched", "[prim][attend_columns]") {
  const Case c(2, 3, 4, 50, 16);
  std::vector<float> out(100, -7.0f);
  const index_t offset[] = {0, 50, 100};
  std::vector<std::byte> scratch(prim::AttendColumns<Cpu>::workspace_bytes(1, c.shape, 4));
  const auto run = [&](std::size_t bytes, float temperature) {
    Context<Cpu> ctx(std::span<std::byte>(scratch).first(bytes));
    return prim::AttendColumns<Cpu>::run(ctx, {.rows = 4, .temperature = temperature, .out = {out.data(), offset, 2}}, c.shape,
                                         [&](index_t h) { return Case::Head{&c, h}; });
  };
  REQUIRE(run(scratch.size() - 1, 1.0f) == Status::workspace_too_small);
  REQUIRE(run(scratch.size(), 0.0f) == Status::invalid_argument);
  REQUIRE(run(scratch.size(), std::numeric_limits<float>::quiet_NaN()) == Status::invalid_argument);
  {
    Context<Cpu> ctx(scratch);  // the last row would have none
    REQUIRE(prim::AttendColumns<Cpu>::run(ctx, {.rows = 4, .warming = -0.5f, .out = {out.data(), offset, 2}}, c.shape,
                                          [&](index_t h) { return Case::Head{&c, h}; }) == Status::invalid_argument);
  }
  REQUIRE(out == std::vector<float>(100, -7.0f));
  REQUIRE(run(scratch.size(), 1.0f) == Status::ok);
}

TEST_CASE("attend_columns: chosen rows, and means over the rows that see a slot, are ZipCache's saliency", "[prim][attend_columns][oracle]") {
  const auto o = test::load_oracle("quantization.json", "G1_zipcache_saliency");
  Case c(1, 1, 6, 6, 6);
  c.shape.softmax_scale = 1.0f;
  // One-hot keys: a query is the logarithm of its row of attention.
  std::fill(c.k.begin(), c.k.end(), 0.0f);
  for (std::size_t j = 0; j < 6; ++j) c.k[j * 6 + j] = 1.0f;
  for (std::size_t i = 0; i < 6; ++i)
    for (std::size_t j = 0; j < 6; ++j) c.q[i * 6 + j] = j <= i ? std::log(o.at("attention")[i][j].get<float>()) : 0.0f;
  const auto near = [](const std::vector<float>& got, const nlohmann::json& want) {
    for (std::size_t j = 0; j < got.size(); ++j) REQUIRE(got[j] == Approx(want[j].get<double>()).epsilon(1e-5));
  };
  ColumnRequest r;
  r.group = GroupReduce::sum, r.row = RowReduce::sum;
  near(c.run(r), o.at("accumulated"));
  r.row = RowReduce::seen_mean;
  near(c.run(r), o.at("normalised"));
  const auto probes = o.at("probe_rows").get<std::vector<std::int32_t>>();
  r.chosen = probes;
  near(c.run(r), o.at("probe_normalised_paper"));
  r.row = RowReduce::sum;
  near(c.run(r), o.at("probe_accumulated"));
}

TEST_CASE("attend_columns: any choice of rows equals the matrix spelled out", "[prim][attend_columns]") {
  const auto [group, rows, slots] = GENERATE(table<index_t, index_t, index_t>({{1, 9, 9}, {3, 40, 50}, {7, 70, 600}, {16, 5, 5}}));
  const Case c(2, group, rows, slots, 16);
  std::mt19937 random(4);
  for (const auto g : {GroupReduce::none, GroupReduce::sum, GroupReduce::mean, GroupReduce::max, GroupReduce::max_logit})
    for (const auto row : {RowReduce::sum, RowReduce::mean, RowReduce::max, RowReduce::seen_mean, RowReduce::low_count})
      for (const bool past : {false, true}) {
        std::vector<std::int32_t> chosen;
        for (std::int32_t i = 0; i < rows; ++i)
          if (random() % 3 == 0 || i + 1 == rows) chosen.push_back(i);
        ColumnRequest r;
        r.group = g, r.row = row, r.past = past, r.chosen = chosen;
        CAPTURE(group, rows, slots, static_cast<int>(g), static_cast<int>(row), past);
        const auto got = c.run(r);
        const auto per_head = got.size() / 2;
        for (index_t h = 0; h < 2; ++h) {
          const auto want = c.want(r, h);
          for (std::size_t j = 0; j < per_head; ++j)
            REQUIRE(static_cast<double>(got[static_cast<std::size_t>(h) * per_head + j]) == Approx(want[j]).epsilon(1e-4).margin(1e-6));
        }
      }
}

TEST_CASE("attend_columns: shares of rows are divided, and those of a row without a divisor are none", "[prim][attend_columns]") {
  const GroupReduce group = GENERATE(GroupReduce::none, GroupReduce::sum, GroupReduce::max_logit);
  const Case c(2, 3, 5, 70, 16);
  const float divide[] = {2.0f, 0.25f, 0.0f, std::numeric_limits<float>::quiet_NaN(), 3.0f};
  const std::vector<float> got = c.run({.group = group, .divide = divide}), most = c.run({.group = group, .row = RowReduce::max, .divide = divide});
  std::vector<double> sum(got.size()), largest(got.size());
  for (std::int32_t row = 0; row < 5; ++row) {
    const std::vector<float> one = c.run({.chosen = {&row, 1}, .group = group});
    for (std::size_t i = 0; divide[row] > 0 && i < one.size(); ++i) {
      const double share = static_cast<double>(one[i]) / static_cast<double>(divide[row]);
      sum[i] += share, largest[i] = std::max(largest[i], share);
    }
  }
  for (std::size_t i = 0; i < got.size(); ++i) {
    REQUIRE(got[i] == Approx(sum[i]).epsilon(1e-5));
    REQUIRE(most[i] == Approx(largest[i]).epsilon(1e-5));
  }
}
