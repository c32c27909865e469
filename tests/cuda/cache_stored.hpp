#pragma once

// One line makes a method that says how rows are stored a test: the method in a cache on CUDA beside the catalogue's setting of it on the CPU, in every shape.

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cache_coordinates.hpp"
#include "cache_live.hpp"

namespace cuda_cache {

/// A cache whose rows are stored otherwise than they came, and how near to the CPU's it is.
struct Stored {
  std::string before{}, after{};  ///< the text of the stages around the method's
  float within = 1e-4f;       ///< of outputs
  float again = 0.0f;         ///< of rows that are read
  float far = 0.0f;           ///< the part of them that may differ by a code
  index_t group = 1;          ///< slots that are stored together: pages are multiples of it
  index_t most_page = 64;     ///< slots of a page, where whole pages alone are stored so
  bool found = false;         ///< directions are sums in another order than the CPU's, and rounded where they are stored
};

/// Numbers of about 1 of this type are so far from each other.
constexpr float step_of(DType type) { return type == DType::f32 ? 0.0f : type == DType::f16 ? 0x1p-10f : 0x1p-7f; }

/// A shape that a method is not made for.
struct Refusal {
  std::string_view word;
  index_t head_dim;
  Status status;
  std::string_view why;
};
inline const std::vector<Refusal>& refusals() {
  static const std::vector<Refusal> all{
      {"ggml", 80, Status::invalid_argument, "rows of 80 and 48 numbers are no blocks of 32"},
      {"qjl", 80, Status::invalid_argument, "a value of 48 numbers is no groups of 32"},
  };
  return all;
}

/// Facts of a random model of a shape: one of each for all tests of a program.
inline const any::ModelFacts& facts_of(const CacheShape& shape) {
  static std::map<index_t, std::unique_ptr<RandomModel>> models;  // by head_dim, in which shapes differ
  auto& model = models[shape.head_dim];
  if (model == nullptr) model = std::make_unique<RandomModel>(shape);
  return model->facts();
}

/// `make(facts)` is the recipe that `how` and the word's setting say.
template <class Make>
void stored_as(std::string_view word, CacheShape shape, const Stored& how, Make&& make) {
  const std::string text = how.before + setting(word) + how.after;
  if (shape.page_slots % how.group != 0) shape.page_slots = how.group;
  shape.page_slots = std::min(shape.page_slots, how.most_page);
  INFO(text << ", heads of " << shape.head_dim << ", " << shape.q_heads / shape.kv_heads << " query heads each");
  const any::ModelFacts& facts = facts_of(shape);
  const auto method = make(facts);
  const auto refused = std::ranges::find_if(refusals(), [&](const Refusal& r) { return r.word == word && r.head_dim == shape.head_dim; });
  if (refused != refusals().end()) {
    INFO(refused->why);
    CHECK(make_cache<Cuda>(shape, method).status() == refused->status);
    CHECK(any::make(text, shape, any::on<Cpu>, heap_memory(), facts).status() == refused->status);
    return;
  }
  Pair pair(method, text, shape, facts);
  const float step = how.found ? 4.0f * step_of(shape.dtype) : 0.0f;
  pair.allow(std::max(how.again, step), how.far);
  const float within = std::max(how.within, step);
  lives(pair, within);
  CHECK(pair.on_device().report(pair.device())->coded_bytes > 0);
  Pair twin = pair.fork();
  twin.forward(4, prim::AttendMath::f32, within);
  pair.forward(3, prim::AttendMath::f32, within);
  pair.exchange();
}

}  // namespace cuda_cache

/// KVCONDENSE_CUDA_STORES(room, word, how it is compared, the stages): `facts` are those of the model.
#define KVCONDENSE_CUDA_STORES(room, word, how, ...)                                                                                   \
  TEST_CASE("cuda cache " room " in every shape: " word, "[.][sweep]") {                                                               \
    for (const CacheShape& shape : cuda_cache::shapes())                                                                               \
      cuda_cache::stored_as(word, shape, how, [&]([[maybe_unused]] const any::ModelFacts& facts) { return recipe(__VA_ARGS__); });     \
  }
