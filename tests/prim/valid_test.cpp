// What a codec or a transform cannot be, field by field: each is taken just beyond its end, alone.

#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/prim/bipolar_int.hpp>
#include <kvcondense/prim/boosted_int.hpp>
#include <kvcondense/prim/channel_list.hpp>
#include <kvcondense/prim/channel_scale.hpp>
#include <kvcondense/prim/cluster_rows.hpp>
#include <kvcondense/prim/complex_vq.hpp>
#include <kvcondense/prim/corrected.hpp>
#include <kvcondense/prim/found_basis.hpp>
#include <kvcondense/prim/group_bits.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/hadamard.hpp>
#include <kvcondense/prim/level_codes.hpp>
#include <kvcondense/prim/mixed_rows.hpp>
#include <kvcondense/prim/nuq_rows.hpp>
#include <kvcondense/prim/polar_pairs.hpp>
#include <kvcondense/prim/polar_tree.hpp>
#include <kvcondense/prim/projection.hpp>
#include <kvcondense/prim/row_transform.hpp>
#include <kvcondense/prim/sign_sketch.hpp>

using namespace kvcondense;
using namespace kvcondense::prim;

namespace {

constexpr index_t dim = 32, far = max_head_dim + 2;

/// `good` is valid for rows of `dim`, not for rows of the lengths of `dims`, and not after any of the changes alone. Whatever
/// changes the bytes of a page changes the fingerprint.
template <class C>
void check(const C& good, const std::vector<index_t>& dims, const std::vector<std::function<void(C&)>>& changes) {
  REQUIRE(good.valid(dim));
  for (const index_t d : dims) {
    CAPTURE(d);
    CHECK_FALSE(good.valid(d));
  }
  for (std::size_t i = 0; i < changes.size(); ++i) {
    CAPTURE(i);
    C bad = good;
    changes[i](bad);
    CHECK_FALSE(bad.valid(dim));
  }
}

}  // namespace

TEST_CASE("valid: codecs of levels, groups and lists", "[prim][valid]") {
  check<GroupBits>({.bits = 4}, {0}, {[](auto& c) { c.bits = 0; }, [](auto& c) { c.bits = 9; }, [](auto& c) { c.group_size = -1; }});
  check<BipolarInt<4>>({}, {0, 28}, {[](auto& c) { c.query_bits = 3; }, [](auto& c) { c.query_bits = 9; }, [](auto& c) { c.group_size = 12; }});
  check<BoostedInt<2, 2>>({}, {0, far}, {[](auto& c) { c.group_size = 0; }, [](auto& c) { c.group_size = 65536; }, [](auto& c) { c.boost = -0.1f; }, [](auto& c) { c.boost = 1.1f; }});
  check<LevelCodes>({4, LevelScale::unit, fit_levels(4, dim, false)}, {0, far},
                    {[](auto& c) { c.bits = 0; }, [](auto& c) { c.bits = 5; }, [](auto& c) { c.level[0] = 0.0f; }, [](auto& c) { c.level[3] = c.level[2]; }, [](auto& c) { c.level[7] = 1e3f; }});
  std::vector<float> cluster(dim, 0.0f), lower(dim, -1.0f), upper(dim, 1.0f);
  check<ClusterRows>({}, {0, far},
                     {[](auto& c) { c.clip = 0.0f; }, [](auto& c) { c.clip = 1.1f; }, [](auto& c) { c.group_size = 0; }, [](auto& c) { c.levels = 5; },
                      [](auto& c) { c.form = GroupForm::float_zero; }, [&](auto& c) { c.cluster = cluster.data(), c.channels = dim - 1; }});
  ClusterRows ternary;
  ternary.levels = 3;
  CHECK(ternary.bits() == 2);
  const NuqRows free{.bits = 4, .outliers = 2, .level = normal_levels(4)};
  check<NuqRows>(free, {0, far, 2},
                 {[](auto& c) { c.bits = 0; }, [](auto& c) { c.bits = 5; }, [](auto& c) { c.outliers = -2; }, [](auto& c) { c.outliers = 3; }, [](auto& c) { c.level[0] = -2e3f; },
                  [](auto& c) { c.level[5] = c.level[4]; }, [](auto& c) { c.level[5] = NAN; }, [&](auto& c) { c.lower = lower.data(); }});
  NuqRows fixed = free;
  fixed.lower = lower.data(), fixed.upper = upper.data(), fixed.channels = dim;
  const auto with = [&](float lo, float hi) {
    lower[3] = lo, upper[3] = hi;
    const bool good = fixed.valid(dim);
    lower[3] = -1.0f, upper[3] = 1.0f;
    return good;
  };
  CHECK(with(1.0f, 1.0f));
  CHECK_FALSE((with(1.0f, 0.5f) || with(-INFINITY, 1.0f) || with(0.0f, INFINITY) || with(NAN, 1.0f) || with(0.0f, NAN)));
  check<NuqRows>(fixed, {16}, {[](auto& c) { c.upper = nullptr; }, [](auto& c) { c.channels = dim - 1; }});
}

TEST_CASE("valid: codecs of pairs, books and sketches", "[prim][valid]") {
  using Pairs = PolarPairs<4, 4>;
  check<Pairs>({}, {0, 31, far}, {[](auto& c) { c.group_size = 0; }, [](auto& c) { c.group_size = 65536; }});
  check<PolarTree>(PolarTree::of(4, 4, 2), {0, 24, far + 14},
                   {[](auto& c) { c.levels = 2; }, [](auto& c) { c.levels = PolarTree::most_levels + 1; }, [](auto& c) { c.first_bits = 0; }, [](auto& c) { c.first_bits = 7; },
                    [](auto& c) { c.bits = 0; }, [](auto& c) { c.bits = 4; }, [](auto& c) { c.angle[0][0] = 0.0f; }});
  std::vector<float> book(2 * 4 * dim, 0.5f);
  const ComplexVq vq{.book = book.data(), .stages = 2, .base = 4, .channels = dim, .beam = 2};
  check<ComplexVq>(vq, {0, 31, far, 16},
                   {[](auto& c) { c.book = nullptr; }, [](auto& c) { c.base = 1; }, [](auto& c) { c.base = ComplexVq::most_base + 1; }, [](auto& c) { c.stages = 0; },
                    [](auto& c) { c.stages = 300; }, [](auto& c) { c.beam = 0; }});
  ComplexVq other = vq;
  other.lengths = false;
  CHECK(other.fingerprint() != vq.fingerprint());
  book[7] = 0.25f;
  CHECK(other.fingerprint() != vq.fingerprint());
  std::vector<float> matrix(64 * dim, 1.0f);
  check<SignSketch>({.bits = 64, .seed = 1, .matrix = matrix.data(), .columns = dim}, {16},
                    {[](auto& c) { c.bits = -8; }, [](auto& c) { c.bits = 63; }, [](auto& c) { c.bits = SignSketch::most_bits + 8; }});
  const SignSketch drawn{.bits = 64}, given{.bits = 64, .seed = 1, .matrix = matrix.data(), .columns = dim};
  CHECK(drawn.fingerprint() != given.fingerprint());
  const auto before = given.fingerprint();
  matrix[5] = -1.0f;
  CHECK(before != given.fingerprint());
  check<SketchRows>({}, {0, far, 8},
                    {[](auto& c) { c.channels = -1; }, [](auto& c) { c.group_size = 0; }, [](auto& c) { c.group_size = 65537; }, [](auto& c) { c.sketch.bits = 0; },
                     [](auto& c) { c.sketch.bits = 7; }, [](auto& c) { c.strong.bits = 7; }, [](auto& c) { c.strong.bits = 0; }});
  using Levels = Sketched<LevelCodes>;
  const LevelCodes levels{3, LevelScale::unit, fit_levels(3, dim, false)};
  check<Levels>({levels, {.bits = 32}}, {0}, {[](auto& c) { c.sketch.bits = 31; }, [](auto& c) { c.codec.bits = 9; }});
  CHECK(Levels{levels, {}}.fingerprint() == levels.fingerprint());
  CHECK(Levels{levels, {.bits = 32}}.fingerprint() != levels.fingerprint());
}

TEST_CASE("valid: codecs around codecs", "[prim][valid]") {
  using Gear = Corrected<GroupInt<4>>;
  check<Gear>({.chunk = 64, .rank = 2}, {0, 1024},
              {[](auto& c) { c.chunk = 0; }, [](auto& c) { c.chunk = Gear::most_slots + 1; }, [](auto& c) { c.outliers = -0.1; }, [](auto& c) { c.outliers = 1.1; },
               [](auto& c) { c.loops = 0; }, [](auto& c) { c.loops = Gear::most_loops + 1; }, [](auto& c) { c.rank = -1; }, [](auto& c) { c.rank = Gear::most_rank + 1; }});
  using Mixed = MixedRows<GroupInt<4>, GroupInt<2>>;
  check<Mixed>({}, {0, 1024},
               {[](auto& c) { c.group = 1; }, [](auto& c) { c.high_slots = 0; }, [](auto& c) { c.high_slots = c.group; }, [](auto& c) { c.high.group_size = -1; },
                [](auto& c) { c.low.group_size = -1; }, [](auto& c) { c.high.axis = GroupAxis::channel, c.high.group_size = 8; },
                [](auto& c) { c.low.axis = GroupAxis::channel, c.low.group_size = 8; }});
}

TEST_CASE("valid: transforms, alone and in a chain", "[prim][valid]") {
  check<ChannelScale>({}, {0, far}, {});
  check<Hadamard>({.block = 16}, {0, far, 24}, {[](auto& t) { t.block = 12; }, [](auto& t) { t.block = -16; }});
  CHECK(Hadamard{.block = 1}.identity());
  CHECK_FALSE((Hadamard{.block = 1, .seed = 2}.identity() || Hadamard{.block = 1, .overlap = true}.identity()));
  check<FoundBasis>({.rank = 8}, {0, far, 4}, {[](auto& t) { t.rank = -1; }});
  CHECK(FoundBasis{}.fingerprint() == 0);
  CHECK(FoundBasis{.rank = 8}.fingerprint() != FoundBasis{.rank = 8, .center = true}.fingerprint());
  CHECK((FoundBasis{}.finding_floats(dim) == 0 && FoundBasis{.rank = 8}.finding_floats(dim) == dim * dim + dim + 1));
  CHECK((FoundBasis{.rank = 8, .center = true}.centred() && !FoundBasis{.center = true}.centred()));
  check<ChannelList>({.kept = 8, .pairs = true}, {0, far, 4, 31}, {[](auto& t) { t.kept = 0; }, [](auto& t) { t.kept = 7; }, [](auto& t) { t.window = -1; }});
  CHECK((ChannelList{.kept = 7}.valid(dim) && ChannelList{.kept = 7}.stored_dim(dim) == 7));
  CHECK(ChannelList{.kept = 8}.fingerprint() != ChannelList{.kept = 8, .pairs = true}.fingerprint());
  CHECK(ChannelList{.kept = 8, .pairs = true}.fingerprint() != ChannelList{.kept = 8, .pairs = true, .interleaved = true}.fingerprint());

  std::vector<float> encode(dim * 8, 1.0f), decode(dim * 8, 2.0f), mean(dim, 0.0f);
  const Projection basis{encode.data(), decode.data(), nullptr, 8, 8, static_cast<std::int32_t>(dim)};
  check<Projection>(basis, {0, 16}, {[](auto& t) { t.decode = nullptr; }, [](auto& t) { t.rank = 0; }, [](auto& t) { t.rank = 9; }});
  CHECK((Projection{}.valid(dim) && Projection{}.fingerprint() == 0 && Projection{}.stored_dim(dim) == dim));
  Projection one = basis, centred = basis;
  one.decode = one.encode, centred.mean = mean.data();
  CHECK(one.fingerprint() != basis.fingerprint());
  CHECK(centred.fingerprint() != basis.fingerprint());
  CHECK((centred.centred() && !basis.centred()));

  const Hadamard turn{.block = 16};
  check<Chained<Hadamard, FoundBasis>>({turn, {.rank = 8}}, {0}, {[](auto& t) { t.first.block = 12; }, [](auto& t) { t.second.rank = 33; }, [](auto& t) { t.second.center = true; }});
  CHECK_FALSE((Chained{FoundBasis{.rank = 16}, FoundBasis{.rank = 8}}.valid(dim)));  // two that are found from data
  CHECK_FALSE((Chained{turn, ChannelList{.kept = 8}}.valid(dim)));                   // queries do not come turned
  const Chained listed{ChannelList{.kept = 8}, Hadamard{.block = 8}};
  CHECK((listed.valid(dim) && listed.needs_queries() && listed.stored_dim(dim) == 8 && !listed.identity()));
  const Chained middle{FoundBasis{.rank = 8, .center = true}, Hadamard{.block = 8}};
  CHECK((middle.valid(dim) && middle.centred() && !middle.needs_queries()));
  CHECK((Chained{Hadamard{.block = 1}, Hadamard{.block = 1}}.identity()));
  CHECK_FALSE((Chained{Hadamard{.block = 1}, turn}.identity()));
  using Coded = Transformed<FoundBasis, GroupInt<4>>;
  check<Coded>({{.rank = 8}, {}}, {0}, {[](auto& t) { t.transform.rank = 33; }, [](auto& t) { t.codec.group_size = -1; }});
}
