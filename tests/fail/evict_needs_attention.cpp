// EXPECT: this policy's source asks for attention: needs_attention must be true.
#include <kvcondense/evict/h2o.hpp>

using namespace kvcondense;

struct Mine {
  static constexpr Descriptor about{"mine", Stage::evict, "none"};
#ifdef KVCONDENSE_EXPECT_FAIL
  static constexpr bool needs_attention = false;
#else
  static constexpr bool needs_attention = true;
#endif
  constexpr auto pipeline() const { return evict::H2O{}.pipeline(); }
  Status validate(const CacheShape&) const { return Status::ok; }
};

static_assert(evict::check_eviction_policy<Mine, Cpu>());
