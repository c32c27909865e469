#pragma once

#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/byte_list.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>

namespace kvcondense::test {

/// A cache, its copy from a file and its fork answer alike, then and after more tokens; a cache of another recipe and
/// one that was given a cut or flipped file refuse and stay empty.
template <class R, class Other>
void check_snapshot(const CacheShape& shape, const R& recipe, const Other& other) {
  CacheRig one(shape, recipe, 256, 64), two(shape, recipe, 256, 64);
  CacheRig<Other> third(shape, other, 256, 64);
  std::mt19937 random(11);
  const auto feed = [&](auto& rig, const Tokens& t) {
    std::vector<float> out(static_cast<std::size_t>(shape.q_heads * t.n * shape.values()));
    for (index_t l = 0; l < shape.layers; ++l)
      REQUIRE(rig.cache.forward(rig.ctx, l, t.queries(shape), t.keys(shape), t.values(shape),
                                dense_view(out.data(), shape.q_heads, t.n, shape.values()), {}, Phase::automatic, {}) == Status::ok);
    return out;
  };
  for (const index_t n : {5, 40, 1}) feed(one, Tokens(shape, n, random));
  ByteList file;
  REQUIRE(save(one.cache, file) == Status::ok);
  REQUIRE(load(two.cache, file.bytes) == Status::ok);
  REQUIRE(two.cache.report().bytes() == two.memory.live_bytes);
  auto fork = one.cache.fork();
  REQUIRE(fork);
  for (const index_t n : {1, 7}) {
    const Tokens t(shape, n, random);
    const auto want = feed(one, t);
    REQUIRE(feed(two, t) == want);
    std::vector<float> out(want.size());
    for (index_t l = 0; l < shape.layers; ++l)
      REQUIRE(fork->forward(one.ctx, l, t.queries(shape), t.keys(shape), t.values(shape),
                            dense_view(out.data(), shape.q_heads, n, shape.values()), {}, Phase::automatic, {}) == Status::ok);
    REQUIRE(out == want);
  }
  REQUIRE(load(third.cache, file.bytes) == Status::incompatible);
  REQUIRE(third.cache.length() == 0);
  for (std::size_t at = file.bytes.size() / 7; at < file.bytes.size(); at += file.bytes.size() / 7) {
    CacheRig fresh(shape, recipe, 256, 64);
    REQUIRE(load(fresh.cache, std::span(file.bytes).first(at)) == Status::corrupt_data);
    auto flipped = file.bytes;
    flipped[at] ^= std::byte{4};
    const Status s = load(fresh.cache, flipped);
    REQUIRE((s == Status::corrupt_data || s == Status::incompatible));
    REQUIRE(fresh.cache.length() == 0);
  }
}

}  // namespace kvcondense::test
