// Merge policies just beyond the ends of their fields, one field at a time.

#include <cmath>
#include <functional>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>

using namespace kvcondense;
using namespace kvcondense::merge;

namespace {

/// The policy as it is fits the cache, and none of the changes does.
template <class P>
void check(const std::vector<std::function<void(P&)>>& changes, P good = {}) {
  const CacheShape shape{.layers = 8, .q_heads = 2, .kv_heads = 2, .head_dim = 32};
  CAPTURE(P::about.word);
  REQUIRE(good.validate(shape) == Status::ok);
  for (std::size_t i = 0; i < changes.size(); ++i) {
    CAPTURE(i);
    P bad = good;
    changes[i](bad);
    CHECK(bad.validate(shape) == Status::invalid_argument);
  }
}

}  // namespace

TEST_CASE("merge: fields beyond their ends are refused", "[merge][refusals]") {
  check<CaM>({[](auto& p) { p.targets = 0; }, [](auto& p) { p.targets = 257; }, [](auto& p) { p.seed = -1; }});
  check<Centroid>({[](auto& p) { p.sinks = -1; }, [](auto& p) { p.recent = -1; }, [](auto& p) { p.slack = -1; }, [](auto& p) { p.chunk = 1; },
                   [](auto& p) { p.chunk = index_t{1} << 32; }, [](auto& p) { p.tokens = 4; }, [](auto& p) { p.tokens = 68; }});
  check<D2O>({[](auto& p) { p.keep = -0.1f; }, [](auto& p) { p.keep = 1.1f; }, [](auto& p) { p.add = NAN; }});
  check<Dmc>({[](auto& p) { p.window = -1; }, [](auto& p) { p.init = INFINITY; }, [](auto& p) { p.slack = NAN; }, [](auto& p) { p.slack = -0.1f; }});
  CHECK(Dmc{.rotated = false}.validate({.head_dim = 1}) == Status::invalid_argument);
  check<ElasticCache>({[](auto& p) { p.sinks = -1; }, [](auto& p) { p.newest = -1; }});
  check<Ems>({[](auto& p) { p.window = 0; }, [](auto& p) { p.folds = -1.0; }, [](auto& p) { p.folds = 1.1e6; }, [](auto& p) { p.least = -0.1f; }, [](auto& p) { p.least = 1.1f; }});
  check<KeepKV>({[](auto& p) { p.decay = -0.1f; }, [](auto& p) { p.decay = 1.0f; }, [](auto& p) { p.window = 0; }, [](auto& p) { p.least = -1.1f; }, [](auto& p) { p.least = 1.1f; }});
  check<KVMerger>({[](auto& p) { p.keep = 1.1; }, [](auto& p) { p.keep = -0.1; }, [](auto& p) { p.heavy = 1.1; }, [](auto& p) { p.recent = NAN; }, [](auto& p) { p.least = -1.1f; },
                   [](auto& p) { p.least = 1.1f; }, [](auto& p) { p.window = 0; }, [](auto& p) { p.sinks = -1; }, [](auto& p) { p.sigma = -1.0f; }});
  check<MiniCache>({[](auto& p) { p.weight = 1.1f; }, [](auto& p) { p.weight = -0.1f; }, [](auto& p) { p.start = 1.1f; }, [](auto& p) { p.part = NAN; }, [](auto& p) { p.recent = -1; },
                    [](auto& p) { p.start = 1.0f; }});
  check<ToMe>({[](auto& p) { p.sinks = -1; }, [](auto& p) { p.recent = -1; }, [](auto& p) { p.slack = -1; }, [](auto& p) { p.tokens = 4; }, [](auto& p) { p.tokens = 36; }});
  check<ValueMerge>({[](auto& p) { p.least = -1.1f; }, [](auto& p) { p.least = 1.1f; }, [](auto& p) { p.part = -0.1; }, [](auto& p) { p.part = 1.1; }});
}
