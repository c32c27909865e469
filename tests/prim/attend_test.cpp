#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/attend.hpp>
#include <kvcondense/backend/cpu/merge_partials.hpp>
#include <kvcondense/backend/cpu/slot_numbers.hpp>
#include <support/guarded.hpp>
#include <support/naive_cache.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;

namespace {

/// Slots in plain floats: the simplest thing `Attend` can read.
struct DenseHead {
  struct Cursor {
    index_t at = 0;
  };
  const float *keys, *values;
  index_t n, dim, value_dim;
  prim::SlotScalars extra{};
  index_t apart = 1;  ///< slots that a token sees more than the one before

  index_t slots() const { return n; }
  index_t visible(index_t token, index_t tokens) const { return n - (tokens - 1 - token) * apart; }
  prim::SlotScalars scalars() const { return extra; }
  void prepare_query(float*, index_t, index_t) const {}
  void seek(Cursor& k, Cursor& v, index_t slot) const { k.at = v.at = slot; }
  void key_scores(Cursor& c, index_t count, prim::RowBlock<const float> q, prim::RowBlock<float> out, index_t first) const {
    REQUIRE(c.at == first);
    prim::cpu::dot_rows(keys + c.at * dim, count, dim, q, out);
    c.at += count;
  }
  void add_values(Cursor& c, index_t count, prim::RowBlock<const float> w, prim::RowBlock<float> out) const {
    prim::cpu::add_rows(values + c.at * value_dim, count, value_dim, w, out);
    c.at += count;
  }
};

struct Threads final : Executor {
  index_t workers() const noexcept override { return 3; }
  void run(index_t tasks, void (*body)(void*, index_t, index_t), void* state) noexcept override {
    std::atomic<index_t> next{0};
    std::vector<std::thread> pool;
    for (index_t w = 0; w < 3; ++w)
      pool.emplace_back([&, w] {
        for (index_t t; (t = next++) < tasks;) body(state, t, w);
      });
    for (auto& t : pool) t.join();
  }
};

struct Case {
  index_t heads, group, tokens, slots, dim, value_dim;
  std::vector<float> q, k, v, scale, bias, gain;
  float softmax_scale;
  index_t apart = 1, most_mass_rows = 2;
  double bound = 2e-5;

  Case(index_t heads_, index_t group_, index_t tokens_, index_t slots_, index_t dim_, index_t value_dim_)
      : heads(heads_), group(group_), tokens(tokens_), slots(slots_), dim(dim_), value_dim(value_dim_),
        softmax_scale(1.0f / std::sqrt(static_cast<float>(dim_))) {
    std::mt19937 random(static_cast<std::uint32_t>(heads + 3 * group + 7 * tokens + 11 * slots + dim));
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& x, index_t n) {
      x.resize(static_cast<std::size_t>(n));
      for (float& e : x) e = normal(random);
    };
    fill(q, heads * group * tokens * dim), fill(k, heads * slots * dim), fill(v, heads * slots * value_dim);
    fill(scale, slots), fill(bias, slots), fill(gain, slots);
  }
  DenseHead head(index_t h, bool scalars) const {
    DenseHead d{k.data() + h * slots * dim, v.data() + h * slots * value_dim, slots, dim, value_dim};
    if (scalars) d.extra = {scale.data(), bias.data(), gain.data()};
    d.apart = apart;
    return d;
  }

  void check(bool scalars, Executor* executor = nullptr) const {
    CAPTURE(heads, group, tokens, slots, dim, value_dim, scalars);
    const index_t q_heads = heads * group, mass_rows = std::min(tokens, most_mass_rows);
    std::vector<std::byte> work(prim::Attend<Cpu>::workspace_bytes(executor ? 3 : 1, heads, group * tokens, slots, dim, value_dim, true));
    Context<Cpu> ctx(work, executor);
    test::Guarded<float> out(static_cast<std::size_t>(q_heads * tokens * value_dim), -7.0f);
    test::Guarded<float> lse(static_cast<std::size_t>(q_heads * tokens)), mass(static_cast<std::size_t>(heads * slots));
    std::vector<index_t> offset;
    for (index_t h = 0; h <= heads; ++h) offset.push_back(h * slots);
    prim::AttendRequest request{dense_view(q.data(), q_heads, tokens, dim), dense_view(out.data(), q_heads, tokens, value_dim),
                                dense_view(lse.data(), q_heads, tokens), {mass.data(), offset.data(), heads}, mass_rows, softmax_scale};
    REQUIRE(prim::Attend<Cpu>::run(ctx, request, heads, [&](index_t h) { return head(h, scalars); }) == Status::ok);

    double worst = 0;
    std::vector<double> want_mass(static_cast<std::size_t>(heads * slots), 0.0);
    for (index_t h = 0; h < q_heads; ++h)
      for (index_t t = 0; t < tokens; ++t) {
        const index_t kv = h / group, visible = std::max<index_t>(0, slots - (tokens - 1 - t) * apart);
        std::vector<double> l(static_cast<std::size_t>(visible)), o(static_cast<std::size_t>(value_dim), 0.0);
        double top = -INFINITY, sum = 0;
        for (index_t j = 0; j < visible; ++j) {
          double dot = 0;
          for (index_t d = 0; d < dim; ++d)
            dot += static_cast<double>(q[static_cast<std::size_t>((h * tokens + t) * dim + d)]) *
                   static_cast<double>(k[static_cast<std::size_t>((kv * slots + j) * dim + d)]);
          const auto at = static_cast<std::size_t>(j);
          l[at] = dot * static_cast<double>(softmax_scale) * (scalars ? static_cast<double>(scale[at]) : 1.0) +
                  (scalars ? static_cast<double>(bias[at]) : 0.0);
          top = std::max(top, l[at]);
        }
        for (double& x : l) sum += x = std::exp(x - top);
        for (index_t j = 0; j < visible; ++j) {
          const auto at = static_cast<std::size_t>(j);
          const double p = l[at] / sum;
          if (t >= tokens - mass_rows) want_mass[static_cast<std::size_t>(kv * slots + j)] += p;
          for (index_t d = 0; d < value_dim; ++d)
            o[static_cast<std::size_t>(d)] += p * (scalars ? static_cast<double>(gain[at]) : 1.0) *
                                              static_cast<double>(v[static_cast<std::size_t>((kv * slots + j) * value_dim + d)]);
        }
        for (index_t d = 0; d < value_dim; ++d)
          worst = std::max(worst, std::abs(o[static_cast<std::size_t>(d)] -
                                           static_cast<double>(out.data()[(h * tokens + t) * value_dim + d])));
        const float got = lse.data()[h * tokens + t];
        if (visible == 0) REQUIRE(got == -std::numeric_limits<float>::infinity());
        else worst = std::max(worst, std::abs(top + std::log(sum) - static_cast<double>(got)));
      }
    REQUIRE(worst < bound);
    bool close = true;
    for (std::size_t i = 0; i < want_mass.size(); ++i) {
      const double off = std::abs(want_mass[i] - static_cast<double>(mass.data()[i]));
      worst = std::max(worst, off);
      close = close && off <= 1e-4 * want_mass[i] + 1e-30;
    }
    REQUIRE(worst < bound);
    REQUIRE(close);
    if (prim::Attend<Cpu>::counts(group * tokens)) {  // the same bits as the mass, multiplied and added
      test::Guarded<float> sums(mass.size(), 0.25f), want(mass.size(), 0.25f);
      prim::SlotNumbers<Cpu>::mix_row(mass.data(), heads * slots, 0.75f, 1.0f, want.data());
      request.mass = {};
      const prim::AttentionSums counted{{sums.data(), offset.data(), heads}, 0.75f};
      REQUIRE(prim::Attend<Cpu>::run(ctx, request, heads, [&](index_t h) { return head(h, scalars); }, counted) == Status::ok);
      REQUIRE(std::equal(want.data(), want.data() + want.size(), sums.data()));
      REQUIRE(sums.ok());
    }
    REQUIRE(out.ok());
    REQUIRE(lse.ok());
    REQUIRE(mass.ok());
  }
};

}  // namespace

TEST_CASE("attend: every head-group ratio from 1 to 16 equals attention in double", "[prim][attend]") {
  const index_t group = GENERATE(range(1, 17));
  Case(2, group, 1, 130, 64, 64).check(false);
  Case(1, group, 5, 70, 32, 48).check(true);
}

TEST_CASE("attend: head and value sizes around the vector width equal attention in double", "[prim][attend]") {
  const index_t dim = GENERATE(1, 7, 8, 9, 64, 80, 96, 112, 128, 256);
  Case(1, 3, 2, 40, dim, 64).check(false);
  Case(1, 3, 2, 40, 64, dim).check(true);
}

TEST_CASE("attend: slots around strips and tiles, fewer slots than queries, many query heads", "[prim][attend]") {
  const index_t slots = GENERATE(0, 1, 15, 16, 17, 511, 512, 513, 1100);
  Case(2, 1, 1, slots, 16, 16).check(false);
  Case(1, 40, 1, slots, 16, 16).check(true);  // more query heads than one block of rows
  Case(1, 3, 33, slots, 16, 16).check(false);
}

TEST_CASE("attend: threads give the same bits as none", "[prim][attend]") {
  Threads threads;
  const Case c(7, 2, 9, 200, 32, 32);
  c.check(true, &threads);
  const auto run = [&](Executor* e) {
    std::vector<std::byte> work(prim::Attend<Cpu>::workspace_bytes(3, 7, 18, 200, 32, 32, false));
    Context<Cpu> ctx(work, e);
    std::vector<float> out(14 * 9 * 32);
    REQUIRE(prim::Attend<Cpu>::run(ctx, {dense_view(c.q.data(), 14, 9, 32), dense_view(out.data(), 14, 9, 32)}, 7,
                                   [&](index_t h) { return c.head(h, false); }) == Status::ok);
    return out;
  };
  REQUIRE(run(&threads) == run(nullptr));
}

TEST_CASE("attend: fewer heads than threads are split into parts, with the same bits", "[prim][attend]") {
  Threads threads;
  constexpr index_t part = prim::Attend<Cpu>::part;
  const index_t slots = GENERATE_COPY(part + 0, part + 1, 2 * part, 5 * part - 7);
  const index_t heads = GENERATE(1, 2), tokens = GENERATE(1, 3);
  const Case c(heads, 3, tokens, slots, 24, 16);
  c.check(false);
  c.check(true, &threads);
  const auto run = [&](Executor* e, std::size_t parts) {
    const std::size_t bytes = prim::Attend<Cpu>::workspace_bytes(e ? 3 : 1, heads, 3 * tokens, slots, 24, 16, true);
    std::vector<std::byte> work(bytes / parts);
    Context<Cpu> ctx(work, e);
    std::vector<float> out(static_cast<std::size_t>(heads * 3 * tokens * 16)), lse(static_cast<std::size_t>(heads * 3 * tokens)),
        mass(static_cast<std::size_t>(heads * slots));
    std::vector<index_t> offset;
    for (index_t h = 0; h <= heads; ++h) offset.push_back(h * slots);
    const Status s = prim::Attend<Cpu>::run(
        ctx, {dense_view(c.q.data(), heads * 3, tokens, 24), dense_view(out.data(), heads * 3, tokens, 16),
              dense_view(lse.data(), heads * 3, tokens), {mass.data(), offset.data(), heads}, tokens, c.softmax_scale},
        heads, [&](index_t h) { return c.head(h, true); });
    REQUIRE(s == (parts == 1 ? Status::ok : Status::workspace_too_small));
    out.insert(out.end(), lse.begin(), lse.end());
    out.insert(out.end(), mass.begin(), mass.end());
    return out;
  };
  REQUIRE(run(&threads, 1) == run(nullptr, 1));
  for (const float x : run(&threads, 4)) REQUIRE(x == 0.0f);  // what is asked for serves any split
}

TEST_CASE("attend: the oracle's slots that count several tokens, in one pass and in two parts", "[prim][attend]") {
  const auto o = test::load_oracle("merging_lowrank.json", "weighted_slots_lse_merge");
  const auto &in = o["inputs"], &want = o["expected"];
  const auto q = test::floats(in["q"]), k = test::floats(in["K"]), v = test::floats(in["V"]);
  std::vector<float> bias = test::floats(in["count"]);
  for (float& n : bias) n = std::log(n);
  std::vector<std::byte> work(1 << 18);
  Context<Cpu> ctx(work);
  struct Part {
    std::vector<float> out = std::vector<float>(2);
    float lse = 0.0f;
    prim::PartialAttention view() const { return {dense_view(out.data(), 1, 1, 2), dense_view(&lse, 1, 1)}; }
  };
  const auto attend = [&](index_t first, index_t last) {
    DenseHead head{k.data() + first * 2, v.data() + first * 2, last - first, 2, 2};
    head.extra.bias = bias.data() + first;
    Part p;
    prim::AttendRequest request{dense_view(q.data(), 1, 1, 2), dense_view(p.out.data(), 1, 1, 2), dense_view(&p.lse, 1, 1)};
    request.softmax_scale = 1.0f / std::sqrt(2.0f);
    REQUIRE(prim::Attend<Cpu>::run(ctx, request, 1, [&](index_t) { return head; }) == Status::ok);
    return p;
  };
  const auto check = [](const Part& p, const nlohmann::json& out, const nlohmann::json& lse) {
    for (std::size_t d = 0; d < 2; ++d) REQUIRE(p.out[d] == Approx(out[d].get<double>()).epsilon(1e-5));
    REQUIRE(p.lse == Approx(lse.get<double>()).epsilon(1e-5));
  };
  const Part a = attend(0, 2), b = attend(2, 4);
  check(attend(0, 4), want["out"], want["lse_total"]);
  check(a, want["out_A"], want["lse_A"]);
  check(b, want["out_B"], want["lse_B"]);
  Part both;
  const prim::PartialAttention parts[] = {a.view(), b.view()};
  REQUIRE(prim::MergePartials<Cpu>::run(ctx, parts, dense_view(both.out.data(), 1, 1, 2), dense_view(&both.lse, 1, 1), prim::LogBase::natural) == Status::ok);
  check(both, want["out_merged"], want["lse_total"]);
}

TEST_CASE("attend: a bias of minus infinity hides a slot, also the first and also all of them", "[prim][attend]") {
  Case c(1, 2, 1, 600, 16, 16);
  const auto out_of = [&](const DenseHead& head) {
    std::vector<std::byte> work(1 << 20);
    Context<Cpu> ctx(work);
    std::vector<float> out(32);
    REQUIRE(prim::Attend<Cpu>::run(ctx, {dense_view(c.q.data(), 2, 1, 16), dense_view(out.data(), 2, 1, 16)}, 1,
                                   [&](index_t) { return head; }) == Status::ok);
    return out;
  };
  const float hidden = -std::numeric_limits<float>::infinity();
  std::vector<float> bias(600, 0.0f);
  for (std::size_t i = 0; i < 550; ++i) bias[i] = hidden;
  DenseHead all = c.head(0, false), rest = all;
  all.extra.bias = bias.data();
  rest.keys += 550 * 16, rest.values += 550 * 16, rest.n = 50;
  const auto a = out_of(all), b = out_of(rest);
  for (std::size_t i = 0; i < a.size(); ++i) REQUIRE(a[i] == Approx(b[i]).margin(1e-6));
  bias.assign(600, hidden);
  for (const float x : out_of(all)) REQUIRE(x == 0.0f);
}

TEST_CASE("attend: strips whose largest logits lie far apart, and rows that see nothing of the later ones", "[prim][attend]") {
  Threads threads;
  constexpr index_t strip = prim::Attend<Cpu>::strip;
  const float step = GENERATE(3.0f, 120.0f);  // from strip to strip
  const int shape = GENERATE(0, 1, 2, 3);
  Case c(1, 3, 4, 5 * strip + 5, 16, 16);
  c.scale.assign(c.scale.size(), 1.0f);
  for (std::size_t j = 0; j < c.bias.size(); ++j) {
    const auto at = static_cast<float>(j) / static_cast<float>(strip), end = static_cast<float>(c.slots) / static_cast<float>(strip);
    if (shape == 0) c.bias[j] = step * std::floor(at - end);  // stairs up
    if (shape == 1) c.bias[j] = -step * std::floor(at);       // and down
    if (shape == 2) c.bias[j] = step * (at - end);            // a slope up
    if (shape == 3) c.bias[j] = -step * std::abs(at - 2.5f);  // a roof
  }
  c.most_mass_rows = 3;
  c.bound = 5e-5;  // floats of some hundreds, as logits are here, are no finer
  for (const index_t apart : {index_t{1}, strip - 7, 2 * strip, 2 * strip + 100}) {  // the first token may see no slot at all
    c.apart = apart;
    c.check(true);
    c.check(true, &threads);
  }
}

TEST_CASE("attend: the mass of slots that are hidden, and of logits that are infinite or no numbers", "[prim][attend]") {
  constexpr float infinity = std::numeric_limits<float>::infinity(), none = std::numeric_limits<float>::quiet_NaN();
  constexpr index_t slots = 2 * prim::Attend<Cpu>::strip + 40;
  const Case c(1, 1, 1, slots, 16, 16);
  const auto mass_of = [&](const std::vector<float>& bias) {
    std::vector<std::byte> work(prim::Attend<Cpu>::workspace_bytes(1, 1, 1, slots, 16, 16, true));
    Context<Cpu> ctx(work);
    std::vector<float> out(16), mass(static_cast<std::size_t>(slots));
    const index_t offset[] = {0, slots};
    DenseHead head = c.head(0, false);
    head.extra.bias = bias.data();
    REQUIRE(prim::Attend<Cpu>::run(ctx, {dense_view(c.q.data(), 1, 1, 16), dense_view(out.data(), 1, 1, 16), {}, {mass.data(), offset, 1}, 1}, 1,
                                   [&](index_t) { return head; }) == Status::ok);
    return mass;
  };
  for (const float x : mass_of(std::vector<float>(c.bias.size(), -infinity))) REQUIRE(x == 0.0f);
  for (const std::size_t at : {std::size_t{0}, std::size_t{600}, std::size_t{1030}})
    for (const float odd : {none, infinity}) {
      std::vector<float> bias(c.bias.size(), -infinity);
      bias[700] = 0.0f;
      bias[at] = odd;
      const auto mass = mass_of(bias);
      for (std::size_t j = 0; j < mass.size(); ++j) REQUIRE((j == at ? std::isnan(mass[j]) : mass[j] == 0.0f));
    }
}

TEST_CASE("attend: one byte of workspace too few is refused and nothing is written", "[prim][attend][workspace]") {
  const Case c(1, 2, 3, 100, 16, 16);
  for (const bool wanted : {false, true}) {
    std::vector<std::byte> work(prim::Attend<Cpu>::workspace_bytes(1, 1, 6, 100, 16, 16, wanted) - 1);
    Context<Cpu> ctx(work);
    std::vector<float> out(2 * 3 * 16, -7.0f), mass(100, -7.0f);
    const index_t offset[] = {0, 100};
    prim::AttendRequest request{dense_view(c.q.data(), 2, 3, 16), dense_view(out.data(), 2, 3, 16)};
    if (wanted) request.mass = {mass.data(), offset, 1};
    REQUIRE(prim::Attend<Cpu>::run(ctx, request, 1, [&](index_t h) { return c.head(h, false); }) == Status::workspace_too_small);
    for (const float x : out) REQUIRE(x == -7.0f);
    for (const float x : mass) REQUIRE(x == -7.0f);
  }
}
