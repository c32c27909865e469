#include <support/byte_list.hpp>
#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/prim/hadamard.hpp>
#include <kvcondense/quant/hadamard.hpp>

using namespace kvcondense;

namespace {

const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 3, .head_dim = 16, .page_slots = 8};

/// Group sizes, windows and rotations that differ from head to head.
struct Uneven {
  static constexpr Descriptor about{"uneven", Stage::quant, "none"};
  index_t tilt = 0;
  index_t sinks = 2;

  static constexpr index_t kind(HeadIndex at) { return (at.layer * 3 + at.head) % 4; }
  auto key_codec(const CacheShape&, HeadIndex at) const {
    const index_t k = kind(at);
    return prim::Transformed{prim::Hadamard{k == 3 ? index_t{1} : index_t{4} << k % 2, 0},
                             prim::GroupInt<4>{.group_size = k == 1 ? index_t{8} : 16}};
  }
  prim::GroupInt<2> value_codec(const CacheShape&, HeadIndex at) const {
    return {.group_size = kind(at) == 0 ? index_t{4} + tilt : 8};
  }
  Flush key_flush(const CacheShape&, HeadIndex at) const { return kind(at) == 2 ? Flush{0, 0} : Flush{1, 4 + at.head}; }
  Flush value_flush() const { return {1, 5}; }
  Status validate(const CacheShape&) const { return Status::ok; }
};

/// The same for every head: as head `as` of Uneven.
struct Even {
  static constexpr Descriptor about{"even", Stage::quant, "none"};
  HeadIndex as{};
  index_t sinks = 2;
  auto key_codec(const CacheShape& s) const { return Uneven{}.key_codec(s, as); }
  auto value_codec(const CacheShape& s) const { return Uneven{}.value_codec(s, as); }
  Flush key_flush() const { return Uneven{}.key_flush({}, as); }
  Flush value_flush() const { return Uneven{}.value_flush(); }
  Status validate(const CacheShape&) const { return Status::ok; }
};

/// What a layer answers to two pieces of tokens, per query head.
template <class Rig>
std::vector<float> drive(Rig& rig, index_t layer) {
  std::mt19937 random(7);
  std::vector<float> all;
  for (const index_t n : {30, 1, 9}) {
    const test::Tokens t(shape, n, random);
    std::vector<float> out(static_cast<std::size_t>(shape.q_heads * n * shape.head_dim));
    REQUIRE(rig.cache.append(rig.ctx, layer, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, layer, StepInputs{}) == Status::ok);
    const test::Tokens q(shape, 1, random);
    out.resize(static_cast<std::size_t>(shape.q_heads * shape.head_dim));
    REQUIRE(rig.cache.attend(rig.ctx, layer, q.queries(shape), dense_view(out.data(), shape.q_heads, index_t{1}, shape.head_dim)) ==
            Status::ok);
    all.insert(all.end(), out.begin(), out.end());
  }
  return all;
}

}  // namespace

TEST_CASE("per head: every head is stored and read as in a cache where all heads are like it", "[cache][per_head]") {
  static_assert(differs_per_head(Uneven{}) && !differs_per_head(Even{}) && !differs_per_head(quant::GroupInt<4>{}));
  test::CacheRig mixed(shape, recipe(Uneven{}), 64, 32);
  for (index_t layer = 0; layer < shape.layers; ++layer) {
    const std::vector<float> got = drive(mixed, layer);
    for (index_t h = 0; h < shape.kv_heads; ++h) {
      test::CacheRig same(shape, recipe(Even{{layer, h}}), 64, 32);
      const std::vector<float> want = drive(same, layer);
      const auto per_call = static_cast<std::size_t>(shape.q_heads * shape.head_dim);
      const auto begin = static_cast<std::size_t>(h * shape.group() * shape.head_dim);
      for (std::size_t call = 0; call < want.size(); call += per_call)
        for (std::size_t i = begin; i < begin + static_cast<std::size_t>(shape.group() * shape.head_dim); ++i)
          REQUIRE(got[call + i] == want[call + i]);
      const auto &a = mixed.cache.layers()[layer].heads[h], &b = same.cache.layers()[layer].heads[h];
      REQUIRE(a.keys.page_bytes() == b.keys.page_bytes());
      REQUIRE(a.values.page_bytes() == b.values.page_bytes());
      REQUIRE(a.keys.coded().live() == (Uneven::kind({layer, h}) == 2 ? 0 : 40 - 2 - (4 + h)));
    }
  }
  REQUIRE(mixed.cache.report().bytes() == mixed.memory.live_bytes);
  REQUIRE(mixed.cache.capabilities().lossy_slots);
}

TEST_CASE("per head: forks and snapshots keep every head's form, and another table is another cache", "[cache][per_head]") {
  test::CacheRig a(shape, recipe(Uneven{}), 64, 32), b(shape, recipe(Uneven{}), 64, 32), c(shape, recipe(Uneven{.tilt = 4}), 64, 32);
  drive(a, 0), drive(a, 1);
  test::ByteList file, again;
  REQUIRE(save(a.cache, file) == Status::ok);
  REQUIRE(load(b.cache, file.bytes) == Status::ok);
  REQUIRE(save(b.cache, again) == Status::ok);
  REQUIRE(again.bytes == file.bytes);
  REQUIRE(load(c.cache, file.bytes) == Status::incompatible);
  auto fork = a.cache.fork();
  REQUIRE(fork);
  test::ByteList forked;
  REQUIRE(save(*fork, forked) == Status::ok);
  REQUIRE(forked.bytes == file.bytes);
}

TEST_CASE("per head: one head whose codec cannot store its rows refuses the cache", "[cache][per_head]") {
  auto refused = make_cache<Cpu>(shape, recipe(Uneven{.tilt = 3}));
  REQUIRE(refused.status() == Status::invalid_argument);
}

TEST_CASE("per head: chosen at run time it is the same cache, in a wrapper too", "[cache][per_head][any]") {
  REQUIRE(any::AnyQuant(Uneven{}).differs_per_head());
  REQUIRE_FALSE(any::AnyQuant(Even{}).differs_per_head());
  test::CacheRig typed(shape, recipe(Uneven{}), 64, 32);
  test::CacheRig erased(shape, any::AnyRecipe{{}, any::AnyQuant(Uneven{}), {}}, 64, 32);
  REQUIRE(drive(typed, 1) == drive(erased, 1));

  struct Plain : Uneven {  // without a rotation of its own, so that one fits around it
    prim::GroupInt<4> key_codec(const CacheShape&, HeadIndex at) const { return {.group_size = kind(at) == 1 ? index_t{8} : 16}; }
  };
  any::AnyQuant wrapped{Plain{}};
  REQUIRE(wrapped.wrap<&quant::Hadamard<any::InnerQuant>::base>(quant::Hadamard<any::InnerQuant>{}) == Status::ok);
  REQUIRE(wrapped.differs_per_head());
  test::CacheRig inside(shape, any::AnyRecipe{{}, wrapped, {}}, 64, 32);
  test::CacheRig outside(shape, recipe(quant::Hadamard<Plain>{}), 64, 32);
  REQUIRE(drive(inside, 1) == drive(outside, 1));
  REQUIRE(inside.cache.layers()[1].heads[2].keys.coded().live() > 0);
  REQUIRE(inside.cache.layers()[0].heads[2].keys.coded().live() == 0);
}
