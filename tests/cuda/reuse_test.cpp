// What reuses rows of other texts, beside the CPU's: edits that turn keys, tokens that are computed again, a memory of long ago. And what a
// prompt's newest queries say of columns and diagonals.

#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include <kvcondense/any/tools.hpp>
#include <kvcondense/backend/cpu/chunk_memory.hpp>
#include <kvcondense/backend/cpu/rope.hpp>
#include <kvcondense/backend/cpu/row_deviation.hpp>
#include <kvcondense/backend/cpu/vertical_slash.hpp>
#include <kvcondense/backend/cuda/gated_merge.cuh>
#include <kvcondense/backend/cuda/retrieve_chunks.cuh>
#include <kvcondense/backend/cuda/rope.cuh>
#include <kvcondense/backend/cuda/row_deviation.cuh>
#include <kvcondense/backend/cuda/steering.cuh>
#include <kvcondense/backend/cuda/vertical_slash.cuh>
#include <kvcondense/reuse/cacheblend.hpp>
#include <kvcondense/reuse/longmem.hpp>
#include <kvcondense/reuse/pie.hpp>

#include "numbers.hpp"
#include "tried_words.hpp"

using namespace kvcondense;
using test::at;
using test::close;
using test::normals;

namespace {

TensorView<const float, 3> rows(const float* x, index_t heads, index_t tokens, index_t dim) { return dense_view(x, heads, tokens, dim); }

}  // namespace

// Rows of an edited text, keys to 1e-6 and values bit for bit.
TEST_CASE("cuda reuse: pie") {
  const std::vector<reuse::TextEdit> edits{{3, 5, 4}, {8, 8, 2}, {20, 29, 1}, {40, 41, 0}};
  constexpr index_t old_tokens = 43, width = 48;
  reuse::Pie pie;
  REQUIRE(pie.plan(edits, old_tokens) == Status::ok);
  const index_t new_tokens = pie.new_tokens();
  for (const prim::RopePairing pairing : {prim::RopePairing::half_split, prim::RopePairing::interleaved})
    for (const index_t dim : {64, 80, 128, 256}) {
      const index_t kv = dim == 80 ? 3 : 1;
      const auto angles = prim::rope_angles({.pairing = pairing, .rotary_dim = dim == 80 ? index_t{32} : index_t{0}}, dim);
      REQUIRE(angles);
      const std::vector<float> k = normals(kv * old_tokens * dim, 1), v = normals(kv * old_tokens * width, 2);
      std::vector<float> keys(at(kv * new_tokens * dim), 7.0f), values(at(kv * new_tokens * width), 7.0f);
      Context<Cpu> cpu;
      REQUIRE(pie.run(cpu, *angles, {rows(k.data(), kv, old_tokens, dim), rows(v.data(), kv, old_tokens, width)},
                      {dense_view(keys.data(), kv, new_tokens, dim), dense_view(values.data(), kv, new_tokens, width)}) == Status::ok);
      const auto one = [&] {
        test::Device device;
        test::OnDevice<float> dk(device, k), dv(device, v);
        test::OnDevice<float> nk(device, std::vector<float>(keys.size(), 7.0f)), nv(device, std::vector<float>(values.size(), 7.0f));
        const KvView<const float> from{rows(dk.data(), kv, old_tokens, dim), rows(dv.data(), kv, old_tokens, width)};
        const KvView<float> to{dense_view(nk.data(), kv, new_tokens, dim), dense_view(nv.data(), kv, new_tokens, width)};
        REQUIRE(pie.run(device.context(), *angles, from, to) == Status::ok);
        close(nk.read(), keys, 1e-6f, 1.0f);  // rows of new tokens too: nobody touched them
        CHECK(nv.read() == values);
        CHECK(pie.run(device.context(), *angles, from, {dense_view(nk.data(), kv, old_tokens, dim), to.values}) == Status::shape_mismatch);
      };
      if (dim == 80) test::each_way(one);
      else one();
    }
}

// The CPU's tokens.
TEST_CASE("cuda reuse: cacheblend") {
  using reuse::CacheBlend;
  using reuse::Deviation;
  struct Tried {
    index_t kv, dim, width;
    CacheBlend blend;
    index_t layer, suffix;
  };
  constexpr index_t n = 61;
  for (const Tried& tried : {Tried{1, 64, 64, {}, 1, 5}, Tried{3, 80, 48, {.deviation = Deviation::keys}, 4, 0}, Tried{4, 128, 128, {.ratio = 0.4, .deviation = Deviation::values}, 2, 9},
                            Tried{7, 256, 64, {.ratio = 0.1, .first_ratio = 0.6, .settle_layers = 4}, 3, 2}, Tried{2, 64, 64, {.ratio = 0.0}, 1, 3}}) {
    REQUIRE(tried.blend.validate() == Status::ok);
    const index_t kv = tried.kv, dim = tried.dim, width = tried.width;
    std::vector<float> fresh_k = normals(kv * n * dim, 3);
    const std::vector<float> fresh_v = normals(kv * n * width, 4), old_k = normals(kv * n * dim, 5), old_v = normals(kv * n * width, 6);
    fresh_k[at(17 * dim + 1)] = std::numeric_limits<float>::quiet_NaN();  // such a row is no good: it goes first
    std::vector<index_t> tokens(at(n));
    std::iota(tokens.begin(), tokens.end(), 0);
    const auto choose = [&]<Backend B>(Context<B>& ctx, const float* fk, const float* fv, const float* ok, const float* ov, Scratch scratch, std::vector<index_t>& chosen) {
      index_t count = -1;
      chosen = tokens;
      const Status s = tried.blend.choose(ctx, tried.layer, n, tried.suffix, {rows(fk, kv, n, dim), rows(fv, kv, n, width)},
                                          {rows(ok, kv, n, dim), rows(ov, kv, n, width)}, chosen, count, scratch);
      if (s == Status::ok) chosen.resize(at(count));
      else CHECK(count == -1);
      return s;
    };
    std::vector<index_t> expected, got;
    std::vector<std::byte> room(CacheBlend::workspace_bytes(n) + Scratch::align);
    Context<Cpu> cpu;
    REQUIRE(choose(cpu, fresh_k.data(), fresh_v.data(), old_k.data(), old_v.data(), Scratch(room), expected) == Status::ok);
    REQUIRE(expected.size() >= at(tried.suffix));
    const auto one = [&] {
      test::Device device;
      test::OnDevice<float> fk(device, fresh_k), fv(device, fresh_v), ok(device, old_k), ov(device, old_v);
      cuda::SteeringMemory steering;
      REQUIRE(steering.make(CacheBlend::workspace_bytes(n)) == Status::ok);
      const auto run = [&](Scratch scratch) { return choose(device.context(), fk.data(), fv.data(), ok.data(), ov.data(), scratch, got); };
      REQUIRE(run(Scratch({}, steering.part(0, steering.size()))) == Status::ok);
      CHECK(got == expected);
      REQUIRE(run(Scratch({}, steering.part(0, steering.size()))) == Status::ok);  // what the first call left there does not count
      CHECK(got == expected);
      CHECK(run(Scratch({}, steering.part(0, steering.size() - 1))) == Status::workspace_too_small);
      CHECK(run(Scratch(device.with_workspace(1024).workspace())) == Status::not_supported);  // memory that the host cannot read
    };
    if (dim == 80) test::each_way(one);
    else one();
  }
}

// The CPU's chunks, outputs to 1e-5, over a ring that forgets.
TEST_CASE("cuda reuse: longmem") {
  struct Tried {
    index_t kv, group, dim, width, chunk, tokens, capacity, drop;
  };
  for (const Tried& c : {Tried{2, 1, 64, 64, 4, 16, 32, 1}, Tried{1, 4, 80, 48, 2, 2, 10, 3}, Tried{2, 3, 128, 128, 3, 12, 21, 7}, Tried{1, 7, 256, 64, 1, 5, 16, 2}}) {
    INFO("dim " << c.dim);
    const CacheShape shape{.q_heads = c.kv * c.group, .kv_heads = c.kv, .head_dim = c.dim, .value_dim = c.width};
    constexpr index_t n = 2;
    const std::vector<float> bias = normals(shape.q_heads, 9);
    const auto one = [&] {
      auto here = reuse::LongMem<Cpu>::make(shape, {.chunk = c.chunk, .tokens = c.tokens, .capacity = c.capacity, .drop = c.drop});
      auto there = reuse::LongMem<Cuda>::make(shape, {.chunk = c.chunk, .tokens = c.tokens, .capacity = c.capacity, .drop = c.drop});
      REQUIRE(here);
      REQUIRE(there);
      test::Device device;
      Context<Cuda> ctx = device.with_workspace(there->workspace_bytes(n));
      std::vector<std::byte> work(here->workspace_bytes(n) + Scratch::align);
      Context<Cpu> cpu(work);
      test::OnDevice<float> gates(device, bias);
      index_t seen = 0;
      for (const index_t tokens : {0, 3, 1, 13, 2, 37}) {  // nothing, less than a chunk, parts of some, more than there is room for
        const auto seed = static_cast<unsigned>(20 + seen);
        const std::vector<float> k = normals(c.kv * tokens * c.dim, seed), v = normals(c.kv * tokens * c.width, seed + 1);
        const std::vector<float> q = normals(shape.q_heads * n * c.dim, seed + 2), local = normals(shape.q_heads * n * c.width, seed + 3);
        seen += tokens;
        test::OnDevice<float> dk(device, k), dv(device, v), dq(device, q), mixed(device, local);
        REQUIRE(here->add(cpu, rows(k.data(), c.kv, tokens, c.dim), rows(v.data(), c.kv, tokens, c.width)) == Status::ok);
        REQUIRE(there->add(ctx, rows(dk.data(), c.kv, tokens, c.dim), rows(dv.data(), c.kv, tokens, c.width)) == Status::ok);
        REQUIRE(there->chunks() == here->chunks());
        REQUIRE(there->waiting() == here->waiting());
        REQUIRE(there->dropped() == here->dropped());
        const index_t most = here->most_chunks();
        std::vector<float> expected(local.size());
        std::vector<std::int32_t> chosen(at(shape.q_heads * n * most));
        test::OnDevice<std::int32_t> picked(device, std::vector<std::int32_t>(chosen.size(), 7));
        REQUIRE(here->mix(cpu, rows(q.data(), shape.q_heads, n, c.dim), rows(local.data(), shape.q_heads, n, c.width), bias,
                          dense_view(expected.data(), shape.q_heads, n, c.width), dense_view(chosen.data(), shape.q_heads, n, most)) == Status::ok);
        const auto mix = [&](Context<Cuda>& on) {
          const auto out = dense_view(mixed.data(), shape.q_heads, n, c.width);
          return there->mix(on, rows(dq.data(), shape.q_heads, n, c.dim), out, {gates.data(), bias.size()}, out, dense_view(picked.data(), shape.q_heads, n, most));
        };
        Context<Cuda> poor = ctx.with_workspace(ctx.workspace().first(Scratch::align));
        CHECK(mix(poor) == Status::workspace_too_small);
        REQUIRE(mix(ctx) == Status::ok);
        CHECK(picked.read() == chosen);
        close(mixed.read(), expected, 1e-5f, 1.0f);
      }
      REQUIRE(here->dropped() > 0);
      CHECK(there->add(ctx, rows(nullptr, c.kv, 2, c.dim), rows(nullptr, c.kv, 3, c.width)) == Status::shape_mismatch);
      device.wait();
    };
    if (c.dim == 80) test::each_way(one);
    else one();
  }
  test::RefusingMemory none(2);
  CHECK(reuse::LongMem<Cuda>::make({.q_heads = 1, .kv_heads = 1}, {}, none).status() == Status::out_of_memory);
  CHECK(none.out == 0);
}

TEST_CASE("cuda reuse: every method is tried, or it is said what lacks") {
  const std::string host = "it works on tokens and numbers of the host, whatever holds the rows";
  cuda_cache::every_word_is_tried(any::tools(), {Stage::reuse}, "cuda reuse: ",
                                  {{"cache_craft", host}, {"prefix_groups", host}, {"prefix_index", host}, {"radix_tree", host}});
}

TEST_CASE("cuda vertical_slash: the CPU's sums to 1e-5") {
  struct Tried {
    index_t kv, group, dim, m, n;
  };
  for (const Tried& t : {Tried{2, 1, 64, 5, 37}, Tried{1, 3, 80, 9, 9}, Tried{1, 4, 128, 1, 50}, Tried{1, 7, 256, 3, 20}, Tried{1, 2, 64, 0, 4}}) {
    INFO("dim " << t.dim);
    const index_t heads = t.kv * t.group;
    const float scale = 1.0f / std::sqrt(static_cast<float>(t.dim));
    std::vector<float> q = normals(heads * t.m * t.dim, 1);
    const std::vector<float> k = normals(t.kv * t.n * t.dim, 2);
    if (t.dim == 128) q[at(2 * t.dim)] = std::numeric_limits<float>::quiet_NaN();  // all of its head, nothing of the others
    std::vector<float> vertical(at(heads * t.n), 7.0f), slash(vertical);
    Context<Cpu> cpu;
    REQUIRE(prim::VerticalSlash<Cpu>::run(cpu, rows(q.data(), heads, t.m, t.dim), rows(k.data(), t.kv, t.n, t.dim), scale, dense_view(vertical.data(), heads, t.n),
                                          dense_view(slash.data(), heads, t.n)) == Status::ok);
    CHECK(std::isnan(vertical[at(2 * t.n % (heads * t.n))]) == (t.dim == 128));
    const auto one = [&] {
      test::Device device;
      test::OnDevice<float> dq(device, q), dk(device, k), dv(device, std::vector<float>(vertical.size(), 7.0f)), ds(device, std::vector<float>(slash.size(), 7.0f));
      Context<Cuda> ctx = device.with_workspace(prim::VerticalSlash<Cuda>::workspace_bytes(heads, t.m));
      const auto run = [&](index_t n, std::span<std::byte> bytes) {
        return prim::VerticalSlash<Cuda>::run(ctx, rows(dq.data(), heads, t.m, t.dim), rows(dk.data(), t.kv, n, t.dim), scale, dense_view(dv.data(), heads, t.n),
                                              dense_view(ds.data(), heads, t.n), Scratch(bytes));
      };
      CHECK(run(t.n - 1, ctx.workspace()) == Status::shape_mismatch);
      if (t.m > 0) CHECK(run(t.n, ctx.workspace().first(ctx.workspace().size() - 1)) == Status::workspace_too_small);
      REQUIRE(run(t.n, ctx.workspace()) == Status::ok);
      close(dv.read(), vertical, 1e-5f, 1.0f);
      close(ds.read(), slash, 1e-5f, 1.0f);
    };
    if (t.dim == 80) test::each_way(one);
    else one();
  }
}
