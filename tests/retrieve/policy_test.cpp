#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/evict/duo_attention.hpp>
#include <kvcondense/retrieve/erased.hpp>
#include <retrieve/methods.hpp>
#include <retrieve/rig.hpp>
#include <support/byte_list.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;

namespace {

struct NoKeys {
  static constexpr Descriptor about{"mine", Stage::retrieve, "none"};
  auto pipeline() const { return retrieve::Quest{}.pipeline(); }
  Status validate(const CacheShape&) const { return Status::ok; }
};

struct WrongStage : retrieve::Quest {
  static constexpr Descriptor about{"mine", Stage::evict, "none"};
};

/// A method of a user: every fourth page, whatever is in it.
struct EveryFourthPage {
  struct Stride {
    template <Backend B>
    bool takes_all(const retrieve::ReadView<B>&, index_t, index_t) const {
      return false;
    }
    std::size_t workspace_bytes(const CacheShape&, index_t, index_t) const { return 0; }
    template <Backend B>
    Status run(Context<B>&, const retrieve::ReadView<B>&, RaggedView<const float> scores, const retrieve::UnitLists& lists, Scratch&) const {
      for (index_t r = 0; r < scores.heads; ++r) {
        lists.count[r] = 0;
        for (index_t u = 0; u < scores.length(r); u += 4) lists.units.row(r)[lists.count[r]++] = static_cast<std::int32_t>(u);
      }
      return Status::ok;
    }
  };
  static constexpr Descriptor about{"every_fourth_page", Stage::retrieve, "a test"};
  static constexpr retrieve::KeyState keys = retrieve::KeyState::rotated;
  constexpr auto pipeline() const {
    using namespace retrieve;
    return Pipeline{Pages{2},  MeanKey{2}, EachQuery{}, PlainScore{}, ByHeads{Heads::group_mean}, Stride{},
                    KeepEnds{0, 1}, EveryCall{}};
  }
  Status validate(const CacheShape&) const { return Status::ok; }
};

/// Any blocks, put together at will.
struct Mixed {
  static constexpr Descriptor about{"mixed", Stage::retrieve, "a test"};
  static constexpr retrieve::KeyState keys = retrieve::KeyState::rotated;
  retrieve::AnyPipeline blocks{};
  retrieve::AnyPipeline pipeline() const { return blocks; }
  Status validate(const CacheShape&) const { return Status::ok; }
};

constexpr CacheShape two_heads{.layers = 1, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .page_slots = 16};

template <class Rig>
void feed(Rig& rig, index_t n, std::mt19937& random, Phase phase = Phase::automatic) {
  const test::Tokens t(two_heads, n, random);
  std::vector<float> out(static_cast<std::size_t>(two_heads.q_heads * n * two_heads.values()));
  REQUIRE(rig.cache.forward(rig.ctx, 0, t.queries(two_heads), t.keys(two_heads), t.values(two_heads),
                            dense_view(out.data(), two_heads.q_heads, n, two_heads.values()), {}, phase, StepInputs{}) == Status::ok);
  for (const float x : out) REQUIRE(std::isfinite(x));
}

/// Whether a cache with `other` takes the file of one with `stage` that has seen a prompt and more.
template <class P>
Status load_as(const P& stage, const P& other) {
  test::CacheRig from(two_heads, recipe(stage), 256, 100), to(two_heads, recipe(other), 256, 100);
  std::mt19937 random(3);
  feed(from, 90, random), feed(from, 1, random);
  test::ByteList file;
  REQUIRE(save(from.cache, file) == Status::ok);
  REQUIRE(load(from.cache, file.bytes) == Status::ok);
  REQUIRE(retrieve::AnyPipeline(stage.pipeline()).fingerprint() == stage.pipeline().fingerprint());
  const Status s = load(to.cache, file.bytes);
  REQUIRE(to.cache.length() == (s == Status::ok ? 91 : 0));
  if (s == Status::ok) feed(to, 1, random);
  return s;
}

static_assert(!retrieve::RetrievalPolicy<NoKeys, Cpu>);
static_assert(!retrieve::RetrievalPolicy<WrongStage, Cpu>);
static_assert(retrieve::RetrievalPolicy<EveryFourthPage, Cpu>);
static_assert(retrieve::check_retrieval_policy<EveryFourthPage, Cpu>());

}  // namespace

TEST_CASE("retrieval policy: one of a user runs", "[retrieve][policy]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "quest");
  test::RetrieveRig<EveryFourthPage> rig(oracle["K"], oracle["V"], 2, 0.5f, EveryFourthPage{});
  const auto seen = rig.attend(test::floats(oracle["Q"]));
  for (const auto& slots : seen.slots) REQUIRE(slots == std::vector<int>{0, 1, 8, 9, 16, 17});
}

TEST_CASE("retrieval policy: what a method needs is known to its cache", "[retrieve][policy]") {
  STATIC_REQUIRE(needs<RecipeOf<retrieve::Quest>>.empty());
  STATIC_REQUIRE(needs<RecipeOf<retrieve::LServe>> == Inputs(Input::queries));
  STATIC_REQUIRE(needs<RecipeOf<evict::H2O, retrieve::TriForce>> == (Input::attention | Input::queries));
  REQUIRE(make_cache<Cpu>(CacheShape{}, recipe(retrieve::LServe{}))->capabilities().needs == Inputs(Input::queries));
  REQUIRE(make_cache<Cpu>(CacheShape{}, recipe(retrieve::LServe{.interval = 1}))->capabilities().needs.empty());
  REQUIRE(make_cache<Cpu>(CacheShape{}, recipe(retrieve::Quest{}))->capabilities().reads_part);
}

TEST_CASE("retrieval policy: fields that do not fit are refused", "[retrieve][policy]") {
  const auto status = [](auto stage) { return make_cache<Cpu>(CacheShape{}, recipe(stage)).status(); };
  using namespace retrieve;
  REQUIRE(status(Quest{.page = 0}) == Status::invalid_argument);
  REQUIRE(status(Quest{.page = 16, .tokens = 8}) == Status::invalid_argument);
  REQUIRE(status(LServe{.page = 64, .part = 24}) == Status::invalid_argument);
  REQUIRE(status(LServe{.interval = 0}) == Status::invalid_argument);
  REQUIRE(status(Kinetics{.blocks = 0}) == Status::invalid_argument);
  REQUIRE(status(TriForce{.chunk = 8, .tokens = 15}) == Status::invalid_argument);
  REQUIRE(status(ShadowSelect{.outliers = -1}) == Status::invalid_argument);
}

TEST_CASE("retrieval policy: a file with what a prompt taught is read by stages to which it means the same", "[retrieve][policy][snapshot]") {
  using namespace retrieve;
  const PqCache codes{.parts = 2, .bits = 4, .iterations = 2, .sinks = 2};
  REQUIRE(load_as(codes, {.parts = 2, .bits = 4, .iterations = 3, .keep = 0.4, .sinks = 4}) == Status::ok);
  REQUIRE(load_as(codes, {.parts = 4, .bits = 4, .iterations = 2, .sinks = 2}) == Status::incompatible);
  REQUIRE(load_as(codes, {.parts = 2, .bits = 5, .iterations = 2, .sinks = 2}) == Status::incompatible);
  const RetrievalAttention graph{.tokens = 12, .sinks = 2, .local = 6, .degree = 4, .beam = 16, .hubs = 4, .hub_keys = 8};
  REQUIRE(load_as(graph, {.tokens = 20, .sinks = 1, .local = 4, .degree = 6, .beam = 32, .hubs = 4, .hub_keys = 8}) == Status::ok);
  REQUIRE(load_as(graph, {.tokens = 12, .sinks = 2, .local = 6, .degree = 4, .beam = 16, .hubs = 3, .hub_keys = 16}) ==
          Status::incompatible);  // as many numbers
  const TriForce chunks{.chunk = 4, .tokens = 28};
  REQUIRE(load_as(chunks, {.chunk = 4, .tokens = 40}) == Status::ok);
  REQUIRE(load_as(chunks, {.chunk = 2, .tokens = 28}) == Status::incompatible);
}

TEST_CASE("retrieval policy: what a prompt taught, and what is held, take no more room as tokens come", "[retrieve][policy]") {
  std::mt19937 random(6);
  using namespace retrieve;
  test::CacheRig taught(two_heads, recipe(Squeezed{.clusters = 0.5, .observe = 6, .iterations = 2}), 256, 100);
  const Buffer<float>& found = taught.cache.layers()[0].index[1].found;
  feed(taught, 40, random);
  const std::vector<float> numbers(found.begin(), found.end());
  REQUIRE_FALSE(numbers.empty());
  REQUIRE(found.bytes() == numbers.size() * sizeof(float));
  for (int i = 0; i < 100; ++i) feed(taught, 1, random);
  feed(taught, 40, random, Phase::prefill_end);  // the first prompt taught already
  REQUIRE(found.bytes() == numbers.size() * sizeof(float));
  REQUIRE(std::equal(numbers.begin(), numbers.end(), found.begin(), found.end()));

  test::CacheRig untaught(two_heads, recipe(Squeezed{.clusters = 0.5, .observe = 60, .iterations = 2}), 256, 100);
  feed(untaught, 40, random);  // too few to be clustered
  REQUIRE(untaught.cache.layers()[0].index[1].found.bytes() == 0);

  test::CacheRig holding(two_heads, recipe(TriForce{.chunk = 1, .tokens = 8}), 256, 100);
  const Buffer<std::int32_t>& units = holding.cache.layers()[0].held.units;
  feed(holding, 40, random);
  std::size_t bytes = units.bytes();
  int changes = 0;
  for (int i = 0; i < 200; ++i) {
    feed(holding, 1, random);
    changes += units.bytes() != bytes, bytes = units.bytes();
  }
  REQUIRE(changes < 6);
}

TEST_CASE("retrieval policy: a head that learned nothing reads all of its slots, the others choose", "[retrieve][policy]") {
  // Whichever head is the short one: its few slots are no clusters.
  const index_t brief = GENERATE(0, 1), full = 1 - brief;
  float gates[] = {0.9f, 0.9f};
  gates[brief] = 0.1f;
  std::mt19937 random(8);
  const retrieve::Squeezed stage{.clusters = 0.2, .quantile = 0.7, .observe = 10, .iterations = 3};
  test::CacheRig rig(two_heads, recipe(evict::DuoAttention{.sinks = 2, .recent = 6, .gates = {gates, 1, 2}}, stage), 256, 100);
  feed(rig, 80, random);
  const auto& index = rig.cache.layers()[0].index;
  REQUIRE(index[brief].found.empty());
  REQUIRE_FALSE(index[full].found.empty());
  const test::Tokens t(two_heads, 1, random);
  std::vector<float> out(static_cast<std::size_t>(two_heads.q_heads * two_heads.values()));
  std::vector<SlotRun> runs(static_cast<std::size_t>(two_heads.q_heads * 100));
  std::vector<index_t> count(4);
  ReadCounts reads;
  REQUIRE(rig.cache.attend(rig.ctx, 0, t.queries(two_heads), dense_view(out.data(), two_heads.q_heads, 1, two_heads.values()),
                           {.reads = &reads, .runs = {runs.data(), 100, count.data()}}) == Status::ok);
  for (index_t q = 0; q < two_heads.q_heads; ++q) {
    const index_t h = q / two_heads.group(), n = rig.cache.slots(0, h);
    index_t read = 0;
    for (index_t i = 0; i < count[static_cast<std::size_t>(q)]; ++i) read += runs[static_cast<std::size_t>(q * 100 + i)].size();
    if (h == brief) REQUIRE(read == n);
    else REQUIRE(read < n);
  }
  REQUIRE(reads.units_scored > 0);
}

TEST_CASE("retrieval policy: every head learns from the first prompt that has something for it", "[retrieve][policy]") {
  std::mt19937 random(9);
  test::CacheRig rig(two_heads, recipe(retrieve::PqCache{.bits = 3, .iterations = 3, .keep = 0.3, .sinks = 2}), 256, 100);
  feed(rig, 60, random);
  const index_t late = GENERATE(0, 1);
  auto& index = rig.cache.layers()[0].index;
  index[late].clear();  // as a file may say
  const auto numbers = [&](index_t h) { return std::vector<float>(index[h].found.begin(), index[h].found.end()); };
  const auto other = numbers(1 - late);
  feed(rig, 1, random);
  REQUIRE(index[late].covered == 0);
  feed(rig, 30, random, Phase::prefill_end);
  REQUIRE(numbers(late).size() == other.size());
  REQUIRE(index[late].covered == 91);
  REQUIRE(numbers(1 - late) == other);
  feed(rig, 1, random);
}

TEST_CASE("retrieval policy: blocks that cannot work together are refused", "[retrieve][policy]") {
  using namespace retrieve;
  const auto status = [](const auto& summary, const auto& query, Heads heads, const auto& select, const auto& schedule) {
    const Pipeline p{Tokens{}, summary, query, PlainScore{}, ByHeads{heads}, select, KeepEnds{}, schedule};
    const Status s = make_cache<Cpu>(two_heads, recipe(Mixed{AnyPipeline(p)})).status();
    REQUIRE(p.composes() == (s == Status::ok));
    return s;
  };
  const ChannelPages pages{};
  const TopChannels channels{4};
  const TopWithShare shares{.slots = 8, .channels = 4};
  REQUIRE(status(pages, channels, Heads::each, shares, EveryCall{}) == Status::ok);
  REQUIRE(status(pages, channels, Heads::each, shares, EveryTokens{4}) == Status::incompatible);
  REQUIRE(status(pages, channels, Heads::each, shares, EveryTokens{1}) == Status::ok);  // holds nothing
  REQUIRE(status(pages, channels, Heads::each, shares, WhenAsked{}) == Status::incompatible);
  REQUIRE(status(pages, channels, Heads::group_union, shares, EveryCall{}) == Status::incompatible);
  REQUIRE(status(pages, channels, Heads::group_union, TopUnits{8}, EveryTokens{4}) == Status::ok);
  REQUIRE(status(MeanKey{1}, EachQuery{}, Heads::each, shares, EveryCall{}) == Status::incompatible);  // a mean that nobody makes
  const SignHashes hashes{{nullptr, 8, 2, 16}, 2, 4};
  const Sampled sample{2, 8, 0};
  REQUIRE(status(hashes, EachQuery{}, Heads::each, sample, EveryCall{}) == Status::ok);
  REQUIRE(status(hashes, EachQuery{}, Heads::each, sample, EveryQuestion{}) == Status::incompatible);
  REQUIRE(status(hashes, EachQuery{}, Heads::group_union, sample, EveryCall{}) == Status::incompatible);
}
