#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <any/observe.hpp>
#include <kvcondense/any/builtin.hpp>
#include <kvcondense/any/recipe_text.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <support/catalogue.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;

// What the specifications of quantizers and merges say of all of them, over every word that the registry has.

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// A cache of a recipe, and scratch for it.
struct Rig {
  CacheShape shape;
  any::AnyCache cache;
  Workspace work{};

  Rig(const std::string& text, const CacheShape& s, index_t slots, index_t chunk, const any::ModelFacts& facts = {})
      : shape(s), cache(made(text, s, facts)) {
    REQUIRE(work.reserve(cache.workspace_bytes(slots, chunk)) == Status::ok);
  }
  static any::AnyCache made(const std::string& text, const CacheShape& s, const any::ModelFacts& facts) {
    CAPTURE(text);
    const any::ParseResult parsed = any::parse(text, facts);
    CAPTURE(std::string(parsed.message()));
    REQUIRE(parsed);
    auto cache = any::AnyCache::make(parsed->stages, parsed->text.view(), s);
    REQUIRE(cache.status() == Status::ok);
    return std::move(*cache);
  }

  /// Tokens through every layer, with whatever a step may ask for.
  void forward(const test::Tokens& t, Phase phase = Phase::prefill_end) {
    Context<Cpu> ctx(work.bytes());
    std::mt19937 random(1);
    const test::StepData data(shape, t.n, random);
    std::vector<float> out(at(shape.q_heads * t.n * shape.values()));
    for (index_t l = 0; l < shape.layers; ++l)
      REQUIRE(cache.forward(ctx, l, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), shape.q_heads, t.n, shape.values()),
                            {}, phase, data.inputs()) == Status::ok);
  }
  /// The same without attention, for recipes that ask for nothing.
  void store(const test::Tokens& t, Phase phase = Phase::prefill_end) {
    for (const Input i : all_inputs)
      if (cache.capabilities().needs.has(i)) return forward(t, phase);
    Context<Cpu> ctx(work.bytes());
    for (index_t l = 0; l < shape.layers; ++l) {
      REQUIRE(cache.append(ctx, l, t.keys(shape), t.values(shape)) == Status::ok);
      REQUIRE(cache.step(ctx, l, phase) == Status::ok);
    }
  }
  /// Attention of one query per head over what a layer holds, then its log-sum-exps.
  std::vector<float> ask(const std::vector<float>& q, index_t layer = 0) {
    Context<Cpu> ctx(work.bytes());
    std::vector<float> out(at(shape.q_heads * (shape.values() + 1)));
    REQUIRE(cache.attend(ctx, layer, dense_view(q.data(), shape.q_heads, 1, shape.head_dim), dense_view(out.data(), shape.q_heads, 1, shape.values()),
                         {.lse = dense_view(out.data() + shape.q_heads * shape.values(), shape.q_heads, 1)}) == Status::ok);
    return out;
  }
};

double square_distance(const std::vector<float>& a, const std::vector<float>& b, std::size_t n) {
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  return sum;
}

}  // namespace

TEST_CASE("catalogue: all 65,536 halves go through every codec, keys and values", "[any][quant][halves]") {
  constexpr CacheShape shape = test::observed_shape;
  constexpr index_t dim = 64, slots = 1024;
  using Page = prim::PageCodec<Cpu, any::AnyCodec>;
  // Row by row, and channel by channel, so that numbers of all sizes meet in a row.
  std::vector<float> halves(at(slots * dim)), across(halves.size());
  for (index_t i = 0; i < slots * dim; ++i)
    across[at(i % slots * dim + i / slots)] = halves[at(i)] = kvcondense::detail::half_value(static_cast<std::uint16_t>(i));
  std::vector<float> scores(at(slots)), back(halves.size());
  for (index_t t = 0; t < slots; ++t) scores[at(t)] = static_cast<float>(t * 37 % 101);
  int codecs = 0;
  for (const any::Entry* e : any::builtin().entries()) {
    if (e->room != Stage::quant || e->word == "exact") continue;
    const any::ParseResult parsed = any::parse(test::settings.at(std::string(e->word)).text, test::observed_facts());
    REQUIRE(parsed);
    for (const bool keys : {true, false})
      for (const auto* rows : {&halves, &across}) {
        CAPTURE(std::string(e->word), keys, rows == &across);
        const any::AnyCodec codec = keys ? parsed->stages.quant.key_codec(shape, {1, 0}) : parsed->stages.quant.value_codec(shape, {1, 0});
        if (codec.code_fingerprint() == any::AnyCodec().code_fingerprint()) continue;  // a side that stays exact
        std::vector<std::byte> bytes(codec.page_bytes(slots, dim));
        const prim::PageSpan page{bytes.data(), slots, dim};
        // As many as are no numbers, and those whose group has no parameters of 16 bits.
        CHECK(Page::encode(codec, page, 0, slots, {rows->data(), slots, dim}, scores.data()) >= 2048);
        Page::decode(codec, page, 0, slots, {back.data(), slots, dim});
        index_t bad = 0;
        for (const float x : back) bad += !std::isfinite(x);
        CHECK(bad == 0);
        // Coding what came back is coding numbers.
        const std::vector<float> numbers = back;
        Page::encode(codec, page, 0, slots, {numbers.data(), slots, dim}, scores.data());
        Page::decode(codec, page, 0, slots, {back.data(), slots, dim});
        for (const float x : back) bad += !std::isfinite(x);
        CHECK(bad == 0);
        ++codecs;
      }
  }
  REQUIRE(codecs > 90);
}

TEST_CASE("catalogue: every finite half goes through a cache of every quantizer, and none that is no number gets in", "[any][quant][halves]") {
  constexpr CacheShape shape{.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 64};
  constexpr index_t dim = 64, rows = 992, tail = 300;  // tokens that push the last halves out of every exact window
  static const test::RandomModel model(shape);
  std::vector<float> finite, others;
  for (std::uint32_t i = 0; i < 65536; ++i) {
    const float x = kvcondense::detail::half_value(static_cast<std::uint16_t>(i));
    (std::isfinite(x) ? finite : others).push_back(x);
  }
  REQUIRE(finite.size() == at(rows * dim));
  std::mt19937 random(4);
  test::Tokens prompt(shape, rows, random), rest(shape, tail, random);
  const auto half_of = [&](index_t head, index_t token, index_t c) { return finite[at(head == 0 ? token * dim + c : c * rows + token)]; };
  for (index_t h = 0; h < shape.kv_heads; ++h)
    for (index_t t = 0; t < rows; ++t)
      for (index_t c = 0; c < dim; ++c) prompt.k[at((h * rows + t) * dim + c)] = prompt.v[at((h * rows + t) * dim + c)] = half_of(h, t, c);
  std::fill(prompt.q.begin(), prompt.q.end(), 1e-4f);
  {
    Rig rig("exact", shape, 8, 8);
    Context<Cpu> ctx(rig.work.bytes());
    for (const float x : others) {
      test::Tokens t(shape, 1, random);
      t.k[3] = x;
      REQUIRE(rig.cache.append(ctx, 0, t.keys(shape), t.values(shape)) == Status::invalid_argument);
      std::swap(t.k, t.v);
      REQUIRE(rig.cache.append(ctx, 0, t.keys(shape), t.values(shape)) == Status::invalid_argument);
    }
    REQUIRE(rig.cache.length() == 0);
  }
  for (const any::Entry* e : any::builtin().entries()) {
    if (e->room != Stage::quant) continue;
    CAPTURE(std::string(e->word));
    Rig rig(test::settings.at(std::string(e->word)).text, shape, rows + tail, rows, model.facts());
    rig.store(prompt), rig.store(rest, Phase::prefill_chunk);
    const index_t layer = 1, all = rows + tail;  // the first layer may be exact
    const double least = e->word == "kvquant" ? 4.0 : 1e-6;  // its thresholds are the model's, whatever comes
    index_t bad = 0, far = 0;
    for (index_t h = 0; h < shape.kv_heads; ++h) {
      std::vector<float> k(at(all * dim)), v(k.size());
      REQUIRE(rig.cache.read(layer, h, 0, dense_view(k.data(), all, dim), dense_view(v.data(), all, dim)) == Status::ok);
      for (index_t t = 0; t < rows; ++t) {
        // In head 0 a row's numbers, and its neighbours', are of nearly one size: what comes back is too.
        float most = 0;
        for (index_t n = std::max<index_t>(0, t - 16); n < std::min(rows, t + 16); ++n)
          for (index_t c = 0; c < dim; ++c) most = std::max(most, std::abs(half_of(0, n, c)));
        for (index_t c = 0; c < dim; ++c)
          for (const auto* side : {&k, &v}) {
            const float x = half_of(h, t, c), y = (*side)[at(t * dim + c)];
            bad += !std::isfinite(y);
            far += h == 0 && std::abs(static_cast<double>(y) - static_cast<double>(x)) > 2.0 * static_cast<double>(most) + least;
          }
      }
    }
    CHECK(bad == 0);
    CHECK(far == 0);
    for (const float x : rig.ask(std::vector<float>(at(shape.q_heads * dim), 1e-4f))) REQUIRE(std::isfinite(x));
  }
}

TEST_CASE("catalogue: any chopping of the same tokens stores the same numbers, the first ones exactly", "[any][quant]") {
  constexpr CacheShape shape{.layers = 2, .q_heads = 2, .kv_heads = 1, .head_dim = 64, .page_slots = 16};
  constexpr index_t n = 150, dim = 64;
  static const test::RandomModel model(shape);
  std::mt19937 random(6);
  const test::Tokens all(shape, n, random), query(shape, 1, random);
  const auto piece = [&](index_t first, index_t count) {
    test::Tokens t = all;
    t.n = count;
    const auto cut = [&](std::vector<float>& x, index_t heads) {
      std::vector<float> part;
      for (index_t h = 0; h < heads; ++h) part.insert(part.end(), x.begin() + (h * n + first) * dim, x.begin() + (h * n + first + count) * dim);
      x = part;
    };
    cut(t.k, 1), cut(t.v, 1), cut(t.q, 2);
    return t;
  };
  std::string depends;  // which slots are stored better, and factors, come from what a step sees
  for (const any::Entry* e : any::builtin().entries()) {
    if (e->room != Stage::quant) continue;
    const std::string word(e->word), text = test::settings.at(word).text;
    CAPTURE(word);
    const any::ParseResult parsed = any::parse(text, model.facts());
    REQUIRE(parsed);
    std::vector<std::vector<float>> stored;
    for (const index_t chunk : {150, 1, 7, 64}) {
      Rig rig(text, shape, n, n, model.facts());
      for (index_t at_token = 0; at_token < n; at_token += chunk)
        rig.forward(piece(at_token, std::min(chunk, n - at_token)), at_token + chunk >= n ? Phase::prefill_end : Phase::prefill_chunk);
      std::vector<float> rows(at(2 * n * dim));
      REQUIRE(rig.cache.read(1, 0, 0, dense_view(rows.data(), n, dim), dense_view(rows.data() + n * dim, n, dim)) == Status::ok);
      stored.push_back(rows);
      if (chunk != 150) continue;
      index_t changed = 0;
      for (index_t i = 0; i < parsed->stages.quant.sinks * dim; ++i)
        changed += rows[at(i)] != static_cast<float>(half(all.k[at(i)])) || rows[at(n * dim + i)] != static_cast<float>(half(all.v[at(i)]));
      CHECK(changed == 0);
      // What the errors of rows can do to attention, at most: values err on their own, and weights by exp(twice the largest error of a logit).
      const auto out = rig.ask(query.q, 1);
      const double scale = 1 / std::sqrt(static_cast<double>(dim)), slack = 1e-3 + test::settings.at(word).attend_error * 4;
      for (index_t h = 0; h < 2; ++h) {
        std::vector<double> logit(at(n)), want(at(dim));
        double delta = 0, value_error = 0, value = 0, sum = 0, error = 0;
        for (index_t t = 0; t < n; ++t) {
          double exact = 0, off = 0, lost = 0, size = 0;
          for (index_t c = 0; c < dim; ++c) {
            const double q = static_cast<double>(query.q[at(h * dim + c)]), k = static_cast<double>(all.k[at(t * dim + c)]), v = static_cast<double>(all.v[at(t * dim + c)]);
            exact += q * k, off += q * (static_cast<double>(rows[at(t * dim + c)]) - k);
            lost += std::pow(static_cast<double>(rows[at((n + t) * dim + c)]) - v, 2), size += v * v;
          }
          logit[at(t)] = exact * scale, delta = std::max(delta, std::abs(off) * scale);
          value_error = std::max(value_error, std::sqrt(lost)), value = std::max(value, std::sqrt(size));
        }
        for (const double l : logit) sum += std::exp(l);
        for (index_t t = 0; t < n; ++t)
          for (index_t c = 0; c < dim; ++c) want[at(c)] += std::exp(logit[at(t)]) / sum * static_cast<double>(all.v[at(t * dim + c)]);
        for (index_t c = 0; c < dim; ++c) error += std::pow(static_cast<double>(out[at(h * dim + c)]) - want[at(c)], 2);
        CHECK(std::sqrt(error) <= value_error + std::expm1(2 * delta) * value + slack);
      }
    }
    if (stored[1] != stored[0] || stored[2] != stored[0] || stored[3] != stored[0]) depends += word + " ";
  }
  REQUIRE(depends == "zipcache mikv smooth_attention ");
}

TEST_CASE("catalogue: report says the published bits per number, metadata included", "[any][quant][oracle]") {
  const auto published = test::load_oracle("quantization.json", "Z_effective_bits");
  const auto z = [&](const char* key) { return published.at(key).get<double>(); };
  // One head of 128 in pages of 256 slots: what 512 more tokens add is four pages of codes, each with its header.
  constexpr CacheShape shape{.head_dim = 128, .page_slots = 256};
  static const test::RandomModel model(shape);
  const double header = static_cast<double>(sizeof(cache::Page)) * 8 / (256 * 128);
  const auto bits = [&](const std::string& text) {
    std::mt19937 random(2);
    Rig rig(text, shape, 1024 + 64, 512, model.facts());
    std::size_t bytes = 0;
    for (int piece = 0; piece < 2; ++piece) {
      bytes = rig.cache.report().coded_bytes;
      rig.store(test::Tokens(shape, 512, random), piece == 0 ? Phase::prefill_end : Phase::prefill_chunk);
    }
    return static_cast<double>(rig.cache.report().coded_bytes - bytes) * 8 / (512.0 * 128);  // of a key and of a value
  };
  const auto both = [&](const std::string& text, double keys, double values) {
    CAPTURE(text);
    CHECK(bits(text) - 2 * header == Approx(keys + values).epsilon(1e-6));
  };
  const auto same = [&](const std::string& text, double side) { both(text, side, side); };
  same("kivi(bits=2, group_size=32)", z("KIVI b2 G32 fp16 scale+min"));
  same("kivi(bits=2, group_size=64)", z("KIVI b2 G64"));
  same("kivi(bits=2, group_size=128)", z("KIVI b2 G128"));
  same("kivi(bits=4, group_size=32)", z("KIVI b4 G32"));
  const double per_row = z("per-token-per-head D128 b4 (QuaRot/Atom/QServe)");
  same("group_int(bits=4, group_size=0)", per_row);
  same("hadamard(group_int(bits=4, group_size=0))", per_row);
  same("qserve", per_row);
  same("comet", per_row);
  same("group_int(bits=4, group_size=64)", z("FlexGen b4 G64"));
  same("skvq", z("SKVQ b2 G128 fp8 scale+zero"));
  // Of 128 ternary numbers two do not fill a byte of five: published for rows that five divides.
  both("skvq(value_levels=3)", z("SKVQ b2 G128 fp8 scale+zero"), z("SKVQ ternary 5-per-byte, G128, fp8") + 2 * 1.6 / 128);
  both("qjl(first_layers=0)", z("QJL keys released defaults m=256,outlier 256,fp16 norms x2, 8 outlier idx per 32 tokens, D128"), z("QJL values 2b G32 fp16"));
  both("qjl(first_layers=1)", z("QJL keys first layers m=512, outlier 128"), z("QJL values 2b G32 fp16"));
  same("turboquant(key_bits=3, value_bits=3)", z("TurboQuant b=3 mse, fp16 norm, D128"));
  both("turboquant(key_bits=3, value_bits=3, sketch=true)", z("TurboQuant prod b=3 (2b mse + 1b qjl), fp16 norm + fp16 residual norm"),
       z("TurboQuant b=3 mse, fp16 norm, D128"));
  same("turboquant", z("rotated slot k4v4 D128: K"));
  same("polar_recursive", z("PolarQuant recursive 4 levels 4,2,2,2 bits, fp16 radius, block16"));
  both("kitty", z("Kitty K b2 + 12.5% boosted to 4, page128, fp16 scale+min, map byte per channel"), z("Kitty V b2 per token D128"));
  both("kitty(boost=25%)", z("Kitty K b2 + 25% boosted"), z("Kitty V b2 per token D128"));
  same("rotatekv", 2.25);
  // Gear: KIVI's codes in groups of 64, 24 bits for each of 2 % and more of all numbers, and a product of rank 2 per 64 tokens, of which
  // values, whose chunks have no outliers to place beyond a row's, need less.
  const double rank = z("GEAR low rank r=2 per 64-token chunk, D128");
  same("gear(sparse=0%)", z("KIVI b2 G64") + rank);
  same("gear(sparse=0%, rank=0)", z("KIVI b2 G64"));
  for (const char* format : {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0"}) {
    CAPTURE(format);
    same("ggml(format=" + std::string(format) + ")", z(("ggml " + std::string(format)).c_str()));
  }
  same("ggml(format=mxfp4)", z("ggml mxfp4"));
  same("ggml(format=nvfp4)", z("ggml nvfp4 ggml"));
  same("mx(format=fp4)", z("MXFP4"));
  same("mx(format=fp6_e2m3)", z("MXFP6"));
  same("mx(format=fp8_e4m3)", z("MXFP8"));
  same("mx(format=int8)", z("MXINT8"));
  same("nvfp4", z("NVFP4 (block16 e4m3 + global fp32)"));
  both("bfp(block=32)", z("BFP12 n=32 (4b mantissa, 8b exponent)"), z("BFP16 n=32"));
  same("bfp(bits=4, value_bits=4, block=64)", z("BFP12 n=64"));
  same("bfp(bits=4, value_bits=4, block=128)", z("BFP12 n=128"));
  same("fp8(scale=tensor)", z("rotated slot fp8 K + v4 D128: K"));
  // Keys alone: values stay exact.
  CHECK(bits("polar") - header == Approx(z("PolarQuant RoPE pairs r4 t4 G128, 4 fp16 params per pair-channel")).epsilon(1e-6));
  // The better 32 of 64 tokens in 4 bits, the others in 2; keys of a class share a scale per channel, values per token; a bit of map per token.
  const double classes = (4.0 + 2.0) / 2 + 1.0 / 128;
  both("zipcache(salient=50%, block=64)", classes + 2 * 32.0 / 64, classes + 32.0 / 128);
}

TEST_CASE("catalogue: of keys with few directions, codes err more in attention than codes and a product of rank 4", "[any][quant][gear]") {
  // Rank 16 and noise, queries that look for keys that are there; relative errors of outputs, against bytes.
  constexpr CacheShape shape{.head_dim = 64, .page_slots = 256};
  constexpr index_t n = 4096, piece = 512;
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  const auto low_rank = [&] {
    std::vector<float> left(at(n * 16)), right(16 * 64), rows(at(n * 64));
    for (auto* x : {&left, &right})
      for (float& e : *x) e = normal(random);
    for (index_t t = 0; t < n; ++t)
      for (index_t c = 0; c < 64; ++c) {
        float sum = 0.1f * normal(random);
        for (index_t r = 0; r < 16; ++r) sum += 0.25f * left[at(t * 16 + r)] * right[at(r * 64 + c)];
        rows[at(t * 64 + c)] = sum;
      }
    return rows;
  };
  const std::vector<float> keys = low_rank(), values = low_rank();
  struct Seen {
    double error;
    std::size_t bytes;
  };
  std::vector<std::vector<float>> exact;
  const auto run = [&](const std::string& text) {
    Rig rig(text, shape, n, piece);
    for (index_t first = 0; first < n; first += piece) {
      test::Tokens t(shape, piece, random);
      std::copy_n(keys.begin() + first * 64, piece * 64, t.k.begin()), std::copy_n(values.begin() + first * 64, piece * 64, t.v.begin());
      rig.store(t);
    }
    const bool first = exact.empty();
    double error = 0, size = 0;
    for (index_t i = 0; i < 64; ++i) {
      std::vector<float> q(keys.begin() + (i * 61 + 5) * 64, keys.begin() + (i * 61 + 6) * 64);
      for (float& x : q) x *= 2.0f;
      const std::vector<float> out = rig.ask(q);
      if (first) exact.push_back(out);
      error += square_distance(out, exact[at(i)], 64), size += square_distance(exact[at(i)], std::vector<float>(64), 64);
    }
    return Seen{std::sqrt(error / size), rig.cache.report().bytes()};
  };
  REQUIRE(run("exact").error == 0);
  for (const std::string bits : {"2", "3", "4"}) {
    const auto gear = [&](const char* rank, const char* sparse) {
      return run("gear(bits=" + bits + ", rank=" + rank + ", sparse=" + sparse + ")");
    };
    const Seen plain = gear("0", "0%"), product = gear("4", "0%"), outliers = gear("0", "2%"), all = gear("4", "2%");
    CAPTURE(bits, plain.error, product.error, outliers.error, all.error, plain.bytes, product.bytes, outliers.bytes, all.bytes);
    CHECK(product.error < 0.95 * plain.error);
    CHECK(all.error < 0.95 * outliers.error);
    CHECK(all.error < product.error);
    CHECK(plain.bytes < product.bytes);
    CHECK(product.bytes < all.bytes);
  }
}

TEST_CASE("catalogue: low-rank stages take the bytes of their formulas", "[any][lowrank]") {
  constexpr CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 64, .page_slots = 256};
  static const test::RandomModel model(shape);
  constexpr double pages = 2 * 2 * 4 * sizeof(cache::Page);  // what 512 more tokens add: two pages for each side of four heads
  struct Form {
    const char* text;
    double numbers;  ///< of a key and a value
  };
  for (const Form& f : {Form{"pca(keep=50%, value_keep=25%)", 48}, {"matryoshka(keep=50%, value_keep=25%)", 48}, {"cskv(keep=50%, value_keep=25%)", 48},
                        {"eigen_attention(keep=50%, value_keep=25%, rule=part)", 48}, {"online_pca(keep=50%, value_keep=25%)", 48},
                        {"palu(keep=50%, value_keep=25%) + rerotate", 48}, {"weight_svd(keep=50%, value_keep=25%) + rerotate", 48},
                        {"lorc(keep=50%, value_keep=25%, rule=part) + rerotate", 48}, {"recalkv(keep=50%, value_keep=25%) + rerotate", 48},
                        // Values as they are: of keys half the channels, or coordinates.
                        {"think(ratio=50%)", 32 + 64}, {"shadowkv(keep=25%) + rerotate", 16 + 64}}) {
    CAPTURE(f.text);
    std::mt19937 random(2);
    Rig rig(f.text, shape, 1024 + 64, 512, model.facts());
    std::size_t bytes = 0;
    for (int piece = 0; piece < 2; ++piece) {
      const Report r = rig.cache.report();
      bytes = r.coded_bytes + r.exact_bytes;
      rig.store(test::Tokens(shape, 512, random), piece == 0 ? Phase::prefill_end : Phase::prefill_chunk);
    }
    const Report r = rig.cache.report();
    const double more = static_cast<double>(r.coded_bytes + r.exact_bytes - bytes) - pages;
    CHECK(more == Approx(512 * 4 * 2 * f.numbers));
    CHECK(r.bytes() < r.dense_bytes);
  }
}

namespace {

/// Kept slots are the first ones and the newest: what leaves folds into them.
struct Fold {
  const char* text;    ///< without the mass
  const char* policy;  ///< that lets go
  bool convex;         ///< keys are means with weights that are not negative
};
constexpr const char* window = "sink_window(sinks=4, recent=20) + ";
/// Every merge stage that sums keys of several tokens in the slot of one.
constexpr Fold folds[] = {
    {"d2o(", window, false},
    {"d2o(exponential=true, ", window, true},
    {"kvmerger(least=-1, heavy=0%, recent=0%, window=4, place=as_cached, ", "", true},
    {"ems(window=8, least=0, folds=100, ", window, false},
    {"elastic_cache(sinks=2, ", window, true},
    {"lookm(kernel=average, ", window, true},
    {"lookm(kernel=pivotal, ", window, true},
    {"lookm(kernel=weighted, ", window, false},
    {"lookm(kernel=shared, ", window, true},
    {"tome(tokens=24, slack=0, sinks=2, recent=4, ", "", true},
    {"centroid(tokens=24, chunk=6, slack=0, sinks=2, recent=4, ", "", true},
    {"keepkv(decay=0, least=-1, scaled=false, ", window, true},
};

}  // namespace

TEST_CASE("catalogue: every merge stage that sums keys has its oracle of identity and of mass here", "[any][merge]") {
  std::string named;
  for (const Fold& f : folds) named += std::string(f.text).substr(0, std::string(f.text).find('(')) + " ";
  for (const any::Entry* e : any::builtin().entries()) {
    if (e->room != Stage::merge) continue;
    const std::string word(e->word);
    // cam, weightedkv and value_merge leave keys as they are; dmc and minicache have tests of their own.
    const bool elsewhere = word == "cam" || word == "weightedkv" || word == "value_merge" || word == "dmc" || word == "minicache";
    CAPTURE(word);
    REQUIRE((named.find(word + " ") != named.npos) != elsewhere);
  }
}

TEST_CASE("catalogue: identical tokens that fold, counted, give the full attention", "[any][merge]") {
  for (const auto& [group, dim] : {std::pair<index_t, index_t>{1, 64}, {3, 80}, {16, 128}}) {
    const CacheShape s{.q_heads = 2 * group, .kv_heads = 2, .head_dim = dim, .dtype = DType::f32};
    std::mt19937 random(7);
    test::Tokens prompt(s, 60, random), query(s, 1, random);
    for (index_t h = 0; h < s.kv_heads; ++h)
      for (index_t i = 1; i < prompt.n; ++i) {
        std::copy_n(prompt.k.data() + h * prompt.n * dim, dim, prompt.k.data() + (h * prompt.n + i) * dim);
        std::copy_n(prompt.v.data() + h * prompt.n * dim, dim, prompt.v.data() + (h * prompt.n + i) * dim);
      }
    Rig full("keep_all", s, 96, 64);
    full.forward(prompt);
    const auto want = full.ask(query.q);
    for (const Fold& f : folds)
      for (const char* mass : {"mass=log_count)", "mass=exact)"}) {
        const std::string text = std::string(f.policy) + f.text + mass;
        if (text.find("keepkv") != text.npos && mass[5] == 'l') continue;  // it counts votes, or says what a merge weighs: exact alone
        CAPTURE(text, group, dim);
        Rig folded(text, s, 96, 64);
        folded.forward(prompt);
        REQUIRE(folded.cache.report().merged_slots > 0);
        REQUIRE(folded.cache.slots(0, 0) < 50);
        const auto got = folded.ask(query.q);
        double worst = 0;
        for (std::size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(static_cast<double>(got[i] - want[i])));
        CHECK(worst < 5e-6);
      }
  }
}

TEST_CASE("catalogue: a convex merge without mass never weighs more than what it stands for", "[any][merge]") {
  const CacheShape s{.q_heads = 4, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32};
  for (std::uint32_t seed = 1; seed <= 6; ++seed) {
    std::mt19937 random(seed);
    const test::Tokens prompt(s, 60, random);
    Rig full("keep_all", s, 96, 64);
    full.forward(prompt);
    for (const Fold& f : folds) {
      if (!f.convex || std::string(f.text).starts_with("keepkv")) continue;  // keepkv always has a mass
      const std::string text = std::string(f.policy) + f.text + "mass=none)";
      Rig folded(text, s, 96, 64);
      folded.forward(prompt);
      REQUIRE(folded.cache.report().merged_slots > 0);
      for (int i = 0; i < 5; ++i) {
        const test::Tokens query(s, 1, random);
        const auto got = folded.ask(query.q), want = full.ask(query.q);
        CAPTURE(text, seed);
        for (std::size_t h = got.size() - 4; h < got.size(); ++h) CHECK(got[h] < want[h]);
      }
    }
  }
}

TEST_CASE("catalogue: rows of zeros, parallel and opposite ones go through every merge and low-rank stage", "[any][merge][lowrank]") {
  constexpr CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  constexpr index_t dim = 32, n = 60;
  static const test::RandomModel model(shape);
  for (const any::Entry* e : any::builtin().entries()) {
    if (e->room != Stage::merge && e->room != Stage::lowrank) continue;
    const std::string word(e->word), setting = test::settings.at(word).text;
    const std::string policy = e->room == Stage::lowrank ? "" : word == "minicache" ? "sink_window(sinks=2, recent=30) + " : "h2o(heavy=10, recent=10) + ";
    const bool raw = e->room == Stage::lowrank && !any::parse(setting, model.facts())->stages.lowrank.takes_keys(false);
    for (const char* kind : {"zeros", "parallel", "opposite", "both"}) {
      CAPTURE(word, kind);
      std::mt19937 random(3);
      Rig rig(policy + setting + (raw ? " + rerotate" : ""), shape, n + 8, n, model.facts());
      float most = 0;
      for (const index_t count : {n, index_t{1}, index_t{1}, index_t{1}}) {
        test::Tokens t(shape, count, random);
        for (auto* x : {&t.k, &t.v})
          for (std::size_t i = 0; i < x->size(); ++i) {
            const auto token = static_cast<index_t>(i) / dim;
            const float size = kind[0] == 'z' ? 0.0f : kind[0] == 'p' ? 1.0f + static_cast<float>(token % 3) : kind[0] == 'o' ? (token % 2 == 0 ? 1.0f : -1.0f) : static_cast<float>(token % 3 - 1);
            (*x)[i] = size * static_cast<float>(static_cast<index_t>(i) % dim - 15) / 8.0f;
            most = std::max(most, std::abs((*x)[i]));
          }
        rig.forward(t, count == n ? Phase::prefill_end : Phase::decode);
      }
      index_t bad = 0;
      for (index_t l = 0; l < shape.layers; ++l) {
        for (const float x : rig.ask(std::vector<float>(at(shape.q_heads * dim), 0.3f), l)) bad += !std::isfinite(x);
        for (index_t h = 0; h < shape.kv_heads; ++h) {
          const index_t slots = rig.cache.slots(l, h);
          REQUIRE(slots > 0);
          std::vector<float> rows(at(2 * slots * dim));
          REQUIRE(rig.cache.read(l, h, 0, dense_view(rows.data(), slots, dim), dense_view(rows.data() + slots * dim, slots, dim)) == Status::ok);
          for (const float x : rows) bad += !(std::abs(x) <= 60 * (most + 1));  // values that add up, bases with means and such that are not orthonormal
        }
      }
      CHECK(bad == 0);
    }
  }
}
