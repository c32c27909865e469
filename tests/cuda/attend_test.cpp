// Attention on CUDA against the CPU backend: the same pages, the same queries.

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include <kvcondense/backend/cuda/words.cuh>

#include "device.hpp"
#include "paged_heads.hpp"

using namespace kvcondense;
using test::at;
using test::ColumnShape;

namespace {

struct Case {
  index_t group = 1, tokens = 1, dim = 64, value_dim = 64;
  index_t page_slots = 64;
  DType exact = DType::f16;
  std::vector<ColumnShape> keys, values;
  index_t mass_rows = -1;  ///< -1: no mass
  index_t more_slots = 0;  ///< of the bound, beyond the longest head
  bool biases = false, scales = false;  ///< numbers of slots, but for the newest ones
  bool summaries = false;               ///< a summary slot of every other head
};

/// A head whose slots have numbers, and a summary slot.
template <class K, class V>
struct WeighedHead : test::HostHead<K, V> {
  prim::SlotScalars numbers;
  prim::SummarySlot mean;
  prim::SlotScalars scalars() const { return numbers; }
  prim::SummarySlot summary() const { return mean; }
};

struct Result {
  std::vector<float> out, lse, mass;
};

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  float most = 0.0f;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]))) continue;
    const float d = std::fabs(a[i] - b[i]);
    most = d > most ? d : !(d == d) ? INFINITY : most;
  }
  return most;
}

template <class K, class V>
void compare(const Case& c, const K& key_codec, const V& value_codec, float tolerance = 2e-5f, bool ways = true,
             prim::AttendMath math = prim::AttendMath::f32) {
  const index_t heads = static_cast<index_t>(c.keys.size()), q_heads = heads * c.group;
  const test::HostColumn<K> keys(key_codec, {c.exact}, c.dim, c.page_slots, c.keys, 11);
  const test::HostColumn<V> values(value_codec, {c.exact}, c.value_dim, c.page_slots, c.values, 12);
  std::vector<index_t> slots, offset{0};
  index_t most = 0;
  for (std::size_t h = 0; h < c.keys.size(); ++h) {
    REQUIRE(c.keys[h].slots() == c.values[h].slots());
    slots.push_back(c.keys[h].slots());
    offset.push_back(offset.back() + slots.back());
    most = std::max(most, slots.back());
  }
  std::mt19937 random(13);
  std::normal_distribution<float> normal;
  std::vector<float> queries(at(q_heads * c.tokens * c.dim));
  for (float& x : queries) x = normal(random);

  const index_t fresh = std::min<index_t>(c.tokens, 3), width = c.dim + c.value_dim;
  std::vector<float> bias(at(heads * most)), scale(bias.size()), means(at(heads * width));
  std::vector<index_t> counts;
  for (float& x : bias) x = normal(random);
  for (float& x : scale) x = 1.0f + std::fabs(normal(random));
  for (float& x : means) x = normal(random);
  std::vector<float> written_bias = bias, written_scale = scale;
  for (index_t h = 0; h < heads; ++h) {
    counts.push_back(c.summaries && h % 2 == 0 ? 1 + 40 * h : 0);
    for (index_t s = std::max<index_t>(0, slots[at(h)] - fresh); s < most; ++s) {
      bias[at(h * most + s)] = 0.0f, scale[at(h * most + s)] = 1.0f;
      written_bias[at(h * most + s)] = written_scale[at(h * most + s)] = NAN;  // nobody reads it
    }
  }

  const auto make = [&](float* q, float* out, float* lse, float* mass, const index_t* o) {
    prim::AttendRequest r;
    r.queries = dense_view(static_cast<const float*>(q), q_heads, c.tokens, c.dim);
    r.out = dense_view(out, q_heads, c.tokens, c.value_dim);
    r.lse = dense_view(lse, q_heads, c.tokens);
    if (c.mass_rows >= 0) r.mass = {mass, o, heads}, r.mass_rows = c.mass_rows;
    r.softmax_scale = 1.0f / std::sqrt(static_cast<float>(c.dim));
    return r;
  };
  const Result blank{std::vector<float>(at(q_heads * c.tokens * c.value_dim), 7.0f), std::vector<float>(at(q_heads * c.tokens), 7.0f),
                     std::vector<float>(at(offset.back()), 7.0f)};

  Result cpu = blank;
  {
    const prim::AttendRequest r = make(queries.data(), cpu.out.data(), cpu.lse.data(), cpu.mass.data(), offset.data());
    Workspace scratch;
    REQUIRE(scratch.reserve(prim::Attend<Cpu>::workspace_bytes(1, heads, c.group * c.tokens, most, c.dim, c.value_dim, c.mass_rows >= 0)) == Status::ok);
    Context<Cpu> ctx(scratch.bytes());
    REQUIRE(prim::Attend<Cpu>::run(ctx, r, heads, [&](index_t h) {
              WeighedHead<K, V> head{{&keys, &values, h, slots[at(h)]}, {}, {}};
              if (c.biases) head.numbers.bias = bias.data() + h * most;
              if (c.scales) head.numbers.value_scale = scale.data() + h * most;
              const float *key = means.data() + h * width, *value = key + c.dim;
              if (counts[at(h)] > 0) head.mean = {key, value, std::log(static_cast<float>(counts[at(h)]))};
              return head;
            }) == Status::ok);
  }
  const auto on_device = [&] {
    test::Device device;
    auto device_keys = keys.on(device);
    auto device_values = values.on(device);
    test::OnDevice<index_t> device_slots(device, slots), device_offset(device, offset);
    test::OnDevice<float> q(device, queries), out(device, blank.out), lse(device, blank.lse), mass(device, blank.mass);
    const prim::AttendRequest r = make(q.data(), out.data(), lse.data(), mass.data(), device_offset.data());
    test::OnDevice<float> device_bias(device, written_bias), device_scale(device, written_scale), device_means(device, means);
    test::OnDevice<index_t> device_counts(device, counts);
    prim::PagedHeads<K, V> paged{key_codec, value_codec, {c.exact}, device_keys.view(), device_values.view(), device_slots.data(), heads};
    if (c.biases) paged.scalars.bias = {device_bias.data(), most};
    if (c.scales) paged.scalars.value_scale = {device_scale.data(), most};
    paged.scalars.fresh = fresh;
    if (c.summaries) paged.summaries = {device_means.data(), device_counts.data(), width};
    const std::size_t need = prim::Attend<Cuda>::workspace_bytes(r, heads, most + c.more_slots);
    Context<Cuda> less = device.with_workspace(need - 1);
    REQUIRE(prim::Attend<Cuda>::run(less, r, paged, most + c.more_slots, math) == Status::workspace_too_small);
    Context<Cuda> ctx = device.with_workspace(need);
    REQUIRE(prim::Attend<Cuda>::run(ctx, r, paged, most + c.more_slots, math) == Status::ok);
    const Result cuda{out.read(), lse.read(), mass.read()};
    INFO("group " << c.group << " tokens " << c.tokens << " dim " << c.dim << " math " << static_cast<int>(math));
    CHECK(largest_difference(cuda.out, cpu.out) < tolerance);
    CHECK(largest_difference(cuda.lse, cpu.lse) < tolerance);
    CHECK(largest_difference(cuda.mass, cpu.mass) < tolerance);
  };
  if (ways) test::each_way(on_device);
  else on_device();
}

template <int Bits>
prim::GroupInt<Bits> channel_codec(index_t group) {
  return {.axis = prim::GroupAxis::channel, .group_size = group};
}
template <int Bits>
prim::GroupInt<Bits> token_codec(index_t group) {
  return {.axis = prim::GroupAxis::token, .group_size = group};
}

}  // namespace

TEST_CASE("cuda attend: exact caches of every type, ragged heads, one of them empty") {
  for (const DType t : {DType::f32, DType::f16, DType::bf16}) {
    const std::vector<ColumnShape> shape{{4, 0, 60}, {0, 0, 0}, {1, 0, 0}, {0, 0, 33}, {4, 0, 300}};
    compare(Case{.group = 3, .exact = t, .keys = shape, .values = shape, .mass_rows = 1}, prim::ExactRows{t}, prim::ExactRows{t});
  }
}

TEST_CASE("cuda attend: kivi's cache, keys by channel and values by token") {
  // Keys are coded in blocks of 32, values one by one: the columns' boundaries differ.
  const std::vector<ColumnShape> keys{{4, 160, 40}, {4, 64, 3}, {0, 32, 0}, {4, 0, 9}}, values{{4, 190, 10}, {4, 57, 10}, {0, 22, 10}, {4, 0, 9}};
  const Case c{.group = 4, .dim = 128, .value_dim = 128, .keys = keys, .values = values, .mass_rows = 1};
  compare(c, channel_codec<4>(32), token_codec<4>(64));
  compare(c, channel_codec<2>(32), token_codec<2>(32), 5e-5f);
  compare(c, token_codec<8>(128), token_codec<8>(0));
  // In lanes the CPU rounds what it multiplies codes by; the same pages in rows say what is right.
  compare(c, channel_codec<4>(32).for_scores(), token_codec<4>(64).for_sums(), 2e-2f, false);
  compare(c, token_codec<2>(32).for_scores(), token_codec<2>(32).for_sums(), 2e-2f, false);
}

TEST_CASE("cuda attend: tombstones in pages of codes") {
  const std::vector<ColumnShape> keys{{2, 300, 20, 3}, {2, 70, 7, 8}}, values{{2, 310, 10, 1}, {2, 60, 17, 5}};
  compare(Case{.group = 2, .dim = 64, .value_dim = 96, .keys = keys, .values = values, .mass_rows = 1}, channel_codec<4>(64), token_codec<4>(32));
}

TEST_CASE("cuda attend: groups of 1 to 16 query heads") {
  const std::vector<ColumnShape> shape{{0, 100, 17}};
  for (const index_t group : {1, 2, 5, 7, 8, 9, 16})
    compare(Case{.group = group, .keys = shape, .values = shape, .mass_rows = 1}, token_codec<4>(32), token_codec<4>(32), 2e-5f, group == 9);
}

TEST_CASE("cuda attend: sizes of heads") {
  const std::vector<ColumnShape> shape{{1, 70, 30}};
  for (const index_t dim : {1, 33, 80, 96, 112, 256})
    compare(Case{.group = 2, .dim = dim, .value_dim = 257 - dim, .keys = shape, .values = shape}, channel_codec<4>(32), token_codec<3>(0), 5e-5f, dim == 256);
}

TEST_CASE("cuda attend: several tokens see what is theirs") {
  const std::vector<ColumnShape> shape{{4, 64, 30}, {0, 0, 3}, {2, 32, 40}};
  for (const index_t tokens : {2, 5, 21})
    for (const index_t mass : {index_t{1}, index_t{3}, tokens})
      compare(Case{.group = 2, .tokens = tokens, .keys = shape, .values = shape, .mass_rows = mass}, token_codec<4>(64), token_codec<4>(64), 2e-5f, tokens == 5);
  // More rows than are split: whole heads.
  compare(Case{.group = 4, .tokens = 30, .keys = shape, .values = shape, .mass_rows = 7}, token_codec<4>(64), token_codec<4>(64));
}

TEST_CASE("cuda attend: more rows count for mass than logits are kept for at once") {
  const std::vector<ColumnShape> shape{{4, 64, 30}, {0, 0, 3}, {2, 32, 40}, {0, 0, 0}};
  for (const prim::AttendMath math : {prim::AttendMath::f32, prim::AttendMath::halves})
    for (const index_t mass : {40, 23, 16}) {  // turns of 16 tokens
      Case c{.group = 16, .tokens = 40, .dim = 16, .value_dim = 16, .keys = shape, .values = shape, .mass_rows = mass};
      c.summaries = mass == 23;
      compare(c, token_codec<4>(0), token_codec<4>(0), math == prim::AttendMath::f32 ? 5e-5f : 3e-2f, mass == 40, math);
    }

  // A prompt whose every row counts takes about what it takes when none does.
  const auto bytes = [](index_t tokens, index_t mass_rows) {
    static float mass = 0.0f;
    prim::AttendRequest r;
    r.queries = dense_view(static_cast<const float*>(nullptr), 32, tokens, 128);
    r.out = dense_view(static_cast<float*>(nullptr), 32, tokens, 128);
    r.mass.data = &mass, r.mass_rows = mass_rows;
    return prim::Attend<Cuda>::workspace_bytes(r, 8, tokens);
  };
  CHECK(bytes(32768, 32768) < bytes(32768, 0));
  CHECK(bytes(32768, 32768) < 2 * bytes(16384, 16384) + (1 << 20));
}

TEST_CASE("cuda attend: biases and scales of slots, and summary slots") {
  const std::vector<ColumnShape> keys{{4, 64, 30}, {0, 0, 3}, {0, 0, 0}, {0, 500, 40}, {0, 0, 0}}, values{{4, 54, 40}, {0, 0, 3}, {0, 0, 0}, {0, 530, 10}, {0, 0, 0}};
  const index_t dims[] = {64, 80, 128, 256};
  int which = 0;
  for (const index_t group : {1, 3, 4, 7})
    for (const index_t tokens : {1, 5, 21}) {
      Case c{.group = group, .tokens = tokens, .dim = dims[which % 4], .value_dim = dims[(which + 1) % 4], .keys = keys, .values = values, .mass_rows = 2};
      for (const int flags : {1, 2, 4, 7}) {
        if (flags < 7 && tokens > 1 && flags != 1 << which % 3) continue;  // of many tokens one alone, in turn, and all
        c.biases = (flags & 1) != 0, c.scales = (flags & 2) != 0, c.summaries = (flags & 4) != 0;
        compare(c, token_codec<4>(16), token_codec<4>(16), 3e-5f, which == 5);
      }
      ++which;
    }
}

TEST_CASE("cuda attend: on tensor cores summary slots take part") {
  const std::vector<ColumnShape> shape{{0, 0, 33}, {0, 0, 0}, {0, 0, 300}};
  for (const index_t tokens : {1, 4})
    compare(Case{.group = 3, .tokens = tokens, .dim = 128, .value_dim = 128, .keys = shape, .values = shape, .mass_rows = 1, .summaries = true}, prim::ExactRows{},
            prim::ExactRows{}, 4e-3f, false, prim::AttendMath::halves);
}

TEST_CASE("cuda attend: on tensor cores, as with a cache of halves") {
  constexpr auto halves = prim::AttendMath::halves;
  const std::vector<ColumnShape> keys{{4, 160, 40}, {4, 64, 3}, {0, 32, 0}, {4, 0, 9}, {0, 0, 0}, {3, 600, 17, 2}},
      values{{4, 190, 10}, {4, 57, 10}, {0, 22, 10}, {4, 0, 9}, {0, 0, 0}, {3, 607, 10, 1}};
  for (const index_t dim : {64, 128})
    for (const index_t group : {1, 4, 8, 11}) {
      const Case c{.group = group, .dim = dim, .value_dim = dim, .keys = keys, .values = values, .mass_rows = 1};
      const bool ways = dim == 128 && group == 4;
      compare(c, channel_codec<4>(32), token_codec<4>(64), 4e-3f, ways, halves);
      compare(c, channel_codec<2>(32), token_codec<2>(32), 1e-2f, ways, halves);
      compare(c, token_codec<8>(32), token_codec<8>(0), 4e-3f, ways, halves);
      if (group == 4) compare(c, prim::ExactRows{}, prim::ExactRows{}, 4e-3f, ways, halves);
    }
  for (const prim::GroupForm form : {prim::GroupForm::integer_zero, prim::GroupForm::float_zero, prim::GroupForm::symmetric, prim::GroupForm::mid_rise}) {
    prim::GroupInt<4> k = channel_codec<4>(32), v = token_codec<4>(64);
    k.form = v.form = form;
    compare(Case{.group = 4, .keys = keys, .values = values, .mass_rows = 1}, k, v, 1e-2f, false, halves);
  }
  const Case several{.group = 2, .tokens = 7, .dim = 64, .value_dim = 64, .keys = keys, .values = values, .mass_rows = 3};
  compare(several, channel_codec<4>(64), token_codec<4>(16), 4e-3f, true, halves);
  const Case many{.group = 4, .tokens = 30, .dim = 64, .value_dim = 64, .keys = keys, .values = values, .mass_rows = 7};
  compare(many, token_codec<4>(64), token_codec<2>(8), 1e-2f, false, halves);
}

TEST_CASE("cuda attend: on tensor cores, lengths about groups, pages and tiles") {
  constexpr auto halves = prim::AttendMath::halves;
  const auto shapes = [](const std::vector<index_t>& lengths, index_t sinks, index_t group) {
    std::vector<ColumnShape> s;
    for (const index_t n : lengths) {
      const index_t first = std::min(n, sinks), coded = (n - first) / group * group;
      s.push_back({first, coded, n - first - coded});
    }
    return s;
  };
  // 0, 1, a group and one more or less, with and without sinks; pages of 64, tiles of 64, pieces of 256.
  const std::vector<index_t> lengths{0, 1, 31, 32, 33, 63, 64, 65, 127, 129, 255, 256, 257, 321};
  for (const index_t sinks : {0, 4}) {
    const std::vector<ColumnShape> keys = shapes(lengths, sinks, 32), values = shapes(lengths, sinks, 1);
    const Case c{.group = 3, .dim = 128, .value_dim = 128, .keys = keys, .values = values, .mass_rows = 1};
    compare(c, channel_codec<4>(32), token_codec<4>(32), 4e-3f, sinks == 4, halves);
    compare(c, token_codec<4>(0), token_codec<2>(64), 1e-2f, false, halves);
    compare(c, prim::ExactRows{}, prim::ExactRows{}, 4e-3f, false, halves);
  }
  // Pages that are no multiple of a tile; parameters of two bytes a slot.
  const std::vector<ColumnShape> shape{{4, 192, 20}, {0, 96, 1}, {1, 480, 0, 1}};
  prim::GroupInt<8> small = token_codec<8>(0);
  small.form = prim::GroupForm::symmetric;
  compare(Case{.group = 7, .dim = 128, .value_dim = 128, .page_slots = 96, .keys = shape, .values = shape, .mass_rows = 1}, small, small, 1e-2f, true, halves);
  prim::GroupInt<2> smaller = token_codec<2>(0);
  smaller.form = prim::GroupForm::mid_rise;
  compare(Case{.group = 16, .dim = 64, .value_dim = 64, .page_slots = 32, .keys = shape, .values = shape}, channel_codec<2>(32), smaller, 1e-2f, false, halves);
}

TEST_CASE("cuda attend: on tensor cores, rows that are no power of two") {
  constexpr auto halves = prim::AttendMath::halves;
  const std::vector<ColumnShape> shape{{4, 128, 21}, {0, 64, 0}, {2, 0, 3}, {0, 300, 7, 2}};
  for (const index_t dim : {16, 48, 80, 96, 112}) {
    const Case c{.group = 4, .dim = dim, .value_dim = dim, .keys = shape, .values = shape, .mass_rows = 1};
    compare(c, channel_codec<4>(32), token_codec<4>(16), 4e-3f, dim == 80, halves);
    compare(c, channel_codec<2>(64), token_codec<2>(0), 1e-2f, dim == 112, halves);
    compare(c, token_codec<8>(0), token_codec<8>(8), 4e-3f, false, halves);
    compare(c, prim::ExactRows{}, prim::ExactRows{}, 4e-3f, false, halves);
  }
}

TEST_CASE("cuda attend: what tensor cores are not written for is refused, not done otherwise") {
  test::Device device;
  static const float q = 0.0f;
  static float o = 0.0f;
  const auto run = [&](const auto& k, const auto& v, index_t dim, index_t value_dim, DType exact) {
    prim::AttendRequest r;
    r.queries = dense_view(&q, 2, 1, dim);
    r.out = dense_view(&o, 2, 1, value_dim);
    const prim::PagedHeads<std::remove_cvref_t<decltype(k)>, std::remove_cvref_t<decltype(v)>> heads{k, v, {exact}, {}, {}, nullptr, 2};
    return prim::Attend<Cuda>::run(device, r, heads, 10, prim::AttendMath::halves);
  };
  CHECK(run(token_codec<4>(32), token_codec<4>(32), 64, 64, DType::f16) == Status::workspace_too_small);
  CHECK(run(token_codec<4>(32), token_codec<4>(32), 96, 96, DType::f16) == Status::workspace_too_small);
  CHECK(run(token_codec<4>(0), token_codec<4>(0), 72, 72, DType::f16) == Status::not_supported);
  CHECK(run(token_codec<4>(32), token_codec<4>(32), 64, 128, DType::f16) == Status::not_supported);
  CHECK(run(token_codec<4>(32), token_codec<4>(32), 64, 64, DType::bf16) == Status::not_supported);
  CHECK(run(token_codec<4>(4), token_codec<4>(32), 64, 64, DType::f16) == Status::not_supported);
  CHECK(run(token_codec<4>(32), channel_codec<4>(32), 64, 64, DType::f16) == Status::not_supported);
  CHECK(run(token_codec<4>(32), token_codec<4>(32), 256, 256, DType::f16) == Status::not_supported);
  CHECK(run(prim::GroupInt<4>{.group_size = 32, .params = prim::ParamType::f32}, token_codec<4>(32), 64, 64, DType::f16) == Status::not_supported);
  CHECK(run(token_codec<3>(32), token_codec<4>(32), 64, 64, DType::f16) == Status::not_supported);
  CHECK(run(prim::ExactRows{DType::f32}, prim::ExactRows{DType::f16}, 64, 64, DType::f16) == Status::not_supported);
}

TEST_CASE("cuda attend: heads that never had a slot have no runs to read") {
  test::Device device;
  test::OnDevice<index_t> slots(device, {0, 0});
  test::OnDevice<float> q(device, std::vector<float>(4 * 16, 1.0f)), out(device, std::vector<float>(4 * 16, 7.0f)), lse(device, {7.0f, 7.0f, 7.0f, 7.0f});
  prim::AttendRequest r;
  r.queries = dense_view(static_cast<const float*>(q.data()), 4, 1, 16);
  r.out = dense_view(out.data(), 4, 1, 16), r.lse = dense_view(lse.data(), 4, 1);
  const prim::PagedHeads<prim::GroupInt<4>, prim::GroupInt<4>> none{token_codec<4>(0), token_codec<4>(0), {}, {}, {}, slots.data(), 2};
  Context<Cuda> ctx = device.with_workspace(prim::Attend<Cuda>::workspace_bytes(r, 2, 0));
  for (const prim::AttendMath math : {prim::AttendMath::f32, prim::AttendMath::halves, prim::AttendMath::either}) {
    out.write(std::vector<float>(4 * 16, 7.0f));
    REQUIRE(prim::Attend<Cuda>::run(ctx, r, none, 0, math) == Status::ok);
    CHECK(out.read() == std::vector<float>(4 * 16, 0.0f));
    for (const float x : lse.read()) CHECK(x == -INFINITY);
  }
}

TEST_CASE("cuda attend: heads of many pieces, and a bound that is too large") {
  const std::vector<ColumnShape> shape{{4, 1200, 50}, {4, 0, 10}, {0, 256, 0}, {0, 256, 1}};
  compare(Case{.group = 2, .dim = 32, .value_dim = 32, .keys = shape, .values = shape, .mass_rows = 1, .more_slots = 5000}, channel_codec<4>(64), token_codec<4>(32));
}

TEST_CASE("cuda attend: lengths about pieces") {
  std::vector<ColumnShape> shape;
  for (const index_t n : {0, 1, 63, 64, 65, 1024, 1025, 2049, 4097}) shape.push_back({0, 0, n});
  for (const prim::AttendMath math : {prim::AttendMath::f32, prim::AttendMath::halves})
    for (const index_t group : {1, 11})
      compare(Case{.group = group, .dim = 16, .value_dim = 16, .keys = shape, .values = shape, .mass_rows = 1}, prim::ExactRows{}, prim::ExactRows{},
              math == prim::AttendMath::f32 ? 2e-5f : 4e-3f, false, math);
}

namespace {

/// A call over heads [first, last) of some, of which a bound of the longest is `bound`, on a device of some multiprocessors: bits of what each gives.
struct Batch {
  std::size_t first, last;
  index_t bound;
  int multiprocessors = 4;
};

/// Every head has the bits that it has alone, beside whatever others and on whatever device; with `ways` in every order of threads and blocks.
template <class K, class V>
void alone_and_together(const K& key_codec, const V& value_codec, prim::AttendMath math, index_t group, index_t tokens, bool ways = true) {
  constexpr index_t dim = 64;
  const std::vector<ColumnShape> keys{{4, 256, 40, 1}, {0, 0, 0}, {2, 0, 3}, {0, 640, 51, 3}, {4, 64, 189}}, values{{4, 282, 14}, {0, 0, 0}, {2, 0, 3}, {0, 672, 19, 2}, {4, 250, 3, 1}};
  const index_t heads = 5, longest = 691;
  const test::HostColumn<K> host_keys(key_codec, {}, dim, 64, keys, 21);
  const test::HostColumn<V> host_values(value_codec, {}, dim, 64, values, 22);
  std::vector<index_t> slots, offset{0};
  for (const ColumnShape& s : keys) slots.push_back(s.slots()), offset.push_back(offset.back() + s.slots());
  std::mt19937 random(23);
  std::normal_distribution<float> normal;
  std::vector<float> queries(at(heads * group * tokens * dim));
  for (float& x : queries) x = normal(random);

  std::vector<Batch> batches;
  for (std::size_t h = 0; h < 5; ++h) batches.push_back({h, h + 1, slots[h]});
  batches.push_back({0, 5, longest}), batches.push_back({0, 5, longest, 1}), batches.push_back({0, 5, longest, 132}), batches.push_back({1, 4, longest}), batches.push_back({2, 5, 3000}), batches.push_back({0, 3, 300});
  std::vector<std::vector<float>> alone(5);  // of the first way
  const auto on_device = [&] {
    test::Device device;
    auto device_keys = host_keys.on(device);
    auto device_values = host_values.on(device);
    test::OnDevice<index_t> device_slots(device, slots), device_offset(device, offset);
    test::OnDevice<float> q(device, queries), out(device, queries), lse(device, std::vector<float>(at(heads * group * tokens))), mass(device, std::vector<float>(at(offset.back())));
    for (const Batch& b : batches) {
      const index_t n = static_cast<index_t>(b.last - b.first), first_row = static_cast<index_t>(b.first) * group * tokens;
      prim::AttendRequest r;
      r.queries = dense_view(static_cast<const float*>(q.data()) + first_row * dim, n * group, tokens, dim);
      r.out = dense_view(out.data() + first_row * dim, n * group, tokens, dim);
      r.lse = dense_view(lse.data() + first_row, n * group, tokens);
      r.mass = {mass.data(), device_offset.data() + b.first, n}, r.mass_rows = 1;
      r.softmax_scale = 0.125f;
      prim::ColumnRuns k = device_keys.view(), v = device_values.view();
      k.offset += b.first, v.offset += b.first;
      const prim::PagedHeads<K, V> paged{key_codec, value_codec, {}, k, v, device_slots.data() + b.first, n};
      out.write(std::vector<float>(queries.size(), 7.0f));
      cuda::DeviceFacts facts = device.context().facts();
      facts.multiprocessors = b.multiprocessors;
      Context<Cuda> ctx(device.context().stream(), facts, device.with_workspace(prim::Attend<Cuda>::workspace_bytes(r, n, b.bound)).workspace());
      REQUIRE(prim::Attend<Cuda>::run(ctx, r, paged, b.bound, math) == Status::ok);
      const std::vector<float> all_out = out.read(), all_lse = lse.read(), all_mass = mass.read();
      for (std::size_t h = b.first; h < b.last; ++h) {
        const auto rows = static_cast<std::ptrdiff_t>(group * tokens), row = static_cast<std::ptrdiff_t>(h) * rows;
        std::vector<float> mine(all_out.begin() + row * dim, all_out.begin() + (row + rows) * dim);
        mine.insert(mine.end(), all_lse.begin() + row, all_lse.begin() + row + rows);
        mine.insert(mine.end(), all_mass.begin() + offset[h], all_mass.begin() + offset[h + 1]);
        CAPTURE(h, b.first, b.last, b.bound, b.multiprocessors, group, tokens);
        if (alone[h].empty()) alone[h] = mine;
        REQUIRE(mine.size() == alone[h].size());
        CHECK(std::memcmp(mine.data(), alone[h].data(), mine.size() * sizeof(float)) == 0);
      }
    }
  };
  if (ways) test::each_way(on_device);
  else on_device();
}

}  // namespace

TEST_CASE("cuda attend: a head's result does not depend on the others") {
  for (const prim::AttendMath math : {prim::AttendMath::f32, prim::AttendMath::halves}) {
    alone_and_together(channel_codec<4>(32), token_codec<4>(64), math, 4, 1);
    alone_and_together(prim::ExactRows{}, prim::ExactRows{}, math, 3, 5);
    alone_and_together(token_codec<4>(64), token_codec<4>(64), math, 4, 17, false);  // heads in fewer pieces
  }
}

TEST_CASE("cuda attend: what views do not fit is refused") {
  test::Device device;
  const prim::PagedHeads<prim::ExactRows, prim::ExactRows> heads{{}, {}, {}, {}, {}, nullptr, 2};
  const auto run = [&](index_t q_heads, index_t out_heads, index_t tokens, index_t dim, index_t lse_tokens, index_t most) {
    static const float q = 0.0f;
    static float o = 0.0f;
    prim::AttendRequest r;
    r.queries = dense_view(&q, q_heads, index_t{1}, dim);
    r.out = dense_view(&o, out_heads, tokens, dim);
    r.lse = dense_view(&o, q_heads, lse_tokens);
    return prim::Attend<Cuda>::run(device, r, heads, most);
  };
  CHECK(run(3, 3, 1, 64, 1, 10) == Status::shape_mismatch);
  CHECK(run(4, 2, 1, 64, 1, 10) == Status::shape_mismatch);
  CHECK(run(4, 4, 2, 64, 1, 10) == Status::shape_mismatch);
  CHECK(run(4, 4, 1, 64, 2, 10) == Status::shape_mismatch);
  CHECK(run(4, 4, 1, 257, 1, 10) == Status::invalid_argument);
  CHECK(run(4, 4, 1, 64, 1, -1) == Status::invalid_argument);
  CHECK(run(4, 4, 1, 64, 1, 10) == Status::workspace_too_small);
}
