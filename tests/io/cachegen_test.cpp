// Whole caches as streams of CacheGen.

#include <random>

#include <io/cachegen_data.hpp>
#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sliding_window.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <support/cache_rig.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using io::KvSide;
using quant::CacheGen;

namespace {

const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .value_dim = 8, .page_slots = 8};

template <class R = decltype(recipe())>
struct Rig : CacheRig<R> {
  using CacheRig<R>::cache, CacheRig<R>::ctx;
  explicit Rig(const R& r = {}, const CacheShape& s = shape) : CacheRig<R>(s, r, 512, 256) {}
  void append(const Rows4& x, index_t first, index_t n, std::span<const index_t> positions = {}, bool step = true) {
    for (index_t l = 0; l < x.shape.layers; ++l) {
      REQUIRE(cache.append(ctx, l, x.rows(KvSide::keys, l, first, n), x.rows(KvSide::values, l, first, n), positions) == Status::ok);
      if constexpr (needs<R>.empty())
        if (step) REQUIRE(cache.step(ctx, l) == Status::ok);
    }
  }
  Bytes saved() const {
    ByteList sink;
    REQUIRE(save(cache, sink) == Status::ok);
    return sink.bytes;
  }
};

template <class C>
Bytes streamed(const C& cache, const CacheGen& method) {
  ByteList sink;
  REQUIRE(io::save_cachegen(cache, method, sink) == Status::ok);
  return sink.bytes;
}

template <class C>
std::vector<float> numbers(const C& cache) {
  std::vector<float> all;
  for (index_t l = 0; l < shape.layers; ++l)
    for (index_t h = 0; h < shape.kv_heads; ++h) {
      const index_t n = cache.slots(l, h);
      std::vector<float> k(static_cast<std::size_t>(n * shape.head_dim)), v(static_cast<std::size_t>(n * shape.values()));
      REQUIRE(cache.read(l, h, 0, view2(k.data(), n, shape.head_dim), view2(v.data(), n, shape.values())) == Status::ok);
      all.insert(all.end(), k.begin(), k.end());
      all.insert(all.end(), v.begin(), v.end());
    }
  return all;
}

CacheGen short_chunks(quant::CacheGenForm form = quant::CacheGenForm::scaled) {
  CacheGen c = CacheGen::level(3);
  c.form = form, c.chunk = 40, c.sub_chunk = 16;
  return c;
}

}  // namespace

TEST_CASE("cachegen: a cache goes through a stream", "[io][cachegen]") {
  const index_t tokens = GENERATE(0, 1, 39, 40, 41, 100);
  const auto form = GENERATE(quant::CacheGenForm::scaled, quant::CacheGenForm::delta);
  const Rows4 x(shape, tokens);
  Rig a, b, c;
  if (tokens > 0) a.append(x, 0, tokens);
  const Bytes stream = streamed(a.cache, short_chunks(form));
  REQUIRE(io::load_cachegen(b.cache, b.ctx, stream) == Status::ok);
  REQUIRE(b.cache.length() == tokens);
  REQUIRE(b.cache.next_position() == tokens);
  REQUIRE(b.cache.pending() == tokens);
  const auto before = numbers(a.cache), after = numbers(b.cache);
  REQUIRE(before.size() == after.size());
  double square = 0, error = 0;
  for (std::size_t i = 0; i < before.size(); ++i)
    square += std::pow(static_cast<double>(before[i]), 2), error += std::pow(static_cast<double>(before[i] - after[i]), 2);
  REQUIRE((tokens == 0 || error < 0.1 * square));
  // Chunk by chunk is the same, and so is another coder.
  CacheGen other = short_chunks(form);
  other.coder = quant::EntropyCoder::rans;
  const Bytes again = streamed(a.cache, other);
  for (auto left = std::span(again); !left.empty();) {
    const auto chunk = io::CacheGenReader::open(left);
    REQUIRE(chunk.status() == Status::ok);
    REQUIRE(io::append_cachegen(c.cache, c.ctx, *chunk) == Status::ok);
    left = left.subspan(chunk->bytes());
  }
  REQUIRE(c.saved() == b.saved());
  if (tokens == 0) return;
  for (index_t l = 0; l < shape.layers; ++l) REQUIRE(b.cache.step(b.ctx, l) == Status::ok);
  b.append(x, 0, 1);
  REQUIRE(b.cache.length() == tokens + 1);
}

TEST_CASE("cachegen: caches from text, other stores at the other end", "[io][cachegen]") {
  const Rows4 x(shape, 90);
  Rig a;
  a.append(x, 0, 90);
  auto any = any::make("kivi4(group=8, residual=16)", shape, any::on<Cpu>);
  REQUIRE(any);
  Workspace work;
  REQUIRE(work.reserve(any->workspace_bytes(512, 128)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  const Bytes stream = streamed(a.cache, short_chunks());
  REQUIRE(io::load_cachegen(*any, ctx, stream) == Status::ok);
  Rig b;
  REQUIRE(io::load_cachegen(b.cache, b.ctx, stream) == Status::ok);
  REQUIRE(numbers(*any) == numbers(b.cache));  // pending tokens are exact
  for (index_t l = 0; l < shape.layers; ++l) REQUIRE(any->step(ctx, l) == Status::ok);
  REQUIRE(numbers(*any) != numbers(b.cache));
  REQUIRE(streamed(*any, short_chunks()).size() > 0);  // codes can be streamed too
}

TEST_CASE("cachegen: positions go along, also behind what was evicted", "[io][cachegen]") {
  const Rows4 x(shape, 60);
  Rig a(recipe(evict::SlidingWindow{.window = 20}));
  a.append(x, 0, 60);
  REQUIRE(a.cache.slots(0, 0) == 20);
  Rig b;
  REQUIRE(io::load_cachegen(b.cache, b.ctx, streamed(a.cache, short_chunks())) == Status::ok);
  REQUIRE(b.cache.length() == 20);
  REQUIRE(b.cache.next_position() == 60);

  Rig same;
  const std::vector<index_t> one(60, 1);
  same.append(x, 0, 60, one);
  ByteList sink;
  REQUIRE(io::save_cachegen(same.cache, short_chunks(), sink) == Status::not_supported);
}

TEST_CASE("cachegen: heads of unlike length are refused", "[io][cachegen]") {
  const Rows4 x(shape, 10);
  Rig a;
  a.append(x, 0, 10);
  REQUIRE(a.cache.append(a.ctx, 1, x.rows(KvSide::keys, 1, 0, 1), x.rows(KvSide::values, 1, 0, 1)) == Status::ok);
  ByteList sink;
  REQUIRE(io::save_cachegen(a.cache, short_chunks(), sink) == Status::not_supported);
  REQUIRE(sink.bytes.empty());
}

TEST_CASE("cachegen: keys without rotation go only where keys have none", "[io][cachegen]") {
  const Rows4 x(shape, 30);
  Rig raw(recipe(position::Reindex{})), raw2(recipe(position::Reindex{}));
  Rig rotated(recipe(position::Rerotate{}));
  Rig plain;
  raw.append(x, 0, 30);
  const Bytes stream = streamed(raw.cache, short_chunks());
  REQUIRE(io::load_cachegen(plain.cache, plain.ctx, stream) == Status::incompatible);
  const Status turned = io::load_cachegen(rotated.cache, rotated.ctx, stream);
  REQUIRE((turned == Status::not_supported || turned == Status::incompatible));
  REQUIRE(io::load_cachegen(raw2.cache, raw2.ctx, stream) == Status::ok);
  plain.append(x, 0, 30);
  Rig raw3(recipe(position::Reindex{}));
  REQUIRE(io::load_cachegen(raw3.cache, raw3.ctx, streamed(plain.cache, short_chunks())) == Status::incompatible);
}

TEST_CASE("cachegen: a stream that is damaged, or not all there, leaves the cache as it was", "[io][cachegen]") {
  const CacheShape tiny{.layers = 2, .q_heads = 1, .kv_heads = 1, .head_dim = 4, .page_slots = 8};
  const Rows4 x(tiny, 12);
  Rig a({}, tiny), b({}, tiny), c({}, tiny);
  a.append(x, 0, 12);
  CacheGen method = short_chunks(GENERATE(quant::CacheGenForm::scaled, quant::CacheGenForm::delta));
  method.chunk = 7, method.tables = quant::CacheGenTables::per_layer;
  const Bytes good = streamed(a.cache, method), empty = b.saved();
  for (std::size_t n = 0; n < good.size(); ++n)
    REQUIRE(io::load_cachegen(b.cache, b.ctx, std::span(good).first(n)) == Status::corrupt_data);
  for (std::size_t i = 0; i < good.size(); ++i) {
    Bytes bad = good;
    bad[i] ^= std::byte{0x10};
    const Status s = io::load_cachegen(b.cache, b.ctx, bad);
    REQUIRE((s == Status::corrupt_data || s == Status::incompatible));
  }
  const auto first = io::CacheGenReader::open(good);
  const Bytes one(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(first->bytes()));
  const Bytes two(good.begin() + static_cast<std::ptrdiff_t>(first->bytes()), good.end());
  REQUIRE(io::load_cachegen(b.cache, b.ctx, two) == Status::corrupt_data);
  for (const Bytes& wrong : {Bytes(one), [&] { Bytes w = one; w.insert(w.end(), one.begin(), one.end()); return w; }(),
                             [&] { Bytes w = good; w.insert(w.end(), two.begin(), two.end()); return w; }()})
    REQUIRE(io::load_cachegen(b.cache, b.ctx, wrong) == Status::corrupt_data);
  REQUIRE((b.saved() == empty));

  // A cache that already holds something.
  c.append(x, 0, 5);
  const Bytes five = c.saved();
  REQUIRE(io::load_cachegen(c.cache, c.ctx, good) == Status::order_violation);
  REQUIRE(io::append_cachegen(c.cache, c.ctx, *first) == Status::order_violation);
  REQUIRE(c.saved() == five);
  Rig wide({}, {.layers = 2, .q_heads = 1, .kv_heads = 1, .head_dim = 8, .page_slots = 8});
  REQUIRE(io::load_cachegen(wide.cache, wide.ctx, good) == Status::incompatible);
}

TEST_CASE("cachegen: forged streams with right checksums leave the cache as it was, or full of numbers", "[io][cachegen]") {
  const CacheShape tiny{.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 3, .page_slots = 8};
  const Rows4 x(tiny, 12);
  Rig a({}, tiny);
  a.append(x, 0, 12);
  CacheGen method = short_chunks(GENERATE(quant::CacheGenForm::scaled, quant::CacheGenForm::delta));
  method.scales = GENERATE(DType::f16, DType::f32), method.group = 3, method.sub_chunk = 5;
  const Bytes good = streamed(a.cache, method);
  Rig b({}, tiny);
  const Bytes empty = b.saved();
  const std::size_t most = 64 * good.size() + 65536;
  for (std::size_t i = 0; i < good.size(); ++i)
    for (const int value : {0x00, 0x01, 0x7b, 0x80, 0xff}) {
      Bytes forged = good;
      forged[i] = static_cast<std::byte>(value);
      sign(forged);
      b.memory.peak_bytes = 0;
      const Status s = io::load_cachegen(b.cache, b.ctx, forged, nullptr, b.memory);
      REQUIRE(b.memory.peak_bytes < most);
      REQUIRE((s == Status::ok || s == Status::corrupt_data || s == Status::incompatible || s == Status::missing_input));
      if (s == Status::ok) b.cache.reset();
      REQUIRE((b.saved() == empty));
    }
}

TEST_CASE("cachegen: refused memory while loading leaves the cache as it was", "[io][cachegen][faults]") {
  const Rows4 x(shape, 60);
  Rig a, b;
  a.append(x, 0, 60);
  const Bytes stream = streamed(a.cache, short_chunks()), empty = b.saved();
  for (long n = 0;; ++n) {
    b.memory.refuse_from = b.memory.requests + n;
    const Status s = io::load_cachegen(b.cache, b.ctx, stream, nullptr, b.memory);
    b.memory.refuse_from = -1;
    if (s == Status::ok) break;
    REQUIRE(s == Status::out_of_memory);
    REQUIRE((b.saved() == empty));
  }
  REQUIRE(b.cache.length() == 60);
}

TEST_CASE("cachegen: numbers at the ends of a cache's type", "[io][cachegen]") {
  for (const DType type : {DType::f16, DType::bf16, DType::f32}) {
    CacheShape s = shape;
    s.dtype = type;
    Rows4 x(s, 24);
    const float most = type == DType::f16 ? 65504.0f : 3.0e38f;
    for (std::size_t i = 0; i < x.keys.size(); i += 3) x.keys[i] = i % 2 == 0 ? most : -most;
    for (const auto form : {quant::CacheGenForm::scaled, quant::CacheGenForm::delta}) {
      Rig a({}, s), b({}, s);
      a.append(x, 0, 24);
      CacheGen method = short_chunks(form);
      method.scales = type == DType::f16 ? DType::f16 : DType::f32;
      REQUIRE(io::load_cachegen(b.cache, b.ctx, streamed(a.cache, method)) == Status::ok);
    }
  }
}
