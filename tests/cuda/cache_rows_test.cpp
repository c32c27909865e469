// Caches on CUDA that hold rows by levels, clusters of channels, codewords, planes of bits and angles, mapped or not.

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/keydiff.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/quant/bipolar_int.hpp>
#include <kvcondense/quant/bit_allocation.hpp>
#include <kvcondense/quant/boundary_layers.hpp>
#include <kvcondense/quant/comet.hpp>
#include <kvcondense/quant/commvq.hpp>
#include <kvcondense/quant/gear.hpp>
#include <kvcondense/quant/ggml.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/hadamard.hpp>
#include <kvcondense/quant/kitty.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/quant/kvquant.hpp>
#include <kvcondense/quant/mikv.hpp>
#include <kvcondense/quant/polar.hpp>
#include <kvcondense/quant/polar_recursive.hpp>
#include <kvcondense/quant/qjl.hpp>
#include <kvcondense/quant/qserve.hpp>
#include <kvcondense/quant/rotatekv.hpp>
#include <kvcondense/quant/skvq.hpp>
#include <kvcondense/quant/smooth_attention.hpp>
#include <kvcondense/quant/turboquant.hpp>
#include <kvcondense/quant/zipcache.hpp>
#include <support/model_facts.hpp>

#include "cache_live.hpp"
#include "cache_methods.hpp"

using namespace kvcondense;
using namespace cuda_cache;

namespace {

/// Groups of channels of every head: four, whose sizes differ.
std::vector<float> clusters(const CacheShape& shape, index_t dim) {
  std::vector<float> x;
  for (index_t i = 0; i < shape.layers * shape.kv_heads * dim; ++i) x.push_back(static_cast<float>((i % dim + i % dim / 3 + i / dim) % 7 % 4));
  return x;
}

}  // namespace

TEST_CASE("cuda cache codec: skvq") {
  quant::Skvq skvq;
  skvq.window = 6, skvq.sinks = 3, skvq.group_size = 32, skvq.value_levels = 3;
  const std::string text = "skvq(window=6, sinks=3, group_size=32, value_levels=3)";
  stays(skvq, text, small);
  leaves(skvq, text, odd);
  skvq = {.key_levels = 8, .value_levels = 16, .key_clip = 0.8f, .params = prim::ClusterParam::f16, .window = 0, .sinks = 0};
  const std::vector<float> keys = clusters(common, 128), values = clusters(common, 128);
  any::ModelFacts facts;
  facts.key_clusters = skvq.key_clusters = {keys.data(), common.layers, 2, 128}, facts.value_clusters = skvq.value_clusters = {values.data(), common.layers, 2, 128};
  leaves(skvq, "skvq(key_levels=8, value_levels=16, key_clip=0.8, params=f16, window=0, sinks=0)", common, facts);
}

TEST_CASE("cuda cache codec: kvquant") {
  for (const CacheShape& shape : {small, odd, wide_halves}) {
    const kvcondense::test::RandomModel model(shape);
    quant::KvQuant nuq{.bits = shape.head_dim == 64 ? 4 : 3, .outliers = shape.head_dim == 80 ? 0.2f : 0.02f, .residual_window = 3, .sinks = 2};
    nuq.key_lower = model.facts().key_lower, nuq.key_upper = model.facts().key_upper;
    const std::string text = shape.head_dim == 64   ? "kvquant(bits=4, outliers=0.02, residual=3, sinks=2)"
                             : shape.head_dim == 80 ? "kvquant(bits=3, outliers=0.2, residual=3, sinks=2)"
                                                    : "kvquant(bits=3, outliers=0.02, residual=3, sinks=2)";
    if (shape.head_dim == 64) stays(nuq, text, shape, model.facts());
    else leaves(nuq, text, shape, model.facts());
  }
}

TEST_CASE("cuda cache codec: commvq") {
  for (const CacheShape& shape : {small, odd}) {
    const kvcondense::test::RandomModel model(shape);
    quant::CommVq vq{.base = shape.head_dim == 64 ? 16 : 64, .beam = shape.head_dim == 64 ? 3 : 64, .residual_window = 2};
    vq.pairing = shape.head_dim == 64 ? prim::RopePairing::half_split : prim::RopePairing::interleaved;
    vq.key_books = model.facts().key_books, vq.value_books = model.facts().value_books;
    const std::string text = shape.head_dim == 64 ? "commvq(base=16, beam=3, residual=2)" : "commvq(base=64, beam=64, pairing=interleaved, residual=2)";
    leaves(vq, text, shape, model.facts());
  }
}

TEST_CASE("cuda cache codec: bipolar_int") {
  // Queries are not coded here, so neither are they on the CPU.
  stays(quant::BipolarInt<2>{.query_bits = 0}, "bipolar_int(bits=2, query_bits=0)", small);
  leaves(quant::BipolarInt<3>{.group_size = 16, .query_bits = 0, .residual_window = 4, .sinks = 1}, "bipolar_int(bits=3, group=16, query_bits=0, residual=4, sinks=1)", odd);
  leaves(quant::BipolarInt<8>{.group_size = 0, .query_bits = 0, .form = prim::GroupForm::symmetric}, "bipolar_int(bits=8, group=0, query_bits=0, form=symmetric)", wide_halves);
  Pair norms(recipe(evict::Knorm{.tokens = 30, .recent = 6}, quant::BipolarInt<3>{.query_bits = 0}), "knorm(tokens=30, recent=6) + bipolar_int(bits=3, query_bits=0)", small);
  lives(norms);
  // Where the CPU codes queries, a number of them errs by 1 / 255 of its group's largest.
  Pair coded(recipe(quant::BipolarInt<3>{}), "bipolar_int(bits=3)", common);
  coded.forward(30, prim::AttendMath::f32, 0.02f);
}

TEST_CASE("cuda cache codec: turboquant") {
  stays(quant::TurboQuant{.residual_window = 3, .sinks = 2}, "turboquant(residual=3, sinks=2)", small);
  leaves(quant::TurboQuant{.key_bits = 3, .value_bits = 2, .scale = prim::LevelScale::norm, .normal_levels = true}, "turboquant(key_bits=3, value_bits=2, scale=norm, normal_levels=true)", odd);
  leaves(quant::TurboQuant{.key_bits = 1, .scale = prim::LevelScale::least_squares}, "turboquant(key_bits=1, scale=least_squares)", wide_halves);
  leaves(quant::TurboQuant{.residual_window = 1}, "turboquant(residual=1)", shared);
  // Methods that look at rows see them as they were before they were turned.
  const quant::TurboQuant quantizer{.residual_window = 2};
  Pair norms(recipe(evict::Knorm{.tokens = 30, .recent = 6}, quantizer), "knorm(tokens=30, recent=6) + turboquant(residual=2)", odd);
  lives(norms);
  Pair directions(recipe(evict::KeyDiff{.tokens = 30, .recent = 4}, quantizer), "keydiff(tokens=30, recent=4) + turboquant(residual=2)", small);
  lives(directions);
  Pair columns(recipe(evict::SnapKV{.tokens = 30, .window = 8, .kernel = 5}, quantizer), "snapkv(tokens=30, window=8, kernel=5) + turboquant(residual=2)", common);
  lives(columns);
}

TEST_CASE("cuda cache codec: rotatekv") {
  quant::RotateKv rotate{.group_size = 32, .sinks = 2};
  stays(rotate, "rotatekv(group=32, sinks=2)", small);
  rotate = {.bits = 3, .clip = 0.9f, .seed = 5, .residual_window = 2, .sinks = 0};
  const std::vector<float> keys = clusters(odd, 80), values = clusters(odd, 48);
  any::ModelFacts facts;
  facts.key_clusters = rotate.key_clusters = {keys.data(), 1, 1, 80}, facts.value_clusters = rotate.value_clusters = {values.data(), 1, 1, 48};
  leaves(rotate, "rotatekv(bits=3, clip=0.9, seed=5, residual=2, sinks=0)", odd, facts);
  // Every head has a table of its own behind the map.
  const std::vector<float> many = clusters(small, 64);
  facts.key_clusters = rotate.key_clusters = facts.value_clusters = rotate.value_clusters = {many.data(), 2, 2, 64};
  leaves(rotate, "rotatekv(bits=3, clip=0.9, seed=5, residual=2, sinks=0)", small, facts);
}

TEST_CASE("cuda cache codec: polar_recursive") {
  stays(quant::PolarRecursive{.residual_window = 3, .sinks = 2}, "polar_recursive(residual=3, sinks=2)", small);
  leaves(quant::PolarRecursive{.levels = 3, .first_bits = 6, .bits = 3, .seed = 0}, "polar_recursive(levels=3, first_bits=6, bits=3, seed=0)", common);
}

TEST_CASE("cuda cache codec: hadamard") {
  stays(quant::Hadamard<quant::GroupInt<4>>{.base = {.group_size = 32, .residual_window = 3}}, "hadamard(int4(group=32, residual=3))", small);
  leaves(quant::Hadamard<quant::GroupInt<8>>{.base = {.group_size = 16}, .keys = true, .values = false, .block = 16, .seed = 9}, "hadamard(int8(group=16), values=false, block=16, seed=9)", odd);
  Pair blocks(recipe(ends, quant::Hadamard<quant::Ggml>{.base = {.format = quant::GgmlFormat::q4_0}}), std::string(ends_text) + "hadamard(ggml(format=q4_0))", wide_halves);
  lives(blocks);
  const kvcondense::test::RandomModel model(small);
  quant::Hadamard<quant::KvQuant> ranges{.base = {.bits = 3, .outliers = 0.1f, .residual_window = 2, .sinks = 1}, .seed = 3};
  ranges.base.key_lower = model.facts().key_lower, ranges.base.key_upper = model.facts().key_upper;
  leaves(ranges, "hadamard(kvquant(bits=3, outliers=0.1, residual=2, sinks=1), seed=3)", small, model.facts());
  // Groups along tokens behind a map cannot move: their joins know no map.
  const quant::Hadamard<quant::GroupInt<4>> along{.base = {.key_axis = prim::GroupAxis::channel, .group_size = 16}, .spread_offsets = true};
  CHECK(make_cache<Cuda>(small, recipe(along)).status() == Status::not_supported);
}

TEST_CASE("cuda cache codec: boundary_layers") {
  const CacheShape shape{.layers = 4, .q_heads = 4, .kv_heads = 1, .head_dim = 64, .page_slots = 8};
  stays(quant::BoundaryLayers<quant::GroupInt<4>>{.base = {.group_size = 32, .residual_window = 3}, .first = 1, .last = 2}, "boundary_layers(int4(group=32, residual=3), first=1, last=2)", shape);
  leaves(quant::BoundaryLayers<quant::Kivi<2>>{.base = {.group_size = 16, .residual_window = 16}, .first = 1, .last = 1},
         "boundary_layers(kivi2(group=16, residual=16), first=1, last=1)", shape);
  leaves(quant::BoundaryLayers<quant::TurboQuant>{.base = {.sinks = 2}, .first = 1, .last = 1}, "boundary_layers(turboquant(sinks=2), first=1, last=1)", shape);
}

TEST_CASE("cuda cache codec: qserve") {
  stays(quant::QServe<4>{.residual_window = 3, .sinks = 1}, "qserve(residual=3, sinks=1)", small);
  Pair pair(recipe(heavy, quant::QServe<8>{}), "h2o(heavy=20, recent=8) + qserve(bits=8)", common);
  lives(pair, 4e-4f);  // codes of lanes are multiplied as integers on the CPU
}

TEST_CASE("cuda cache codec: comet") { leaves(quant::Comet{.group_size = 16, .keep_window = 4, .sinks = 1}, "comet(group=16, keep=4, sinks=1)", small); }

namespace {

template <class Q>
constexpr bool served = detail::cuda_codec<decltype(key_codec_of(std::declval<const Q&>(), CacheShape{}))> &&
                        detail::cuda_codec<decltype(value_codec_of(std::declval<const Q&>(), CacheShape{}))>;
static_assert(served<quant::KvQuant> && served<quant::Hadamard<quant::GroupInt<4>>> && served<quant::Qjl> && served<quant::BitAllocation> && served<quant::SmoothAttention<>>);
// What lacks below stops compilation with a sentence.
static_assert(served<quant::Kitty> && served<quant::Polar<4, 4>> && served<quant::Gear<2>> && served<quant::ZipCache<4, 2>> && served<quant::MiKV<4, 2>>);
static_assert(!served<quant::Hadamard<quant::Kitty>> && !served<quant::Hadamard<quant::Gear<2>>> && !served<quant::Hadamard<quant::ZipCache<4, 2>>> && !served<quant::Hadamard<quant::MiKV<4, 2>>>);

/// Heads behind the first differ in more than the table says.
struct Uneven {
  static constexpr Descriptor about{"uneven", Stage::quant, "a test"};
  const float* book = nullptr;
  std::int32_t words = 50;  ///< of their books: rows of up to 64 take as many bytes
  std::uint64_t seed = 1;   ///< of their maps
  index_t sinks = 0;

  prim::Transformed<prim::Hadamard, prim::ComplexVq> key_codec(const CacheShape& shape, HeadIndex at) const {
    const auto channels = static_cast<std::int32_t>(shape.head_dim);
    return {{0, at.head == 0 ? 1 : seed}, {.book = book, .stages = 2, .base = at.head == 0 ? 50 : words, .channels = channels}};
  }
  prim::ExactRows value_codec(const CacheShape& shape) const { return {shape.dtype}; }
  constexpr Flush key_flush() const { return fifo_flush(0); }
  constexpr Flush value_flush() const { return {0, 0}; }
  Status validate(const CacheShape&) const { return Status::ok; }
};

}  // namespace

TEST_CASE("cuda cache: heads whose codecs differ in more than what tables say are refused") {
  const std::vector<float> book(std::size_t{2} * 64 * 64, 0.5f);
  CHECK(make_cache<Cuda>(small, recipe(Uneven{.book = book.data()})));
  CHECK(make_cache<Cuda>(small, recipe(Uneven{.book = book.data(), .words = 64})).status() == Status::not_supported);
  CHECK(make_cache<Cuda>(small, recipe(Uneven{.book = book.data(), .seed = 2})).status() == Status::not_supported);
}

TEST_CASE("cuda cache: a number that overflows in a map is a repair, what a stored NaN spreads to is none more") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 64, .dtype = DType::f32};
  Pair pair(recipe(quant::Hadamard<quant::GroupInt<4>>{.base = {.group_size = 32}}), "hadamard(int4(group=32))", shape);
  std::vector<std::byte> scratch(pair.on_host().workspace_bytes(128, 128));
  Context<Cpu> cpu(scratch);
  Context<Cuda> ctx = pair.device().with_workspace(pair.on_device().workspace_bytes(8, 8));
  const auto repaired = [&] { return pair.on_device().report(pair.device())->repaired_numbers; };
  std::vector<float> rows(64, 3e38f);
  const auto view = [](const float* x) { return dense_view(x, 1, 1, 64); };
  {
    test::OnDevice<float> there(pair.device(), rows);
    REQUIRE(pair.on_host().append(cpu, 0, view(rows.data()), view(rows.data())) == Status::ok);
    REQUIRE(pair.on_device().append(ctx, 0, view(there.data()), view(there.data())) == Status::ok);
    REQUIRE(pair.on_host().step(cpu, 0) == Status::ok);
    REQUIRE(pair.on_device().step(ctx, 0) == Status::ok);
    pair.compare_reports();
    CHECK(repaired() > 0);
  }
  const index_t before = repaired();
  std::fill(rows.begin(), rows.end(), 0.5f);
  rows[7] = NAN;
  test::OnDevice<float> there(pair.device(), rows);
  REQUIRE(pair.on_device().append(ctx, 0, view(there.data()), view(there.data())) == Status::ok);
  REQUIRE(pair.on_device().step(ctx, 0) == Status::ok);
  CHECK(repaired() == before + 2);  // one of keys, one of values
}

TEST_CASE("cuda cache: every quant stage is tried, or it is said what lacks") {
  // Those of groups and blocks: cache_codes_test.cpp, cache_blocks_test.cpp; those whose groups share more than scales: cache_shared_test.cpp, cache_gear_test.cpp.
  const std::string codes = "cuda cache: what stays is coded, what is coded leaves", blocks = "cuda cache: blocks of small floats and of ggml are coded as they leave the exact window";
  const std::map<std::string, std::string> elsewhere{
      {"kivi", "cuda cache: kivi codes blocks of keys and single values, between exact ones"}, {"group_int", codes},
      {"fp8", blocks}, {"mx", blocks}, {"nvfp4", blocks}, {"ggml", blocks},
      {"bfp", "cuda cache: rows of blocks stay, move and leave behind eviction, and are scored as they are stored"},
  };
  const std::map<std::string, std::string> lacking{
      {"exact", "nothing: it is the recipe without a quant stage"},
  };
  cuda_cache::every_word_is_tried({Stage::quant}, "cuda cache codec: ", lacking, elsewhere);
}
