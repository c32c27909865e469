// An engine that does not give what a recipe looks at: a small one, and the one of examples/engine.
#include <engine/condensed_attention.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/dms.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/locret.hpp>

#include "either.hpp"

using namespace kvcondense;
using test::Either;

namespace {

template <class Policy>
struct Of {
  static auto recipe_of() { return recipe(Policy{}); }
};
template <class Right, class Wrong>
using Served = engine::CondensedAttention<Cache<Cpu, decltype(Either<Of<Right>, Of<Wrong>>::recipe_of())>>;

}  // namespace

// EXPECT: engine: this recipe looks at something that the engine does not give: see given_inputs.
index_t gates(const Served<evict::Locret, evict::Dms>& attention) { return attention.cache().length(); }
static_assert(engine::looked_at<Cache<Cpu, decltype(recipe(evict::H2O{}))>> == Inputs(Input::attention));
