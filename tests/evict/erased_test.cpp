#include <evict/properties.hpp>
#include <kvcondense/budget/ada.hpp>
#include <kvcondense/budget/head_table.hpp>
#include <kvcondense/budget/layer_pattern.hpp>
#include <kvcondense/budget/prefix_mass.hpp>
#include <kvcondense/budget/pyramid.hpp>
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/budget/skip_layers.hpp>
#include <kvcondense/budget/uniform.hpp>
#include <kvcondense/budget/variance.hpp>
#include <kvcondense/evict/alisa.hpp>
#include <kvcondense/evict/block_prefill.hpp>
#include <kvcondense/evict/caote.hpp>
#include <kvcondense/evict/chunked.hpp>
#include <kvcondense/evict/chunkkv.hpp>
#include <kvcondense/evict/compensate.hpp>
#include <kvcondense/evict/critical.hpp>
#include <kvcondense/evict/dms.hpp>
#include <kvcondense/evict/duo_attention.hpp>
#include <kvcondense/evict/erased.hpp>
#include <kvcondense/evict/every.hpp>
#include <kvcondense/evict/exit_threshold.hpp>
#include <kvcondense/evict/expected_attention.hpp>
#include <kvcondense/evict/fastgen.hpp>
#include <kvcondense/evict/finch.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/keep_all.hpp>
#include <kvcondense/evict/keydiff.hpp>
#include <kvcondense/evict/keyformer.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/kvcrush.hpp>
#include <kvcondense/evict/lagkv.hpp>
#include <kvcondense/evict/nacl.hpp>
#include <kvcondense/evict/observed_attention.hpp>
#include <kvcondense/evict/page_round.hpp>
#include <kvcondense/evict/paged_h2o.hpp>
#include <kvcondense/evict/policy.hpp>
#include <kvcondense/evict/prefixkv.hpp>
#include <kvcondense/evict/qfilters.hpp>
#include <kvcondense/evict/rkv.hpp>
#include <kvcondense/evict/scissorhands.hpp>
#include <kvcondense/evict/simlayerkv.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/sirllm.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/strided_blocks.hpp>
#include <kvcondense/evict/tova.hpp>
#include <support/step_data.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// A policy whose blocks are known only at run time.
struct Any {
  static constexpr Descriptor about{"any", Stage::evict, "chosen at run time"};
  static constexpr Inputs needs = Inputs::all();
  evict::AnyPipeline blocks;

  Any() = default;
  template <class P>
  explicit Any(const P& policy) : blocks(policy.pipeline()) {}
  evict::AnyPipeline pipeline() const { return blocks; }
  Status validate(const CacheShape&) const { return Status::ok; }
};

static_assert(evict::check_eviction_policy<Any, Cpu>());
static_assert(evict::check_eviction_policy<budget::Ada<Any>, Cpu>());
static_assert(evict::check_eviction_policy<evict::Caote<Any>, Cpu>());
static_assert(evict::check_eviction_policy<evict::Critical<budget::Ada<evict::SnapKV>>, Cpu>());
static_assert(evict::check_eviction_policy<evict::PageRound<Any>, Cpu>());
static_assert(evict::check_eviction_policy<evict::Every<evict::BlockPrefill<evict::RKV>>, Cpu>());
static_assert(std::is_trivially_copyable_v<evict::AnyPipeline>);

/// Both pipelines, the same steps: a prefill in two chunks, then decoding.
template <class P, class Q>
void require_same(const P& typed, const Q& erased) {
  const CacheShape shape{.layers = 4, .q_heads = 6, .kv_heads = 3, .head_dim = 2};
  auto a = drive(shape, typed);
  auto b = drive(shape, erased);
  REQUIRE(a.pipeline.lanes() == b.pipeline.lanes());
  REQUIRE(a.pipeline.attention().of(40) == b.pipeline.attention().of(40));
  REQUIRE(a.pipeline.inputs() == b.pipeline.inputs());
  REQUIRE(a.pipeline.source.one_set() == b.pipeline.source.one_set());
  REQUIRE(evict::touches(a.pipeline.source) == evict::touches(b.pipeline.source));
  REQUIRE(a.pipeline.asks_for_room_alone() == b.pipeline.asks_for_room_alone());
  REQUIRE(evict::scores_age(a.pipeline.source) == evict::scores_age(b.pipeline.source));
  REQUIRE(evict::reads_rotated_keys(a.pipeline.source) == evict::reads_rotated_keys(b.pipeline.source));
  REQUIRE(a.pipeline.residual == b.pipeline.residual);
  REQUIRE(a.pipeline.protect.most() == b.pipeline.protect.most());
  REQUIRE(a.pipeline.allocate.uses_scores() == b.pipeline.allocate.uses_scores());
  REQUIRE(a.pipeline.workspace_bytes(shape, 999) == b.pipeline.workspace_bytes(shape, 999));
  a.layer = b.layer = 2;
  a.key = b.key = [](index_t h, index_t t, index_t c) { return static_cast<float>(number(3, h, 2 * t + c)); };
  a.value = b.value = [](index_t h, index_t t, index_t c) { return static_cast<float>(number(5, h, 2 * t + c)); };
  a.query = b.query = [](index_t h, index_t t, index_t c) { return static_cast<float>(number(6, h, 2 * t + c)); };
  std::mt19937 random(6);
  const auto step = [&](index_t n, Phase phase) {
    const StepData data(shape, n, random);
    a.inputs = b.inputs = n > 0 ? data.inputs() : StepInputs{.incoming = 3};
    const PerToken mass = [](index_t h, index_t t) { return number(4, h, t); };
    REQUIRE(a.step(n, phase, mass) == Status::ok);
    REQUIRE(b.step(n, phase, mass) == Status::ok);
    REQUIRE(a.fired == b.fired);
    REQUIRE(a.held == b.held);
    REQUIRE(a.budget == b.budget);
    REQUIRE(a.lane == b.lane);
  };
  step(60, Phase::prefill_chunk);
  step(30, Phase::prefill_end);
  for (int i = 0; i < 5; ++i) step(1, Phase::decode);
  step(0, Phase::turn);
}

}  // namespace

TEST_CASE("erased: a pipeline chosen at run time does what the typed one does", "[evict][erased]") {
  require_same(evict::KeepAll{}, Any(evict::KeepAll{}));
  require_same(evict::SinkWindow{.recent = 9, .sinks = 2}, Any(evict::SinkWindow{.recent = 9, .sinks = 2}));
  require_same(evict::H2O{.heavy = 9, .recent = 8}, Any(evict::H2O{.heavy = 9, .recent = 8}));
  require_same(evict::Tova{.tokens = 19}, Any(evict::Tova{.tokens = 19}));
  require_same(evict::SnapKV{.tokens = 19, .window = 5}, Any(evict::SnapKV{.tokens = 19, .window = 5}));
  require_same(evict::Finch{.keep = 0.3, .window = 5}, Any(evict::Finch{.keep = 0.3, .window = 5}));
  require_same(evict::Finch{.keep = 0.3, .window = 0}, Any(evict::Finch{.keep = 0.3, .window = 0}));
  const evict::Nacl nacl{.tokens = 19, .window = 5, .sinks = 1, .recent = 4};
  require_same(nacl, Any(nacl));
  require_same(evict::Knorm{.tokens = 19, .recent = 5}, Any(evict::Knorm{.tokens = 19, .recent = 5}));
  require_same(evict::KeyDiff{.tokens = 19, .recent = 5}, Any(evict::KeyDiff{.tokens = 19, .recent = 5}));
  const evict::ObservedAttention observed{.keep = 0.4, .recent = 5};
  require_same(observed, Any(observed));
  const evict::LagKV lag{.sinks = 2, .lag = 7};
  require_same(lag, Any(lag));
  const evict::SirLLM sirllm{.sinks = 2, .memory = 20, .recent = 3};
  require_same(sirllm, Any(sirllm));
  const evict::Dms dms{.window = 20, .scale = 3, .offset = 1};
  require_same(dms, Any(dms));
  const evict::ExitThreshold<evict::Knorm> exit{{.tokens = 19}, -0.5f, 12};
  require_same(exit, Any(exit));
  const evict::Compensate<evict::H2O> mean{{.heavy = 9, .recent = 8}};
  require_same(mean, Any(mean));
  const evict::ExpectedAttention expected{.keep = 0.3};
  require_same(expected, Any(expected));
  const evict::ChunkKV chunks{.tokens = 19, .window = 5, .chunk = 4};
  require_same(chunks, Any(chunks));
  const evict::RKV rkv{.tokens = 19, .window = 5, .threshold = 0.9f, .slack = 3};
  require_same(rkv, Any(rkv));
  require_same(budget::Uniform{rkv, 11}, budget::Uniform{Any(rkv), 11});
  const float gates[] = {1, 2, 3, 4, 5, 6, 9, 8, 7, 0, 1, 2};
  const evict::DuoAttention duo{.sparsity = 0.7, .sinks = 2, .recent = 9, .gates = {gates, 4, 3}};
  require_same(duo, Any(duo));
  std::vector<float> filters(4 * 3 * 2);
  for (std::size_t i = 0; i < filters.size(); ++i) filters[i] = static_cast<float>(number(8, 1, static_cast<index_t>(i))) - 0.5f;
  const evict::QFilters filtered{.keep = 0.3, .recent = 3, .query_filters = {filters.data(), 4, 3, 2}};
  require_same(filtered, Any(filtered));
  for (const double threshold : {0.0, 1.0}) {
    const evict::SimLayerKV lazy{.threshold = threshold, .sinks = 2, .recent = 9};
    require_same(lazy, Any(lazy));
  }
  const evict::StridedBlocks strided{.block = 3, .local = 4, .every = 5};
  require_same(strided, Any(strided));
  const float evicted[] = {0.2f, 0.4f, 0.6f, 0.8f};
  const evict::PrefixKV prefix{.evicted = {evicted, 4}};
  require_same(prefix, Any(prefix));
  const evict::PagedH2O paged{.page = 3, .start = 3, .evictable = 12, .recent = 6};
  require_same(paged, Any(paged));
  const evict::Scissorhands scissors{.tokens = 19, .drop = 4, .history = 9, .recent = 3, .sinks = 1};
  require_same(scissors, Any(scissors));
  const evict::Keyformer former{.tokens = 19, .recent = 5, .generation = 4};
  require_same(former, Any(former));
  const evict::Alisa alisa{.ratio = 0.3, .history = 9};
  require_same(alisa, Any(alisa));
  const evict::FastGen fastgen{.recovery = 0.5, .frequent = 0.2, .local = 0.2, .profile = 30};
  require_same(fastgen, Any(fastgen));
}

TEST_CASE("erased: budgets around a run-time policy are what they are around a typed one", "[evict][erased]") {
  const evict::SnapKV snap{.tokens = 19, .window = 5};
  const Any any(snap);
  require_same(budget::Uniform{snap, 11}, budget::Uniform{any, 11});
  require_same(budget::Ada{snap, 0.3}, budget::Ada{any, 0.3});
  require_same(budget::LayerPattern{snap, 0.3}, budget::LayerPattern{any, 0.3});
  const float numbers[] = {0.1f, 0.05f, 0.0f, 0.2f, 0.05f, 0.1f, 0.05f, 0.15f, 0.1f, 0.1f, 0.05f, 0.05f};
  const HeadTable heads{numbers, 4, 3};
  const LayerTable layers{numbers, 4};
  require_same(budget::HeadTableBudget{snap, 1.2, heads}, budget::HeadTableBudget{any, 1.2, heads});
  require_same(budget::PrefixMass{snap, layers}, budget::PrefixMass{any, layers});
  require_same(budget::Variance{budget::Ada{snap, 0.3}, 0.01, layers}, budget::Variance{budget::Ada{any, 0.3}, 0.01, layers});

  const budget::Ada typed{budget::SkipLayers{budget::Pyramid{snap, 4.0}, 1}, 0.3};
  const Any one(budget::Pyramid{any, 4.0});
  const Any two(budget::SkipLayers{one, 1});
  require_same(typed, budget::Ada{two, 0.3});
  const Any three(budget::Ada{two, 0.3});
  require_same(typed, three);
  const Any copy = three;  // a chain of blocks stays whole when it moves
  require_same(typed, copy);
  REQUIRE(copy.blocks.complete());
}

TEST_CASE("erased: wrappers of every kind of block are what they are around a typed policy", "[evict][erased]") {
  const evict::SnapKV snap{.tokens = 19, .window = 5};
  const evict::H2O h2o{.heavy = 9, .recent = 8};
  std::vector<float> numbers(7 * 12);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(number(8, 0, static_cast<index_t>(i))) - 0.5f;
  const std::vector<const float*> layers(4, numbers.data());
  const LayerMatrices output{layers.data(), 4, 7, 12};
  const Any any(snap), sums(h2o);
  require_same(evict::Caote{snap}, evict::Caote{any});
  require_same(evict::Caote{h2o, true, true}, evict::Caote{sums, true, true});
  require_same(evict::Caote{evict::Tova{.tokens = 19}}, evict::Caote{Any(evict::Tova{.tokens = 19})});
  require_same(evict::KVCrush{snap, 0.5, 3}, evict::KVCrush{any, 0.5, 3});
  require_same(evict::Critical{snap, output}, evict::Critical{any, output});
  require_same(evict::InChunks{h2o, 4}, evict::InChunks{sums, 4});
  require_same(evict::PageRound{h2o, 4}, evict::PageRound{sums, 4});
  require_same(evict::Every{h2o, 3}, evict::Every{sums, 3});
  require_same(evict::BlockPrefill{snap, 40}, evict::BlockPrefill{any, 40});

  const evict::Critical typed{budget::Ada{evict::Every{snap, 2}, 0.3}, output};
  const Any one(evict::Every{any, 2});
  const Any two(budget::Ada{one, 0.3});
  require_same(typed, Any(evict::Critical{two, output}));
  const Any pooled(evict::Caote{sums});
  require_same(evict::PageRound{evict::Caote{h2o}, 4}, Any(evict::PageRound{pooled, 4}));
  REQUIRE(evict::Caote{pooled}.validate({}) == Status::incompatible);
  REQUIRE(evict::InChunks{Any(evict::InChunks{sums, 4}), 4}.validate({}) == Status::incompatible);
}

TEST_CASE("erased: no pipeline, or one wrapped too often, is refused at every step", "[evict][erased]") {
  Any any(evict::H2O{});
  for (int i = 0; i < 4; ++i) {
    REQUIRE(any.blocks.complete());
    any = Any(budget::Ada{any, 0.1});
  }
  REQUIRE(!any.blocks.complete());
  REQUIRE(!Any().blocks.complete());
  auto d = drive({}, any);
  REQUIRE(d.step(2, Phase::prefill_end, [](index_t, index_t) { return 0.5; }) == Status::not_supported);
  auto none = drive({}, Any());
  REQUIRE(none.step(2, Phase::prefill_end) == Status::not_supported);
}

TEST_CASE("erased: a block that is not there asks for nothing, chooses nothing and works on nothing", "[evict][erased]") {
  const evict::AnyPipeline none;
  const evict::detail::View view{};
  Context<Cpu> ctx;
  Scratch scratch;
  index_t budget = -1;
  const auto& source = none.source;
  REQUIRE(source.attention().rows == AttentionNeed::Rows::none);
  REQUIRE(source.queries().rows == AttentionNeed::Rows::none);
  REQUIRE(source.inputs().empty());
  REQUIRE((source.lanes() == 0 && source.score_lane() == -1));
  REQUIRE(source.touches() == evict::Touches::any);
  REQUIRE_FALSE((source.one_set() || source.gives_shares() || source.by_age() || source.rotated_keys() || source.probes()));
  REQUIRE(source.observe(ctx, view, {}) == Status::not_supported);
  REQUIRE(source.observe_turn(ctx, view, {}) == Status::not_supported);
  REQUIRE(source.observe_probe(ctx, view, {}, scratch) == Status::not_supported);
  REQUIRE(source.score(ctx, view, {}, {}, scratch) == Status::not_supported);
  REQUIRE_FALSE((none.pool.keeps_shares() || none.pool.leaves_scores()));
  REQUIRE(none.pool.run(ctx, view, nullptr, {}, scratch) == Status::not_supported);
  REQUIRE_FALSE(none.protect.judges_once());
  REQUIRE((none.protect.most() == 0 && none.protect.of(view, 0).size() == 0));
  REQUIRE_FALSE(none.allocate.uses_scores());
  REQUIRE(none.allocate.model_share().keep == evict::ModelShare{}.keep);
  REQUIRE(none.allocate.expects(view, 0, {}) == 0);
  REQUIRE(none.allocate.run(ctx, view, {}, nullptr, &budget, scratch) == Status::not_supported);
  REQUIRE(budget == -1);
  REQUIRE_FALSE((none.select.takes_best() || none.select.reads_scores()));
  REQUIRE_FALSE((none.select.asks_for_room_alone() || none.allocate.asks_for_room_alone() || none.asks_for_room_alone()));
  REQUIRE(none.select.run(ctx, view, {}, nullptr, {}, scratch) == Status::not_supported);
  for (const std::size_t bytes : {source.workspace_bytes({}, 99), none.pool.workspace_bytes({}, 99), none.allocate.workspace_bytes({}, 99), none.select.workspace_bytes({}, 99)})
    REQUIRE(bytes == 0);
  REQUIRE_FALSE(none.trigger.fires(view, {}));
}

TEST_CASE("erased: run-time pipelines keep the promises", "[evict][erased]") {
  check_promises(Any(evict::H2O{.heavy = 16, .recent = 8}), Any(evict::H2O{.heavy = 300, .recent = 8}));
}
