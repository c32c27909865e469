// Caches on CUDA whose keys are signs of products with random directions, alone or beside levels.

#include <string>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/quant/turboquant.hpp>

#include "cache_live.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache codec: turboquant with signs of what levels leave") {
  stays(quant::TurboQuant{.sketch = true, .residual_window = 3, .sinks = 2}, "turboquant(sketch=true, residual=3, sinks=2)", small);
  leaves(quant::TurboQuant{.key_bits = 3, .value_bits = 2, .sketch = true, .seed = 7}, "turboquant(key_bits=3, value_bits=2, sketch=true, seed=7)", odd);
  leaves(quant::TurboQuant{.key_bits = 2, .sketch = true}, "turboquant(key_bits=2, sketch=true)", wide_halves);
  leaves(quant::TurboQuant{.key_bits = 5, .sketch = true}, "turboquant(key_bits=5, sketch=true)", common);
  // Methods that look at rows see what both say of them.
  Pair norms(recipe(evict::Knorm{.tokens = 30, .recent = 6}, quant::TurboQuant{.sketch = true, .residual_window = 2}), "knorm(tokens=30, recent=6) + turboquant(sketch=true, residual=2)", odd);
  lives(norms);
}
