// EXPECT: store rows with a codec that this backend knows.
#include <kvcondense/cpu.hpp>

using namespace kvcondense;

/// Describes how rows are stored, but no PageCodec<Cpu, Mine> says how to write and read them.
struct Mine {
  std::size_t page_bytes(index_t slots, index_t dim) const {
    return static_cast<std::size_t>(slots * dim);
  }
  index_t group_slots() const { return 1; }
  bool valid(index_t) const { return true; }
  std::int64_t fingerprint() const { return 0; }
};
static_assert(prim::CodecDescription<Mine>);

struct Stored {
  static constexpr Descriptor about{"stored", Stage::quant, "none"};
  static constexpr index_t sinks = 0;
#ifdef KVCONDENSE_EXPECT_FAIL
  Mine key_codec() const { return {}; }
  Mine value_codec() const { return {}; }
#else
  prim::ExactRows key_codec() const { return {}; }
  prim::ExactRows value_codec() const { return {}; }
#endif
  Flush key_flush() const { return {}; }
  Flush value_flush() const { return {}; }
  Status validate(const CacheShape&) const { return Status::ok; }
};

Status step(Context<Cpu>& ctx, Cache<Cpu, decltype(recipe(Stored{}))>& cache) {
  return cache.step(ctx, 0);
}
