// Codes of a cache on CUDA lie as its attention reads them, in rows, whatever pages of files and of the CPU have: tensor cores read pages of 64 slots too.

#include <cmath>
#include <random>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/hadamard.hpp>
#include <kvcondense/quant/kivi.hpp>

#include "cache_pair.hpp"

using namespace kvcondense;
using cuda_cache::Pair;

namespace {

constexpr prim::CodeLayout in_rows = prim::CodeLayout::rows;

/// A prompt and tokens, on tensor cores; files of either side, of pages that are full and of such that are not. `dense`: slots of the host's first file lie one
/// behind the other, so that the device writes it again byte for byte; it does so of any file that it wrote itself, when the host has read it.
template <class R>
void goes_on_tensor_cores(const R& method, std::string_view text, const CacheShape& shape, float within, bool dense) {
  INFO(text << ", head_dim " << shape.head_dim);
  Pair<R> pair(method, text, shape);
  const auto& plan = pair.on_device().plan();
  CHECK(plan.keys.codec.layout == in_rows);
  CHECK(plan.values.codec.layout == in_rows);
  CHECK(plan.keys.filed.layout == prim::CodeLayout::slot_lanes);
  CHECK(plan.values.filed.layout == prim::CodeLayout::channel_lanes);
  pair.forward(90, prim::AttendMath::halves, within);
  for (const index_t tokens : {1, 6, 1}) pair.forward(tokens, prim::AttendMath::halves, within);
  if (dense) pair.pass_through();
  pair.forward(70, prim::AttendMath::halves, within);
  pair.exchange();
  pair.pass_through();
  pair.forward(1, prim::AttendMath::halves, within);
  pair.forward(1, prim::AttendMath::f32, 4e-4f);
  pair.compare_reports();
}

}  // namespace

TEMPLATE_TEST_CASE_SIG("cuda cache: pages of the usual size on tensor cores", "[ways]", ((int Bits), Bits), 2, 4, 8) {
  const float within = Bits == 2 ? 1e-2f : 4e-3f;
  const std::string bits = std::to_string(Bits);
  goes_on_tensor_cores(recipe(quant::GroupInt<Bits>{}), "group_int(bits=" + bits + ")", {.q_heads = 4, .kv_heads = 2}, within, true);
  goes_on_tensor_cores(recipe(quant::Kivi<Bits>{.residual_window = 32}), "kivi(bits=" + bits + ", residual=32)", {.q_heads = 4, .kv_heads = 1, .head_dim = 128}, within, false);
}

TEST_CASE("cuda cache: either math is halves where these serve, else f32") {
  const auto compare = [](const auto& method, const CacheShape& shape, bool served) {
    test::Device device;
    auto c = make_cache<Cuda>(shape, method);
    REQUIRE(c);
    constexpr index_t tokens = 70;
    std::mt19937 random(7);
    const auto on_device = [&](index_t n) { return test::OnDevice<float>(device, cuda_cache::normal_numbers(n, random)); };
    auto q = on_device(shape.q_heads * tokens * shape.head_dim), kv = on_device(shape.kv_heads * tokens * shape.head_dim);
    auto out = on_device(shape.q_heads * tokens * shape.head_dim);
    Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(tokens, tokens));
    const auto rows = dense_view(static_cast<const float*>(kv.data()), shape.kv_heads, tokens, shape.head_dim);
    const auto queries = [&](index_t n) { return dense_view(static_cast<const float*>(q.data()), shape.q_heads, n, shape.head_dim); };
    REQUIRE(c->forward(ctx, 0, queries(tokens), rows, rows, dense_view(out.data(), shape.q_heads, tokens, shape.head_dim), {}, Phase::automatic, {}, prim::AttendMath::either) == Status::ok);
    const auto attend = [&](prim::AttendMath math) {
      test::OnDevice<float> one(device, std::vector<float>(test::at(shape.q_heads * shape.head_dim), NAN));
      const Status s = c->attend(ctx, 0, queries(1), dense_view(one.data(), shape.q_heads, 1, shape.head_dim), {}, math);
      CHECK(s == (math == prim::AttendMath::halves && !served ? Status::not_supported : Status::ok));
      return one.read();
    };
    const std::vector<float> halves = attend(prim::AttendMath::halves), f32 = attend(prim::AttendMath::f32);
    CHECK(attend(prim::AttendMath::either) == (served ? halves : f32));
    CHECK(halves != f32);
  };
  compare(recipe(quant::GroupInt<4>{}), {.q_heads = 2, .kv_heads = 1}, true);
  compare(recipe(quant::GroupInt<4>{}), {.q_heads = 2, .kv_heads = 1, .dtype = DType::bf16}, false);
}

TEST_CASE("cuda cache: codes in the layout of files, behind a map, and where memory for another layout is refused") {
  Pair turned(recipe(quant::Hadamard{quant::GroupInt<4>{}}), "hadamard(int4)", {.q_heads = 2, .kv_heads = 1});
  turned.forward(80, prim::AttendMath::f32, 4e-4f);
  turned.pass_through();
  turned.exchange();
  turned.forward(3, prim::AttendMath::f32, 4e-4f);
  // Pages that are no multiple of 64 slots are in rows everywhere, and need no room for another layout.
  const auto method = recipe(quant::GroupInt<4>{});
  for (const bool lanes : {true, false}) {
    const CacheShape shape{.q_heads = 2, .kv_heads = 1, .page_slots = lanes ? 64 : 48};
    const auto c = make_cache<Cuda>(shape, method);
    REQUIRE(c);
    CHECK((cache::laid_bytes(*c) > 0) == lanes);
  }
  // A cache whose memory is refused on the way is as it was.
  const CacheShape shape{.q_heads = 2, .kv_heads = 1};
  Pair pair(method, "int4", shape);
  pair.forward(70, prim::AttendMath::f32, 4e-4f);
  test::ByteList file;
  REQUIRE(pair.on_host().save(file) == Status::ok);
  bool loaded = false;
  for (int requests = 0; !loaded; ++requests) {
    test::RefusingMemory memory(1000);
    {
      auto c = Cache<Cuda, std::remove_cvref_t<decltype(method)>>::make(shape, method, memory);
      REQUIRE(c);
      memory.left = requests;
      const Status s = load(pair.device(), *c, file.bytes);
      loaded = s == Status::ok;
      REQUIRE((loaded || (s == Status::out_of_memory && c->length() == 0)));
      CHECK((!loaded || requests > 2));
    }
    CHECK(memory.out == 0);
  }
}
