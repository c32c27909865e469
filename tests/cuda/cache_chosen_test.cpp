// Attention over chosen slots in a cache on CUDA: on tensor cores, without waits, refused. Methods: cache_retrieve_test.cpp.

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include <kvcondense/backend/cuda/unit_scores.cuh>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/retrieve/quest.hpp>
#include <kvcondense/retrieve/rocketkv.hpp>
#include <kvcondense/retrieve/shadow_select.hpp>

#include "cache_pair.hpp"

using namespace kvcondense;
using cuda_cache::Pair;

namespace {

/// A pipeline of these blocks as a method.
template <class Summary, class Query = retrieve::EachQuery, class Scorer = retrieve::PlainScore>
struct Blocks {
  static constexpr Descriptor about{"blocks", Stage::retrieve, ""};
  static constexpr retrieve::KeyState keys = retrieve::KeyState::rotated;
  Summary summary{};
  Query query{};
  Scorer scorer{};
  index_t unit = 4;
  retrieve::Positions positions = retrieve::Positions::stored;

  constexpr auto pipeline() const {
    retrieve::Pipeline p{retrieve::Pages{unit}, summary, query, scorer, retrieve::ByHeads{}, retrieve::TopUnits{3}, retrieve::KeepEnds{0, 1}, retrieve::EveryCall{}};
    p.positions = positions;
    return p;
  }
  Status validate(const CacheShape&) const { return Status::ok; }
};
template <class... B>
constexpr bool there = cache::cuda_retrieves<decltype(std::declval<Blocks<B...>>().pipeline())>;

static_assert(there<retrieve::MinMax> && there<retrieve::GroupMinMax, retrieve::GroupChannels> &&
              there<retrieve::MeanKeySpread, retrieve::EachQuery, retrieve::OutlierSoftmax>);
static_assert(!there<retrieve::MeanKey, retrieve::EachQuery, retrieve::OutlierSoftmax>, "an index that knows no spreads has no outliers");
static_assert(!there<retrieve::GroupMinMax> && !there<retrieve::MinMax, retrieve::GroupChannels>, "queries and bounds that do not meet");

}  // namespace

TEST_CASE("cuda cache retrieves: an index whose rows are no part of a unit is refused") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  const auto made = [&](const Blocks<retrieve::MinMax>& b) { return make_cache<Cuda>(shape, recipe(b)).status(); };
  CHECK(made({.summary = {4}, .unit = 4}) == Status::ok);
  CHECK(made({.summary = {2}, .unit = 4}) == Status::ok);
  CHECK(made({.summary = {8}, .unit = 4}) == Status::not_supported);
  CHECK(made({.summary = {4}, .unit = 6}) == Status::not_supported);
  CHECK(made({.summary = {4}, .unit = 4, .positions = retrieve::Positions::compact}) == Status::not_supported);
}

TEST_CASE("cuda cache retrieves: channels of a group that are no numbers are its smallest ones") {
  constexpr index_t heads = 4, group = 2, dim = 80, channels = 6;
  const CacheShape shape{.q_heads = heads, .kv_heads = heads / group, .head_dim = dim};
  std::mt19937 random(5);
  std::vector<float> q = cuda_cache::normal_numbers(heads * dim, random);
  const auto on_device = [&] {
    test::Device device;
    test::OnDevice<float> dq(device, q), out(device, std::vector<float>(test::at(heads * 2 * dim), 7.0f));
    const auto view = dense_view(static_cast<const float*>(dq.data()), heads, 1, dim);
    REQUIRE(prim::UnitScoring::queries<prim::QueryRule::group_channels>(device, view, 0, group, channels, out.data()) == Status::ok);
    return out.read();
  };
  const auto on_host = [&] {
    std::vector<float> out(test::at(heads * 2 * dim));
    retrieve::ReadView<Cpu> view;
    view.shape = shape, view.queries = q.data();
    for (index_t r = 0; r < heads; ++r) retrieve::GroupChannels{channels}.run(view, 0, r / group, r % group, &out[test::at(r * 2 * dim)]);
    return out;
  };
  const auto compare = [](const std::vector<float>& got, const std::vector<float>& want) {
    for (std::size_t i = 0; i < want.size(); ++i) REQUIRE((std::isnan(want[i]) ? std::isnan(got[i]) : std::fabs(want[i] - got[i]) <= 1e-6f));
  };
  compare(on_device(), on_host());
  for (index_t c = 0; c < 7; ++c) q[test::at(3 * dim + 70 + c)] = NAN;  // more than are kept, of a group's second head
  compare(on_device(), on_host());
  std::fill(q.begin(), q.end(), NAN);
  std::vector<float> first(test::at(heads * 2 * dim));
  for (index_t r = 0; r < heads; ++r)
    for (index_t c = 0; c < channels; ++c) first[test::at((2 * r + 1) * dim + c)] = NAN;
  compare(on_device(), first);
}

TEST_CASE("cuda cache retrieves: runs that find no room are refused before attention where all is read") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 16, .page_slots = 4};
  test::Device device;
  auto c = make_cache<Cuda>(shape, recipe(retrieve::Quest{.page = 4, .tokens = 64, .dense_layers = 0}));
  REQUIRE(c);
  test::OnDevice<float> kv(device, std::vector<float>(48, 1.0f)), q(device, std::vector<float>(32, 1.0f)), out(device, std::vector<float>(32, 7.0f));
  Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(3, 3));
  const auto rows = dense_view(static_cast<const float*>(kv.data()), 1, 3, 16);
  REQUIRE(c->append(ctx, 0, rows, rows) == Status::ok);
  REQUIRE(c->step(ctx, 0) == Status::ok);
  std::vector<index_t> count(2);
  SlotRun run{};
  AttendOutputs measure;
  measure.runs = {&run, 0, count.data()};
  const auto queries = dense_view(static_cast<const float*>(q.data()), 2, 1, 16);
  CHECK(c->attend(ctx, 0, queries, dense_view(out.data(), 2, 1, 16), measure) == Status::out_of_range);
  CHECK(out.read() == std::vector<float>(32, 7.0f));
}

TEST_CASE("cuda cache retrieves: tensor cores read what was chosen") {
  Pair pair(recipe(quant::GroupInt<4>{.group_size = 16, .residual_window = 6}, retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0}),
            "group_int(bits=4, group_size=16, residual_window=6) + quest(page=4, tokens=12, dense_layers=0)",
            CacheShape{.q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 16});
  pair.forward(45);
  for (int i = 0; i < 4; ++i) pair.forward(1, prim::AttendMath::halves, 4e-3f);
  pair.look();
}

TEST_CASE("cuda cache retrieves: no call waits for the stream to choose") {
  Pair pair(recipe(retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0}), "quest(page=4, tokens=12, dense_layers=0)",
            CacheShape{.q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 64});
  pair.forward(50);
  for (int i = 0; i < 6; ++i) pair.forward(1);  // the index grows
  pair.burst(8);                                // pages, tables and rows have room
  CHECK(pair.waits() == 0);
}

TEST_CASE("cuda cache retrieves: a call that is refused changes nothing") {
  test::RefusingMemory memory(1 << 20);
  test::Device device;
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  std::mt19937 random(3);
  const index_t n = 24;
  test::OnDevice<float> q(device, cuda_cache::normal_numbers(4 * n * 16, random)), kv(device, cuda_cache::normal_numbers(2 * n * 16, random));
  const auto r = recipe(retrieve::Quest{.page = 4, .tokens = 8, .dense_layers = 0});
  {
    auto refused = make_cache<Cuda>(shape, r, memory);
    auto plain = make_cache<Cuda>(shape, r);
    REQUIRE(refused);
    REQUIRE(plain);
    const auto step = [&](auto& c, Context<Cuda>& ctx, index_t at, index_t tokens, test::OnDevice<float>& out) {
      const auto rows = [&](test::OnDevice<float>& x, index_t heads) {
        return TensorView<const float, 3>{x.data() + at * 16, {heads, tokens, 16}, {n * 16, 16, 1}};
      };
      return c.forward(ctx, 0, rows(q, 4), rows(kv, 2), rows(kv, 2), dense_view(out.data(), 4, tokens, 16));
    };
    for (index_t at = 0; at < n; ++at) {
      test::OnDevice<float> a(device, std::vector<float>(64)), b(device, std::vector<float>(64));
      for (int left = 0;; ++left) {  // every request for memory is refused once
        Context<Cuda> ctx = device.with_workspace(refused->workspace_bytes(at + 1, 1));
        memory.left = left;
        const Status s = step(*refused, ctx, at, 1, a);
        memory.left = 1 << 20;
        if (s == Status::ok) break;
        REQUIRE(s == Status::out_of_memory);
        REQUIRE(refused->length() == at);
        REQUIRE(left < 100);
      }
      Context<Cuda> ctx = device.with_workspace(plain->workspace_bytes(at + 1, 1));
      if (at > 12) {
        Context<Cuda> small = device.context().with_workspace(ctx.workspace().first(64));
        REQUIRE(step(*plain, small, at, 1, b) == Status::workspace_too_small);
        REQUIRE(plain->length() == at);
      }
      REQUIRE(step(*plain, ctx, at, 1, b) == Status::ok);
      REQUIRE(a.read() == b.read());
    }
    REQUIRE(refused->reset(device) == Status::ok);
    CHECK(refused->report(device)->index_bytes == 0);
  }
  CHECK(memory.out == 0);
}

TEST_CASE("cuda cache retrieves: channels of a group choose") {
  Pair pair(recipe(retrieve::RocketKV{.page = 4, .tokens = 16, .channels = 6}), "rocketkv(page=4, tokens=16, channels=6)",
            CacheShape{.q_heads = 6, .kv_heads = 2, .head_dim = 80, .value_dim = 48, .page_slots = 5});
  pair.forward(41);
  for (int i = 0; i < 3; ++i) pair.forward(1), pair.look();
}
