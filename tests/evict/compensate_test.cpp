#include <cmath>

#include <evict/properties.hpp>
#include <kvcondense/evict/compensate.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <support/byte_list.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// The output of one query over tokens [first, last) of a prompt, in double, no more than `n` at once.
std::vector<double> over(const CacheShape& s, const Tokens& t, index_t head, const std::vector<float>& q) {
  std::vector<NaiveSlot> slots;
  for (index_t i = 0; i < t.n; ++i) {
    NaiveSlot slot{i, {}, {}};
    for (index_t d = 0; d < s.head_dim; ++d) slot.k.push_back(t.keys(s)(head, i, d));
    for (index_t d = 0; d < s.values(); ++d) slot.v.push_back(t.values(s)(head, i, d));
    slots.push_back(slot);
  }
  return naive_attention({q.begin(), q.end()}, slots, t.n, 1.0 / std::sqrt(static_cast<double>(s.head_dim)),
                         static_cast<std::size_t>(s.values()), nullptr, nullptr);
}

}  // namespace

TEST_CASE("compensate: the oracle's summary, and what attention makes of it", "[evict][compensate]") {
  const auto o = eviction_oracle("razor")["compensation"];
  const auto keys = o["K"].get<std::vector<std::vector<float>>>(), values = o["V"].get<std::vector<std::vector<float>>>();
  const auto query = o["q"].get<std::vector<float>>();
  const auto n = static_cast<index_t>(keys.size()), dim = static_cast<index_t>(query.size());
  std::vector<float> k, v;
  for (const auto& row : keys) k.insert(k.end(), row.begin(), row.end());
  for (const auto& row : values) v.insert(v.end(), row.begin(), row.end());
  const CacheShape shape{.q_heads = 1, .kv_heads = 1, .head_dim = dim, .dtype = DType::f32};
  const auto attend = [&](auto& r) {
    REQUIRE(r.cache.append(r.ctx, 0, dense_view(static_cast<const float*>(k.data()), 1, n, dim),
                           dense_view(static_cast<const float*>(v.data()), 1, n, dim)) == Status::ok);
    REQUIRE(r.cache.step(r.ctx, 0) == Status::ok);
    std::vector<float> out(at(dim));
    REQUIRE(r.cache.attend(r.ctx, 0, dense_view(query.data(), 1, 1, dim), dense_view(out.data(), 1, 1, dim)) == Status::ok);
    return out;
  };
  const auto sinks = static_cast<index_t>(o["sink"].size()), recent = static_cast<index_t>(o["recent"].size());
  CacheRig with(shape, recipe(evict::Compensate<evict::SinkWindow>{{.recent = recent, .sinks = sinks}}), 64, 64);
  CacheRig without(shape, recipe(evict::SinkWindow{.recent = recent, .sinks = sinks}), 64, 64);
  CacheRig whole(shape, recipe(), 64, 64);
  const auto a = attend(with), b = attend(without), full = attend(whole);
  const auto mean = with.cache.layers()[0].heads[0].summary.slot();
  for (index_t d = 0; d < dim; ++d) {
    REQUIRE(mean.key[d] == Approx(o["k_hat"][at(d)].get<double>()).margin(1e-6));
    REQUIRE(mean.value[d] == Approx(o["v_hat"][at(d)].get<double>()).margin(1e-6));
    REQUIRE(a[at(d)] == Approx(o["out"][at(d)].get<double>()).epsilon(1e-5));
    REQUIRE(b[at(d)] == Approx(o["out_dropped_without_compensation"][at(d)].get<double>()).epsilon(1e-5));
    REQUIRE(full[at(d)] == Approx(o["out_full"][at(d)].get<double>()).epsilon(1e-5));
    REQUIRE(std::abs(a[at(d)] - full[at(d)]) < std::abs(b[at(d)] - full[at(d)]));
  }
  REQUIRE(mean.bias == Approx(std::log(static_cast<double>(o["dropped"].size()))));
}

TEST_CASE("compensate: the oracle's mean of what left at once, and one more that leaves later", "[evict][compensate]") {
  const auto o = load_oracle("merging_lowrank.json", "razor_compensation"), later = load_oracle("merging_lowrank.json", "razor_streaming");
  const CacheShape shape{.head_dim = 2, .dtype = DType::f32};
  const auto feed = [&](auto& r, const std::vector<float>& k, const std::vector<float>& v) {
    const auto n = static_cast<index_t>(k.size()) / 2;
    REQUIRE(r.cache.append(r.ctx, 0, dense_view(k.data(), 1, n, 2), dense_view(v.data(), 1, n, 2)) == Status::ok);
    REQUIRE(r.cache.step(r.ctx, 0) == Status::ok);
  };
  const auto attended = [&](auto& r, const char* want) {
    const auto q = floats(o["inputs"]["q"]);
    std::vector<float> out(2);
    REQUIRE(r.cache.attend(r.ctx, 0, dense_view(q.data(), 1, 1, 2), dense_view(out.data(), 1, 1, 2)) == Status::ok);
    for (std::size_t d = 0; d < 2; ++d) REQUIRE(out[d] == Approx(o["expected"][want][d].get<double>()).epsilon(1e-5));
  };
  auto k = floats(o["inputs"]["K"]), v = floats(o["inputs"]["V"]);
  const auto mean_is = [&](auto& r, const nlohmann::json& want) {
    const auto mean = r.cache.layers()[0].heads[0].summary.slot();
    for (std::size_t d = 0; d < 2; ++d) {
      REQUIRE(mean.key[d] == Approx(want["k_hat"][d].get<double>()).margin(1e-6));
      REQUIRE(mean.value[d] == Approx(want["v_hat"][d].get<double>()).margin(1e-6));
    }
    REQUIRE(mean.bias == Approx(std::log(want["N_d"].get<double>())));
  };
  const evict::SinkWindow ends{.recent = 2, .sinks = 1};
  CacheRig with(shape, recipe(evict::Compensate<evict::SinkWindow>{ends}), 64, 64);
  CacheRig without(shape, recipe(ends), 64, 64);
  feed(with, k, v), feed(without, k, v);
  mean_is(with, o["expected"]);
  attended(with, "out_compensated"), attended(without, "out_eviction_only");
  // The same tokens left; the next in line is the one that the second case drops.
  for (std::size_t d = 0; d < 2; ++d) k[8 + d] = later["inputs"]["k_dropped"][d].get<float>(), v[8 + d] = later["inputs"]["v_dropped"][d].get<float>();
  CacheRig stream(shape, recipe(evict::Compensate<evict::SinkWindow>{ends}), 64, 64);
  feed(stream, k, v);
  mean_is(stream, later["inputs"]);
  feed(stream, {1, 1}, {1, 1});
  mean_is(stream, later["expected"]);
}

TEST_CASE("compensate: one token that left is replaced exactly, and a crowd nearly", "[evict][compensate]") {
  for (const CacheShape shape : {CacheShape{.q_heads = 4, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32},
                                 CacheShape{.q_heads = 7, .kv_heads = 1, .head_dim = 80, .value_dim = 32, .dtype = DType::f32}}) {
    std::mt19937 random(8);
    const Tokens t(shape, 41, random);
    CacheRig r(shape, recipe(evict::Compensate<evict::SinkWindow>{{.recent = 36, .sinks = 4}}), 64, 64);
    REQUIRE(r.cache.append(r.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(r.cache.step(r.ctx, 0) == Status::ok);
    REQUIRE(r.cache.slots(0, 0) == 40);
    const Tokens q(shape, 1, random);
    std::vector<float> out(at(shape.q_heads * shape.values()));
    REQUIRE(r.cache.attend(r.ctx, 0, q.queries(shape), dense_view(out.data(), shape.q_heads, 1, shape.values())) == Status::ok);
    for (index_t h = 0; h < shape.q_heads; ++h) {
      const std::vector<float> one(q.q.begin() + h * shape.head_dim, q.q.begin() + (h + 1) * shape.head_dim);
      const auto want = over(shape, t, h / shape.group(), one);
      for (index_t d = 0; d < shape.values(); ++d) REQUIRE(out[at(h * shape.values() + d)] == Approx(want[at(d)]).margin(2e-6));
    }
  }
}

TEST_CASE("compensate: coded slots, forks, files and rollback carry the mean", "[evict][compensate]") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32};
  const auto stages = recipe(evict::Compensate<evict::H2O>{{.heavy = 12, .recent = 12}}, quant::GroupInt<8>{.group_size = 16});
  CacheRig r(shape, stages, 128, 64);
  std::mt19937 random(9);
  const auto forward = [&](auto& cache, auto& ctx, index_t n, std::mt19937& from) {
    std::vector<float> all;
    for (index_t l = 0; l < 2; ++l) {
      const Tokens t(shape, n, from);
      std::vector<float> out(at(4 * n * 32));
      REQUIRE(cache.forward(ctx, l, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), 4, n, 32)) == Status::ok);
      all.insert(all.end(), out.begin(), out.end());
    }
    return all;
  };
  (void)forward(r.cache, r.ctx, 60, random);
  for (int i = 0; i < 5; ++i) (void)forward(r.cache, r.ctx, 1, random);
  const auto& summary = r.cache.layers()[1].heads[0].summary;
  REQUIRE(summary.count() == 65 - 24);
  REQUIRE(r.cache.report().bytes() == r.memory.live_bytes);

  auto copy = r.cache.fork();
  REQUIRE(copy);
  ByteList file;
  REQUIRE(save(r.cache, file) == Status::ok);
  CacheRig loaded(shape, stages, 128, 64);
  REQUIRE(load(loaded.cache, file.bytes) == Status::ok);
  CacheRig plain(shape, recipe(evict::H2O{.heavy = 12, .recent = 12}, quant::GroupInt<8>{.group_size = 16}), 128, 64);
  REQUIRE(load(plain.cache, file.bytes) == Status::incompatible);
  for (std::size_t cut = 0; cut < file.bytes.size(); cut += 97)
    REQUIRE(load(loaded.cache, std::span(file.bytes).first(cut)) == Status::corrupt_data);

  // Drafts that are taken back leave the mean as it was.
  for (index_t l = 0; l < 2; ++l) {
    std::mt19937 other(3);
    const Tokens t(shape, 4, other);
    REQUIRE(r.cache.append(r.ctx, l, t.keys(shape), t.values(shape)) == Status::ok);
  }
  REQUIRE(r.cache.truncate(65) == Status::ok);
  const std::mt19937 now = random;
  std::mt19937 a = now, b = now, c = now;
  const auto want = forward(r.cache, r.ctx, 1, a);
  REQUIRE(forward(*copy, r.ctx, 1, b) == want);
  REQUIRE(forward(loaded.cache, loaded.ctx, 1, c) == want);

  REQUIRE(r.cache.truncate(30) == Status::ok);  // what left after token 30 no longer counts
  REQUIRE(summary.count() == 30 - r.cache.slots(1, 0));
  r.cache.reset();
  REQUIRE(summary.count() == 0);
}

TEST_CASE("compensate: raw keys have no mean", "[evict][compensate]") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 32};
  REQUIRE(make_cache<Cpu>(shape, recipe(evict::Compensate<evict::H2O>{}, position::Reindex{})).status() == Status::incompatible);
  REQUIRE(evict::Compensate<evict::H2O>{{.heavy = -1}}.validate(shape) == Status::invalid_argument);
}
