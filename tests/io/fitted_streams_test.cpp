// Whole caches as streams of KVTC and of AQUA-KV.

#include <io/fitted_streams.hpp>
#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/evict/sliding_window.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/position/rerotate.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using namespace kvcondense::test::fitted;
using io::KvSide;

TEMPLATE_TEST_CASE("fitted streams: a cache goes through a stream, its sinks and window exactly", "[io][fitted]", KvtcStreams, AquakvStreams) {
  using S = TestType;
  using Model = typename S::Model;
  const index_t tokens = GENERATE(0, 1, 4, 5, 24, 25, 64, 65, 140);
  const Model model;
  const Rows4 x(shape, tokens);
  Rig a, b, c;
  if (tokens > 0) a.append(x, 0, tokens);
  const Bytes stream = streamed<S>(a.cache, S::fine(), model.t);
  REQUIRE(S::load(b.cache, b.ctx, stream, model.t) == Status::ok);
  REQUIRE(b.cache.length() == tokens);
  REQUIRE(b.cache.next_position() == tokens);
  REQUIRE(b.cache.pending() == tokens);
  const index_t sinks = std::min<index_t>(4, tokens), coded = std::max<index_t>(0, tokens - 24), window = tokens - sinks - coded;
  REQUIRE(numbers(a.cache, 0, sinks) == numbers(b.cache, 0, sinks));
  REQUIRE(numbers(a.cache, tokens - window, window) == numbers(b.cache, tokens - window, window));
  if (coded > 0) {
    REQUIRE(numbers(a.cache, sinks, coded) != numbers(b.cache, sinks, coded));
    REQUIRE(part_lost(numbers(a.cache, sinks, coded), numbers(b.cache, sinks, coded)) < S::fine_loss);
  }
  // Chunk by chunk is the same, and so is another coder.
  typename S::Method other = S::fine();
  other.coder = quant::EntropyCoder::rans;
  const Bytes again = streamed<S>(a.cache, other, model.t);
  for (auto left = std::span(again); !left.empty();) {
    const auto chunk = S::Reader::open(left, model.t);
    REQUIRE(chunk.status() == Status::ok);
    REQUIRE(S::append(c.cache, c.ctx, *chunk) == Status::ok);
    left = left.subspan(chunk->bytes());
  }
  REQUIRE(c.saved() == b.saved());
  if (tokens == 0) return;
  for (index_t l = 0; l < shape.layers; ++l) REQUIRE(b.cache.step(b.ctx, l) == Status::ok);
  b.append(x, 0, 1);
  REQUIRE(b.cache.length() == tokens + 1);
}

TEMPLATE_TEST_CASE("fitted streams: sinks, window and chunk say where streams are cut", "[io][fitted]", KvtcStreams, AquakvStreams) {
  using S = TestType;
  using Model = typename S::Model;
  const Model model;
  const Rows4 x(shape, 130);
  Rig a;
  a.append(x, 0, 130);
  const auto cuts = [&](const typename S::Method& m) {
    const Bytes stream = streamed<S>(a.cache, m, model.t);
    std::vector<std::pair<index_t, bool>> all;
    for (auto left = std::span(stream); !left.empty();) {
      const auto chunk = S::Reader::open(left, model.t);
      all.emplace_back(chunk->head().tokens, chunk->head().exact);
      left = left.subspan(chunk->bytes());
    }
    return all;
  };
  using Cuts = std::vector<std::pair<index_t, bool>>;
  typename S::Method m = S::fine();
  REQUIRE(cuts(m) == Cuts{{4, true}, {40, false}, {40, false}, {26, false}, {20, true}});
  m.sinks = 0, m.window = 0;
  REQUIRE(cuts(m) == Cuts{{40, false}, {40, false}, {40, false}, {10, false}});
  m.sinks = 10, m.window = 200;
  REQUIRE(cuts(m) == Cuts{{10, true}, {120, true}});
  m.sinks = 500;
  REQUIRE(cuts(m) == Cuts{{130, true}});
}

TEMPLATE_TEST_CASE("fitted streams: caches from text, other stores at the other end", "[io][fitted]", KvtcStreams, AquakvStreams) {
  using S = TestType;
  using Model = typename S::Model;
  const Model model;
  const Rows4 x(shape, 90);
  Rig a;
  a.append(x, 0, 90);
  auto any = any::make("kivi4(group=8, residual=16)", shape, any::on<Cpu>);
  REQUIRE(any);
  Workspace work;
  REQUIRE(work.reserve(any->workspace_bytes(512, 128)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  const Bytes stream = streamed<S>(a.cache, S::fine(), model.t);
  REQUIRE(S::load(*any, ctx, stream, model.t) == Status::ok);
  Rig b;
  REQUIRE(S::load(b.cache, b.ctx, stream, model.t) == Status::ok);
  REQUIRE(numbers(*any, 0, 90) == numbers(b.cache, 0, 90));
  for (index_t l = 0; l < shape.layers; ++l) REQUIRE(any->step(ctx, l) == Status::ok);
  REQUIRE(streamed<S>(*any, S::fine(), model.t).size() > 0);
}

TEMPLATE_TEST_CASE("fitted streams: positions go along, also behind what was evicted", "[io][fitted]", KvtcStreams, AquakvStreams) {
  using S = TestType;
  using Model = typename S::Model;
  const Model model;
  const Rows4 x(shape, 60);
  Rig a(recipe(evict::SlidingWindow{.window = 40}));
  a.append(x, 0, 60);
  REQUIRE(a.cache.slots(0, 0) == 40);
  Rig b;
  REQUIRE(S::load(b.cache, b.ctx, streamed<S>(a.cache, S::fine(), model.t), model.t) == Status::ok);
  REQUIRE(b.cache.length() == 40);
  REQUIRE(b.cache.next_position() == 60);
  Rig same;
  const std::vector<index_t> one(60, 1);
  same.append(x, 0, 60, one);
  ByteList sink;
  REQUIRE(S::save(same.cache, S::fine(), model.t, sink) == Status::not_supported);
  REQUIRE(a.cache.append(a.ctx, 1, x.rows(KvSide::keys, 1, 0, 1), x.rows(KvSide::values, 1, 0, 1)) == Status::ok);
  REQUIRE(S::save(a.cache, S::fine(), model.t, sink) == Status::not_supported);
  REQUIRE(sink.bytes.empty());
}

TEMPLATE_TEST_CASE("fitted streams: keys with rotation and without, transforms of both", "[io][fitted]", KvtcStreams, AquakvStreams) {
  using S = TestType;
  using Model = typename S::Model;
  const Model raw(KeyForm::raw), rotated;
  const auto rope = prim::RopeTable::make({}, shape.head_dim, heap_memory());
  const Rows4 x(shape, 80);
  Rows4 turned = x;
  for (index_t row = 0; row < shape.layers * shape.kv_heads; ++row)
    for (index_t i = 0; i < 80; ++i) {
      float* at = turned.keys.data() + (row * 80 + i) * shape.head_dim;
      rope->rotate(at, i);
      for (index_t d = 0; d < shape.head_dim; ++d) at[d] = static_cast<float>(half(at[d]));
    }
  Rig plain;
  plain.append(turned, 0, 80);
  ByteList sink;
  REQUIRE(S::save(plain.cache, S::fine(), raw.t, sink) == Status::missing_input);
  Rig back;
  const Bytes stream = streamed<S>(plain.cache, S::coarse(), raw.t, &*rope);
  REQUIRE(S::load(back.cache, back.ctx, stream, raw.t) == Status::missing_input);
  REQUIRE(S::load(back.cache, back.ctx, stream, raw.t, &*rope) == Status::ok);
  const double lost = part_lost(numbers(plain.cache, 0, 80), numbers(back.cache, 0, 80));
  REQUIRE(lost < S::coarse_loss);

  // Caches that keep keys without rotation need none, and their streams go only where keys have none.
  Rig kept(recipe(position::Reindex{})), kept2(recipe(position::Reindex{}));
  kept.append(x, 0, 80);
  const Bytes of_raw = streamed<S>(kept.cache, S::coarse(), raw.t);
  REQUIRE(S::load(kept2.cache, kept2.ctx, of_raw, raw.t) == Status::ok);
  Rig other;
  REQUIRE(S::load(other.cache, other.ctx, of_raw, raw.t) == Status::incompatible);
  Rig reindexed(recipe(position::Reindex{}));
  Rig rerotated(recipe(position::Rerotate{}));
  REQUIRE(S::load(reindexed.cache, reindexed.ctx, stream, raw.t, &*rope) == Status::incompatible);
  const Status turned_back = S::load(rerotated.cache, rerotated.ctx, of_raw, raw.t);
  REQUIRE((turned_back == Status::not_supported || turned_back == Status::incompatible));
  REQUIRE(S::save(kept.cache, S::fine(), rotated.t, sink) == Status::incompatible);
}

TEMPLATE_TEST_CASE("fitted streams: a stream that is damaged, or not all there, leaves the cache as it was", "[io][fitted]", KvtcStreams, AquakvStreams) {
  using S = TestType;
  using Model = typename S::Model;
  const CacheShape tiny{.layers = 2, .q_heads = 1, .kv_heads = 1, .head_dim = 4, .page_slots = 8};
  const Model model(KeyForm::rotated, tiny);
  const Rows4 x(tiny, 14);
  Rig a({}, tiny), b({}, tiny), c({}, tiny);
  a.append(x, 0, 14);
  typename S::Method method = S::tiny();
  method.sinks = 2, method.window = 3, method.chunk = 5;
  const Bytes good = streamed<S>(a.cache, method, model.t), empty = b.saved();
  for (std::size_t n = 0; n < good.size(); ++n)
    REQUIRE(S::load(b.cache, b.ctx, std::span(good).first(n), model.t) == Status::corrupt_data);
  for (std::size_t i = 0; i < good.size(); ++i) {
    Bytes bad = good;
    bad[i] ^= std::byte{0x10};
    const Status s = S::load(b.cache, b.ctx, bad, model.t);
    REQUIRE((s == Status::corrupt_data || s == Status::incompatible));
  }
  const auto first = S::Reader::open(good, model.t);
  const auto cut = good.begin() + static_cast<std::ptrdiff_t>(first->bytes());
  const Bytes one(good.begin(), cut), rest(cut, good.end());
  const auto joined = [](const Bytes& p, const Bytes& q) { Bytes w = p; w.insert(w.end(), q.begin(), q.end()); return w; };
  for (const Bytes& wrong : {one, rest, joined(one, one), joined(good, rest), joined(rest, one)})
    REQUIRE(S::load(b.cache, b.ctx, wrong, model.t) == Status::corrupt_data);
  REQUIRE((b.saved() == empty));
  const Model another(KeyForm::raw, tiny);
  REQUIRE(S::load(b.cache, b.ctx, good, another.t) == Status::incompatible);
  REQUIRE((b.saved() == empty));

  c.append(x, 0, 5);
  const Bytes five = c.saved();
  REQUIRE(S::load(c.cache, c.ctx, good, model.t) == Status::order_violation);
  REQUIRE(S::append(c.cache, c.ctx, *first) == Status::order_violation);
  REQUIRE(c.saved() == five);
  Rig wide({}, {.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 4, .page_slots = 8});
  REQUIRE(S::load(wide.cache, wide.ctx, good, model.t) == Status::incompatible);
}

TEMPLATE_TEST_CASE("fitted streams: forged streams with right checksums leave the cache as it was, or full of numbers", "[io][fitted]", KvtcStreams, AquakvStreams) {
  using S = TestType;
  using Model = typename S::Model;
  const CacheShape tiny{.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 3, .page_slots = 8};
  const Model model(KeyForm::rotated, tiny);
  const Rows4 x(tiny, 12);
  Rig a({}, tiny), b({}, tiny);
  a.append(x, 0, 12);
  typename S::Method method = S::coarse();
  method.sinks = method.window = GENERATE(0, 12), method.sub_chunk = 5;
  const Bytes good = streamed<S>(a.cache, method, model.t), empty = b.saved();
  const std::size_t most = 64 * good.size() + 65536;
  for (std::size_t i = 0; i < good.size(); ++i)
    for (const int value : {0x00, 0x01, 0x7b, 0x80, 0xff}) {
      Bytes forged = good;
      forged[i] = static_cast<std::byte>(value);
      S::sign(forged);
      b.memory.peak_bytes = 0;
      const Status s = S::load(b.cache, b.ctx, forged, model.t, nullptr, b.memory);
      REQUIRE(b.memory.peak_bytes < most);
      REQUIRE((s == Status::ok || s == Status::corrupt_data || s == Status::incompatible || s == Status::missing_input));
      if (s == Status::ok) b.cache.reset();
      REQUIRE((b.saved() == empty));
    }
}

TEMPLATE_TEST_CASE("fitted streams: memory that is refused leaves the cache as it was", "[io][fitted][faults]", KvtcStreams, AquakvStreams) {
  using S = TestType;
  using Model = typename S::Model;
  const Model model;
  const Rows4 x(shape, 60);
  Rig a, b;
  a.append(x, 0, 60);
  const Bytes good = streamed<S>(a.cache, S::least(), model.t), empty = b.saved();
  for (long n = 0;; ++n) {
    b.memory.refuse_from = b.memory.requests + n;
    const Status s = S::load(b.cache, b.ctx, good, model.t, nullptr, b.memory);
    b.memory.refuse_from = -1;
    if (s == Status::ok) break;
    REQUIRE(s == Status::out_of_memory);
    REQUIRE((b.saved() == empty));
  }
  REQUIRE(b.cache.length() == 60);
}
