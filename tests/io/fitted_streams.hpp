#pragma once

// Whole caches through streams of formats with calibrated arrays.

#include <io/aquakv_data.hpp>
#include <io/kvtc_data.hpp>
#include <support/cache_rig.hpp>
#include <support/saved.hpp>

namespace kvcondense::test::fitted {

inline const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .value_dim = 8, .page_slots = 8};

template <class R = decltype(recipe())>
struct Rig : CacheRig<R> {
  using CacheRig<R>::cache, CacheRig<R>::ctx;
  explicit Rig(const R& r = {}, const CacheShape& s = shape) : CacheRig<R>(s, r, 512, 256) {}
  void append(const Rows4& x, index_t first, index_t n, std::span<const index_t> positions = {}) {
    for (index_t l = 0; l < x.shape.layers; ++l) {
      REQUIRE(cache.append(ctx, l, x.rows(io::KvSide::keys, l, first, n), x.rows(io::KvSide::values, l, first, n), positions) == Status::ok);
      if constexpr (needs<R>.empty()) REQUIRE(cache.step(ctx, l) == Status::ok);
    }
  }
  Bytes saved() const { return test::saved(cache); }
};

/// Keys, then values, of token `first` to `first + n` of all layers and heads.
template <class C>
std::vector<float> numbers(const C& cache, index_t first, index_t n) {
  std::vector<float> all;
  for (index_t l = 0; l < shape.layers; ++l)
    for (index_t h = 0; h < shape.kv_heads; ++h) {
      std::vector<float> k(static_cast<std::size_t>(n * shape.head_dim)), v(static_cast<std::size_t>(n * shape.values()));
      REQUIRE(cache.read(l, h, first, view2(k.data(), n, shape.head_dim), view2(v.data(), n, shape.values())) == Status::ok);
      all.insert(all.end(), k.begin(), k.end());
      all.insert(all.end(), v.begin(), v.end());
    }
  return all;
}

inline double part_lost(const std::vector<float>& before, const std::vector<float>& after) {
  return square_distance(before, after) / square_distance(before, std::vector<float>(before.size()));
}

/// Arrays of a shape, with what they borrow, which is made of so many tokens.
template <class From, class Arrays, index_t tokens>
struct ModelOf {
  From from;
  Arrays t;
  explicit ModelOf(KeyForm form = KeyForm::rotated, const CacheShape& s = shape) : from(Rows4(s, tokens, 77)) {
    from.form = form;
    t = from.of(s);
  }
};

/// KVTC as tests of any such format drive it.
struct KvtcStreams {
  using Method = quant::Kvtc;
  using Arrays = io::KvtcTransform;
  using Reader = io::KvtcReader;
  using Model = ModelOf<JointBases, Arrays, 300>;
  static constexpr double fine_loss = 0.01, coarse_loss = 0.02;

  static Method chunks(float bits) {
    Method m;
    m.key_bits = m.value_bits = bits, m.chunk = 40, m.sub_chunk = 16, m.sinks = 4, m.window = 20;
    return m;
  }
  static Method fine() { return chunks(8.0f); }
  static Method coarse() { return chunks(4.0f); }
  static Method least() { return chunks(2.0f); }
  static Method tiny() {
    Method m = chunks(3.0f);
    m.error[3] = m.error[4] = HUGE_VAL;
    return m;
  }
  static void sign(Bytes& chunk) { test::sign(chunk, 2); }

  template <class... A>
  static Status save(A&&... a) { return io::save_kvtc(std::forward<A>(a)...); }
  template <class... A>
  static Status load(A&&... a) { return io::load_kvtc(std::forward<A>(a)...); }
  template <class... A>
  static Status append(A&&... a) { return io::append_kvtc(std::forward<A>(a)...); }
};

/// AQUA-KV likewise.
struct AquakvStreams {
  using Method = quant::Aquakv;
  using Arrays = io::AquakvMaps;
  using Reader = io::AquakvReader;
  using Model = ModelOf<ModelMaps, Arrays, 120>;
  static constexpr double fine_loss = 0.03, coarse_loss = 0.03;

  static Method chunks(int bits) {
    return {.key_bits = bits, .value_bits = bits, .sinks = 4, .window = 20, .sub_chunk = 16, .chunk = 40};
  }
  static Method fine() { return chunks(4); }
  static Method coarse() { return chunks(4); }
  static Method least() { return chunks(2); }
  static Method tiny() { return chunks(2); }
  static void sign(Bytes& chunk) { test::sign(chunk); }

  template <class... A>
  static Status save(A&&... a) { return io::save_aquakv(std::forward<A>(a)...); }
  template <class... A>
  static Status load(A&&... a) { return io::load_aquakv(std::forward<A>(a)...); }
  template <class... A>
  static Status append(A&&... a) { return io::append_aquakv(std::forward<A>(a)...); }
};

template <class Streams, class C>
Bytes streamed(const C& cache, const typename Streams::Method& method, const typename Streams::Arrays& arrays,
               const prim::RopeTable* rope = nullptr) {
  ByteList sink;
  REQUIRE(Streams::save(cache, method, arrays, sink, rope) == Status::ok);
  return sink.bytes;
}

}  // namespace kvcondense::test::fitted
