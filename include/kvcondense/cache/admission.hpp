#pragma once

#include <kvcondense/cache/cache.hpp>
#include <kvcondense/cache/engine_facts.hpp>
#include <kvcondense/core/memory.hpp>
#include <kvcondense/core/shape.hpp>

namespace kvcondense {

/// Whether caches of this recipe and shape can serve an engine, before anything runs: makes an empty one and asks it.
///
///   if (const Admission a = admit(recipe(evict::H2O{}), shape, {.fixed_tables = true}); !a) return complain(a.sentence);
template <class R>
  requires requires(const R r) { r.evict, r.quant, r.position; }
Admission admit(const R& recipe, const CacheShape& shape, const EngineFacts& engine, MemoryResource<Cpu>& memory = heap_memory()) {
  if (const Admission a = admit(recipe_traits(recipe), engine); !a) return a;
  const auto cache = Cache<Cpu, R>::make(shape, recipe, memory);
  if (!cache) {
    if (cache.status() == Status::missing_input) return {Status::missing_input, "the recipe lacks an array of the model"};
    return {cache.status(), "no cache of this shape runs the recipe"};
  }
  return admit(cache->capabilities(), engine);
}

}  // namespace kvcondense
