// Chunks in the caller's arrays: what a reader gets back, and what it does with bytes that are no chunk.

#include <io/cachegen_data.hpp>
#include <support/memory.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using io::CacheGenReader;
using io::CacheGenWriter;
using io::KvSide;
using quant::CacheGen;
using quant::EntropyCoder;
using quant::CacheGenForm;

namespace {

const CacheShape small{.layers = 3, .q_heads = 2, .kv_heads = 2, .head_dim = 8, .value_dim = 6};

CacheGen with(CacheGenForm form, EntropyCoder coder = EntropyCoder::range) {
  CacheGen c;
  c.form = form, c.coder = coder;
  return c;
}

/// Half a step of a token's scale is the most that `scaled` may err, and storing the scale.
void require_close(const Rows4& x, const Decoded& d, const CacheGen& method) {
  for (const auto side : {KvSide::keys, KvSide::values})
    for (index_t l = 0; l < x.shape.layers; ++l) {
      const auto rows = x.rows(side, l);
      const auto& all = side == KvSide::keys ? d.keys : d.values;
      const auto back = dense_view(all.data() + l * rows.size(), rows.extent[0], rows.extent[1], rows.extent[2]);
      const int middle = method.bins(side == KvSide::keys, l, x.shape.layers) / 2 - 1;
      double square = 0, error = 0;
      for (index_t t = 0; t < x.tokens; ++t) {
        index_t ignored = 0;
        const float bound = bitstream::token_most(rows, t, ignored) * (0.5f / static_cast<float>(middle) + 0x1p-10f);
        for (index_t h = 0; h < rows.extent[0]; ++h)
          for (index_t i = 0; i < rows.extent[2]; ++i) {
            const float e = std::fabs(rows(h, t, i) - back(h, t, i));
            square += static_cast<double>(rows(h, t, i)) * static_cast<double>(rows(h, t, i)), error += static_cast<double>(e) * static_cast<double>(e);
            if (method.form == CacheGenForm::scaled && !(e <= bound)) FAIL("layer " << l << ", token " << t << ": " << e << " above " << bound);
          }
      }
      INFO("layer " << l << ", error " << error << " of " << square);
      REQUIRE((method.form == CacheGenForm::scaled || error <= 0.25 * square));  // steps of 1.5 deviations
    }
}

}  // namespace

TEST_CASE("cachegen chunk: heads of every size, both forms and coders", "[io][cachegen]") {
  const index_t dim = GENERATE(1, 64, 80, 96, 112, 128, 256);
  const index_t tokens = GENERATE(1, 2, 37);
  const Rows4 x({.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = dim}, tokens);
  for (const auto form : {CacheGenForm::scaled, CacheGenForm::delta}) {
    CacheGen method = with(form);
    method.sub_chunk = 16;
    const Decoded range = decode_all(x.chunk(method));
    if (dim > 1) require_close(x, range, method);
    method.coder = EntropyCoder::rans;
    REQUIRE(decode_all(x.chunk(method)) == range);
    method.tables = quant::CacheGenTables::per_layer;
    REQUIRE(decode_all(x.chunk(method)) == range);
    method.coder = EntropyCoder::range;
    REQUIRE(decode_all(x.chunk(method)) == range);
  }
}

TEST_CASE("cachegen chunk: no tokens, and lengths around a sub-chunk", "[io][cachegen]") {
  const index_t tokens = GENERATE(0, 1, 9, 10, 11, 15, 16, 17, 32, 33, 100);
  const auto form = GENERATE(CacheGenForm::scaled, CacheGenForm::delta);
  const auto coder = GENERATE(EntropyCoder::range, EntropyCoder::rans);
  const Rows4 x(small, tokens);
  CacheGen method = with(form, coder);
  method.sub_chunk = GENERATE(1, 16, 4096);
  const Bytes bytes = x.chunk(method);
  require_close(x, decode_all(bytes), method);
  // What comes behind does not matter, what is missing does.
  Bytes longer = bytes;
  longer.resize(bytes.size() + 3);
  const auto chunk = CacheGenReader::open(longer);
  REQUIRE(chunk.status() == Status::ok);
  REQUIRE(chunk->bytes() == bytes.size());
}

TEST_CASE("cachegen chunk: no stream is longer than its cross entropy and 5 bytes", "[io][cachegen]") {
  const Rows4 x({.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 32}, 200);
  CacheGen method;
  method.sub_chunk = 64;
  method.coder = GENERATE(EntropyCoder::range, EntropyCoder::rans);
  const Bytes bytes = x.chunk(method);
  const auto chunk = CacheGenReader::open(bytes);
  REQUIRE(chunk.status() == Status::ok);
  for (index_t l = 0; l < 2; ++l)
    for (const auto side : {KvSide::keys, KvSide::values}) {
      io::CacheGenPart part;
      REQUIRE(chunk->read_part(l, side, part) == Status::ok);
      REQUIRE(part.symbols == method.bins(side == KvSide::keys, l, 2));
      const int middle = part.symbols / 2 - 1;
      for (index_t c = 0; c < 64; ++c) {
        std::uint16_t starts[bitstream::max_symbols];
        bitstream::SymbolTable t;
        REQUIRE(CacheGenReader::table(part, c, chunk->head().table_bits(), starts, t) == Status::ok);
        for (index_t sub = 0; sub < 4; ++sub) {
          double bits = 0;
          for (index_t i = 0; i < chunk->head().tokens_of(sub); ++i) {
            index_t ignored = 0;
            const float most = bitstream::token_most(x.rows(side, l), sub * 64 + i, ignored);
            const auto steps = bitstream::TokenSteps::fit(middle, DType::f16, most);
            const int s = steps.symbol(x.rows(side, l)(c / 32, sub * 64 + i, c % 32));
            bits += t.bits - std::log2(static_cast<double>(t.end(s) - t.begin(s)));
          }
          REQUIRE(static_cast<double>(part.stream(sub * 64 + c).size()) <= bits / 8 + 5);
        }
      }
    }
}

TEST_CASE("cachegen chunk: every field changes the bytes", "[io][cachegen]") {
  const Rows4 x(small, 50);
  CacheGen base;
  base.sub_chunk = 32;
  CacheGen delta = base;
  delta.form = CacheGenForm::delta;
  const auto differs = [&](const CacheGen& from, auto&& change) {
    CacheGen c = from;
    change(c);
    return x.chunk(c) != x.chunk(from);
  };
  REQUIRE(differs(base, [](CacheGen& c) { c.form = CacheGenForm::delta; }));
  REQUIRE(differs(base, [](CacheGen& c) { c.coder = EntropyCoder::rans; }));
  REQUIRE(differs(base, [](CacheGen& c) { c.tables = quant::CacheGenTables::per_layer; }));
  REQUIRE(differs(base, [](CacheGen& c) { c.scales = DType::f32; }));
  REQUIRE(differs(base, [](CacheGen& c) { c.sub_chunk = 31; }));
  REQUIRE(differs(base, [](CacheGen& c) { c.key_bins.first = 64; }));
  REQUIRE(differs(base, [](CacheGen& c) { c.key_bins.third = 12; }));
  REQUIRE(differs(base, [](CacheGen& c) { c.value_bins.first = 12; }));
  REQUIRE(differs(base, [](CacheGen& c) { c.value_bins.second = 12; }));
  REQUIRE(differs(base, [](CacheGen& c) { c.value_bins.first_end = 32; }));
  REQUIRE(differs(delta, [](CacheGen& c) { c.group = 5; }));
  REQUIRE(differs(delta, [](CacheGen& c) { c.widths.first = 0.25f; }));
  REQUIRE(differs(delta, [](CacheGen& c) { c.widths.second = 0.25f; }));
  REQUIRE(differs(delta, [](CacheGen& c) { c.widths.third = 0.25f; }));
}

TEST_CASE("cachegen chunk: more bins and narrower steps err less", "[io][cachegen]") {
  const Rows4 x(small, 120);
  const auto error = [&](const CacheGen& c) {
    const Decoded d = decode_all(x.chunk(c));
    double sum = 0;
    for (std::size_t i = 0; i < d.keys.size(); ++i) sum += std::pow(static_cast<double>(d.keys[i] - x.keys[i]), 2);
    return sum;
  };
  REQUIRE(error(CacheGen::level(1)) > error(CacheGen::level(2)));
  REQUIRE(error(CacheGen::level(2)) > error(CacheGen::level(3)));
  REQUIRE(x.chunk(CacheGen::level(1)).size() < x.chunk(CacheGen::level(3)).size());
  CacheGen fine = with(CacheGenForm::delta), coarse = fine;
  fine.widths.first = 0.2f;
  coarse.widths.first = 2.0f;
  REQUIRE(error(fine) < error(with(CacheGenForm::delta)));
  REQUIRE(error(with(CacheGenForm::delta)) < error(coarse));
}

TEST_CASE("cachegen chunk: NaN and infinities are repaired and counted", "[io][cachegen]") {
  const auto form = GENERATE(CacheGenForm::scaled, CacheGenForm::delta);
  Rows4 x(small, 12);
  x.keys[0] = std::nanf(""), x.keys[100] = INFINITY, x.values[7] = -INFINITY;
  auto writer = CacheGenWriter::make(with(form), small);
  ByteList sink;
  REQUIRE(x.write(*writer, sink) == Status::ok);
  REQUIRE(writer->repaired() == 3);
  const Decoded d = decode_all(sink.bytes);
  for (const float v : d.keys) REQUIRE(std::isfinite(v));
  for (const float v : d.values) REQUIRE(std::isfinite(v));
}

TEST_CASE("cachegen chunk: tables of another chunk", "[io][cachegen]") {
  const auto form = GENERATE(CacheGenForm::scaled, CacheGenForm::delta);
  const auto coder = GENERATE(EntropyCoder::range, EntropyCoder::rans);
  const auto share = GENERATE(quant::CacheGenTables::per_channel, quant::CacheGenTables::per_layer);
  CacheGen method = with(form, coder);
  method.tables = share;
  const Bytes profile = Rows4(small, 300, 5).chunk(method);
  const auto from = CacheGenReader::open(profile);
  ByteList kept;
  REQUIRE(save_cachegen_tables(*from, kept) == Status::ok);
  REQUIRE(kept.bytes.size() < profile.size());
  const auto tables = CacheGenReader::open(kept.bytes);
  REQUIRE(tables.status() == Status::ok);
  REQUIRE(tables->check() == Status::ok);
  REQUIRE(tables->tables_id() == from->tables_id());
  REQUIRE(decode_all(kept.bytes).keys.empty());

  Rows4 x(small, 40, 9);
  x.keys[3] = 300.0f;  // nothing like it was profiled
  const Bytes here = x.chunk(method), short_one = x.chunk(method, &*tables);
  REQUIRE(short_one.size() < here.size());
  REQUIRE(x.chunk(method, &*from) == short_one);
  const Decoded d = decode_all(short_one, &*tables);
  if (form == CacheGenForm::scaled) {
    require_close(x, d, method);
    REQUIRE(d == decode_all(here));
  }

  REQUIRE(CacheGenReader::open(short_one).status() == Status::missing_input);
  const Bytes strange = Rows4(small, 300, 6).chunk(method);
  const auto other = CacheGenReader::open(strange);
  REQUIRE(CacheGenReader::open(short_one, &*other).status() == Status::incompatible);
  const auto borrowed = CacheGenReader::open(short_one, &*tables);
  REQUIRE(CacheGenReader::open(short_one, &*borrowed).status() == Status::incompatible);
  REQUIRE(CacheGenWriter::make(method, small, &*borrowed).status() == Status::incompatible);
  REQUIRE(save_cachegen_tables(*borrowed, kept) == Status::invalid_argument);
  CacheShape wide = small;
  wide.head_dim = 16;
  REQUIRE(CacheGenWriter::make(method, wide, &*tables).status() == Status::incompatible);
  CacheGen bins = method;
  bins.key_bins.first = 64;
  if (form == CacheGenForm::scaled) REQUIRE(CacheGenWriter::make(bins, small, &*tables).status() == Status::incompatible);
}

TEST_CASE("cachegen chunk: cut anywhere, or with any byte another one, it is refused", "[io][cachegen]") {
  CacheGen method = with(GENERATE(CacheGenForm::scaled, CacheGenForm::delta), GENERATE(EntropyCoder::range, EntropyCoder::rans));
  method.sub_chunk = 7, method.group = 3;
  method.key_bins.first = method.key_bins.second = method.key_bins.third = 4;
  const Rows4 x({.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 3}, 12);
  const Bytes good = x.chunk(method);
  for (std::size_t n = 0; n < good.size(); ++n)
    REQUIRE(CacheGenReader::open(std::span(good).first(n)).status() == Status::corrupt_data);
  for (std::size_t i = 0; i < good.size(); ++i)
    for (int bit = 0; bit < 8; ++bit) {
      Bytes bad = good;
      bad[i] ^= static_cast<std::byte>(1 << bit);
      const auto chunk = CacheGenReader::open(bad);
      const Status s = chunk ? chunk->check() : chunk.status();
      REQUIRE((s == Status::corrupt_data || (s == Status::incompatible && i >= 4 && i < 8)));
    }
}

TEST_CASE("cachegen chunk: forged bytes with right checksums never lead outside", "[io][cachegen]") {
  CacheGen method = with(GENERATE(CacheGenForm::scaled, CacheGenForm::delta), GENERATE(EntropyCoder::range, EntropyCoder::rans));
  method.sub_chunk = 7, method.group = 3;
  method.tables = GENERATE(quant::CacheGenTables::per_channel, quant::CacheGenTables::per_layer);
  const Rows4 x({.layers = 2, .q_heads = 1, .kv_heads = 1, .head_dim = 3}, 12);
  const Bytes good = x.chunk(method);
  std::size_t accepted = 0, opened = 0;
  for (std::size_t i = 0; i < good.size(); ++i)
    for (const int value : {0x00, 0x01, 0x02, 0x7f, 0x80, 0xfe, 0xff}) {
      Bytes forged = good;
      forged[i] = static_cast<std::byte>(value);
      sign(forged);
      const auto chunk = CacheGenReader::open(forged);
      if (!chunk) continue;
      ++opened;
      const io::CacheGenHead& h = chunk->head();
      const auto most = static_cast<std::size_t>(h.sub_chunk < h.tokens ? h.sub_chunk : h.tokens) * static_cast<std::size_t>(h.kv_heads) * 256;
      if (h.layers > 100 || most > 1u << 20) continue;  // honest shapes of parts that are not there are refused below
      std::vector<float> room(most);
      for (index_t l = 0; l < h.layers; ++l)
        for (const auto side : {KvSide::keys, KvSide::values})
          for (index_t sub = 0; sub < std::min<index_t>(h.sub_chunks(), 50); ++sub) {
            const auto out = dense_view(room.data(), h.kv_heads, h.tokens_of(sub), h.dim(side));
            const Status s = chunk->decode(l, side, sub, out);
            REQUIRE((s == Status::ok || s == Status::corrupt_data));
            accepted += s == Status::ok;
            if (s == Status::ok)
              for (index_t k = 0; k < out.size(); ++k) REQUIRE(std::isfinite(room[static_cast<std::size_t>(k)]));
          }
    }
  REQUIRE(opened > good.size());
  REQUIRE(accepted > 0);
}

TEST_CASE("cachegen chunk: parts may not change places", "[io][cachegen]") {
  const Rows4 x({.layers = 2, .q_heads = 1, .kv_heads = 1, .head_dim = 4}, 9);
  CacheGen method = CacheGen::level(3);
  const Bytes good = x.chunk(method);
  std::vector<std::size_t> at{88};
  for (int p = 0; p < 4; ++p) {
    std::uint64_t length = 0;
    std::memcpy(&length, good.data() + at.back(), 8);
    at.push_back(at.back() + length);
  }
  REQUIRE(at.back() == good.size());
  Bytes swapped(good.begin(), good.begin() + 88);
  for (const int p : {2, 1, 0, 3})
    swapped.insert(swapped.end(), good.begin() + static_cast<std::ptrdiff_t>(at[static_cast<std::size_t>(p)]),
                   good.begin() + static_cast<std::ptrdiff_t>(at[static_cast<std::size_t>(p) + 1]));
  const auto chunk = CacheGenReader::open(swapped);
  REQUIRE(chunk.status() == Status::ok);
  REQUIRE(chunk->check(0, KvSide::keys) == Status::corrupt_data);
  REQUIRE(chunk->check(0, KvSide::values) == Status::ok);
  REQUIRE(chunk->check(1, KvSide::keys) == Status::corrupt_data);
}

TEST_CASE("cachegen chunk: wrong calls are refused", "[io][cachegen]") {
  const Rows4 x(small, 20);
  const Bytes bytes = x.chunk({});
  const auto chunk = CacheGenReader::open(bytes);
  std::vector<float> room(4096);
  const auto out = dense_view(room.data(), 2, 20, 8);
  REQUIRE(chunk->decode(0, KvSide::keys, 0, out) == Status::ok);
  REQUIRE(chunk->decode(-1, KvSide::keys, 0, out) == Status::out_of_range);
  REQUIRE(chunk->decode(3, KvSide::keys, 0, out) == Status::out_of_range);
  REQUIRE(chunk->decode(0, KvSide::keys, 1, out) == Status::out_of_range);
  REQUIRE(chunk->decode(0, KvSide::values, 0, out) == Status::shape_mismatch);
  REQUIRE(chunk->decode(0, KvSide::keys, 0, dense_view(room.data(), 2, 19, 8)) == Status::shape_mismatch);
  REQUIRE(chunk->check(3, KvSide::keys) == Status::out_of_range);
  REQUIRE(chunk->check(-1, KvSide::keys) == Status::out_of_range);
  REQUIRE(chunk->decode(0, KvSide::keys, -1, out) == Status::out_of_range);
  REQUIRE(chunk->decode(0, KvSide::keys, 0, dense_view(room.data(), 1, 20, 8)) == Status::shape_mismatch);
  CacheGen odd;
  odd.key_bins.first = 5;
  REQUIRE(CacheGenWriter::make(odd, small).status() == Status::invalid_argument);
  REQUIRE(CacheGenWriter::make({}, {.layers = 0}).status() == Status::invalid_argument);
  auto writer = CacheGenWriter::make({}, small);
  const auto none = [](index_t, auto, auto) { return Status::ok; };
  ByteList sink;
  for (const io::StreamPlace& p : {io::StreamPlace{.tokens = -1}, {.tokens = 2, .total = 1}, {.tokens = 1, .first = 1, .total = 1},
                                         {.tokens = 1, .total = 1, .position = -1}, {.tokens = 1, .total = 1, .position = 0x7fffffff}})
    REQUIRE(writer->write(sink, p, none) == Status::invalid_argument);
  REQUIRE(sink.bytes.empty());
  REQUIRE(writer->write(sink, {.tokens = 1, .total = 1}, [](index_t l, auto, auto) { return l == 1 ? Status::io_error : Status::ok; }) == Status::io_error);
}

TEST_CASE("cachegen chunk: sinks that stop and memory that is refused", "[io][cachegen][faults]") {
  const Rows4 x(small, 20);
  const CacheGen method = with(GENERATE(CacheGenForm::scaled, CacheGenForm::delta));
  const Bytes good = x.chunk(method);
  for (std::size_t room = 0; room < good.size(); room += 7) {
    auto writer = CacheGenWriter::make(method, small);
    ByteList sink;
    sink.room = room;
    REQUIRE(x.write(*writer, sink) == Status::io_error);
  }
  CountingMemory memory;
  for (long n = 0;; ++n) {
    auto writer = CacheGenWriter::make(method, small, nullptr, memory);
    REQUIRE(writer.status() == Status::ok);
    memory.refuse_from = memory.requests + n;
    ByteList sink;
    const Status s = x.write(*writer, sink);
    memory.refuse_from = -1;
    if (s == Status::ok) {
      REQUIRE(sink.bytes == good);
      break;
    }
    REQUIRE(s == Status::out_of_memory);
  }
  REQUIRE(memory.live_bytes == 0);
  REQUIRE(memory.wrong_releases == 0);
}
