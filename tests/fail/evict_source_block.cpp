// EXPECT: a source block needs attention(), lanes(), one_set(), observe(...), score(...)
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>

using namespace kvcondense;

struct Source : evict::KeyNorm {
#ifdef KVCONDENSE_EXPECT_FAIL
  template <Backend B>
  void score(Context<B>&, const StepView<B>&, evict::LaneViews, RaggedView<float>, Scratch&) const {}
#endif
};

struct Mine {
  static constexpr Descriptor about{"mine", Stage::evict, "none"};
  static constexpr Inputs needs{};
  constexpr auto pipeline() const {
    return evict::Pipeline{Source{},          evict::NoPool{}, evict::NoProtect{},
                           evict::Absolute{}, evict::TopK{},   evict::EveryStep{}};
  }
  Status validate(const CacheShape&) const { return Status::ok; }
};

static_assert(evict::check_eviction_policy<Mine, Cpu>());
