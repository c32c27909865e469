#pragma once

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/memory.hpp>

namespace kvcondense::test {

/// A cache over counted memory, with scratch for heads of `slots` slots and chunks of `chunk` tokens.
template <class R>
struct CacheRig {
  CountingMemory memory;
  Cache<Cpu, R> cache;
  Workspace work;
  Context<Cpu> ctx;

  CacheRig(const CacheShape& shape, const R& recipe, index_t slots, index_t chunk) {
    auto made = make_cache<Cpu>(shape, recipe, memory);
    REQUIRE(made.status() == Status::ok);
    cache = std::move(*made);
    REQUIRE(work.reserve(cache.workspace_bytes(slots, chunk)) == Status::ok);
    ctx = Context<Cpu>(work.bytes());
  }
};

}  // namespace kvcondense::test
