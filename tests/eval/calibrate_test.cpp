#include <cmath>
#include <filesystem>

#include <catch2/catch.hpp>
#include <engine/decoder.hpp>
#include <engine/dense_attention.hpp>
#include <engine/model.hpp>
#include <engine/safetensors.hpp>
#include <eval/evaluate.hpp>
#include <eval/fold_checkpoint.hpp>
#include <kvcondense/io/aquakv_maps.hpp>
#include <kvcondense/io/kvtc_transform.hpp>
#include <kvcondense/lowrank/kv_heads_svd.hpp>

#include "calibrated.hpp"

using namespace eval;
using namespace eval::test;

namespace {

/// How far the next tokens of two models are apart after a text: the mean of KL(first, second) over its positions.
double divergence(const engine::Model& first, const engine::Model& second) {
  std::vector<std::int32_t> text;
  for (const char c : std::string("The quick brown fox jumps over the lazy dog, and then it sleeps.")) text.push_back(c);
  std::vector<std::vector<float>> logits;
  for (const engine::Model* m : {&first, &second}) {
    engine::DenseAttention dense(m->config);
    engine::Decoder decoder(*m);
    const auto all = decoder.forward(text, 0, std::ref(dense), engine::Logits::all);
    REQUIRE(all);
    logits.emplace_back(all->begin(), all->end());
  }
  const std::size_t vocab = static_cast<std::size_t>(first.config.vocab);
  double sum = 0;
  for (std::size_t at = 0; at < logits[0].size(); at += vocab) {
    double z[2] = {};
    for (std::size_t i = 0; i < vocab; ++i)
      for (std::size_t m = 0; m < 2; ++m) z[m] += std::exp(static_cast<double>(logits[m][at + i]));
    for (std::size_t i = 0; i < vocab; ++i) {
      const double a = logits[0][at + i] - std::log(z[0]), b = logits[1][at + i] - std::log(z[1]);
      sum += std::exp(a) * (a - b) * static_cast<double>(vocab) / static_cast<double>(logits[0].size());
    }
  }
  return sum;
}

}  // namespace

TEST_CASE("calibrate: every method's bases are read back and run", "[eval][calibrate]") {
  for (const char* method : {"pca", "matryoshka", "cskv", "eigen_attention", "palu", "weight_svd", "lorc", "recalkv"}) {
    CAPTURE(method);
    Options o = tiny(method);
    const Calibrated made = calibrate(o);
    REQUIRE(made.text.find("layer") != std::string::npos);
    const Saved file(bases_bytes(made.bases), method);
    const BasesFile read = read_bases({file.path()}, tinylm);
    const kvcondense::NamedBases* found = read.view().find(method);
    REQUIRE(found != nullptr);
    REQUIRE(found->keys.finite());
    for (const kvcondense::HeadBases* b : {&found->keys, &found->values})
      for (index_t i = 0; i < 8; ++i)  // a row that is encoded and comes back, and again, stays: D^t E = I
        for (index_t a = 0; a < b->columns; ++a)
          for (index_t c = 0; c < b->columns; ++c) {
            double sum = 0;
            for (index_t d = 0; d < 64; ++d)
              sum += static_cast<double>(b->encoder(i / 2, i % 2)[d * b->columns + a]) * static_cast<double>(b->decoder(i / 2, i % 2)[d * b->columns + c]);
            if (std::string_view(method) != "cskv") REQUIRE(sum == Approx(a == c ? 1.0 : 0.0).margin(1e-3));
          }
    o.calibrate = false;
    o.bases = {file.path()};
    o.context = 96, o.windows = 1;
    const bool raw = found->keys.keys == kvcondense::KeyForm::raw;
    o.recipes = {std::string(method) + "(rule=part, keep=100%, value_keep=100%)" + (raw ? " + rerotate" : "")};
    const Results whole = evaluate(o, nullptr);
    const double kl = whole.recipes[1].text.mean_kl();
    REQUIRE(kl < (found->keys.columns == 64 && found->values.columns == 64 ? 1e-3 : 1.0));
  }
}

TEST_CASE("calibrate: one basis for all layers goes into a stream", "[eval][calibrate]") {
  Options o = tiny("kvtc");
  o.calibration.keep = 0.25;
  const Calibrated made = calibrate(o);
  REQUIRE(made.text.find("components") != std::string::npos);
  const Saved file(bases_bytes(made.bases), "kvtc");
  const BasesFile read = read_bases({file.path()}, tinylm);
  const kvcondense::NamedBases* found = read.view().find("kvtc");
  REQUIRE(found != nullptr);
  REQUIRE(found->keys.keys == kvcondense::KeyForm::raw);
  for (const kvcondense::HeadBases* b : {&found->keys, &found->values}) {
    REQUIRE(b->dim == 512);
    REQUIRE(b->columns == 128);
  }
  const auto transform = kvcondense::io::KvtcTransform::make(found->keys, found->values, tinylm);
  REQUIRE(transform);
  REQUIRE(transform->used(kvcondense::io::KvSide::keys) == 128);
  REQUIRE(transform->raw_keys());
  // Fewer tokens than numbers: as many directions as they show.
  o.context = 40, o.windows = 1, o.calibration.keep = 1.0, o.calibration.keys = "rotated";
  const Calibrated few = calibrate(o);
  REQUIRE(few.bases.keys.columns == 39);
  REQUIRE(few.bases.keys.keys == kvcondense::KeyForm::rotated);
}

TEST_CASE("calibrate: maps from layer to layer go into a stream, and say most of a layer", "[eval][calibrate]") {
  Options o = tiny("aquakv");
  o.windows = 4;
  const Calibrated made = calibrate(o);
  REQUIRE(made.text.find("not predicted") != std::string::npos);
  const Saved file(bases_bytes(made.bases), "aquakv");
  const BasesFile read = read_bases({file.path()}, tinylm);
  const kvcondense::LayerMaps m = read.maps();
  REQUIRE((m.layers == 4 && m.key_channels == 128 && m.value_channels == 128));
  REQUIRE(m.form == kvcondense::KeyForm::raw);
  const auto maps = kvcondense::io::AquakvMaps::make(m, tinylm);
  REQUIRE(maps.status() == kvcondense::Status::ok);
  REQUIRE(maps->raw_keys());
  REQUIRE(read.view().find("aquakv") == nullptr);
  o.calibration.keys = "rotated";
  const Calibrated rotated = calibrate(o);
  REQUIRE(rotated.bases.keys.keys == kvcondense::KeyForm::rotated);
  REQUIRE(rotated.bases.maps.first_keys != made.bases.maps.first_keys);
  REQUIRE(rotated.bases.maps.first_values == made.bases.maps.first_values);

  CacheShape other = tinylm;
  other.layers = 3;
  REQUIRE(complaint(file.path(), other) == ": tensor \"key.maps\" is [3, 129, 128], expected [2, 129, 128]");
  MethodBases less = made.bases;
  less.maps.values.clear();
  const Saved part(bases_bytes(less), "aquakv-part");
  REQUIRE(complaint(part.path()) == ": tensor \"value.maps\" is missing");
}

TEST_CASE("calibrate: books of codewords are read back, and more of them lose less", "[eval][calibrate]") {
  Options o = tiny("commvq");
  o.calibration.stages = 2, o.calibration.words = 8, o.calibration.steps = 5;
  const Calibrated made = calibrate(o);
  REQUIRE(made.text.find("values lose") != std::string::npos);
  const Saved file(bases_bytes(made.bases), "commvq");
  const BasesFile read = read_bases({file.path()}, tinylm);
  const kvcondense::any::ModelFacts facts = read.add_to({});
  REQUIRE(facts.key_books.fits(tinylm, 2 * 8 * 64));
  REQUIRE(facts.value_books.fits(tinylm, 2 * 8 * 64));
  o.calibration.steps = 2;
  REQUIRE(calibrate(o).bases.arrays[0].numbers != made.bases.arrays[0].numbers);
  o.calibration.steps = 5, o.seed = 2;
  REQUIRE(calibrate(o).bases.arrays[0].numbers != made.bases.arrays[0].numbers);
  o.seed = 1, o.calibration.stages = 6;
  const Calibrated more = calibrate(o);
  REQUIRE(more.bases.arrays[0].extent[2] == 6);

  Options e = tiny("pca");
  e.calibrate = false, e.context = 96, e.windows = 1;
  e.recipes = {"commvq(base=8) + rerotate"};
  REQUIRE_THROWS_WITH(evaluate(e, nullptr), Catch::Contains("key_books") && Catch::Contains("--method commvq"));
  const Saved finer(bases_bytes(more.bases), "commvq-more");
  double kl[2];
  for (const int i : {0, 1}) {
    e.bases = {i == 0 ? file.path() : finer.path()};
    kl[i] = evaluate(e, nullptr).recipes[1].text.mean_kl();
  }
  REQUIRE(kl[1] < kl[0]);

  CacheShape other = tinylm;
  other.kv_heads = 1, other.q_heads = 3;
  REQUIRE(complaint(file.path(), other) == ": tensor \"key.books\" is [4, 2, 2, 8, 64], expected [4, 1, stages, words, 64]");
}

TEST_CASE("calibrate: the same numbers on any number of threads", "[eval][calibrate]") {
  Options o = tiny("matryoshka");
  const std::string one = bases_bytes(calibrate(o).bases);
  o.jobs = 3;
  REQUIRE(bases_bytes(calibrate(o).bases) == one);
}

TEST_CASE("calibrate: too few tokens, and options that do not go together", "[eval][calibrate]") {
  Options o = tiny("pca");
  o.context = 20, o.windows = 1;
  REQUIRE_THROWS_WITH(calibrate(o), Catch::Contains("20 tokens cannot show 64 directions"));
  o = tiny("matryoshka");
  o.calibration.keys = "raw";
  REQUIRE_THROWS_AS(calibrate(o), Error);
  o = tiny("pca");
  o.calibration.keys = "raw", o.calibration.aware = true;
  REQUIRE_THROWS_AS(calibrate(o), Error);
}

TEST_CASE("bases: files that are none, damaged, or of another model", "[eval][calibrate]") {
  MethodBases b;
  b.method = "pca";
  for (SideBases* s : {&b.keys, &b.values}) {
    s->layers = 1, s->groups = 2, s->dim = 4, s->columns = 3;
    s->encode.assign(24, 0.5f);
    s->mean.assign(8, 1.0f);
  }
  const CacheShape shape{.layers = 1, .q_heads = 2, .kv_heads = 2, .head_dim = 4};
  {
    const Saved good(bases_bytes(b), "bases");
    REQUIRE(complaint(good.path(), shape).empty());
    REQUIRE(complaint(good.path(), tinylm) == ": made for 1 layers of 2 rows of 4 numbers, and this model has 4 of 2 heads of 64");
    REQUIRE_THROWS_WITH(read_bases({good.path(), good.path()}, shape), Catch::Contains("a second file of bases for pca"));
  }
  b.values.mean[3] = std::nanf("");
  {
    const Saved nan(bases_bytes(b), "bases");
    REQUIRE(complaint(nan.path(), shape) == ": tensor \"value.mean\": element 3 is no number");
  }
  b.values.mean.clear();
  b.keys.encode.clear(), b.keys.mean.clear(), b.values.encode.clear();
  {
    const Saved empty(bases_bytes(b), "bases");
    REQUIRE(complaint(empty.path(), shape) == ": it holds no basis");
  }
  engine::SafetensorsWriter other;
  std::string why;
  {
    const Saved plain(*other.bytes(why), "bases");
    REQUIRE(complaint(plain.path(), shape).starts_with(": not a file of bases"));
  }
  other.metadata("format", "kvcondense-bases");
  other.metadata("version", "1");
  {
    const Saved nameless(*other.bytes(why), "bases");
    REQUIRE(complaint(nameless.path(), shape) == ": it does not say the method that it was made for");
  }
  other.metadata("method", "pca");
  other.metadata("keys", "turned");
  {
    const Saved turned(*other.bytes(why), "bases");
    REQUIRE(complaint(turned.path(), shape) == ": its \"keys\" are neither rotated nor raw");
  }
  other.metadata("keys", "raw");
  const std::vector<float> eight(8, 1.0f);
  other.f32("key.encode", {1, 2, 4, 1}, eight);
  other.f32("key.men", {2, 4}, eight);
  {
    const Saved odd(*other.bytes(why), "bases");
    REQUIRE(complaint(odd.path(), shape) == ": no tensor is called 'key.men'");
  }
}

TEST_CASE("calibrate: two heads as one, beside a cache and in the weights of a checkpoint", "[eval][calibrate]") {
  namespace fs = std::filesystem;
  const TempFile folder("folded");
  const fs::path dir = folder.path();
  for (const bool paired : {false, true}) {
    Options o = tiny("kv_heads_svd");
    o.calibration.paired = paired;
    const Calibrated made = calibrate(o);
    REQUIRE(made.text.find("keys held") != std::string::npos);
    const Saved file(bases_bytes(made.bases), "kv_heads_svd");
    const BasesFile read = read_bases({file.path()}, tinylm);
    const kvcondense::NamedBases* found = read.view().find("kv_heads_svd");
    REQUIRE(found != nullptr);
    REQUIRE((found->keys.groups == 1 && found->keys.dim == 128 && found->keys.columns == (paired ? 64 : 128) && found->values.columns == 128));
    const kvcondense::lowrank::KvHeadsSvd m{found->keys, found->values};
    REQUIRE(m.validate(tinylm) == kvcondense::Status::ok);
    REQUIRE(m.shape(tinylm).kv_heads == 1);
  }
  Options o = tiny("kv_heads_svd");
  o.calibration.paired = true;
  o.calibration.kv_heads = 3;
  REQUIRE_THROWS_AS(calibrate(o), Error);
  // As many heads as before: a basis of a head's values is a rotation of it, one of its keys none at all. Then one head for two.
  double kl[2] = {};
  for (const index_t heads : {2, 1}) {
    o.calibration.kv_heads = heads;
    fold_checkpoint(o.model, calibrate(o).bases, dir.string());
    std::string why;
    const auto config = engine::read_config((dir / "config.json").string(), why);
    REQUIRE(config);
    REQUIRE((config->kv_heads == heads && config->head_dim == 64 && config->q_heads == 6));
    const auto before = engine::load_model(o.model, why), after = engine::load_model(dir.string(), why);
    CAPTURE(why);
    REQUIRE(before);
    REQUIRE(after);
    kl[heads - 1] = divergence(*before, *after);
  }
  REQUIRE(kl[1] < 1e-4);
  REQUIRE(kl[0] > 1e-3);
  REQUIRE(std::isfinite(kl[0]));
  REQUIRE_THROWS_AS(fold_checkpoint(o.model, calibrate(o).bases, o.model), Error);
}
