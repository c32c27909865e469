// EXPECT: this policy's source asks for an input that its 'needs' does not name.
#include <kvcondense/evict/h2o.hpp>

using namespace kvcondense;

struct Mine {
  static constexpr Descriptor about{"mine", Stage::evict, "none"};
#ifdef KVCONDENSE_EXPECT_FAIL
  static constexpr Inputs needs{};
#else
  static constexpr Inputs needs = Input::attention;
#endif
  constexpr auto pipeline() const { return evict::H2O{}.pipeline(); }
  Status validate(const CacheShape&) const { return Status::ok; }
};

static_assert(evict::check_eviction_policy<Mine, Cpu>());
