// Stages that no cache runs, or not together, and steps without what their policy looks at.
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/expected_attention.hpp>
#include <kvcondense/external/borrowed.hpp>
#include <kvcondense/lowrank/pca.hpp>
#include <kvcondense/lowrank/think.hpp>
#include <kvcondense/merge/cam.hpp>
#include <kvcondense/merge/d2o.hpp>
#include <kvcondense/retrieve/infllm.hpp>

#include "either.hpp"

using namespace kvcondense;
using test::Either;

namespace {

template <class... S>
struct Stages {
  static auto all() { return recipe(S{}...); }
};
template <class Right, class Wrong>
using Made = decltype(Either<Right, Wrong>::all());
template <class Right, class Wrong>
using CacheOf = Cache<Cpu, Made<Right, Wrong>>;

struct Number {
  int bits = 2;
};
struct Pages {
  static constexpr Descriptor about{"pages", Stage::storage, "none"};
};

}  // namespace

// EXPECT: at most one eviction stage; a budget or another wrapper takes its policy as a field.
using TwoEvictions = Made<Stages<budget::Ratio<evict::H2O>>, Stages<evict::SnapKV, budget::Ratio<evict::H2O>>>;
// EXPECT: at most one quantization stage.
using TwoQuants = Made<Stages<quant::Kivi<2>>, Stages<quant::Kivi<2>, quant::GroupInt<8>>>;
// EXPECT: at most one position stage.
using TwoPositions = Made<Stages<position::Rerotate>, Stages<position::Absolute, position::Rerotate>>;
// EXPECT: at most one merge stage.
using TwoMerges = Made<Stages<evict::H2O, merge::CaM>, Stages<evict::H2O, merge::CaM, merge::D2O>>;
// EXPECT: at most one low-rank stage.
using TwoLowRanks = Made<Stages<lowrank::Think>, Stages<lowrank::Think, lowrank::Pca>>;
// EXPECT: at most one retrieval stage.
using TwoRetrievals = Made<Stages<retrieve::Quest>, Stages<retrieve::Quest, retrieve::Kinetics>>;
// Two bits of what? The number alone is no stage.
// EXPECT: a stage is a copyable struct with a member 'static constexpr kvcondense::Descriptor about'.
using NoStage = Made<Stages<evict::H2O>, Stages<evict::H2O, Number>>;
// EXPECT: kvcondense::recipe: this stage is not one that a cache runs.
using NoCacheRuns = Made<Stages<evict::H2O>, Stages<evict::H2O, Pages>>;

// EXPECT: kvcondense: include kvcondense/cuda.cuh for a cache on CUDA.
index_t length(const Cache<Either<Cpu, Cuda>, decltype(recipe())>& cache) { return cache.length(); }

// EXPECT: this retrieval stage scores keys without rotation: add position::Reindex or position::Rerotate.
index_t raw_keys(const CacheOf<Stages<retrieve::InfLlm, position::Rerotate>, Stages<retrieve::InfLlm>>& cache) { return cache.length(); }

// EXPECT: this recipe evicts by attention: pass step the mass that attend measured, or call forward.
Status without_attention(Context<Cpu>& ctx, CacheOf<Stages<evict::Knorm>, Stages<evict::H2O>>& cache) { return cache.step(ctx, 0); }
// EXPECT: this recipe's policy looks at more than attention: pass step its StepInputs, or call forward.
Status without_inputs(Context<Cpu>& ctx, CacheOf<Stages<evict::KeyDiff>, Stages<evict::ExpectedAttention>>& cache) { return cache.step(ctx, 0); }
// EXPECT: this recipe's policy looks at more than attention: pass step its StepInputs, or call forward.
Status with_attention_only(Context<Cpu>& ctx, CacheOf<Stages<evict::SnapKV>, Stages<evict::RKV>>& cache) {
  return cache.step(ctx, 0, AttentionView{});
}
// EXPECT: this recipe's policy needs inputs that forward cannot make: pass it StepInputs.
Status no_moments(Context<Cpu>& ctx, CacheOf<Stages<evict::Tova>, Stages<evict::ExpectedAttention, quant::Kivi<2>>>& cache,
                  TensorView<const float, 3> rows, TensorView<float, 3> out) {
  return cache.forward(ctx, 0, rows, rows, rows, out);
}

/// Describes how rows are stored, but no PageCodec<Cpu, Mine> says how to write and read them.
struct Mine {
  std::size_t page_bytes(index_t slots, index_t width) const { return static_cast<std::size_t>(slots * width); }
  index_t group_slots() const { return 1; }
  bool valid(index_t) const { return true; }
  std::int64_t fingerprint() const { return 0; }
};
static_assert(prim::CodecDescription<Mine>);
struct Stored {
  static constexpr Descriptor about{"stored", Stage::quant, "none"};
  static constexpr index_t sinks = 0;
  Either<prim::ExactRows, Mine> key_codec() const { return {}; }
  prim::ExactRows value_codec() const { return {}; }
  Flush key_flush() const { return {}; }
  Flush value_flush() const { return {}; }
  Status validate(const CacheShape&) const { return Status::ok; }
};
// EXPECT: store rows with a codec that this backend knows.
Status unknown_codec(Context<Cpu>& ctx, Cache<Cpu, decltype(recipe(Stored{}))>& cache) { return cache.step(ctx, 0); }

// EXPECT: kvcondense: keys and values are float, half or bfloat16.
auto contiguous(TensorView<Either<float, int>, 3> rows) { return external::borrow_contiguous(rows, rows); }
// EXPECT: kvcondense: keys and values are float, half or bfloat16.
auto blocks(Either<half, double>* rows) { return external::borrow_blocks(rows, rows, CacheShape{}, 16, 1, {}); }
