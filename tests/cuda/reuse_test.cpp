// What reuses rows of other texts, beside the CPU's: edits that turn keys, tokens that are computed again.

#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include <kvcondense/backend/cpu/rope.hpp>
#include <kvcondense/backend/cpu/row_deviation.hpp>
#include <kvcondense/backend/cuda/rope.cuh>
#include <kvcondense/backend/cuda/row_deviation.cuh>
#include <kvcondense/backend/cuda/steering.cuh>
#include <kvcondense/reuse/cacheblend.hpp>
#include <kvcondense/reuse/pie.hpp>

#include "numbers.hpp"

using namespace kvcondense;
using test::at;
using test::close;
using test::normals;

namespace {

TensorView<const float, 3> rows(const float* x, index_t heads, index_t tokens, index_t dim) { return dense_view(x, heads, tokens, dim); }

}  // namespace

TEST_CASE("cuda pie: rows of an edited text, keys to 1e-6 and values bit for bit") {
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

TEST_CASE("cuda cacheblend: the CPU's tokens") {
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
