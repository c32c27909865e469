#include <fuzz/fuzz.hpp>

#include <algorithm>
#include <array>
#include <cmath>

#include <kvcondense/bitstream/range_coder.hpp>
#include <kvcondense/bitstream/rans.hpp>
#include <kvcondense/io/cachegen.hpp>
#include <io/cachegen_data.hpp>

namespace kvcondense::fuzz {
namespace {

using io::CacheGenReader;
using io::KvSide;

template <class Coder>
void decode(Reader in) {
  std::array<std::uint32_t, 17> counts{};
  for (auto& c : counts) c = in.byte();
  std::array<std::uint16_t, 17> starts{};
  REQUIRE(bitstream::make_table(counts, Coder::table_bits, starts) == Status::ok);
  const std::size_t n = in.take<std::uint16_t>() % 2048;
  std::size_t used = 0;
  const Status s = Coder::decode(in.rest(), {starts.data(), 17, Coder::table_bits}, n, [&](std::size_t i, int symbol) {
    REQUIRE(i < n);
    REQUIRE((symbol >= 0 && symbol < 17));
    ++used;
  });
  REQUIRE((s == Status::corrupt_data || (s == Status::ok && used == n)));
}

/// Every part that it says it has, as far as a test has time.
void read_chunk(Bytes bytes) {
  const auto chunk = CacheGenReader::open(bytes);
  if (!chunk) return;
  const io::CacheGenHead& h = chunk->head();
  const auto tokens = std::min<index_t>(h.sub_chunk, h.tokens);
  if (h.layers > 8 || tokens > 256 || h.kv_heads > 16) return;
  std::vector<float> room(static_cast<std::size_t>(tokens * h.kv_heads * max_head_dim));
  for (index_t l = 0; l < h.layers; ++l)
    for (const auto side : {KvSide::keys, KvSide::values}) {
      static_cast<void>(chunk->check(l, side));
      for (index_t sub = 0; sub < std::min<index_t>(h.sub_chunks(), 8); ++sub) {
        const auto out = dense_view(room.data(), h.kv_heads, h.tokens_of(sub), h.dim(side));
        const Status s = chunk->decode(l, side, sub, out);
        REQUIRE((s == Status::ok || s == Status::corrupt_data));
        for (index_t i = 0; s == Status::ok && i < out.size(); ++i) REQUIRE(std::isfinite(room[static_cast<std::size_t>(i)]));
      }
    }
}

// First byte: what the rest is. Chunks as they come, chunks with mended checksums, streams of both coders.
void run(Bytes bytes) {
  Reader in(bytes);
  switch (in.byte() % 4) {
    case 0: read_chunk(in.rest()); break;
    case 1: {
      test::Bytes mended(in.rest().begin(), in.rest().end());
      if (mended.size() >= 104) test::sign(mended);
      read_chunk(mended);
      break;
    }
    case 2: decode<bitstream::RangeCoder>(in); break;
    default: decode<bitstream::Rans>(in); break;
  }
}

std::vector<Input> seeds() {
  std::vector<Input> list;
  for (const auto form : {quant::CacheGenForm::scaled, quant::CacheGenForm::delta})
    for (const auto coder : {quant::EntropyCoder::range, quant::EntropyCoder::rans}) {
      quant::CacheGen method;
      method.form = form, method.coder = coder, method.sub_chunk = 7, method.group = 3;
      const test::Rows4 rows({.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 3}, 12);
      const test::Bytes chunk = rows.chunk(method);
      for (const int kind : {0, 1, 2, 3}) {
        Input one{static_cast<std::byte>(kind)};
        one.insert(one.end(), chunk.begin(), chunk.end());
        list.push_back(one);
      }
    }
  return list;
}

}  // namespace

const Target bitstream{"bitstream", run, seeds};

}  // namespace kvcondense::fuzz
