// Chunks of KVTC.

#include <limits>
#include <utility>

#include <io/kvtc_data.hpp>
#include <support/memory.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using io::KvSide;
using io::KvtcReader;
using io::KvtcTransform;
using io::KvtcWriter;
using quant::EntropyCoder;
using quant::Kvtc;
using quant::KvtcType;

namespace {

const CacheShape small{.layers = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 8, .value_dim = 4};

Kvtc with(float bits, EntropyCoder coder = EntropyCoder::range) {
  Kvtc m;
  m.key_bits = m.value_bits = bits, m.coder = coder, m.sub_chunk = 32;
  return m;
}

/// Rows whose token numbers all lie in a few directions, and a little beside them.
Rows4 of_rank(const CacheShape& shape, index_t tokens, index_t rank, double beside, std::uint64_t seed = 1) {
  Rows4 x(shape, tokens, seed);
  for (const KvSide side : {KvSide::keys, KvSide::values}) {
    std::srand(static_cast<unsigned>(seed));
    const index_t channels = shape.kv_heads * x.dim(side), dim = x.dim(side);
    fit::Matrix m = fit::Matrix::Random(tokens, rank) * fit::Matrix::Random(rank, shape.layers * channels);
    m += beside * fit::Matrix::Random(tokens, shape.layers * channels);
    auto& to = side == KvSide::keys ? x.keys : x.values;
    for (index_t l = 0; l < shape.layers; ++l)
      for (index_t c = 0; c < channels; ++c)
        for (index_t t = 0; t < tokens; ++t)
          to[static_cast<std::size_t>(((l * shape.kv_heads + c / dim) * tokens + t) * dim + c % dim)] =
              static_cast<float>(m(t, l * channels + c));
  }
  return x;
}

}  // namespace

TEST_CASE("kvtc chunk: what is lost is the energy of the directions that are left out", "[io][kvtc]") {
  const Rows4 x = of_rank(small, 96, 6, 0.02);
  const JointBases bases(x);
  const auto t = bases.of(small);
  Kvtc m = with(8.0f);
  for (const index_t rank : {1, 3, 6, 12}) {
    m.rank = rank;
    const Decoded d = decode_all(kvtc_chunk(x, m, t), t);
    for (const KvSide side : {KvSide::keys, KvSide::values}) {
      const auto s = static_cast<std::size_t>(side);
      double lost = 0, kept = 0;
      for (index_t i = 0; i < bases.columns[s]; ++i) (i < rank ? kept : lost) += static_cast<double>(bases.energy[s][static_cast<std::size_t>(i)]);
      const double error = square_distance(side == KvSide::keys ? x.keys : x.values, side == KvSide::keys ? d.keys : d.values) / 96;
      CAPTURE(rank, error, lost, kept);
      REQUIRE(error >= lost * 0.9999);
      REQUIRE(error <= lost * 1.0001 + 2e-4 * kept);  // int8 leaves some 1e-4 of what is kept
    }
  }
}

TEST_CASE("kvtc chunk: more bits err less and take more bytes, down to the mean alone", "[io][kvtc]") {
  const auto coder = GENERATE(EntropyCoder::range, EntropyCoder::rans);
  const Rows4 calibration(small, 400, 9), x(small, 200);
  const JointBases bases(calibration);
  const auto t = bases.of(small);
  double last = HUGE_VAL;
  std::size_t bytes = 0;
  for (const float bits : {0.0f, 0.5f, 1.0f, 2.0f, 4.0f, 8.0f}) {
    const Bytes chunk = kvtc_chunk(x, with(bits, coder), t);
    const Decoded d = decode_all(chunk, t);
    const double error = square_distance(x.keys, d.keys) + square_distance(x.values, d.values);
    CAPTURE(bits, error, last, chunk.size());
    REQUIRE(error < last);
    REQUIRE(chunk.size() > bytes);
    last = error, bytes = chunk.size();
    if (bits == 0.0f)
      for (index_t i = 0; i < 8; ++i) REQUIRE(d.keys[static_cast<std::size_t>(i)] == bases.mean[0][static_cast<std::size_t>(i)]);
  }
  REQUIRE(last < 1e-3 * (square_distance(x.keys, std::vector<float>(x.keys.size())) + square_distance(x.values, std::vector<float>(x.values.size()))));
  Kvtc half_keys = with(4.0f, coder);
  half_keys.key_bits = 0.5f;
  const Decoded both = decode_all(kvtc_chunk(x, with(4.0f, coder), t), t), d = decode_all(kvtc_chunk(x, half_keys, t), t);
  REQUIRE(d.values == both.values);
  REQUIRE(square_distance(x.keys, d.keys) > square_distance(x.keys, both.keys));
}

TEST_CASE("kvtc chunk: shapes of all kinds, from one token on", "[io][kvtc]") {
  for (const index_t heads : {1, 2, 16})
    for (const auto& [dim, values] : {std::pair<index_t, index_t>{4, 0}, {80, 16}, {16, 96}})
      for (const index_t tokens : {0, 1, 31, 32, 33, 70}) {
        const CacheShape shape{.layers = 2, .q_heads = 16, .kv_heads = heads, .head_dim = dim, .value_dim = values};
        const Rows4 calibration(shape, 60, 3), x(shape, tokens);
        const JointBases bases(calibration);
        const auto t = bases.of(shape);
        const Decoded d = decode_all(kvtc_chunk(x, with(8.0f), t), t), e = decode_all(kvtc_chunk(x, with(8.0f, EntropyCoder::rans), t), t);
        REQUIRE(d == e);
        REQUIRE(d.keys.size() == x.keys.size());
        REQUIRE(d.values.size() == x.values.size());
        for (const float v : d.keys) REQUIRE(std::isfinite(v));
        const Decoded exact = decode_all(kvtc_chunk(x, with(8.0f), t, nullptr, true), t);
        REQUIRE(exact.keys == x.keys);  // these are numbers of 16 bits
        REQUIRE(exact.values == x.values);
      }
}

TEST_CASE("kvtc chunk: any layer, side and sub-chunk alone, and layers from components that are decoded once", "[io][kvtc]") {
  const Rows4 x(small, 70);
  const JointBases bases(x);
  const auto t = bases.of(small);
  const Bytes bytes = kvtc_chunk(x, with(2.0f), t);
  const Decoded all = decode_all(bytes, t);
  const auto chunk = KvtcReader::open(bytes, t);
  REQUIRE(chunk);
  REQUIRE(chunk->head().sub_chunks() == 3);
  for (const KvSide side : {KvSide::keys, KvSide::values})
    for (const index_t sub : {2, 0, 1}) {
      const index_t n = chunk->head().tokens_of(sub), count = *chunk->component_count(side), dim = x.dim(side);
      std::vector<float> z(static_cast<std::size_t>(n * count)), out(static_cast<std::size_t>(2 * n * dim));
      const TensorView<float, 2> view{z.data(), {n, count}, {count, 1}};
      REQUIRE(chunk->components(side, sub, view) == Status::ok);
      for (const index_t l : {2, 0, 1}) {
        const auto to = dense_view(out.data(), 2, n, dim);
        REQUIRE(chunk->expand(l, side, sub, view, to) == Status::ok);
        const auto& want = side == KvSide::keys ? all.keys : all.values;
        for (index_t h = 0; h < 2; ++h)
          for (index_t i = 0; i < n * dim; ++i)
            REQUIRE(to.data[h * n * dim + i] == want[static_cast<std::size_t>(((l * 2 + h) * 70 + sub * 32) * dim + i)]);
      }
    }
}

TEST_CASE("kvtc chunk: rows whose numbers lie apart are refused, heads and tokens may lie apart", "[io][kvtc]") {
  const Rows4 x(small, 20);
  const JointBases bases(x);
  const auto t = bases.of(small);
  const Bytes bytes = kvtc_chunk(x, with(2.0f), t);
  const auto chunk = KvtcReader::open(bytes, t);
  REQUIRE(chunk);
  const index_t count = *chunk->component_count(KvSide::keys);
  REQUIRE(count > 1);
  std::vector<std::byte> work(chunk->scratch_bytes(KvSide::keys));
  std::vector<float> z(static_cast<std::size_t>(2 * 20 * count)), dense(2 * 20 * 8), room(2 * 20 * 16, 7.0f);
  const TensorView<float, 2> view{z.data(), {20, count}, {2 * count, 1}}, gaps{z.data(), {20, count}, {2 * count, 2}};
  const TensorView<float, 3> rows{room.data(), {2, 20, 8}, {320, 16, 1}}, apart{room.data(), {2, 20, 8}, {320, 16, 2}};
  const auto to = dense_view(dense.data(), 2, 20, 8);
  REQUIRE(chunk->components(KvSide::keys, 0, view) == Status::ok);
  REQUIRE(chunk->expand(1, KvSide::keys, 0, view, to) == Status::ok);
  REQUIRE(chunk->expand(1, KvSide::keys, 0, gaps, to) == Status::shape_mismatch);
  REQUIRE(chunk->expand(1, KvSide::keys, 0, view, apart) == Status::shape_mismatch);
  REQUIRE(chunk->decode(1, KvSide::keys, 0, apart, Scratch(work)) == Status::shape_mismatch);
  for (const float v : room) REQUIRE(v == 7.0f);
  REQUIRE(chunk->decode(1, KvSide::keys, 0, rows, Scratch(work)) == Status::ok);
  for (index_t h = 0; h < 2; ++h)
    for (index_t i = 0; i < 20; ++i)
      for (index_t d = 0; d < 16; ++d) REQUIRE(room[static_cast<std::size_t>((h * 20 + i) * 16 + d)] == (d < 8 ? to(h, i, d) : 7.0f));
}

TEST_CASE("kvtc chunk: keys are turned back before they are coded, and forth when they are read", "[io][kvtc]") {
  const TurnedRows x(of_rank(small, 64, 4, 0.0), GENERATE(prim::RopePairing::half_split, prim::RopePairing::interleaved));
  const Rows4 &raw = x.raw, &rotated = x.rotated;
  JointBases bases(raw);
  bases.form = KeyForm::raw;
  const auto t = bases.of(small);
  Kvtc m = with(8.0f);
  m.rank = 4;  // all that raw keys need, and far less than rotated ones
  const double size = square_distance(raw.keys, std::vector<float>(raw.keys.size()));
  const Bytes turned = kvtc_chunk(rotated, m, t, &x.rope, false, x.place), kept = kvtc_chunk(raw, m, t, nullptr, false, x.of_raw);
  REQUIRE(square_distance(decode_all(turned, t, &x.rope).keys, rotated.keys) < 3e-4 * size);
  REQUIRE(square_distance(decode_all(kept, t).keys, raw.keys) < 3e-4 * size);
  REQUIRE(square_distance(decode_all(kvtc_chunk(rotated, m, t, nullptr, false, x.of_raw), t).keys, rotated.keys) > 1e-2 * size);
  // Exact tokens are never turned.
  REQUIRE(square_distance(decode_all(kvtc_chunk(rotated, m, t, &x.rope, true, x.place), t, &x.rope).keys, rotated.keys) < 1e-6 * size);

  // A transform of rotated keys says nothing of raw ones.
  bases.form = KeyForm::rotated;
  require_rope_told<KvtcWriter, KvtcReader>(x, turned, m, t, bases.of(small));
}

TEST_CASE("kvtc chunk: NaN and infinities are repaired and counted", "[io][kvtc]") {
  const Rows4 x(small, 40);
  const JointBases bases(x);
  const auto t = bases.of(small);
  const bool exact = GENERATE(false, true);
  require_repaired(decode_all(repaired_chunk<KvtcWriter>(x, with(8.0f), t, exact), t), exact, bases.mean[0][0]);
}

TEST_CASE("kvtc chunk: a calibration that shows few directions, or none", "[io][kvtc]") {
  const CacheShape shape{.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 6};
  const Rows4 flat = of_rank(shape, 30, 2, 0.0);
  const JointBases two(flat);
  REQUIRE(two.columns[0] == 2);
  const auto t = two.of(shape);
  REQUIRE(square_distance(decode_all(kvtc_chunk(flat, with(8.0f), t), t).keys, flat.keys) <
          1e-3 * square_distance(flat.keys, std::vector<float>(flat.keys.size())));
  Rows4 same(shape, 30);
  std::fill(same.keys.begin(), same.keys.end(), 1.25f), std::fill(same.values.begin(), same.values.end(), -0.5f);
  const JointBases none(same);
  const auto nothing = none.of(shape);
  REQUIRE(nothing.used(KvSide::keys) == 0);
  const Decoded d = decode_all(kvtc_chunk(same, with(8.0f), nothing), nothing);
  REQUIRE(d.keys == same.keys);
  REQUIRE(d.values == same.values);
}

TEST_CASE("kvtc chunk: every field changes the bytes", "[io][kvtc]") {
  const Rows4 x(small, 80);
  const JointBases bases(x);
  const auto t = bases.of(small);
  const Bytes base = kvtc_chunk(x, with(2.0f), t);
  const auto differs = [&](auto&& change) {
    Kvtc m = with(2.0f);
    change(m);
    return kvtc_chunk(x, m, t) != base;
  };
  REQUIRE(!differs([](Kvtc&) {}));
  REQUIRE(differs([](Kvtc& m) { m.key_bits = 3.0f; }));
  REQUIRE(differs([](Kvtc& m) { m.value_bits = 3.0f; }));
  REQUIRE(differs([](Kvtc& m) { m.rank = 3; }));
  REQUIRE(differs([](Kvtc& m) { m.blocks = {4, 0, 0, 0, 0}; }));
  REQUIRE(differs([](Kvtc& m) { m.error[1] = HUGE_VAL; }));
  REQUIRE(differs([](Kvtc& m) { m.sub_chunk = 31; }));
  REQUIRE(differs([](Kvtc& m) { m.coder = EntropyCoder::rans; }));
  const auto types = [&](const Kvtc& m) {
    const auto writer = KvtcWriter::make(m, small, t);
    bool used[quant::kvtc_types] = {};
    for (const auto& b : writer->plan(KvSide::keys)) used[static_cast<std::size_t>(b.type)] = true;
    return std::vector<bool>(used, used + quant::kvtc_types);
  };
  Kvtc fp8 = with(4.0f);
  fp8.error[3] = HUGE_VAL, fp8.error[2] = HUGE_VAL;
  REQUIRE(types(fp8)[4]);
  REQUIRE(!types(fp8)[3]);
  const double error = square_distance(x.keys, decode_all(kvtc_chunk(x, fp8, t), t).keys);
  REQUIRE(error < 0.2 * square_distance(x.keys, std::vector<float>(x.keys.size())));
}

TEST_CASE("kvtc chunk: another transform is refused", "[io][kvtc]") {
  const Rows4 x(small, 40);
  const JointBases bases(x), others(Rows4(small, 40, 5));
  const auto t = bases.of(small);
  const bool exact = GENERATE(false, true);
  const Bytes bytes = kvtc_chunk(x, with(2.0f), t, nullptr, exact);
  REQUIRE(KvtcReader::open(bytes, others.of(small)).status() == Status::incompatible);
  for (const int what : {0, 1, 2}) {
    JointBases changed = bases;
    (what == 0 ? changed.encode[0] : what == 1 ? changed.mean[1] : changed.energy[0])[1] *= 1.0f - 0x1p-20f;
    REQUIRE(KvtcReader::open(bytes, changed.of(small)).status() == Status::incompatible);
  }
  CacheShape wide = small;
  wide.layers = 4;
  REQUIRE(KvtcReader::open(bytes, JointBases(Rows4(wide, 40)).of(wide)).status() == Status::incompatible);
  REQUIRE(KvtcWriter::make(with(2.0f), wide, t).status() == Status::shape_mismatch);
}

TEST_CASE("kvtc chunk: transforms that are none are refused", "[io][kvtc]") {
  const JointBases bases(Rows4(small, 40));
  const HeadBases k = bases.side(KvSide::keys), v = bases.side(KvSide::values);
  const auto made = [&](HeadBases keys) { return KvtcTransform::make(keys, v, small).status(); };
  REQUIRE(made(k) == Status::ok);
  HeadBases bad = k;
  bad.energy = nullptr;
  REQUIRE(made(bad) == Status::missing_input);
  REQUIRE(made({}) == Status::missing_input);
  bad = k, bad.layers = 3, bad.dim /= 3;
  REQUIRE(made(bad) == Status::shape_mismatch);
  bad = k, bad.columns = 0;
  REQUIRE(made(bad) == Status::shape_mismatch);
  bad = k, bad.columns = bad.dim + 1;
  REQUIRE(made(bad) == Status::shape_mismatch);
  bad = k, bad.groups = 2;
  REQUIRE(made(bad) == Status::shape_mismatch);
  bad = k, bad.dim -= 1;
  REQUIRE(made(bad) == Status::shape_mismatch);
  JointBases nan = bases;
  nan.encode[0][5] = std::nanf("");
  REQUIRE(made(nan.side(KvSide::keys)) == Status::invalid_argument);
  JointBases up = bases;
  std::swap(up.energy[0][0], up.energy[0][3]);
  REQUIRE(made(up.side(KvSide::keys)) == Status::invalid_argument);
  up = bases, up.energy[0].back() = -1.0f;
  REQUIRE(made(up.side(KvSide::keys)) == Status::invalid_argument);
  REQUIRE(KvtcTransform::make(k, v, {.layers = 0}).status() == Status::invalid_argument);
}

namespace {

struct Tiny {
  CacheShape shape{.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 3};
  Rows4 x{shape, 12};
  JointBases bases{x};
  KvtcTransform t = bases.of(shape);
  Kvtc method;
  Tiny() {
    method.key_bits = method.value_bits = 6.0f, method.sub_chunk = 7, method.blocks = {1, 2, 0, 0, 0};
    method.error[3] = HUGE_VAL, method.error[4] = HUGE_VAL;
  }
};

}  // namespace

TEST_CASE("kvtc chunk: cut anywhere, or with any bit another one, it is refused", "[io][kvtc]") {
  Tiny tiny;
  tiny.method.coder = GENERATE(EntropyCoder::range, EntropyCoder::rans);
  require_damage_told<KvtcReader>(kvtc_chunk(tiny.x, tiny.method, tiny.t, nullptr, GENERATE(false, true)), tiny.t);
}

TEST_CASE("kvtc chunk: forged bytes with right checksums never lead outside", "[io][kvtc]") {
  Tiny tiny;
  tiny.method.coder = GENERATE(EntropyCoder::range, EntropyCoder::rans);
  tiny.method.error[2] = GENERATE(0.0116, HUGE_VAL);
  if (tiny.method.error[2] == HUGE_VAL) tiny.method.error[4] = 7e-4, tiny.method.key_bits = 8.0f;  // fp8 has codes that are no numbers
  const bool exact = GENERATE(false, true);
  const Bytes good = kvtc_chunk(tiny.x, tiny.method, tiny.t, nullptr, exact);
  std::size_t accepted = 0, refused = 0;
  for (std::size_t i = 0; i < good.size(); ++i)
    for (const int value : {0x00, 0x01, 0x02, 0x7c, 0x7f, 0x80, 0xfe, 0xff}) {
      Bytes forged = good;
      forged[i] = static_cast<std::byte>(value);
      sign(forged, 2);
      const auto chunk = KvtcReader::open(forged, tiny.t);
      if (!chunk) {
        ++refused;
        continue;
      }
      const io::KvtcHead& h = chunk->head();
      std::vector<float> room(static_cast<std::size_t>(std::min<index_t>(h.sub_chunk, h.tokens) * h.kv_heads * 256));
      for (const KvSide side : {KvSide::keys, KvSide::values}) {
        Workspace work;
        REQUIRE(chunk->scratch_bytes(side) < 1u << 16);
        REQUIRE(work.reserve(chunk->scratch_bytes(side)) == Status::ok);
        for (index_t l = 0; l < h.layers; ++l)
          for (index_t sub = 0; sub < std::min<index_t>(h.sub_chunks(), 50); ++sub) {
            const auto out = dense_view(room.data(), h.kv_heads, h.tokens_of(sub), h.dim(side));
            const Status s = chunk->decode(l, side, sub, out, Scratch(work.bytes()));
            REQUIRE((s == Status::ok || s == Status::corrupt_data));
            (s == Status::ok ? accepted : refused) += 1;
            if (s == Status::ok)
              for (index_t k = 0; k < out.size(); ++k) REQUIRE(std::isfinite(room[static_cast<std::size_t>(k)]));
          }
      }
    }
  REQUIRE(accepted > 100);
  REQUIRE(refused > 100);
}

TEST_CASE("kvtc chunk: few bytes do not claim many tokens", "[io][kvtc]") {
  Tiny tiny;
  tiny.method.key_bits = tiny.method.value_bits = 0.0f;
  Bytes bytes = kvtc_chunk(tiny.x, tiny.method, tiny.t);
  REQUIRE(KvtcReader::open(bytes, tiny.t)->component_count(KvSide::keys).status() == Status::ok);
  const std::uint32_t many = 0x7ffffff;
  const std::uint64_t total = many;
  std::memcpy(bytes.data() + 32, &many, 4), std::memcpy(bytes.data() + 56, &total, 8);
  sign(bytes, 2);
  const auto chunk = KvtcReader::open(bytes, tiny.t);
  REQUIRE(chunk);
  REQUIRE(chunk->head().tokens == many);
  REQUIRE(chunk->component_count(KvSide::keys).status() == Status::corrupt_data);
}

TEST_CASE("kvtc chunk: parts may not change places", "[io][kvtc]") {
  const Tiny tiny;
  const Bytes good = kvtc_chunk(tiny.x, tiny.method, tiny.t, nullptr, true);
  const auto middle = static_cast<std::ptrdiff_t>(88 + (good.size() - 88) / 2);  // both are as long
  Bytes swapped(good.begin(), good.begin() + 88);
  swapped.insert(swapped.end(), good.begin() + middle, good.end());
  swapped.insert(swapped.end(), good.begin() + 88, good.begin() + middle);
  const auto chunk = KvtcReader::open(swapped, tiny.t);
  REQUIRE(chunk);
  REQUIRE(chunk->check(KvSide::keys) == Status::corrupt_data);
  REQUIRE(chunk->check(KvSide::values) == Status::corrupt_data);
}

TEST_CASE("kvtc chunk: wrong calls are refused", "[io][kvtc]") {
  const Rows4 x(small, 40);
  const JointBases bases(x);
  const auto t = bases.of(small);
  const Bytes bytes = kvtc_chunk(x, with(2.0f), t);
  const auto chunk = KvtcReader::open(bytes, t);
  std::vector<float> room(4096);
  Workspace work;
  REQUIRE(work.reserve(chunk->scratch_bytes(KvSide::keys)) == Status::ok);
  const auto decode = [&](index_t l, KvSide side, index_t sub, index_t heads, index_t n, index_t dim) {
    return chunk->decode(l, side, sub, dense_view(room.data(), heads, n, dim), Scratch(work.bytes()));
  };
  REQUIRE(decode(0, KvSide::keys, 0, 2, 32, 8) == Status::ok);
  REQUIRE(decode(-1, KvSide::keys, 0, 2, 32, 8) == Status::out_of_range);
  REQUIRE(decode(3, KvSide::keys, 0, 2, 32, 8) == Status::out_of_range);
  REQUIRE(decode(0, KvSide::keys, 2, 2, 32, 8) == Status::out_of_range);
  REQUIRE(decode(0, KvSide::values, 0, 2, 32, 8) == Status::shape_mismatch);
  REQUIRE(decode(0, KvSide::keys, 1, 2, 32, 8) == Status::shape_mismatch);
  REQUIRE(chunk->decode(0, KvSide::keys, 0, dense_view(room.data(), 2, 32, 8), {}) == Status::workspace_too_small);
  const TensorView<float, 2> thin{room.data(), {32, 1}, {1, 1}};
  REQUIRE(chunk->components(KvSide::keys, 0, thin) == Status::shape_mismatch);
  REQUIRE(chunk->components(KvSide::keys, 9, thin) == Status::out_of_range);
  REQUIRE(chunk->components(KvSide::keys, -1, thin) == Status::out_of_range);
  const TensorView<float, 2> shorter{room.data(), {31, *chunk->component_count(KvSide::keys)}, {16, 1}};
  REQUIRE(chunk->components(KvSide::keys, 0, shorter) == Status::shape_mismatch);
  REQUIRE(decode(0, KvSide::keys, -1, 2, 32, 8) == Status::out_of_range);
  const auto expand = [&](index_t l, index_t sub, index_t heads, index_t n, index_t columns) {
    return chunk->expand(l, KvSide::keys, sub, dense_view(std::as_const(room).data(), n, columns), dense_view(room.data() + 1024, heads, 32, 8));
  };
  REQUIRE(expand(0, 0, 2, 32, 1) == Status::ok);
  REQUIRE(expand(-1, 0, 2, 32, 1) == Status::out_of_range);
  REQUIRE(expand(3, 0, 2, 32, 1) == Status::out_of_range);
  REQUIRE(expand(0, -1, 2, 32, 1) == Status::out_of_range);
  REQUIRE(expand(0, 2, 2, 32, 1) == Status::out_of_range);
  REQUIRE(expand(0, 0, 1, 32, 1) == Status::shape_mismatch);
  REQUIRE(expand(0, 0, 2, 31, 1) == Status::shape_mismatch);
  REQUIRE(expand(0, 0, 2, 32, -1) == Status::shape_mismatch);
  Kvtc bad = with(2.0f);
  bad.sub_chunk = 0;
  REQUIRE(KvtcWriter::make(bad, small, t).status() == Status::invalid_argument);
  REQUIRE(KvtcWriter::make({}, {.layers = 0}, t).status() == Status::invalid_argument);
  auto writer = KvtcWriter::make({}, small, t);
  const auto none = [](index_t, index_t, auto, auto) { return Status::ok; };
  ByteList sink;
  constexpr index_t far = std::numeric_limits<index_t>::max();  // twice that is negative
  for (const io::StreamPlace& p : {io::StreamPlace{.tokens = -1}, {.tokens = 2, .total = 1}, {.tokens = 1, .first = 1, .total = 1},
                                   {.tokens = 1, .total = 1, .position = -1}, {.tokens = 1, .total = 1, .position = 0x7fffffff},
                                   {.tokens = far, .first = far, .position = far}, {.tokens = far}, {.first = far}})
    REQUIRE(writer->write(sink, p, false, none) == Status::invalid_argument);
  REQUIRE(sink.bytes.empty());
  REQUIRE(writer->write(sink, {.tokens = 1, .total = 1}, false,
                        [](index_t l, index_t, auto, auto) { return l == 1 ? Status::io_error : Status::ok; }) == Status::io_error);
}

TEST_CASE("kvtc chunk: sinks that stop and memory that is refused", "[io][kvtc][faults]") {
  const Rows4 x(small, 40);
  const JointBases bases(x);
  const auto t = bases.of(small);
  require_faults_told<KvtcWriter>(x, with(2.0f), t, GENERATE(false, true));
}
