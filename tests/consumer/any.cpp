// The compiled part as a consumer sees it: recipes from text, through kvcondense::any.

#include <cstdio>

#include <kvcondense/any/any_cache.hpp>

int main() {
  const kvcondense::CacheShape shape{.q_heads = 14, .kv_heads = 2, .head_dim = 64};
  const auto on = kvcondense::any::on<kvcondense::Cpu>;
  auto cache = kvcondense::any::make("h2o(heavy=64) + kivi2", shape, on);
  if (!cache || !cache->capabilities().needs.has(kvcondense::Input::attention)) return 1;
  const auto refused = kvcondense::any::make("h2o + tova", shape, on);
  std::printf("%.*s\n", static_cast<int>(refused.message().size()), refused.message().data());
  return refused.position() == 6 ? 0 : 1;
}
