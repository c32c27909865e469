#pragma once

// A cache on CUDA beside the one on the CPU: the same calls, the same slots.

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/any/model_facts.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cuda/words.cuh>
#include <kvcondense/cache/cuda_cache.cuh>
#include <kvcondense/cache/cuda_layer.cuh>
#include <kvcondense/cache/cuda_snapshot.cuh>
#include <support/byte_list.hpp>

#include "device.hpp"

namespace cuda_cache {

using namespace kvcondense;
using test::at;

inline std::vector<float> normal_numbers(index_t n, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> x(at(n));
  for (float& v : x) v = normal(random);
  return x;
}

/// What a step may be given besides attention and queries, on either side.
class Inputs {
 public:
  Inputs(const CacheShape& shape, index_t tokens, std::mt19937& random)
      : gates(normal_numbers(shape.kv_heads * tokens, random)),
        surprise(normal_numbers(tokens, random)),
        raw_queries(normal_numbers(shape.q_heads * tokens * shape.head_dim, random)),
        raw_keys(normal_numbers(shape.kv_heads * tokens * shape.head_dim, random)),
        values(normal_numbers(shape.kv_heads * tokens * shape.values(), random)),
        mean(normal_numbers(shape.q_heads * shape.head_dim, random)),
        covariance(at(shape.q_heads * shape.head_dim * shape.head_dim)),
        shape_(shape),
        tokens_(tokens) {
    for (index_t i = 0; i < shape.q_heads * shape.head_dim; ++i) covariance[at(i * shape.head_dim + i % shape.head_dim)] = 0.1f;
    for (float& x : surprise) x = std::fabs(x);
    for (const float x : surprise) hidden_norms.push_back(1.0f + x);
    for (index_t t = 0; t < tokens; ++t) classes.push_back(static_cast<TokenClass>(random() % 3));
  }
  StepInputs on_host() const {
    return over([](const auto& x) -> const void* { return x.data(); });
  }
  /// `where(numbers)`: where they lie on the side that reads them.
  template <class Where>
  StepInputs over(Where&& where) const {
    const index_t q = shape_.q_heads, kv = shape_.kv_heads, d = shape_.head_dim;
    const auto rows = [&](const std::vector<float>& x, index_t heads, index_t dim) {
      return dense_view(static_cast<const float*>(where(x)), heads, tokens_, dim);
    };
    StepInputs in;
    in.raw_queries = rows(raw_queries, q, d), in.raw_keys = rows(raw_keys, kv, d), in.values = rows(values, kv, shape_.values());
    in.query_mean = dense_view(static_cast<const float*>(where(mean)), q, d);
    in.query_covariance = dense_view(static_cast<const float*>(where(covariance)), q, d, d);
    in.gates = dense_view(static_cast<const float*>(where(gates)), kv, tokens_);
    in.surprise = {static_cast<const float*>(where(surprise)), at(tokens_)};
    in.classes = {static_cast<const TokenClass*>(where(classes)), at(tokens_)};
    in.hidden_norms = {static_cast<const float*>(where(hidden_norms)), at(tokens_)};
    return in;
  }

  std::vector<float> gates, surprise, hidden_norms, raw_queries, raw_keys, values, mean, covariance;
  std::vector<TokenClass> classes;

 private:
  CacheShape shape_;
  index_t tokens_;
};
class DeviceInputs {
 public:
  DeviceInputs(test::Device& device, const Inputs& inputs)
      : device_(&device), inputs_(&inputs), classes_(device, inputs.classes) {}
  StepInputs view() {
    return inputs_->over([&](const auto& x) -> const void* {
      if constexpr (std::same_as<std::decay_t<decltype(x)>, std::vector<float>>) {
        numbers_.push_back(std::make_unique<test::OnDevice<float>>(*device_, x));
        return numbers_.back()->data();
      } else {
        return classes_.data();
      }
    });
  }

 private:
  test::Device* device_;
  const Inputs* inputs_;
  std::vector<std::unique_ptr<test::OnDevice<float>>> numbers_;
  test::OnDevice<TokenClass> classes_;
};

/// One sequence in a cache of each backend. Every call is made on both and compared.
template <class R>
class Pair {
 public:
  /// With VNNI the CPU multiplies codes with queries and weights of 16 bits.
  static constexpr float near = std::same_as<decltype(R::quant), KeepExact> ? 2e-5f : 1e-4f;

  Pair(const R& recipe, std::string_view text, const CacheShape& shape, const any::ModelFacts& facts = {})
      : Pair(recipe, *any::make(text, shape, any::on<Cpu>, heap_memory(), facts), shape) {}
  /// Beside one that no text says.
  Pair(const R& recipe, any::AnyCache host, const CacheShape& shape) : shape_(shape), host_(std::move(host)), device_cache_(make(recipe, shape)) {}

  /// The same sequence once more, on the same stream.
  Pair fork() {
    auto host = host_.fork();
    REQUIRE(host);
    auto copy = device_cache_.fork(*device_);
    REQUIRE(copy);
    Pair twin(shape_, std::move(*host), device_, std::move(*copy));
    twin.rounding_ = rounding_, twin.far_ = far_;
    return twin;
  }

  any::AnyCache& on_host() { return host_; }
  Cache<Cuda, R>& on_device() { return device_cache_; }
  /// Stored numbers, which are of about 1, may differ by so much: sums are rounded where they are stored, and summed again. `far`: the part of those of
  /// a head that may differ by more, by a code.
  void allow(float part, float far = 0.0f) { rounding_ = part, far_ = far; }
  /// Tokens to come lie so many positions apart.
  void space(index_t positions) { spacing_ = positions; }
  /// How often calls of the last burst waited for the stream, as emulation counts.
  int waits() const { return waits_; }
  test::Device& device() { return *device_; }

  /// A forward pass of all layers over `tokens` new tokens.
  void forward(index_t tokens, prim::AttendMath math = prim::AttendMath::f32, float within = near, Phase phase = Phase::automatic) {
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      const std::vector<float> q = normal_numbers(shape_.q_heads * tokens * shape_.head_dim, random_);
      const std::vector<float> k = normal_numbers(shape_.kv_heads * tokens * shape_.head_dim, random_);
      const std::vector<float> v = normal_numbers(shape_.kv_heads * tokens * shape_.values(), random_);
      std::vector<float> out(at(shape_.q_heads * tokens * shape_.values()));
      const auto queries = [&](auto* x) { return dense_view(x, shape_.q_heads, tokens, shape_.head_dim); };
      const auto keys = [&](auto* x) { return dense_view(x, shape_.kv_heads, tokens, shape_.head_dim); };
      const auto values = [&](auto* x) { return dense_view(x, shape_.kv_heads, tokens, shape_.values()); };
      const auto outs = [&](auto* x) { return dense_view(x, shape_.q_heads, tokens, shape_.values()); };
      std::vector<std::byte> scratch = host_scratch(tokens);
      Context<Cpu> cpu(scratch);
      const Inputs inputs(shape_, tokens, side_random_);
      std::vector<index_t> positions;  // none: one behind the other
      for (index_t i = 1; spacing_ > 1 && i <= tokens; ++i) positions.push_back(host_.next_position(layer) + i * spacing_ - 1);
      REQUIRE(host_.forward(cpu, layer, queries(q.data()), keys(k.data()), values(v.data()), outs(out.data()), positions, phase, asking(inputs.on_host())) == Status::ok);

      DeviceInputs device_inputs(*device_, inputs);
      test::OnDevice<float> dq(*device_, q), dk(*device_, k), dv(*device_, v), dout(*device_, std::vector<float>(out.size(), NAN));
      Context<Cuda> ctx = device_->with_workspace(device_cache_.workspace_bytes(longest() + tokens, device_cache_.pending(layer) + tokens));
      const auto const_of = [](test::OnDevice<float>& x) { return static_cast<const float*>(x.data()); };
      REQUIRE(device_cache_.forward(ctx, layer, queries(const_of(dq)), keys(const_of(dk)), values(const_of(dv)), outs(dout.data()), positions, phase, asking(device_inputs.view()), math) ==
              Status::ok);
      const std::vector<float> got = dout.read();
      for (std::size_t i = 0; i < got.size(); ++i)
        if (!(std::fabs(got[i] - out[i]) <= within)) FAIL("layer " << layer << ", number " << i << ": " << got[i] << " instead of " << out[i]);
    }
    compare();
  }

  /// Tokens that no step has seen.
  void append(index_t tokens) {
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      const std::vector<float> k = normal_numbers(shape_.kv_heads * tokens * shape_.head_dim, random_);
      const std::vector<float> v = normal_numbers(shape_.kv_heads * tokens * shape_.values(), random_);
      const auto keys = [&](const float* x) { return dense_view(x, shape_.kv_heads, tokens, shape_.head_dim); };
      const auto values = [&](const float* x) { return dense_view(x, shape_.kv_heads, tokens, shape_.values()); };
      std::vector<std::byte> scratch = host_scratch(tokens);
      Context<Cpu> cpu(scratch);
      REQUIRE(host_.append(cpu, layer, keys(k.data()), values(v.data())) == Status::ok);
      test::OnDevice<float> dk(*device_, k), dv(*device_, v);
      Context<Cuda> ctx = device_->with_workspace(device_cache_.workspace_bytes(longest() + tokens, tokens));
      REQUIRE(device_cache_.append(ctx, layer, keys(dk.data()), values(dv.data())) == Status::ok);
    }
    compare();
  }
  /// Tokens of which nobody asks anything.
  void fill(index_t tokens) {
    append(tokens);
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      std::vector<std::byte> scratch = host_scratch(tokens);
      Context<Cpu> cpu(scratch);
      REQUIRE(host_.step(cpu, layer) == Status::ok);
      Context<Cuda> ctx = device_->with_workspace(device_cache_.workspace_bytes(longest(), tokens));
      REQUIRE(device_cache_.step(ctx, layer) == Status::ok);
    }
    compare();
  }
  /// Drafts that ask together, and are taken back: see `look`.
  ReadCounts draft(index_t tokens, float within = near) {
    append(tokens);
    const ReadCounts reads = look(within, tokens);
    truncate(host_.length(0) - tokens);
    return reads;
  }

  /// One more query of every layer, or of so many pending tokens together, between steps: the same slots are read, and attention tells the same of them.
  /// `change(q)`: what else becomes of the queries. Returns the counts of the last layer.
  ReadCounts look(float within = near, index_t tokens = 1) {
    return look(within, [](std::vector<float>&) {}, tokens);
  }
  template <std::invocable<std::vector<float>&> Change>
  ReadCounts look(float within, Change&& change, index_t tokens = 1) {
    ReadCounts last;
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      std::vector<float> q = normal_numbers(shape_.q_heads * tokens * shape_.head_dim, random_);
      change(q);
      const index_t total = host_.total_slots(layer), room = longest() + 2;
      const auto slots = at(total);
      std::vector<float> out(at(shape_.q_heads * tokens * shape_.values())), lse(at(shape_.q_heads * tokens)), mass(slots);
      std::vector<SlotRun> runs[2];
      std::vector<index_t> count[2];
      ReadCounts reads[2];
      AttendOutputs measure[2];
      for (int side = 0; side < 2; ++side) {
        runs[side].resize(at(shape_.q_heads * room)), count[side].resize(at(shape_.q_heads));
        measure[side].reads = &reads[side], measure[side].runs = {runs[side].data(), room, count[side].data()};
      }
      measure[0].mass = host_.ragged(layer, mass.data()), measure[0].lse = dense_view(lse.data(), shape_.q_heads, tokens);
      std::vector<std::byte> scratch = host_scratch(tokens);
      Context<Cpu> cpu(scratch);
      const auto queries = [&](const float* x) { return dense_view(x, shape_.q_heads, tokens, shape_.head_dim); };
      const auto outs = [&](float* x) { return dense_view(x, shape_.q_heads, tokens, shape_.values()); };
      REQUIRE(host_.attend(cpu, layer, queries(q.data()), outs(out.data()), measure[0]) == Status::ok);
      test::OnDevice<float> dq(*device_, q), dout(*device_, std::vector<float>(out.size(), NAN)), dlse(*device_, std::vector<float>(lse.size(), NAN));
      test::OnDevice<float> dmass(*device_, std::vector<float>(mass.size(), NAN));
      measure[1].mass = device_cache_.ragged(layer, dmass.data()), measure[1].lse = dense_view(dlse.data(), shape_.q_heads, tokens);
      Context<Cuda> ctx = device_->with_workspace(device_cache_.workspace_bytes(longest(), tokens));
      REQUIRE(device_cache_.attend(ctx, layer, queries(dq.data()), outs(dout.data()), measure[1], prim::AttendMath::f32) == Status::ok);
      for (index_t h = 0; h < shape_.q_heads; ++h) {
        REQUIRE(count[1][at(h)] == count[0][at(h)]);
        for (index_t i = h * room; i < h * room + count[0][at(h)]; ++i) {
          REQUIRE(runs[1][at(i)].first == runs[0][at(i)].first);
          REQUIRE(runs[1][at(i)].last == runs[0][at(i)].last);
        }
      }
      CHECK(reads[1].units_scored == reads[0].units_scored);
      CHECK(reads[1].index_bytes == reads[0].index_bytes);
      CHECK(reads[1].slots_read == reads[0].slots_read);
      CHECK(reads[1].slots_touched == reads[0].slots_touched);
      CHECK(reads[1].slot_bytes == reads[0].slot_bytes);
      const auto close = [&](const std::vector<float>& got, const std::vector<float>& want) {
        for (std::size_t i = 0; i < want.size(); ++i) REQUIRE((got[i] == want[i] || std::fabs(got[i] - want[i]) <= within || (std::isnan(got[i]) && std::isnan(want[i]))));
      };
      close(dout.read(), out), close(dlse.read(), lse), close(dmass.read(), mass);
      float drawn = 0.0f;
      for (const float x : mass) drawn += x;
      if (total > 0 && device_cache_.mass_rows(tokens) > 0) REQUIRE_FALSE(drawn <= 0.0f);
      last = reads[1];
    }
    return last;
  }

  /// Tokens that ask about tokens [first, last) and are taken back.
  void probe(index_t tokens, index_t first, index_t last) {
    asked_first_ = first, asked_last_ = last;
    forward(tokens, prim::AttendMath::f32, near, Phase::probe);
    REQUIRE(device_cache_.pending() == tokens);
    truncate(host_.length(0) - tokens);
  }

  /// Steps of one token in the first layer, the only one, of which nobody waits for any before the last.
  void burst(int steps) {
    const index_t q_size = shape_.q_heads * shape_.head_dim, k_size = shape_.kv_heads * shape_.head_dim;
    const index_t v_size = shape_.kv_heads * shape_.values(), out_size = shape_.q_heads * shape_.values();
    const std::vector<float> q = normal_numbers(steps * q_size, random_), k = normal_numbers(steps * k_size, random_), v = normal_numbers(steps * v_size, random_);
    std::vector<float> out(at(steps * out_size));
    test::OnDevice<float> dq(*device_, q), dk(*device_, k), dv(*device_, v), dout(*device_, out);
    Context<Cuda> ctx = device_->with_workspace(device_cache_.workspace_bytes(longest() + steps, 1));
    std::vector<std::byte> scratch = host_scratch(steps);
    Context<Cpu> cpu(scratch);
    const auto step = [&](auto& cache, auto& c, int i, const float* qs, const float* ks, const float* vs, float* outs, auto... as) {
      return cache.forward(c, 0, dense_view(qs + i * q_size, shape_.q_heads, 1, shape_.head_dim), dense_view(ks + i * k_size, shape_.kv_heads, 1, shape_.head_dim),
                           dense_view(vs + i * v_size, shape_.kv_heads, 1, shape_.values()), dense_view(outs + i * out_size, shape_.q_heads, 1, shape_.values()), as...);
    };
    const int before = test::stream_waits();
    for (int i = 0; i < steps; ++i) {
      REQUIRE(step(host_, cpu, i, q.data(), k.data(), v.data(), out.data()) == Status::ok);
      REQUIRE(step(device_cache_, ctx, i, dq.data(), dk.data(), dv.data(), dout.data(), std::span<const index_t>(), Phase::automatic, StepInputs{},
                   prim::AttendMath::f32) == Status::ok);
    }
    waits_ = test::stream_waits() - before;
    const std::vector<float> got = dout.read();
    for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(std::fabs(got[i] - out[i]) <= near);
    compare();
  }

  /// The same tokens in the same slots, and the same numbers there.
  void compare() {
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      REQUIRE(device_cache_.length(layer) == host_.length(layer));
      REQUIRE(device_cache_.pending(layer) == host_.pending(layer));
      REQUIRE(device_cache_.next_position(layer) == host_.next_position(layer));
      REQUIRE(device_cache_.total_slots(layer) == host_.total_slots(layer));
      for (index_t h = 0; h < shape_.kv_heads; ++h) {
        const index_t n = host_.slots(layer, h);
        REQUIRE(device_cache_.slots(layer, h) == n);
        std::vector<std::int32_t> tokens(at(n), -1), expected(at(n));
        for (index_t s = 0; s < n; ++s) expected[at(s)] = static_cast<std::int32_t>(host_.token(layer, h, s));
        REQUIRE(device_cache_.tokens(*device_, layer, h, tokens) == Status::ok);
        REQUIRE(tokens == expected);
        const index_t first = compared_++ % 2 == 0 ? 0 : n / 3, rows = n - first;  // a run of slots may begin anywhere
        std::vector<float> k(at(rows * shape_.head_dim)), v(at(rows * shape_.values()));
        REQUIRE(host_.read(layer, h, first, dense_view(k.data(), rows, shape_.head_dim), dense_view(v.data(), rows, shape_.values())) == Status::ok);
        test::OnDevice<float> dk(*device_, k), dv(*device_, v);
        Context<Cuda> ctx = device_->with_workspace(device_cache_.workspace_bytes(longest(), 1));
        REQUIRE(device_cache_.read(ctx, layer, h, first, dense_view(dk.data(), rows, shape_.head_dim), dense_view(dv.data(), rows, shape_.values())) == Status::ok);
        REQUIRE(alike(dk.read(), k));
        REQUIRE(alike(dv.read(), v));
      }
    }
  }

  /// The file of the host, when the device has read it and writes it again, is the same byte for byte: slots lie one behind the other on both sides.
  void pass_through() {
    test::ByteList host, again;
    REQUIRE(host_.save(host) == Status::ok);
    REQUIRE(load(*device_, device_cache_, host.bytes) == Status::ok);
    compare();
    REQUIRE(save(*device_, device_cache_, again) == Status::ok);
    REQUIRE(again.bytes == host.bytes);
  }

  /// Each side goes on from the file of the other.
  void exchange() {
    test::ByteList host, device, again;
    REQUIRE(host_.save(host) == Status::ok);
    REQUIRE(save(*device_, device_cache_, device) == Status::ok);
    REQUIRE(host_.load(device.bytes) == Status::ok);
    REQUIRE(load(*device_, device_cache_, host.bytes) == Status::ok);
    compare();
    REQUIRE(host_.save(again) == Status::ok);
    REQUIRE(again.bytes == device.bytes);
  }

  void turn(index_t incoming) {
    std::vector<std::byte> scratch = host_scratch(0);
    Context<Cpu> cpu(scratch);
    REQUIRE(host_.turn(cpu, incoming) == Status::ok);
    Context<Cuda> ctx = device_->with_workspace(device_cache_.workspace_bytes(longest(), 1));
    REQUIRE(device_cache_.turn(ctx, incoming) == Status::ok);
    compare();
  }
  void remove(index_t first, index_t last) {
    std::vector<std::byte> scratch = host_scratch(0);
    Context<Cpu> cpu(scratch);
    REQUIRE(host_.remove(cpu, first, last) == Status::ok);
    Context<Cuda> ctx = device_->with_workspace(device_cache_.workspace_bytes(longest(), 1));
    REQUIRE(device_cache_.remove(ctx, first, last) == Status::ok);
    compare();
  }
  void truncate(index_t tokens) {
    REQUIRE(host_.truncate(tokens) == Status::ok);
    REQUIRE(device_cache_.truncate(*device_, tokens) == Status::ok);
    compare();
  }
  void compare_reports() {
    const Report a = host_.report();
    const Expected<Report> b = device_cache_.report(*device_);
    REQUIRE(b);
    CHECK(b->tokens == a.tokens);
    CHECK(b->slots == a.slots);
    CHECK(b->evictions == a.evictions);
    CHECK(b->evicted_slots == a.evicted_slots);
    CHECK(b->merged_slots == a.merged_slots);
    CHECK(b->budget_asked == a.budget_asked);
    CHECK(b->budget_met == a.budget_met);
    CHECK(b->dense_bytes == a.dense_bytes);
    CHECK(b->nan_scores == a.nan_scores);
    CHECK(b->repaired_numbers == a.repaired_numbers);
    CHECK((b->coded_bytes > 0 || a.coded_bytes == 0));  // the device has pages for the most that can be codes
    CHECK(b->coded_again == a.coded_again);
    CHECK(b->across_rows == a.across_rows);
  }

 private:
  Pair(const CacheShape& shape, any::AnyCache host, std::shared_ptr<test::Device> device, Cache<Cuda, R> copy)
      : shape_(shape), host_(std::move(host)), device_(std::move(device)), device_cache_(std::move(copy)) {}
  bool alike(const std::vector<float>& a, const std::vector<float>& b) const {
    if (rounding_ == 0.0f) return a == b;
    if (a.size() != b.size()) return false;
    const auto n = std::inner_product(a.begin(), a.end(), b.begin(), index_t{0}, std::plus<>(), [&](float x, float y) { return index_t{!(std::fabs(x - y) <= rounding_ * (std::fabs(y) + 1.0f))}; });
    return static_cast<float>(n) <= far_ * static_cast<float>(a.size());
  }
  /// Slots of the longest head of all layers: calls get no more scratch than is asked for.
  index_t longest() const {
    index_t most = 0;
    for (index_t layer = 0; layer < shape_.layers; ++layer)
      for (index_t h = 0; h < shape_.kv_heads; ++h) most = std::max(most, device_cache_.slots(layer, h));
    return most;
  }
  /// Scratch of the host for a call with so many new tokens.
  std::vector<std::byte> host_scratch(index_t tokens) const {
    const index_t most = std::max<index_t>(128, longest() + tokens);
    return std::vector<std::byte>(host_.workspace_bytes(most, most));
  }
  StepInputs asking(StepInputs in) const {
    in.probe_first = asked_first_, in.probe_last = asked_last_;
    return in;
  }
  static Cache<Cuda, R> make(const R& recipe, const CacheShape& shape) {
    auto c = make_cache<Cuda>(shape, recipe);
    REQUIRE(c);
    return std::move(*c);
  }

  CacheShape shape_;
  any::AnyCache host_;
  std::shared_ptr<test::Device> device_ = std::make_shared<test::Device>();
  Cache<Cuda, R> device_cache_;
  std::mt19937 random_{31}, side_random_{37};
  float rounding_ = 0.0f, far_ = 0.0f;
  int waits_ = 0;
  index_t compared_ = 0;  ///< heads so far
  index_t asked_first_ = 0, asked_last_ = 0;
  index_t spacing_ = 1;
};

}  // namespace cuda_cache
