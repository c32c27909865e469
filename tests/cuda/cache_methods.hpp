#pragma once

// One line makes a method of the catalogue a test: the method in a cache on CUDA beside the catalogue's setting of it on the CPU.

#include <initializer_list>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <kvcondense/any/builtin.hpp>
#include <kvcondense/any/registry.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <support/catalogue.hpp>

#include "cache_pair.hpp"
#include "tried_words.hpp"

namespace cuda_cache {

/// The policy that wrappers of the catalogue wrap here.
inline constexpr evict::H2O inner{.heavy = 20, .recent = 20};
inline constexpr std::string_view inner_text = "h2o(heavy=20, recent=20)";

/// What eviction methods and budgets want to know of a model, for either side: what kernels read lies on the device.
class Model {
 public:
  Model(test::Device& device, const CacheShape& shape) {
    std::mt19937 random(1);
    const auto numbers = [&](index_t size, float least) {
      std::uniform_real_distribution<float> draw(least, 1.0f);
      std::vector<float> x(at(size));
      for (float& e : x) e = draw(random);
      return x;
    };
    const auto heads = [&](std::vector<float>& x) {
      x = numbers(shape.layers * shape.kv_heads, 0.01f);
      return HeadTable{x.data(), shape.layers, shape.kv_heads};
    };
    const auto layers = [&](std::vector<float>& x) {
      x = numbers(shape.layers, 0.2f);
      return LayerTable{x.data(), shape.layers};
    };
    host_.gates = heads(gates_), host_.induction = heads(induction_), host_.echo = heads(echo_), host_.shares = heads(shares_);
    const float sum = std::accumulate(shares_.begin(), shares_.end(), 0.0f);
    for (float& x : shares_) x /= sum;
    host_.evicted = layers(evicted_), host_.variance = layers(variance_);
    device_ = host_;
    constexpr index_t hidden = 24;
    matrices_.reserve(7);
    const auto matrices = [&](LayerMatrices any::ModelFacts::* which, index_t rows, index_t columns) {
      Matrices& m = matrices_.emplace_back();
      for (index_t layer = 0; layer < shape.layers; ++layer) {
        m.host.push_back(numbers(rows * columns, -1.0f));
        m.device.push_back(std::make_unique<test::OnDevice<float>>(device, m.host.back()));
        m.at_host.push_back(m.host.back().data()), m.at_device.push_back(m.device.back()->data());
      }
      host_.*which = {m.at_host.data(), shape.layers, rows, columns};
      device_.*which = {m.at_device.data(), shape.layers, rows, columns};
    };
    matrices(&any::ModelFacts::output, 40, shape.q_heads * shape.values());
    matrices(&any::ModelFacts::retain_in, shape.q_heads * shape.head_dim + shape.kv_heads * (shape.head_dim + shape.values()), hidden);
    matrices(&any::ModelFacts::retain_out, hidden, shape.kv_heads);
    matrices(&any::ModelFacts::key_axes, shape.kv_heads * shape.head_dim, shape.head_dim);
    matrices(&any::ModelFacts::key_codes, shape.kv_heads * 12, shape.head_dim);
    matrices(&any::ModelFacts::key_metric, shape.kv_heads * shape.head_dim, shape.head_dim);
    matrices(&any::ModelFacts::query_axes, shape.kv_heads * shape.head_dim, shape.head_dim);
    filters_ = numbers(shape.layers * shape.kv_heads * shape.head_dim, -1.0f);
    filters_at_device_ = std::make_unique<test::OnDevice<float>>(device, filters_);
    host_.query_filters = {filters_.data(), shape.layers, shape.kv_heads, shape.head_dim};
    device_.query_filters = {filters_at_device_->data(), shape.layers, shape.kv_heads, shape.head_dim};
    planes_ = numbers(12 * 3 * shape.head_dim, -1.0f);
    planes_at_device_ = std::make_unique<test::OnDevice<float>>(device, planes_);
    host_.hash_planes = {planes_.data(), 12, 3, shape.head_dim};
    device_.hash_planes = {planes_at_device_->data(), 12, 3, shape.head_dim};
  }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const any::ModelFacts& on_host() const { return host_; }
  const any::ModelFacts& on_device() const { return device_; }

 private:
  any::ModelFacts host_, device_;
  std::vector<float> gates_, induction_, echo_, shares_, evicted_, variance_;
  struct Matrices {
    std::vector<std::vector<float>> host;
    std::vector<std::unique_ptr<test::OnDevice<float>>> device;
    std::vector<const float*> at_host, at_device;
  };
  std::vector<Matrices> matrices_;
  std::vector<float> filters_, planes_;
  std::unique_ptr<test::OnDevice<float>> filters_at_device_, planes_at_device_;
};

/// Query heads per KV head 1, 3, 4, 7; heads of 64, 80, 128, 256; pages that blocks of slots end in and such that they do not.
inline const std::vector<CacheShape>& shapes() {
  static const std::vector<CacheShape> all{
      {.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 64, .page_slots = 16},
      {.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 80, .value_dim = 48, .page_slots = 5},
      {.layers = 2, .q_heads = 4, .kv_heads = 1, .head_dim = 128, .dtype = DType::bf16, .page_slots = 64},
      {.layers = 2, .q_heads = 14, .kv_heads = 2, .head_dim = 256, .dtype = DType::f32, .page_slots = 8},
  };
  return all;
}

/// The shape that a word is tried in every time: each has as many words as the others, more or less.
inline const CacheShape& shape_of(std::string_view word) {
  std::size_t sum = word.size();
  for (const char c : word) sum += static_cast<std::size_t>(c);
  return shapes()[sum % shapes().size()];
}

/// The catalogue's setting of a word.
inline std::string setting(std::string_view word) {
  std::string text = kvcondense::test::settings.at(std::string(word)).text;
  if (const auto hole = text.find("POLICY"); hole != std::string::npos) text.replace(hole, 6, inner_text);
  return text;
}

/// `make(facts)` is the method that `text` says.
template <class Make>
void parity(std::string_view text, const CacheShape& shape, Make&& make) {
  INFO(text << ", head_dim " << shape.head_dim);
  test::Device device;
  Model model(device, shape);
  Pair pair(recipe(make(model.on_device())), text, shape, model.on_host());
  pair.forward(20, prim::AttendMath::f32, pair.near, Phase::prefill_chunk);
  pair.turn(0);  // below most budgets: what a turn does to numbers of slots stays, though nothing leaves
  pair.forward(3, prim::AttendMath::f32, pair.near, Phase::prefill_chunk);
  pair.forward(28, prim::AttendMath::f32, pair.near, Phase::prefill_end);
  for (int i = 0; i < 4; ++i) pair.forward(1);
  pair.exchange();
  pair.turn(3);
  pair.forward(3, prim::AttendMath::f32, pair.near, Phase::prefill_end);
  pair.forward(2);
  for (int i = 0; i < 3; ++i) pair.forward(1);
  pair.compare_reports();
  CHECK(pair.on_device().report(pair.device())->evicted_slots > 0);
}

/// The same of what recipes name.
inline void every_word_is_tried(std::initializer_list<Stage> rooms, const std::string& prefix, const std::map<std::string, std::string>& lacking,
                                const std::map<std::string, std::string>& elsewhere = {}) {
  every_word_is_tried(any::builtin().entries(), rooms, prefix, lacking, elsewhere);
}

/// Device memory is refused at the n-th request of a step of `tokens` tokens, for each n of `requests`, and then given: a fork makes the step as if
/// nothing had been, and the cache does not see it. `least`: more steps than these are refused. `moved(cache, fork)`: behind the step and another.
template <class R, class Moved>
void refuse_a_step(const R& method, index_t tokens, std::initializer_list<int> requests, int least, Moved&& moved) {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  test::Device device;
  std::mt19937 random(5);
  test::OnDevice<float> x(device, normal_numbers(2 * 30 * 16, random)), out(device, std::vector<float>(2 * 30 * 16));
  const auto rows = [&](index_t first, index_t n) { return TensorView<const float, 3>{x.data() + first * 16, {2, n, 16}, {30 * 16, 16, 1}}; };
  std::vector<std::byte> expected;
  int refused = 0;
  for (const int left : requests) {
    test::RefusingMemory memory(1 << 20);
    auto c = make_cache<Cuda>(shape, method, memory);
    REQUIRE(c);
    Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(64, 20));
    const auto feed = [&](auto& to, index_t first, index_t n) {
      return to.forward(ctx, 0, rows(first, n), rows(first, n), rows(first, n), dense_view(out.data(), 2, n, 16));
    };
    const auto file_of = [&](auto& cache) {
      test::ByteList file;
      REQUIRE(save(ctx, cache, file) == Status::ok);
      return file.bytes;
    };
    REQUIRE(feed(*c, 0, 12) == Status::ok);
    auto twin = c->fork(ctx);  // its pages are copied in the step
    REQUIRE(twin);
    const auto before = file_of(*c);
    memory.left = left < 0 ? 1 << 20 : left;
    const Status s = feed(*twin, 12, tokens);
    memory.left = 1 << 20;
    if (s != Status::ok) {
      CHECK(s == Status::out_of_memory);
      ++refused;
      REQUIRE(file_of(*twin) == before);
      REQUIRE(feed(*twin, 12, tokens) == Status::ok);
    }
    REQUIRE(feed(*twin, 12 + tokens, 1) == Status::ok);
    const auto after = file_of(*twin);
    if (expected.empty()) expected = after;
    REQUIRE(after == expected);
    REQUIRE(file_of(*c) == before);
    moved(ctx, *c, *twin);
    REQUIRE(c->reset(ctx) == Status::ok);
    REQUIRE(feed(*c, 0, 12) == Status::ok);
    REQUIRE(file_of(*c) == before);  // what thresholds had learnt was forgotten too
  }
  CHECK(refused > least);
}

}  // namespace cuda_cache

/// KVCONDENSE_CUDA_METHOD(word, the method): `facts` are those of the model. One of the shapes, and hidden behind [sweep] all of them.
#define KVCONDENSE_CUDA_METHOD(word, ...) KVCONDENSE_CUDA_METHOD_AS(word, cuda_cache::setting(word), __VA_ARGS__)
/// The same with a text of its own.
#define KVCONDENSE_CUDA_METHOD_AS(word, text, ...)                                                                         \
  TEST_CASE("cuda cache method: " word) {                                                                                  \
    cuda_cache::parity(text, cuda_cache::shape_of(word), [&]([[maybe_unused]] const any::ModelFacts& facts) { return __VA_ARGS__; }); \
  }                                                                                                                        \
  TEST_CASE("cuda cache method in every shape: " word, "[.][sweep]") {                                                     \
    for (const CacheShape& shape : cuda_cache::shapes())                                                                   \
      cuda_cache::parity(text, shape, [&]([[maybe_unused]] const any::ModelFacts& facts) { return __VA_ARGS__; });         \
  }
