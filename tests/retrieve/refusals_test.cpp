// Retrieval methods just beyond the ends of their fields, one field at a time.

#include <cmath>
#include <functional>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>

using namespace kvcondense;
using namespace kvcondense::retrieve;

namespace {

constexpr index_t large = index_t{1} << 62;

/// The method as it is says `usual`, and after any of the changes that an argument is invalid.
template <class P>
void check(const std::vector<std::function<void(P&)>>& changes, Status usual = Status::ok) {
  const CacheShape shape{.layers = 4, .q_heads = 2, .kv_heads = 2, .head_dim = 32};
  CAPTURE(P::about.word);
  REQUIRE(P{}.validate(shape) == usual);
  for (std::size_t i = 0; i < changes.size(); ++i) {
    CAPTURE(i);
    P bad{};
    changes[i](bad);
    CHECK(bad.validate(shape) == Status::invalid_argument);
  }
}

}  // namespace

TEST_CASE("retrieve: fields beyond their ends are refused", "[retrieve][refusals]") {
  check<A2ats>({[](auto& p) { p.share = -0.1; }, [](auto& p) { p.share = 1.1; }, [](auto& p) { p.sinks = -1; }, [](auto& p) { p.sinks = large; }, [](auto& p) { p.local = -1; },
                [](auto& p) { p.local = large; }, [](auto& p) { p.distance = -1; }, [](auto& p) { p.distance = large; }},
               Status::missing_input);
  check<AlisaWindow>({[](auto& p) { p.ratio = 0.0; }, [](auto& p) { p.ratio = 1.1; }, [](auto& p) { p.ratio = NAN; }, [](auto& p) { p.history = 0; }, [](auto& p) { p.history = large; }});
  check<InfiniGen>({[](auto& p) { p.part = 0.0; }, [](auto& p) { p.part = 1.1; }, [](auto& p) { p.alpha = -1; }, [](auto& p) { p.alpha = 1.1e6; }, [](auto& p) { p.share = -0.1; },
                    [](auto& p) { p.share = 1.1; }, [](auto& p) { p.dense_layers = -1; }},
                   Status::missing_input);
  check<InfLlm>({[](auto& p) { p.block = 0; }, [](auto& p) { p.block = large; }, [](auto& p) { p.blocks = 0; }, [](auto& p) { p.blocks = large; }, [](auto& p) { p.init = -1; },
                 [](auto& p) { p.init = large; }, [](auto& p) { p.local = 0; }, [](auto& p) { p.local = large; }, [](auto& p) { p.representatives = 0; },
                 [](auto& p) { p.representatives = RepresentativeKeys::most + 1; }, [](auto& p) { p.chunk = 0; }, [](auto& p) { p.chunk = 4097; }});
  check<Kinetics>({[](auto& p) { p.block = 0; }, [](auto& p) { p.block = large; }, [](auto& p) { p.blocks = 0; }, [](auto& p) { p.blocks = large; }, [](auto& p) { p.sinks = -1; },
                   [](auto& p) { p.sinks = large; }, [](auto& p) { p.local = -1; }, [](auto& p) { p.local = large; }, [](auto& p) { p.dense_layers = -1; }});
  check<Landmark>({[](auto& p) { p.tokens = 0; }, [](auto& p) { p.tokens = large; }, [](auto& p) { p.blocks = 0; }, [](auto& p) { p.blocks = large; }});
  check<Loki>({[](auto& p) { p.columns = 0; }, [](auto& p) { p.share = -0.1; }, [](auto& p) { p.share = 1.1; }}, Status::missing_input);
  check<LServe>({[](auto& p) { p.part = 0; }, [](auto& p) { p.page = p.part - 1; }, [](auto& p) { p.page = large; }, [](auto& p) { p.page = p.part + 1; }, [](auto& p) { p.tokens = p.page - 1; },
                 [](auto& p) { p.tokens = large; }, [](auto& p) { p.interval = 0; }});
  check<MagicPig>({[](auto& p) { p.sinks = -1; }, [](auto& p) { p.sinks = large; }, [](auto& p) { p.local = -1; }, [](auto& p) { p.local = large; }}, Status::missing_input);
  check<PqCache>({[](auto& p) { p.keep = -0.1; }, [](auto& p) { p.keep = 1.1; }, [](auto& p) { p.recent = -0.1; }, [](auto& p) { p.recent = 1.1; }, [](auto& p) { p.parts = 0; },
                  [](auto& p) { p.parts = 3; }, [](auto& p) { p.bits = 0; }, [](auto& p) { p.bits = 13; }, [](auto& p) { p.iterations = 0; }, [](auto& p) { p.iterations = 1001; },
                  [](auto& p) { p.sinks = -1; }, [](auto& p) { p.sinks = large; }});
  check<Quest>({[](auto& p) { p.page = 0; }, [](auto& p) { p.page = large; }, [](auto& p) { p.tokens = p.page - 1; }, [](auto& p) { p.tokens = large; }, [](auto& p) { p.dense_layers = -1; }});
  check<ReKv>({[](auto& p) { p.frame = 0; }, [](auto& p) { p.frame = large; }, [](auto& p) { p.frames = 0; }, [](auto& p) { p.frames = large; }, [](auto& p) { p.init = -1; },
               [](auto& p) { p.init = large; }, [](auto& p) { p.question = 0; }, [](auto& p) { p.question = 4097; }});
  check<RetrievalAttention>({[](auto& p) { p.degree = 0; }, [](auto& p) { p.degree = 65; }, [](auto& p) { p.beam = 0; }, [](auto& p) { p.beam = 257; }, [](auto& p) { p.tokens = 0; },
                             [](auto& p) { p.tokens = large; }, [](auto& p) { p.hubs = 0; }, [](auto& p) { p.hubs = 1025; }, [](auto& p) { p.hub_keys = 0; },
                             [](auto& p) { p.hub_keys = 257; }, [](auto& p) { p.sinks = -1; }, [](auto& p) { p.sinks = large; }, [](auto& p) { p.local = -1; },
                             [](auto& p) { p.local = large; }});
  check<RocketKV>({[](auto& p) { p.page = 0; }, [](auto& p) { p.page = large; }, [](auto& p) { p.tokens = p.page - 1; }, [](auto& p) { p.tokens = large; }, [](auto& p) { p.channels = 0; },
                   [](auto& p) { p.channels = large; }});
  check<ShadowSelect>({[](auto& p) { p.chunk = 0; }, [](auto& p) { p.chunk = large; }, [](auto& p) { p.tokens = p.chunk - 1; }, [](auto& p) { p.tokens = large; },
                       [](auto& p) { p.outliers = -1; }, [](auto& p) { p.outliers = large; }, [](auto& p) { p.local_chunks = -1; }, [](auto& p) { p.local_chunks = large; }});
  check<SparQ>({[](auto& p) { p.channels = 0; }, [](auto& p) { p.channels = large; }, [](auto& p) { p.tokens = -1; }, [](auto& p) { p.tokens = large; }, [](auto& p) { p.share = -0.1; },
                [](auto& p) { p.share = 1.1; }, [](auto& p) { p.local = -1; }, [](auto& p) { p.local = large; }});
  check<Squeezed>({[](auto& p) { p.clusters = 1.1; }, [](auto& p) { p.clusters = 0.0; }, [](auto& p) { p.coarse = -0.1; }, [](auto& p) { p.coarse = 1.0; }, [](auto& p) { p.quantile = NAN; },
                   [](auto& p) { p.coarse_quantile = 1.1; }, [](auto& p) { p.threshold = -0.1; }, [](auto& p) { p.observe = 0; }, [](auto& p) { p.observe = large; },
                   [](auto& p) { p.iterations = 0; }, [](auto& p) { p.iterations = 1001; }});
  check<TriForce>({[](auto& p) { p.chunk = 0; }, [](auto& p) { p.chunk = large; }, [](auto& p) { p.tokens = large; }, [](auto& p) { p.tokens = 2 * p.chunk - 1; }});
}
