// Codecs of the catalogue in a cache on CUDA beside the same on the CPU, in every shape, a line each. Every time each is built in the shapes of its own tests.

#include <kvcondense/quant/bfp.hpp>
#include <kvcondense/quant/bipolar_int.hpp>
#include <kvcondense/quant/bit_allocation.hpp>
#include <kvcondense/quant/boundary_layers.hpp>
#include <kvcondense/quant/comet.hpp>
#include <kvcondense/quant/commvq.hpp>
#include <kvcondense/quant/fp8.hpp>
#include <kvcondense/quant/gear.hpp>
#include <kvcondense/quant/ggml.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/hadamard.hpp>
#include <kvcondense/quant/kitty.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/quant/kvquant.hpp>
#include <kvcondense/quant/mikv.hpp>
#include <kvcondense/quant/mx.hpp>
#include <kvcondense/quant/nvfp4.hpp>
#include <kvcondense/quant/polar.hpp>
#include <kvcondense/quant/polar_recursive.hpp>
#include <kvcondense/quant/qjl.hpp>
#include <kvcondense/quant/qserve.hpp>
#include <kvcondense/quant/rotatekv.hpp>
#include <kvcondense/quant/skvq.hpp>
#include <kvcondense/quant/smooth_attention.hpp>
#include <kvcondense/quant/turboquant.hpp>
#include <kvcondense/quant/zipcache.hpp>

#include "cache_stored.hpp"

using namespace kvcondense;
using namespace cuda_cache;

namespace {

// Slots move and leave; what was stored leaves with them.
const Stored rows{.before = heavy_text}, groups{.before = heavy_text, .group = 8};
const Stored lanes{.before = heavy_text, .within = 4e-4f, .group = 8};  // codes of lanes are multiplied as integers on the CPU
// A product of low rank is added up in another order than on the CPU, and its factors are halves; a code that is as near to another may become it.
const Stored products{.before = heavy_text, .within = 5e-4f, .again = 1e-3f, .far = 0.01f, .group = 8};
// A device has its own sine, cosine and arc tangent, by which an angle that is as near to a bin's edge as rounding may get another code.
#if defined(KVCONDENSE_CUDA_FIBERS)
const Stored angles = groups;
#else
const Stored angles{.before = heavy_text, .within = 2e-2f, .again = 1e-5f, .far = 0.25f, .group = 8};
#endif

}  // namespace

KVCONDENSE_CUDA_STORES("codec", "group_int", rows, heavy, quant::GroupInt<4>{.group_size = 16, .residual_window = 6})
KVCONDENSE_CUDA_STORES("codec", "kivi", lanes, heavy, quant::Kivi<2>{.group_size = 8, .residual_window = 16, .sinks = 2})
KVCONDENSE_CUDA_STORES("codec", "gear", products, heavy, quant::Gear<2>{.group_size = 8, .chunk = 8, .rank = 2, .sparse = 0.25, .sinks = 2})
KVCONDENSE_CUDA_STORES("codec", "fp8", rows, heavy, quant::Fp8{.scale = quant::Fp8Scale::block, .block = 16, .residual_window = 4})
KVCONDENSE_CUDA_STORES("codec", "mx", rows, heavy,
                       quant::Mx{.format = quant::MxFormat::fp6_e2m3, .value_format = quant::MxFormat::fp4, .residual_window = 3, .sinks = 2})
KVCONDENSE_CUDA_STORES("codec", "nvfp4", rows, heavy, quant::Nvfp4{.key_scale = 0.5f, .residual_window = 5})
KVCONDENSE_CUDA_STORES("codec", "bfp", rows, heavy, quant::Bfp{.bits = 4, .value_bits = 5, .block = 16, .residual_window = 3, .sinks = 2})
KVCONDENSE_CUDA_STORES("codec", "ggml", rows, heavy,
                       quant::Ggml{.format = quant::GgmlFormat::q4_0, .value_format = quant::GgmlFormat::q5_1, .residual_window = 4, .sinks = 1})
KVCONDENSE_CUDA_STORES("codec", "kitty", groups, heavy, quant::Kitty{.page = 8, .boost = 0.25f, .buffer = 8, .sinks = 2})
KVCONDENSE_CUDA_STORES("codec", "polar", angles, heavy, quant::Polar<4, 4>{.group_size = 8, .centered = true, .keep_window = 2, .sinks = 2})
KVCONDENSE_CUDA_STORES("codec", "bipolar_int", rows, heavy, quant::BipolarInt<3>{.group_size = 16, .query_bits = 0, .residual_window = 4})
KVCONDENSE_CUDA_STORES("codec", "qserve", lanes, heavy, quant::QServe<4>{.residual_window = 4})
KVCONDENSE_CUDA_STORES("codec", "comet", lanes, heavy, quant::Comet{.group_size = 8, .keep_window = 4, .sinks = 2})
KVCONDENSE_CUDA_STORES("codec", "zipcache", groups, heavy, quant::ZipCache<4, 2>{.salient = 0.5, .block = 8, .sinks = 2})
KVCONDENSE_CUDA_STORES("codec", "mikv", groups, heavy, quant::MiKV<8, 2>{.important = 0.25, .block = 8, .least = 16, .keep_window = 3})
KVCONDENSE_CUDA_STORES("codec", "turboquant", rows, heavy, quant::TurboQuant{.key_bits = 4, .value_bits = 3, .residual_window = 5})
KVCONDENSE_CUDA_STORES("codec", "hadamard", rows, heavy, quant::Hadamard<quant::GroupInt<4>>{.base = {.group_size = 16, .residual_window = 6}, .seed = 3})
KVCONDENSE_CUDA_STORES("codec", "qjl", groups, heavy,
                       quant::Qjl{.bits = 64, .strong_bits = 32, .first_layers = 1, .first_bits = 96, .first_strong_bits = 40, .channels = 4, .group_size = 8, .buffer = 8, .sinks = 2})
KVCONDENSE_CUDA_STORES("codec", "polar_recursive", rows, heavy, quant::PolarRecursive{.levels = 3, .residual_window = 5})
KVCONDENSE_CUDA_STORES("codec", "kvquant", rows, heavy,
                       quant::KvQuant{.bits = 3, .outliers = 0.06f, .residual_window = 4, .key_lower = facts.key_lower, .key_upper = facts.key_upper})
KVCONDENSE_CUDA_STORES("codec", "commvq", rows, heavy,
                       quant::CommVq{.base = 16, .stages = 3, .beam = 2, .residual_window = 4, .key_books = facts.key_books, .value_books = facts.value_books})
KVCONDENSE_CUDA_STORES("codec", "skvq", rows, heavy, quant::Skvq{.key_levels = 8, .value_levels = 3, .group_size = 12, .window = 4, .sinks = 2})
KVCONDENSE_CUDA_STORES("codec", "rotatekv", rows, heavy, quant::RotateKv{.bits = 3, .group_size = 16, .sinks = 2})
KVCONDENSE_CUDA_STORES("codec", "bit_allocation", rows, heavy, quant::BitAllocation{.key_bits = 3, .value_bits = 2, .boundary = 1, .group_size = 8})
KVCONDENSE_CUDA_STORES("codec", "boundary_layers", rows, heavy,
                       quant::BoundaryLayers<quant::GroupInt<4>>{.base = {.group_size = 16, .residual_window = 6}, .first = 1, .last = 0})
KVCONDENSE_CUDA_STORES("codec", "smooth_attention", rows, heavy,
                       quant::SmoothAttention<quant::GroupInt<4>>{.base = {.group_size = 16, .residual_window = 6}, .alpha = 0.7f, .least = 20})

TEST_CASE("cuda cache: every quant stage is tried in every shape, or it is said what lacks", "[.][sweep]") {
  every_word_is_tried({Stage::quant}, "cuda cache codec in every shape: ", {{"exact", "nothing: it is the recipe without a quant stage"}});
}
