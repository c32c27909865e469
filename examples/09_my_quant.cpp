// A quant stage of one's own: which codec stores keys, which stores values, and when the exact
// window becomes codes. Here keys get 8 bits and values 4, and the first tokens stay exact.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include <kvcondense/core/random.hpp>
#include <kvcondense/cpu.hpp>

namespace kvc = kvcondense;

namespace mine {

/// Stores keys in 8 bits and values in 4, both per token.
struct K8V4 {
  static constexpr kvc::Descriptor about{"k8v4", kvc::Stage::quant, "this file"};

  kvc::index_t group_size = 32;
  kvc::index_t window = 16;  ///< newest slots that stay exact
  kvc::index_t sinks = 4;    ///< first slots that stay exact

  kvc::prim::GroupInt<8> key_codec() const { return {.group_size = group_size}; }
  kvc::prim::GroupInt<4> value_codec() const { return {.group_size = group_size}; }
  kvc::Flush key_flush() const { return kvc::fifo_flush(window); }
  kvc::Flush value_flush() const { return kvc::fifo_flush(window); }
  kvc::Status validate(const kvc::CacheShape& shape) const {
    using kvc::quant::group_codec_fits;
    const bool fits = group_codec_fits(key_codec(), shape.head_dim, key_flush(), sinks) &&
                      group_codec_fits(value_codec(), shape.values(), value_flush(), sinks);
    return fits ? kvc::Status::ok : kvc::Status::invalid_argument;
  }
};

}  // namespace mine

int main() {
  const kvc::CacheShape shape{.head_dim = 64};
  auto cache = kvc::make_cache<kvc::Cpu>(shape, kvc::recipe(mine::K8V4{}));
  kvc::Workspace scratch;
  if (!cache || scratch.reserve(cache->workspace_bytes(512, 512)) != kvc::Status::ok) return 1;
  kvc::Context<kvc::Cpu> ctx(scratch.bytes());

  std::vector<float> rows(512 * 64), out(rows.size()), k(rows.size()), v(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = kvc::random_uniform(9, i);  // [0, 1)
  const auto in = kvc::dense_view<const float>(rows.data(), 1, 512, 64);
  if (cache->forward(ctx, 0, in, in, in, kvc::dense_view(out.data(), 1, 512, 64)) !=
      kvc::Status::ok)
    return 1;

  // What is stored, read back: half a step of a range below 1, and half a step of fp16 parameters.
  if (cache->read(0, 0, 0, kvc::dense_view(k.data(), 512, 64),
                  kvc::dense_view(v.data(), 512, 64)) != kvc::Status::ok)
    return 1;
  float key_error = 0, value_error = 0, exact_error = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const bool coded = i >= 4 * 64 && i < (512 - 16) * 64;
    (coded ? key_error : exact_error) =
        std::max(coded ? key_error : exact_error, std::abs(k[i] - rows[i]));
    if (coded) value_error = std::max(value_error, std::abs(v[i] - rows[i]));
  }
  const kvc::Report r = cache->report();
  std::printf("%.1f %% of 16 bits; largest error: keys %.4f, values %.4f, exact slots %.4f\n",
              100 * r.ratio(), static_cast<double>(key_error), static_cast<double>(value_error),
              static_cast<double>(exact_error));
  const bool within = key_error < 0.51f / 255 + 1e-3f && value_error < 0.51f / 15 + 1e-3f;
  return within && exact_error < 3e-4f && value_error > key_error && r.coded_bytes > 0 ? 0 : 1;
}
