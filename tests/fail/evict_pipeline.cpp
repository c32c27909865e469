// EXPECT: an eviction policy needs 'pipeline() const' that returns an evict::Pipeline
// EXPECT: an eviction policy needs 'Status validate(const CacheShape&) const'
#include <kvcondense/evict/h2o.hpp>

using namespace kvcondense;

struct Mine {
  static constexpr Descriptor about{"mine", Stage::evict, "none"};
  static constexpr Inputs needs = Input::attention;
#ifndef KVCONDENSE_EXPECT_FAIL
  auto pipeline() const { return evict::H2O{}.pipeline(); }
  Status validate(const CacheShape&) const { return Status::ok; }
#endif
};

static_assert(evict::check_eviction_policy<Mine, Cpu>());
