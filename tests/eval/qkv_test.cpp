#include <algorithm>
#include <cmath>
#include <fstream>

#include <eval/error.hpp>
#include <eval/evaluate.hpp>
#include <eval/json_report.hpp>
#include <eval/table.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/quant/kivi.hpp>

#include "dump_files.hpp"

using namespace eval;
using namespace eval::test;

namespace {

const CacheShape small{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32};
constexpr index_t tokens = 70, prefill = 40;

Options options_for(const std::string& path, std::vector<std::string> recipes) {
  Options o;
  o.qkv = path;
  o.recipes = std::move(recipes);
  o.prefill = prefill;
  o.rounds = 0;
  o.quiet = true;
  return o;
}

/// Attention of the tokens after the prefill over everything, in double.
std::vector<double> plain_attention(const Recording& r, std::size_t layer) {
  const Recording::Layer& l = r.layers[layer];
  const CacheShape& s = r.shape;
  std::vector<double> out;
  for (index_t t = prefill; t < r.tokens; ++t)
    for (index_t h = 0; h < s.q_heads; ++h) {
      const auto at = [&](index_t token, index_t heads, index_t head) {
        return static_cast<std::size_t>((token * heads + head) * s.head_dim);
      };
      std::vector<double> sum(static_cast<std::size_t>(s.head_dim), 0.0);
      double all = 0;
      for (index_t j = 0; j <= t; ++j) {
        double dot = 0;
        for (std::size_t d = 0; d < sum.size(); ++d)
          dot += static_cast<double>(l.q[at(t, s.q_heads, h) + d]) *
                 static_cast<double>(l.k[at(j, s.kv_heads, h / s.group()) + d]);
        const double weight = std::exp(dot / std::sqrt(static_cast<double>(s.head_dim)));
        all += weight;
        for (std::size_t d = 0; d < sum.size(); ++d)
          sum[d] += weight * static_cast<double>(l.v[at(j, s.kv_heads, h / s.group()) + d]);
      }
      for (const double x : sum) out.push_back(x / all);
    }
  return out;
}

/// Outputs of one layer through a cache whose recipe is a type.
template <class R>
std::vector<float> through_typed_cache(const Recording& r, const R& recipe, index_t layer) {
  auto made = kvcondense::make_cache<kvcondense::Cpu>(r.shape, recipe);
  REQUIRE(made);
  kvcondense::Workspace scratch;
  REQUIRE(scratch.reserve(made->workspace_bytes(r.tokens, r.tokens)) == kvcondense::Status::ok);
  kvcondense::Context<kvcondense::Cpu> context(scratch.bytes());
  const index_t row = r.shape.q_heads * r.shape.head_dim;
  std::vector<float> out(static_cast<std::size_t>(r.tokens * row));
  const auto feed = [&](index_t first, index_t count, kvcondense::Phase phase) {
    const auto c = r.chunk(layer, first, count, {});
    const TensorView<float, 3> o{out.data() + first * row,
                                 {r.shape.q_heads, count, r.shape.head_dim},
                                 {r.shape.head_dim, row, 1}};
    REQUIRE(made->forward(context, layer, c.q, c.k, c.v, o, {}, phase) == kvcondense::Status::ok);
  };
  feed(0, prefill, kvcondense::Phase::prefill_end);
  for (index_t t = prefill; t < r.tokens; ++t) feed(t, 1, kvcondense::Phase::decode);
  out.erase(out.begin(), out.begin() + prefill * row);
  return out;
}

}  // namespace

TEST_CASE("qkv: a dump gives what the caches give directly", "[eval][qkv]") {
  const TempFile file("direct.safetensors");
  const Recording r = random_recording(tokens, small);
  write_qkv(r, file.path());
  Kept kept;
  const Results results = evaluate(
      options_for(file.path(), {"h2o(heavy=8, recent=8) + kivi2(group=32, residual=32)"}), &kept);
  REQUIRE(results.recipes.size() == 2);

  const auto typed =
      kvcondense::recipe(kvcondense::evict::H2O{.heavy = 8, .recent = 8},
                         kvcondense::quant::Kivi<2>{.group_size = 32, .residual_window = 32});
  for (std::size_t layer = 0; layer < 2; ++layer) {
    const auto plain = plain_attention(r, layer);
    REQUIRE(kept.exact[layer].size() == plain.size());
    for (std::size_t i = 0; i < plain.size(); ++i)
      REQUIRE(kept.exact[layer][i] == Approx(plain[i]).margin(1e-5));

    const auto direct = through_typed_cache(r, typed, static_cast<index_t>(layer));
    REQUIRE(kept.outputs[1][layer] == direct);
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < plain.size(); ++i) {
      difference += std::pow(static_cast<double>(direct[i]) - plain[i], 2);
      size += plain[i] * plain[i];
    }
    REQUIRE(results.recipes[1].layer_error[layer] ==
            Approx(std::sqrt(difference / size)).epsilon(1e-4));
    REQUIRE(results.recipes[0].layer_error[layer] <
            1e-3);  // 16-bit storage of random normal numbers
  }
  REQUIRE(results.recipes[1].slots == std::vector<std::vector<index_t>>{{16, 16}, {16, 16}});
}

TEST_CASE("qkv: raw keys and rotated keys of the same sequence agree", "[eval][qkv]") {
  const bool interleaved = GENERATE(false, true);
  const bool listed = GENERATE(false, true);  // frequencies given as a tensor instead of a base
  CAPTURE(interleaved, listed);
  const TempFile raw_file("raw.safetensors"), rotated_file("rotated.safetensors");
  engine::SafetensorsWriter raw;
  add_tensors(raw, random_recording(tokens, small));
  raw.metadata("keys", "raw");
  raw.metadata("rope_convention", interleaved ? "interleaved" : "half_split");
  std::vector<float> frequencies;
  for (int i = 0; i < 16; ++i) frequencies.push_back(std::pow(500.0f, -static_cast<float>(i) / 16));
  if (listed)
    raw.f32("rope.inv_freq", {16}, frequencies);
  else
    raw.metadata("rope_theta", "500");
  write(raw, raw_file.path());
  write_qkv(read_qkv(raw_file.path()), rotated_file.path());

  const std::vector<std::string> recipes{"sink_window(sinks=2, recent=20) + reindex",
                                         "sink_window(sinks=2, recent=20) + rerotate",
                                         "sink_window(sinks=2, recent=20)"};
  const Results a = evaluate(options_for(raw_file.path(), recipes));
  const Results b = evaluate(options_for(rotated_file.path(), recipes));
  for (std::size_t i = 0; i < a.recipes.size(); ++i)
    for (std::size_t l = 0; l < 2; ++l)
      REQUIRE(a.recipes[i].layer_error[l] == Approx(b.recipes[i].layer_error[l]).margin(1e-4));
  // Both ways to re-index attend at the same relative positions; keys rotated elsewhere do not.
  REQUIRE(a.recipes[1].layer_error[0] == Approx(a.recipes[2].layer_error[0]).margin(1e-3));
}

TEST_CASE("qkv: a bad dump is refused in one line", "[eval][qkv]") {
  const TempFile file("bad.safetensors");
  engine::SafetensorsWriter writer;
  Recording r = random_recording(4, {.layers = 1, .q_heads = 2, .kv_heads = 1, .head_dim = 4});
  std::string want;
  SECTION("no queries") {
    want = "tensor \"q.0\" is missing: expected q.<layer>, k.<layer>, v.<layer>";
  }
  SECTION("no values") {
    writer.f32("q.0", {4, 2, 4}, r.layers[0].q);
    writer.f32("k.0", {4, 1, 4}, r.layers[0].k);
    want = "tensor \"v.0\" is missing";
  }
  SECTION("keys of another length") {
    writer.f32("q.0", {4, 2, 4}, r.layers[0].q);
    writer.f32("k.0", {2, 2, 4}, r.layers[0].k);
    writer.f32("v.0", {4, 1, 4}, r.layers[0].v);
    want = "tensor \"k.0\" is [2, 2, 4], expected [4, 2, 4]";
  }
  SECTION("heads that do not divide") {
    writer.f32("q.0", {4, 2, 4}, r.layers[0].q);
    writer.f32("k.0", {1, 4, 4}, r.layers[0].k);
    want = "q.0 of [4, 2, 4] and k.0 of [1, 4, 4] do not make a cache";
  }
  SECTION("flat") {
    writer.f32("q.0", {32}, r.layers[0].q);
    want = "tensor \"q.0\" is [32], expected [tokens, heads, head_dim]";
  }
  SECTION("not numbers") {
    r.layers[0].k[3] = std::nanf("");
    add_tensors(writer, r);
    want = "tensor \"k.0\": element 3 is not a number below 65504";
  }
  SECTION("no word about rotation") {
    add_tensors(writer, r);
    want = "metadata keys is missing, expected rotated or raw";
  }
  SECTION("an odd word about rotation") {
    add_tensors(writer, r);
    writer.metadata("keys", "turned");
    want = "metadata keys is 'turned', expected rotated or raw";
  }
  SECTION("raw without a rotary embedding") {
    add_tensors(writer, r);
    writer.metadata("keys", "raw");
    want =
        "its keys are raw, and nothing says how they rotate: it needs rope_theta or rope.inv_freq";
  }
  SECTION("a base that is no number") {
    add_tensors(writer, r);
    writer.metadata("rope_theta", "1e4x");
    want = "metadata rope_theta is '1e4x', expected a number";
  }
  SECTION("a dimension that is no whole number") {
    add_tensors(writer, r);
    writer.metadata("rope_theta", "10000");
    writer.metadata("rotary_dim", "2.5");
    want = "metadata rotary_dim is '2.5', expected a whole number";
  }
  SECTION("a misspelled setting") {
    add_tensors(writer, r);
    writer.metadata("keys", "rotated");
    writer.metadata("rope_base", "500000");
    want = "metadata rope_base is not known";
  }
  SECTION("a layer behind a missing one") {
    add_tensors(writer, r);
    writer.f32("q.2", {4, 2, 4}, r.layers[0].q);
    want = "tensor \"q.2\" belongs to no layer: q.1 is missing";
  }
  SECTION("frequencies that do not fit") {
    add_tensors(writer, r);
    writer.f32("rope.inv_freq", {3}, std::vector<float>{1.0f, 0.5f, 0.25f});
    want = "the rotary embedding it describes does not fit heads of 4";
  }
  write(writer, file.path());
  REQUIRE_THROWS_WITH(read_qkv(file.path()), file.path() + ": " + want);
}

TEST_CASE("qkv: a cut file is refused wherever it ends", "[eval][qkv]") {
  const TempFile whole("whole.safetensors"), cut("cut.safetensors");
  write_qkv(random_recording(4, {.layers = 1, .q_heads = 2, .kv_heads = 1, .head_dim = 4}),
            whole.path());
  std::ifstream in(whole.path(), std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  for (std::size_t n = 0; n < bytes.size(); n += 3) {
    std::ofstream(cut.path(), std::ios::binary) << bytes.substr(0, n);
    CAPTURE(n);
    REQUIRE_THROWS_AS(read_qkv(cut.path()), Error);
  }
}

TEST_CASE("qkv: another attention scale is the same as queries scaled by hand", "[eval][qkv]") {
  const TempFile named("scale.safetensors"), by_hand("by_hand.safetensors");
  Recording r = random_recording(tokens, small);
  engine::SafetensorsWriter writer;
  add_tensors(writer, r);
  writer.metadata("keys", "rotated");
  writer.metadata("attention_scale", "0.25");
  writer.metadata("format", "pt");  // what others' writers add is let pass
  write(writer, named.path());
  const float factor = static_cast<float>(0.25 / (1 / std::sqrt(32.0)));
  for (Recording::Layer& l : r.layers)
    for (float& q : l.q) q *= factor;
  write_qkv(r, by_hand.path());
  const Recording a = read_qkv(named.path()), b = read_qkv(by_hand.path());
  for (std::size_t l = 0; l < 2; ++l) {
    REQUIRE(a.layers[l].q == b.layers[l].q);
    REQUIRE(a.layers[l].k == b.layers[l].k);
  }
}

TEST_CASE("qkv: recipes that nobody asked for never refuse a dump", "[eval][qkv]") {
  const bool odd =
      GENERATE(false, true);  // heads that no group of 32 divides, or a rotation unknown
  const TempFile file("defaults.safetensors");
  Recording r =
      random_recording(24, {.layers = 1, .q_heads = 2, .kv_heads = 1, .head_dim = odd ? 40 : 32});
  if (odd) r.rope.emplace();
  write_qkv(r, file.path());
  Options o = options_for(file.path(), {});
  o.prefill = 12;
  const Results results = evaluate(o);
  const auto& left_out = results.setting.left_out;
  REQUIRE(results.recipes.size() + left_out.size() == 1 + default_recipes(24).size());
  const auto gone = [&](const std::string& word) {
    return std::any_of(left_out.begin(), left_out.end(), [&](const std::string& recipe) {
      return recipe.find(word) != std::string::npos;
    });
  };
  REQUIRE(gone("reindex") == !odd);
  REQUIRE(gone("kivi2") == odd);
  REQUIRE(heading(results).find("each says why: " + left_out[0]) != std::string::npos);
  REQUIRE(to_json(results)["setting"]["left_out"] == left_out);
}

TEST_CASE("qkv: recipes that turn keys need to know how", "[eval][qkv]") {
  const TempFile file("unknown.safetensors");
  write_qkv(random_recording(tokens, small), file.path());  // without a rotary embedding
  REQUIRE_THROWS_WITH(
      evaluate(options_for(file.path(), {"reindex"})),
      "recipe 'reindex' looks at keys or queries before rotation, and the dump does not say how they "
      "were rotated: it needs rope_theta or rope.inv_freq");
}
