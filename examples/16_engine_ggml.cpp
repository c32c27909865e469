// An engine on ggml, a Llama from a GGUF file with keys and values in cells as llama.cpp has them, and what it must add to
// condense them. Built where KVCONDENSE_GGML names a ggml or llama.cpp that you have built.
//
// 16_engine_ggml                       the check, on examples/models/tinylm
// 16_engine_ggml --convert DIR --to FILE [--type f32|f16|q8_0|q4_0]
//                                      a model of the small engine as a GGUF file
// 16_engine_ggml --model FILE (--ids N,N,... | --text TEXT) [--tokens N] [--recipe TEXT] [--close-up 1]
//                [--cells N] [--kv f16|f32] [--flash 0] [--threads N]
//                                      continues with the likeliest token each time

// --- engine ---
#include <ggml/llama.hpp>

// --- adapter ---
#include <kvcondense/any/recipe_text.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/external/condenser.hpp>
#include <kvcondense/external/rerotate.hpp>

namespace kvc = kvcondense;

namespace {

using ggml_engine::Llama, ggml_engine::Part, kvc::Status;

class Condense {
 public:
  using Condenser = kvc::external::Condenser<kvc::any::AnyRecipe>;
  /// `close_up`: positions become 0, 1, 2, ... again when cells leave, and keys turn; else they stay.
  Condense(Llama& engine, const kvc::any::AnyRecipe& recipe, bool close_up) : engine_(engine), recipe_(recipe), close_up_(close_up) {
    engine.after_pass = [this](int id, int n, Part part) { return (status_ = step(id, n, part)) == Status::ok; };
  }
  kvc::CacheShape shape() const {
    const auto& f = engine_.facts;
    return {f.layers, f.q_heads, f.kv_heads, f.dim, f.dim, engine_.options.kv == GGML_TYPE_F16 ? kvc::DType::f16 : kvc::DType::f32};
  }
  /// With Llama::remove.
  void remove(int id) { states_.erase(id); }
  Status status() const { return status_; }  ///< of the last pass
  const Condenser& state(int id) const { return states_.at(id); }

 private:
  kvc::external::BorrowedLayer rows(int id, int layer) const {
    const auto borrow = [&]<class T>(T*) {
      return kvc::external::borrow_cells(static_cast<T*>(engine_.keys(layer)->data), static_cast<T*>(engine_.values(layer)->data), shape(),
                                         engine_.options.cells, engine_.sequences.at(id), !engine_.options.flash);
    };
    return engine_.options.kv == GGML_TYPE_F16 ? borrow(static_cast<kvc::half*>(nullptr)) : borrow(static_cast<float*>(nullptr));
  }
  Status step(int id, int n, Part part) {
    if (states_.count(id) == 0) {
      auto made = Condenser::make(shape(), recipe_, {kvc::external::Sharing::per_sequence});
      if (!made) return made.status();
      states_.emplace(id, std::move(*made));
    }
    Condenser& c = states_.at(id);
    const kvc::index_t dim = shape().head_dim, heads = shape().q_heads, before = c.length();
    Status s = scratch_.reserve(c.workspace_bytes(c.longest(0) + n, n, engine_.options.cells));
    kvc::Context<kvc::Cpu> ctx(scratch_.bytes());
    constexpr kvc::Phase phases[] = {kvc::Phase::prefill_chunk, kvc::Phase::prefill_end, kvc::Phase::decode};
    for (int l = 0; s == Status::ok && l < engine_.facts.layers; ++l)
      s = c.step(ctx, l, rows(id, l), n, {.queries = {engine_.queries(l), {heads, n, dim}, {dim, heads * dim, 1}}}, phases[static_cast<int>(part)]);
    if (s == Status::ok) s = c.settle(ctx);
    if (s != Status::ok) return c.truncate(before) == Status::ok ? s : Status::order_violation;
    return c.leaves(0) ? compact(ctx, id, c) : s;
  }
  /// The cells that stay are the first ones of the sequence's list then, and their positions with them.
  Status compact(kvc::Context<kvc::Cpu>& ctx, int id, Condenser& c) {
    const kvc::external::SlotBytes positions[] = {kvc::external::slot_bytes(engine_.pos.data(), 1)};
    for (int l = 0; l < engine_.facts.layers; ++l)
      if (const Status s = c.compact(ctx, l, rows(id, l), {}, std::span(positions).first(l == 0 ? 1 : 0)); s != Status::ok) return s;
    engine_.keep_first(id, static_cast<std::size_t>(c.longest(0)));
    if (!close_up_) return Status::ok;
    const kvc::prim::RopeConfig rope{.pairing = kvc::prim::RopePairing::interleaved, .rotary_dim = engine_.facts.rotary_dim,
                                     .scaling = kvc::prim::RopeScaling::table, .table = engine_.frequencies()};
    std::vector<kvc::index_t> from;
    for (const std::int32_t cell : engine_.sequences.at(id)) from.push_back(std::exchange(engine_.pos[static_cast<std::size_t>(cell)], static_cast<int>(from.size())));
    for (int l = 0; l < engine_.facts.layers; ++l)
      if (const Status s = kvc::external::RerotateKeys::run(ctx, rows(id, l), shape(), rope, from); s != Status::ok) return s;
    return Status::ok;
  }

  Llama& engine_;
  kvc::any::AnyRecipe recipe_;
  bool close_up_;
  Status status_ = Status::ok;
  std::map<int, Condenser> states_;
  kvc::Workspace scratch_;
};

}  // namespace

// --- check ---
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string_view>
#include <utility>

#include <unistd.h>

#include <engine/condensed_attention.hpp>
#include <engine/dense_attention.hpp>
#include <engine/sampling.hpp>
#include <engine/tokenizer.hpp>
#include <ggml/to_gguf.hpp>
#include <kvcondense/any/any_cache.hpp>

namespace {

using Tokens = std::vector<std::int32_t>;

int failures = 0;
void expect(bool good, const char* what) {
  if (!good) std::printf("  FAILED: %s\n", what), ++failures;
}

double difference(std::span<const float> a, std::span<const float> b) {
  double worst = a.size() == b.size() && !a.empty() ? 0.0 : 1e9;
  for (std::size_t i = 0; i < a.size() && i < b.size(); ++i)
    if (const double d = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])); !(d <= worst)) worst = d;
  return worst;
}

/// The project's own engine with rows of its own and one list for all heads, as cells want it.
class OwnRows {
 public:
  OwnRows(const kvc::CacheShape& shape, const kvc::any::AnyRecipe& recipe)
      : condenser(Condense::Condenser::make(shape, recipe, {kvc::external::Sharing::per_sequence})) {
    keys_.resize(static_cast<std::size_t>(shape.layers * shape.kv_heads * room * shape.head_dim));
    values_ = keys_;
  }
  Status operator()(const engine::LayerChunk& chunk, kvc::TensorView<float, 3> out) {
    const auto n = chunk.k.extent[1], dim = chunk.k.extent[2], heads = chunk.k.extent[0], before = condenser->slots(chunk.layer, 0);
    if (const Status s = scratch_.reserve(condenser->workspace_bytes(room, n, 1)); s != Status::ok) return s;
    kvc::Context<kvc::Cpu> ctx(scratch_.bytes());
    for (kvc::index_t h = 0; h < heads; ++h)
      for (kvc::index_t t = 0; t < n; ++t) {
        const auto at = ((chunk.layer * heads + h) * room + before + t) * dim;
        std::copy_n(&chunk.k(h, t, 0), dim, keys_.data() + at), std::copy_n(&chunk.v(h, t, 0), dim, values_.data() + at);
      }
    if (const Status s = condenser->attend(ctx, chunk.layer, rows(chunk.layer), n, chunk.q, out); s != Status::ok) return s;
    if (const Status s = condenser->step(ctx, chunk.layer, rows(chunk.layer), n, {.queries = chunk.q}, chunk.phase); s != Status::ok) return s;
    if (chunk.layer + 1 < condenser->shape().layers) return Status::ok;
    if (const Status s = condenser->settle(ctx); s != Status::ok) return s;
    for (kvc::index_t l = 0; l <= chunk.layer && condenser->leaves(l); ++l)
      if (const Status s = condenser->compact(ctx, l, rows(l)); s != Status::ok) return s;
    return Status::ok;
  }

  kvc::Expected<Condense::Condenser> condenser;

 private:
  static constexpr kvc::index_t room = 1024;
  kvc::external::BorrowedLayer rows(kvc::index_t layer) {
    const kvc::CacheShape& s = condenser->shape();
    const auto at = layer * s.kv_heads * room * s.head_dim;
    return kvc::external::borrow_contiguous(kvc::dense_view(keys_.data() + at, s.kv_heads, room, s.head_dim),
                                            kvc::dense_view(values_.data() + at, s.kv_heads, room, s.head_dim));
  }
  std::vector<float> keys_, values_;
  kvc::Workspace scratch_;
};

struct Setting {
  const char* recipe;
  std::size_t most;  ///< cells at the end
  bool close_up = false, per_head = false;
  ggml_engine::Options options{.cells = 640, .kv = GGML_TYPE_F32};
  double tolerance = 1e-3;
};

const std::string shipped = KVCONDENSE_EXAMPLES_DIR "/models/tinylm";

class Check {
 public:
  /// `rope`: what config.json says of RoPE scaling, empty: nothing.
  Check(const std::string& folder, const std::string& rope) : folder_(folder) {
    std::filesystem::create_directories(folder);
    std::filesystem::copy(shipped + "/model.safetensors", folder);
    std::ifstream in(shipped + "/config.json");
    std::string config{std::istreambuf_iterator<char>(in), {}}, why;
    std::ofstream(folder + "/config.json") << config.insert(config.find('{') + 1, rope);
    auto model = engine::load_model(folder, why);
    expect(static_cast<bool>(model), why.c_str());
    if (model) model_ = std::move(*model);
    std::ifstream words(shipped + "/heldout.txt", std::ios::binary);
    std::string text(600, '\0');
    words.read(text.data(), 600);
    text_ = engine::bytes_to_tokens(text);
  }

  std::string file(ggml_type type) {
    const std::string path = folder_ + "/tinylm-" + ggml_type_name(type) + ".gguf";
    std::string why;
    if (!std::filesystem::exists(path)) expect(ggml_engine::to_gguf(folder_, path, type, why), why.c_str());
    return path;
  }
  std::unique_ptr<Llama> load(ggml_type type, ggml_engine::Options options) {
    std::string why;
    auto made = Llama::load(file(type), options, why);
    expect(made != nullptr, why.c_str());
    return made;
  }

  /// Logits of a prompt and of single tokens behind it, nothing condensed.
  void logits(ggml_type weights, ggml_engine::Options options, double tolerance) {
    const auto llama = load(weights, options);
    if (llama == nullptr) return;
    llama->all_logits = true;
    engine::Decoder decoder(model_);
    engine::DenseAttention cache(model_.config);
    double worst = 0;
    for (std::size_t at = 0; at < 330; at += at < 300 ? 150 : 1) {
      const auto chunk = std::span<const std::int32_t>(text_).subspan(at, at < 300 ? 150 : 1);
      const auto theirs = decoder.forward(chunk, static_cast<engine::index_t>(at), std::ref(cache), engine::Logits::all);
      const bool ok = llama->pass(0, chunk, at < 300 ? Part::prompt_chunk : Part::generated) && theirs;
      worst = ok ? std::max(worst, difference(llama->logits(), *theirs)) : 1e9;
    }
    std::printf("weights %-5s cells %-4s %-9s logits of 330 tokens differ by %.1e\n", ggml_type_name(weights), ggml_type_name(options.kv),
                options.flash ? "flash" : "soft_max", worst);
    expect(worst < tolerance, "logits are those of the project's engine");
  }

  /// A prompt of 300 tokens in two chunks and 100 generated ones, beside the project's engine with the same recipe.
  void condensed(const Setting& s) {
    const auto llama = load(GGML_TYPE_F32, s.options);
    const auto recipe = kvc::any::parse(s.recipe);
    if (llama == nullptr || !recipe) return expect(false, s.recipe);
    Condense condense(*llama, recipe->stages, s.close_up);
    kvc::CacheShape shape = condense.shape();
    shape.dtype = kvc::DType::f32;
    OwnRows own(shape, recipe->stages);
    const std::string whole = std::string(s.recipe) + (s.close_up ? " + reindex" : "");
    auto made = kvc::any::make(whole, shape, kvc::any::on<kvc::Cpu>, kvc::heap_memory(), {.rope = engine::library_rope(model_.config.rope, 1024)});
    if (!made || !own.condenser) return expect(false, s.recipe);
    engine::CondensedAttention cache(*std::move(made));
    engine::Decoder decoder(model_, s.per_head ? cache.decoder_options() : engine::DecoderOptions{});
    const engine::Attention attention = s.per_head ? engine::Attention(std::ref(cache)) : engine::Attention(std::ref(own));

    double worst = 0;
    int alike = 0, freed = 0, reach = 0;
    std::int32_t next = -1;
    for (int t = 0; t < 400;) {
      const int n = t < 300 ? 150 : 1;
      const Part part = t == 0 ? Part::prompt_chunk : t == 150 ? Part::prompt_end : Part::generated;
      const auto chunk = t < 300 ? std::span<const std::int32_t>(text_).subspan(static_cast<std::size_t>(t), 150) : std::span<const std::int32_t>(&next, 1);
      constexpr engine::Phase phases[] = {engine::Phase::prefill_chunk, engine::Phase::prefill_end, engine::Phase::decode};
      const int before = llama->free_cells();
      const auto theirs = decoder.forward(chunk, t, attention, engine::Logits::last, phases[static_cast<int>(part)]);
      if (!llama->pass(0, chunk, part) || !theirs) return expect(false, "a pass went through");
      worst = std::max(worst, difference(llama->logits(), *theirs));
      alike += engine::greedy(llama->logits()) == engine::greedy(*theirs);
      freed += llama->free_cells() - before + n, reach = std::max(reach, t < 300 ? 0 : llama->reach());
      next = engine::greedy(*theirs);
      t += n;
    }
    const auto& cells = llama->sequences.at(0);
    std::printf("%-44s %s %s%s %4zu of 400 cells, %d freed, logits differ by %.1e, %d of 102 choices alike\n", s.recipe,
                ggml_type_name(s.options.kv), s.options.flash ? "flash" : "soft_max", s.close_up ? " close-up" : "", cells.size(), freed, worst, alike);
    expect(worst < s.tolerance && alike >= (s.tolerance < 0.01 ? 102 : 97), "logits are those of the project's engine");
    expect(cells.size() <= s.most && freed == 400 - static_cast<int>(cells.size()), "cells are free again");
    expect(static_cast<std::size_t>(reach) <= s.most + 1, "attention runs over what stays");
    if (!s.per_head) {
      bool same = own.condenser->slots(0, 0) == static_cast<kvc::index_t>(cells.size());
      for (kvc::index_t i = 0; same && i < own.condenser->slots(0, 0); ++i) {
        const auto token = own.condenser->token(0, 0, i);
        same = condense.state(0).token(0, 0, i) == token;
        const auto position = llama->pos[static_cast<std::size_t>(cells[static_cast<std::size_t>(i)])];
        same = same && position == (s.close_up ? i : token);
      }
      expect(same || s.tolerance > 0.01, "the same tokens stay, at their positions");
    }
  }

  /// Two sequences that take turns are as each alone.
  void two() {
    const auto recipe = kvc::any::parse("h2o(heavy=30, recent=34)");
    const auto both = load(GGML_TYPE_F32, {.cells = 450, .kv = GGML_TYPE_F32});
    if (both == nullptr) return;
    Condense condense(*both, recipe->stages, false);
    double worst = 0;
    std::vector<std::vector<float>> alone;
    for (const int id : {0, 1}) {
      const auto one = load(GGML_TYPE_F32, {.cells = 450, .kv = GGML_TYPE_F32});
      Condense mine(*one, recipe->stages, false);
      for (int t = 0; t < 40; ++t) {
        if (!one->pass(7, piece(id, t), t == 0 ? Part::prompt_end : Part::generated)) return expect(false, "a pass went through");
        alone.emplace_back(one->logits().begin(), one->logits().end());
      }
    }
    for (int t = 0; t < 40; ++t)
      for (const int id : {0, 1}) {
        if (!both->pass(id, piece(id, t), t == 0 ? Part::prompt_end : Part::generated)) return expect(false, "a pass went through");
        worst = std::max(worst, difference(both->logits(), alone[static_cast<std::size_t>(40 * id + t)]));
      }
    std::printf("two sequences that take turns: %zu and %zu cells, logits differ from each alone by %.1e\n", both->sequences[0].size(),
                both->sequences[1].size(), worst);
    expect(worst < 1e-3 && both->sequences[0].size() == 64 && both->sequences[1].size() == 64, "sequences do not meet");
    for (const int id : {0, 1}) both->remove(id), condense.remove(id);
    expect(both->free_cells() == 450 && both->reach() == 0, "all cells are free again");
  }

  void refusals() {
    const auto parts = [&](const char* text) { return kvc::any::parse(text)->stages; };
    const auto llama = load(GGML_TYPE_F32, {.cells = 100, .kv = GGML_TYPE_F32});
    if (llama == nullptr) return;
    const auto run = [&](int id, int n) { return llama->pass(id, std::span<const std::int32_t>(text_).first(static_cast<std::size_t>(n)), Part::prompt_end); };
    {
      Condense merges(*llama, parts("h2o(heavy=8, recent=8) + d2o"), false);
      expect(!run(0, 50) && merges.status() == Status::not_supported, "merging with one list is refused");
    }
    {
      Condense wants(*llama, parts("expected_attention(keep=30%)"), false);
      expect(!run(1, 50) && wants.status() == Status::missing_input, "what the engine cannot give is missing");
      expect(wants.state(1).length() == 0, "a refused pass never came");
    }
    expect(llama->free_cells() == 100, "refused passes hold no cells");
    Condense fits(*llama, parts("sink_window(sinks=4, recent=28)"), false);
    expect(run(2, 80) && !run(3, 80) && run(3, 60), "a pass for which there are no cells is refused, one that fits goes on");
    const std::int32_t strange = 256;
    expect(!llama->pass(2, {&strange, 1}, Part::generated) && llama->sequences[2].size() == 32, "no such token");

    std::string why;
    const auto refused = [&](const std::string& path, const char* said) {
      expect(Llama::load(path, {}, why) == nullptr && why.find(said) != std::string::npos, said);
    };
    refused(folder_ + "/none.gguf", "no GGUF file");
    std::ifstream in(file(GGML_TYPE_F16), std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(in), {}};
    const auto changed = [&](std::string with, const char* said) {
      const std::string path = folder_ + "/changed.gguf";
      std::ofstream(path, std::ios::binary) << with;
      refused(path, said);
    };
    const auto replaced = [&](const std::string& from, const std::string& to) {
      std::string with = bytes;
      return with.replace(with.find(from), from.size(), to);
    };
    changed(bytes.substr(0, bytes.size() / 2), "no GGUF file");
    changed(replaced("llama.block_count", "llama.block_amount").substr(0, bytes.size()), "no GGUF file");
    changed(replaced("llama.block_count", "llama.clock_bount"), "llama.block_count is missing");
    changed(replaced("blk.3.attn_q.weight", "blk.3.attn_q.wright"), "blk.3.attn_q.weight is missing");
    std::string fewer = bytes;
    const std::string key = "llama.block_count";
    fewer[fewer.find(key) + key.size() + 4] = 3;
    changed(fewer, "is not part of this architecture");
    changed(replaced(std::string("\5\0\0\0\0\0\0\0llama", 13), std::string("\5\0\0\0\0\0\0\0lemma", 13)), "the architecture is not llama");
  }

 private:
  std::span<const std::int32_t> piece(int id, int t) const {
    return std::span<const std::int32_t>(text_).subspan(static_cast<std::size_t>(t == 0 ? 250 * id : 250 * id + 150 + t), t == 0 ? 150 : 1);
  }

  std::string folder_;
  engine::Model model_;
  Tokens text_;
};

int check() {
  const auto folder = std::filesystem::temp_directory_path() / ("kvcondense_ggml_" + std::to_string(::getpid()));
  {
    using ggml_engine::Options;
    Check c((folder / "shipped").string(), "");
    const Options f32{.cells = 640, .kv = GGML_TYPE_F32}, channels{.cells = 640, .kv = GGML_TYPE_F32, .flash = false};
    const Options f16{.cells = 640}, f16_threads{.cells = 640, .flash = false, .threads = 2};
    c.logits(GGML_TYPE_F32, f32, 2e-4), c.logits(GGML_TYPE_F32, channels, 2e-4);
    c.logits(GGML_TYPE_F32, f16, 0.1), c.logits(GGML_TYPE_F16, f16_threads, 0.1);
    c.logits(GGML_TYPE_Q8_0, f32, 1.0), c.logits(GGML_TYPE_Q4_0, f16, 6.0);
    for (const Options& o : {f32, channels}) {
      c.condensed({.recipe = "sink_window(sinks=4, recent=60)", .most = 64, .per_head = true, .options = o});
      c.condensed({.recipe = "sink_window(sinks=4, recent=60)", .most = 64, .close_up = true, .per_head = true, .options = o});
      c.condensed({.recipe = "h2o(heavy=32, recent=32)", .most = 64, .options = o});
      c.condensed({.recipe = "snapkv(tokens=64, window=16)", .most = 164, .options = o});
    }
    c.condensed({.recipe = "every(h2o(heavy=32, recent=32), tokens=16)", .most = 80, .options = f32});
    for (const Options& o : {f16, Options{.cells = 640, .flash = false}})
      c.condensed({.recipe = "sink_window(sinks=4, recent=60)", .most = 64, .per_head = true, .options = o, .tolerance = 0.2});
    c.two();
    c.refusals();
    for (const char* rope : {R"("rope_scaling": {"rope_type": "linear", "factor": 2.0},)",
                             R"("rope_scaling": {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 64},)"}) {
      std::printf("%s\n", rope);
      Check scaled((folder / std::to_string(std::string_view(rope).size())).string(), rope);
      scaled.logits(GGML_TYPE_F32, f32, 2e-4);
      scaled.condensed({.recipe = "every(sink_window(sinks=4, recent=60), tokens=16)", .most = 80, .close_up = true, .per_head = true, .options = f32});
    }
  }
  std::filesystem::remove_all(folder);
  return failures == 0 ? 0 : 1;
}

int fail(const std::string& why) {
  std::fprintf(stderr, "16_engine_ggml: %s\n", why.c_str());
  return 1;
}

bool whole(const std::string& text, int low, int& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc{} && end == text.data() + text.size() && out >= low;
}

int convert(std::map<std::string, std::string>& given) {
  std::string why;
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0})
    if (given["--type"] == ggml_type_name(type)) return ggml_engine::to_gguf(given["--convert"], given["--to"], type, why) ? 0 : fail(why);
  return fail("--type is f32, f16, q8_0 or q4_0");
}

int generate(std::map<std::string, std::string>& given) {
  ggml_engine::Options options;
  int count = 0, close_up = 0, flash = 0;
  if (!whole(given["--cells"], 1, options.cells) || !whole(given["--threads"], 1, options.threads) || !whole(given["--tokens"], 0, count) ||
      !whole(given["--close-up"], 0, close_up) || !whole(given["--flash"], 0, flash) || (given["--kv"] != "f16" && given["--kv"] != "f32"))
    return fail("a number, or the type of cells, cannot be read");
  options.flash = flash != 0;
  if (given["--kv"] == "f32") options.kv = GGML_TYPE_F32;
  const auto recipe = kvc::any::parse(given["--recipe"]);
  if (!recipe) return fail("recipe: " + std::string(recipe.message()));
  std::string why;
  const auto llama = Llama::load(given["--model"], options, why);
  if (llama == nullptr) return fail(why);
  Tokens ids;
  const std::string& text = given["--text"];
  if (!text.empty() && llama->facts.vocab != 256) return fail("this model has no byte vocabulary, and there is no other tokenizer here: --ids");
  if (!text.empty()) ids = engine::bytes_to_tokens(text);
  for (std::size_t at = 0; text.empty() && at < given["--ids"].size();) {
    const std::size_t comma = std::min(given["--ids"].find(',', at), given["--ids"].size());
    if (!whole(given["--ids"].substr(at, comma - at), 0, ids.emplace_back())) return fail("--ids are numbers with commas between");
    at = comma + 1;
  }
  if (ids.empty()) return fail("nothing to continue: --text or --ids");

  Condense condense(*llama, recipe->stages, close_up != 0);
  const auto pass = [&](std::span<const std::int32_t> tokens, Part part) {
    if (llama->pass(0, tokens, part)) return true;
    fail(condense.status() == Status::ok ? "no free cells, or no such token" : to_string(condense.status()));
    return false;
  };
  constexpr std::size_t most = 256;  // in chunks of about equal size: policies look at the newest queries of the last one
  const std::size_t chunks = (ids.size() + most - 1) / most;
  for (std::size_t i = 0; i < chunks; ++i) {
    const std::size_t at = ids.size() * i / chunks, end = ids.size() * (i + 1) / chunks;
    if (!pass(std::span<const std::int32_t>(ids).subspan(at, end - at), end == ids.size() ? Part::prompt_end : Part::prompt_chunk)) return 1;
  }
  std::fputs(text.c_str(), stdout);
  for (int i = 0; i < count; ++i) {
    const std::int32_t token = engine::greedy(llama->logits());
    std::printf(text.empty() ? (i == 0 ? "%d" : ",%d") : "%c", token);
    std::fflush(stdout);
    if (!pass({&token, 1}, Part::generated)) return 1;
  }
  std::printf("\n");
  std::fprintf(stderr, "%zu of %zu tokens are in cells\n", llama->sequences[0].size(), ids.size() + static_cast<std::size_t>(count));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) return check();
  std::map<std::string, std::string> given{{"--convert", ""}, {"--to", ""}, {"--type", "f16"}, {"--model", ""}, {"--ids", ""}, {"--text", ""},
                                           {"--tokens", "64"}, {"--recipe", "keep_all"}, {"--close-up", "0"}, {"--cells", "2048"}, {"--kv", "f16"},
                                           {"--flash", "1"}, {"--threads", "1"}};
  for (int i = 1; i < argc; i += 2) {
    const auto at = given.find(argv[i]);
    if (at == given.end() || i + 1 == argc) return fail(std::string(argv[i]) + (at == given.end() ? " is no option" : " wants a value"));
    at->second = argv[i + 1];
  }
  if (!given["--convert"].empty() && !given["--to"].empty()) return convert(given);
  if (!given["--model"].empty()) return generate(given);
  return fail("--convert DIR --to FILE, or --model FILE");
}
