#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <kvcondense/retrieve/blocks/step_reads.hpp>
#include <retrieve/feeder.hpp>
#include <retrieve/methods.hpp>
#include <retrieve/rig.hpp>
#include <support/byte_list.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using test::Feeder;

namespace {

constexpr CacheShape small{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 16, .page_slots = 16};

template <class P>
using WithQuant = RecipeOf<P, quant::Kivi<4>>;
template <class P>
WithQuant<P> with_quant(const P& method) {
  return recipe(method, quant::Kivi<4>{.group_size = 8, .residual_window = 8});
}

}  // namespace

TEST_CASE("retrieval: with room for every slot attention is that of the full cache bit for bit", "[retrieve][pipeline]") {
  test::for_generous_methods([](const auto& method) {
    CAPTURE(std::remove_cvref_t<decltype(method)>::about.word);
    Feeder dense(small, recipe());
    Feeder all(small, recipe(method));
    for (const index_t n : {50, 1, 1, 5, 1, 20, 1}) REQUIRE(dense.forward(n) == all.forward(n));
  });
}

TEST_CASE("retrieval: any group, any head size, one token and none", "[retrieve][pipeline]") {
  test::for_retrieval_methods([](const auto& method) {
    CAPTURE(std::remove_cvref_t<decltype(method)>::about.word);
    const auto check = [&](CacheShape shape) {
      CAPTURE(shape.q_heads, shape.kv_heads, shape.head_dim);
      Feeder some(shape, recipe(method));
      Feeder dense(shape, recipe());
      const std::vector<float> q(static_cast<std::size_t>(shape.q_heads * shape.head_dim), 1.0f);
      std::vector<float> out(static_cast<std::size_t>(shape.q_heads * shape.values()), 7.0f);
      const auto attend = [&] {
        return some.cache().attend(some.rig.ctx, 0, dense_view(q.data(), shape.q_heads, 1, shape.head_dim),
                                   dense_view(out.data(), shape.q_heads, 1, shape.values()));
      };
      REQUIRE(attend() == Status::ok);
      for (const float x : out) REQUIRE(x == 0.0f);
      for (const index_t n : {1, 1, 70, 1, 1, 1}) {
        const auto got = some.forward(n), want = dense.forward(n);
        REQUIRE(got.size() == want.size());
        REQUIRE(std::all_of(got.begin(), got.end(), [](float x) { return std::isfinite(x); }));
        if (n == 70 || some.cache().length() < 3) REQUIRE(got == want);
      }
      REQUIRE(attend() == Status::ok);
    };
    for (index_t group = 1; group <= 16; ++group) check({.layers = 1, .q_heads = group, .kv_heads = 1, .head_dim = 8, .page_slots = 16});
    for (const index_t dim : {64, 80, 96, 112, 128, 256})
      check({.layers = 1, .q_heads = 4, .kv_heads = 2, .head_dim = dim, .value_dim = dim / 2, .page_slots = 16});
  });
}

TEST_CASE("retrieval: tokens one by one make the index of tokens at once, however they lie in pages", "[retrieve][pipeline]") {
  test::for_retrieval_methods([](const auto& method) {
    CAPTURE(std::remove_cvref_t<decltype(method)>::about.word);
    CacheShape shape = small;
    shape.layers = 1;
    // What a prompt teaches depends on where it ends: the same prompt for all, then tokens.
    const index_t prompt = Feeder(shape, recipe(method)).cache().plan().learns ? 40 : 0;
    const auto planes = [&](index_t page_slots, index_t at_once) {
      shape.page_slots = page_slots;
      Feeder f(shape, recipe(method));
      std::mt19937 random(3);
      const test::Tokens t(shape, 61, random);
      for (index_t i = 0, n = 0; i < 61; i += n) {
        n = i < prompt ? prompt : std::min(at_once, 61 - i);
        auto k = t.keys(shape), v = t.values(shape), q = t.queries(shape);
        for (auto* x : {&k, &v, &q}) x->data += i * x->stride[1], x->extent[1] = n;
        REQUIRE(f.cache().append(f.rig.ctx, 0, k, v) == Status::ok);
        REQUIRE(f.cache().step(f.rig.ctx, 0, StepInputs{.queries = q}, i < prompt ? Phase::prefill_end : Phase::decode) == Status::ok);
      }
      std::vector<std::byte> all;
      for (const auto& i : f.cache().layers()[0].index)
        for (const auto& p : i.plane) all.insert(all.end(), p.begin(), p.end());
      REQUIRE_FALSE(all.empty());
      return all;
    };
    const auto at_once = planes(16, 61);
    REQUIRE(planes(16, 1) == at_once);
    REQUIRE(planes(16, 7) == at_once);
    REQUIRE(planes(64, 13) == at_once);
  });
}

TEST_CASE("retrieval: tokens that are taken back leave no trace, nor do a fork, a file and a second thread", "[retrieve][pipeline]") {
  test::for_retrieval_methods([](const auto& method) {
    CAPTURE(std::remove_cvref_t<decltype(method)>::about.word);
    const auto r = with_quant(method);
    using R = std::remove_cvref_t<decltype(r)>;
    test::require_no_trace(small, r, {70, 1, 1, 1, 4, 1, 1, 1, 1});
    static_assert(std::same_as<R, WithQuant<std::remove_cvref_t<decltype(method)>>>);
  });
}

TEST_CASE("retrieval: bounds are never below a logit of their page, in any stored type", "[retrieve][pipeline]") {
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    const CacheShape shape{.head_dim = 24, .dtype = dtype};
    const index_t slots = 75, dim = 24, size = 8;
    std::vector<float> k(static_cast<std::size_t>(slots * dim)), q(static_cast<std::size_t>(dim)), prepared(48);
    for (float& x : k) x = normal(random);  // float32: a narrower bound must be rounded outwards
    for (float& x : q) x = normal(random);
    const DenseRows rows(dense_view(k.data(), 1, slots, dim));
    retrieve::UnitState state(heap_memory());
    const retrieve::MinMax summary{size};
    const index_t units = (slots + size - 1) / size;
    for (auto& p : state.plane) REQUIRE(p.resize(units * static_cast<index_t>(summary.plane_bytes(shape, 0))) == Status::ok);
    summary.build<Cpu>({&shape, {}, slots, &rows, &rows}, 0, 0, units, state);
    retrieve::ReadView<Cpu> view;
    view.shape = shape, view.state = &state;
    std::vector<float> score(static_cast<std::size_t>(units));
    summary.prepare<Cpu>(view, 0, q.data(), prepared.data());
    summary.score<Cpu>(view, 0, 0, units, {prepared.data(), 1, 48}, {score.data(), 1, units});
    // Bounds of parts are tighter: none is above its page's.
    retrieve::UnitState halves(heap_memory());
    const retrieve::MinMax finer{size / 2};
    const index_t parts = (slots + size / 2 - 1) / (size / 2);
    for (auto& p : halves.plane) REQUIRE(p.resize(parts * static_cast<index_t>(finer.plane_bytes(shape, 0))) == Status::ok);
    finer.build<Cpu>({&shape, {}, slots, &rows, &rows}, 0, 0, parts, halves);
    view.state = &halves;
    std::vector<float> fine(static_cast<std::size_t>(parts));
    finer.score<Cpu>(view, 0, 0, parts, {prepared.data(), 1, 48}, {fine.data(), 1, parts});
    for (std::size_t i = 0; i < fine.size(); ++i) REQUIRE(fine[i] <= score[i / 2] + 1e-4f);
    for (index_t j = 0; j < slots; ++j) {
      double dot = 0;
      for (index_t d = 0; d < dim; ++d) dot += static_cast<double>(k[static_cast<std::size_t>(j * dim + d)]) * static_cast<double>(q[static_cast<std::size_t>(d)]);
      REQUIRE(static_cast<double>(score[static_cast<std::size_t>(j / size)]) >= dot - 1e-4);
    }
  }
  for (const float x : {0.0f, 1.0f, 1.0001f, -1.0001f, 65504.0f, 65519.0f, -65519.0f, 1e-9f, -1e-9f, 3.14159f})
    for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
      CAPTURE(x, to_string(type));
      if (std::abs(x) < 65504.0f || type != DType::f16) {
        REQUIRE(prim::stored_above(type, x) >= x);
        REQUIRE(prim::stored_below(type, x) <= x);
      }
      REQUIRE(std::isfinite(prim::stored_above(type, x)));
      REQUIRE(prim::stored_above(type, x) == Approx(x).epsilon(0.01).margin(1e-6));
    }
}

TEST_CASE("retrieval: one query head makes every reducer the identity, and sets stay within their budget", "[retrieve][pipeline]") {
  using retrieve::Heads;
  CacheShape shape = small;
  std::vector<float> first;
  shape.q_heads = shape.kv_heads = 1;
  for (const Heads how : {Heads::each, Heads::group_max, Heads::group_sum, Heads::group_mean, Heads::all_sum, Heads::group_union}) {
    Feeder f(shape, recipe(retrieve::Quest{.page = 4, .tokens = 16, .dense_layers = 0, .heads = how}));
    std::vector<float> all;
    for (const index_t n : {60, 1, 1}) {
      const auto out = f.forward(n);
      all.insert(all.end(), out.begin(), out.end());
    }
    if (first.empty()) first = all;
    REQUIRE(all == first);
  }
}

TEST_CASE("retrieval: ties go to the unit in front, and a query of NaN reads as much as any other", "[retrieve][pipeline]") {
  const nlohmann::json same(std::vector<std::vector<float>>(24, {1.0f, 0.5f}));
  test::RetrieveRig<retrieve::Quest> rig(same, same, 1, 1.0f, retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0});
  REQUIRE(rig.attend({1.0f, 1.0f}).slots[0] == std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 20, 21, 22, 23});
  const float nan = std::numeric_limits<float>::quiet_NaN();
  REQUIRE(rig.attend({nan, 1.0f}).slots[0].size() == 12);
}

TEST_CASE("retrieval: slots that are read ascend, lie in the cache and within what the method's blocks say", "[retrieve][pipeline][step_reads]") {
  test::for_retrieval_methods([](const auto& method) {
    CAPTURE(std::remove_cvref_t<decltype(method)>::about.word);
    CacheShape shape = small;
    shape.layers = 1;
    Feeder f(shape, recipe(method));
    for (const index_t n : {90, 1, 1, 1, 1, 1}) {
      f.forward(n);
      const index_t slots = f.cache().slots(0, 0);
      const auto q = f.more_queries(1);
      std::vector<float> out(6 * 16);
      std::vector<SlotRun> runs(6 * static_cast<std::size_t>(slots + 1));
      index_t count[6];
      ReadCounts reads;
      REQUIRE(f.cache().attend(f.rig.ctx, 0, dense_view(q.data(), 6, 1, 16), dense_view(out.data(), 6, 1, 16),
                               {.reads = &reads, .runs = {runs.data(), slots + 1, count}}) == Status::ok);
      double listed = 0;
      for (index_t h = 0; h < 6; ++h) {
        index_t last = -1;
        for (index_t i = 0; i < count[h]; ++i) {
          const SlotRun run = runs[static_cast<std::size_t>(h * (slots + 1) + i)];
          REQUIRE(run.first > last);  // and no slot twice
          REQUIRE(run.last > run.first);
          listed += static_cast<double>(run.size());
          last = run.last;
        }
        REQUIRE(last <= slots);
      }
      const auto p = method.pipeline();
      const auto most = retrieve::step_reads(method, shape, slots, {.prompt = 90});
      const auto touched = static_cast<double>(reads.slots_touched);
      REQUIRE(touched <= most.slots_most);
      CacheShape alone = shape;
      alone.q_heads = alone.kv_heads;
      REQUIRE(listed <= 3 * retrieve::step_reads(method, alone, slots, {.prompt = 90}).slots_most);  // none of three query heads is beyond its budget
      if constexpr (requires { p.select.budget(retrieve::ReadView<Cpu>{}, index_t{}); }) REQUIRE(touched >= most.slots_least);
      if (p.holds()) continue;  // what is scored is scored in other steps
      if constexpr (requires { p.summary.walks(); }) REQUIRE(static_cast<double>(reads.index_bytes) <= most.index_bytes);
      else REQUIRE(static_cast<double>(reads.index_bytes) == most.index_bytes);
    }
  });
}

TEST_CASE("retrieval: rows of an index that arrays of a model make, piece by piece", "[retrieve][pipeline]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 16};
  const index_t slots = 53, dim = 16;
  std::mt19937 random(17);
  const auto numbers = [&](index_t n) {
    std::vector<float> x(static_cast<std::size_t>(n));
    for (float& e : x) e = std::normal_distribution<float>()(random);
    return x;
  };
  const auto k = numbers(slots * dim), basis = numbers(dim * dim), book = numbers(9 * dim), planes = numbers(5 * 6 * dim), found = numbers(dim);
  const float *basis_rows = basis.data(), *book_rows = book.data();
  const DenseRows rows(dense_view(k.data(), 1, slots, dim));
  const auto check = [&](const auto& summary) {
    const auto built = [&](index_t step) {
      retrieve::UnitState state(heap_memory());
      REQUIRE(state.found.reserve(dim) == Status::ok);
      for (const float x : found) state.found.append_reserved(x);
      const auto bytes = static_cast<index_t>(summary.plane_bytes(shape, 0));
      for (index_t i = 0; i < slots; i += step) {
        const index_t last = std::min(slots, i + step);
        REQUIRE(state.plane[0].resize(last * bytes) == Status::ok);
        summary.template build<Cpu>({&shape, {}, last, &rows, &rows}, 0, i, last, state);
      }
      return std::vector<std::byte>(state.plane[0].begin(), state.plane[0].end());
    };
    const auto at_once = built(slots);
    REQUIRE(at_once.size() == static_cast<std::size_t>(slots) * summary.plane_bytes(shape, 0));
    for (const index_t step : {1, 7, 16, 40}) REQUIRE(built(step) == at_once);
  };
  check(retrieve::PartialRows{{&basis_rows, 1, dim, dim}, 5});
  check(retrieve::VectorCodes{{&book_rows, 1, 9, dim}, {}});
  check(retrieve::SignHashes{{planes.data(), 5, 6, dim}, 2, 4});
}

TEST_CASE("retrieval: scratch is exactly as large as it says", "[retrieve][pipeline]") {
  test::for_retrieval_methods([](const auto& method) {
    CAPTURE(std::remove_cvref_t<decltype(method)>::about.word);
    Feeder f(small, recipe(method, evict::H2O{.heavy = 60, .recent = 30}));
    f.forward(90);
    std::vector<std::byte> exact(f.cache().workspace_bytes(92, 1));
    f.rig.ctx = Context<Cpu>(exact);
    f.forward(1);
    f.forward(1);
    f.rig.ctx = Context<Cpu>(std::span(exact).first(256));
    const test::Tokens t(small, 1, f.random);
    std::vector<float> out(6 * 16);
    REQUIRE(f.cache().forward(f.rig.ctx, 0, t.queries(small), t.keys(small), t.values(small), dense_view(out.data(), 6, 1, 16), {},
                              Phase::automatic, StepInputs{}) == Status::workspace_too_small);
    REQUIRE(f.cache().length() == 92);
  });
}

TEST_CASE("retrieval: held units of a forged file are no more than slots have", "[retrieve][pipeline]") {
  CacheShape shape = small;
  shape.layers = 1;
  Feeder f(shape, recipe(retrieve::LServe{.page = 8, .part = 4, .tokens = 24, .interval = 64}, evict::H2O{.heavy = 40, .recent = 20}));
  for (const index_t n : {90, 1, 1}) f.forward(n);
  const auto& layer = f.cache().layers()[0];
  const auto& held = layer.held;
  REQUIRE(held.valid());
  test::ByteList good;
  REQUIRE(save(f.cache(), good) == Status::ok);
  // Where they lie in the file.
  std::vector<index_t> numbers{held.made};
  numbers.insert(numbers.end(), held.slots.begin(), held.slots.end());
  const auto pattern = std::as_bytes(std::span(numbers));
  const auto found = std::search(good.bytes.begin(), good.bytes.end(), pattern.begin(), pattern.end());
  REQUIRE(found != good.bytes.end());
  const auto place = static_cast<std::size_t>(found - good.bytes.begin());
  const auto loads = [&](std::vector<std::byte> bytes) {
    Checksum sum;
    sum.add(std::span(bytes).first(bytes.size() - 8));
    const std::uint64_t s = sum.value();
    std::memcpy(bytes.data() + bytes.size() - 8, &s, 8);
    auto fresh = make_cache<Cpu>(shape, f.cache().recipe());
    REQUIRE(fresh);
    return load(*fresh, bytes);
  };
  REQUIRE(loads(good.bytes) == Status::ok);
  // The first row's units, again and again.
  const std::size_t at = place + pattern.size();
  std::uint32_t count = 0;
  std::memcpy(&count, good.bytes.data() + at, 4);
  REQUIRE(count > 0);
  const index_t most = f.cache().retrieval().most_units(held.slots[0]);
  for (const index_t n : {most, most + 1}) {
    auto bytes = good.bytes;
    const auto now = static_cast<std::uint32_t>(n);
    std::memcpy(bytes.data() + at, &now, 4);
    bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at + 4), static_cast<std::size_t>(4 * (n - static_cast<index_t>(count))), std::byte{0});
    REQUIRE(loads(bytes) == (n == most ? Status::ok : Status::corrupt_data));
  }
  // More slots than there are, and an index that knows more than those.
  REQUIRE(layer.heads[0].slots() < f.cache().length());
  for (const std::size_t head : {0u, 2u}) {
    auto bytes = good.bytes;
    const index_t n = head == 0 ? layer.heads[0].slots() + 1 : held.slots[0] + 1;
    std::memcpy(bytes.data() + place + 8 * (1 + head), &n, 8);
    REQUIRE(loads(bytes) == Status::corrupt_data);
  }
}
