// cachegen_sizes FILE [PROFILE]: what the keys and values of a recorded context cost as streams of CacheGen, in bits per
// number, beside plain codes, zstd and the entropy. FILE comes from kvcondense-eval --dump-qkv; tables are profiled on
// PROFILE where one is given. docs/results/cachegen.md is its output.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include <kvcondense/io/cachegen.hpp>
#include <stream_sizes.hpp>

namespace {

using namespace sizes;
using quant::CacheGen;

std::vector<std::byte> chunk_of(const eval::Recording& r, const CacheGen& m, const io::CacheGenReader* tables = nullptr) {
  auto writer = io::CacheGenWriter::make(m, r.shape, tables);
  require(writer.status());
  Sink sink;
  require(writer->write(sink, {.tokens = r.tokens, .total = r.tokens}, [&](index_t l, auto k, auto v) {
    fill(r, KvSide::keys, l, 0, k), fill(r, KvSide::values, l, 0, v);
    return Status::ok;
  }));
  return sink.bytes;
}

/// The codes of a context and what they would cost.
struct Codes {
  std::vector<std::uint8_t> by_channel;  ///< one code per byte, sub-chunk by sub-chunk
  double plain = 0, channel_entropy = 0, layer_entropy = 0;  ///< bits
};

double entropy_bits(const std::vector<double>& counts) {
  double total = 0, bits = 0;
  for (const double c : counts) total += c;
  for (const double c : counts) bits += c > 0 ? c * std::log2(total / c) : 0;
  return bits;
}

template <class Coder>
Codes codes_of(const io::CacheGenReader& chunk) {
  const io::CacheGenHead& h = chunk.head();
  Codes all;
  for (index_t l = 0; l < h.layers; ++l)
    for (const auto side : {KvSide::keys, KvSide::values}) {
      io::CacheGenPart part;
      require(chunk.read_part(l, side, part));
      const index_t streams = h.streams_per_sub(side), channels = h.channels(side);
      std::vector<double> layer(256), anchors(256);
      for (index_t c = -(h.delta() ? 1 : 0); c < channels; ++c) {
        std::uint16_t starts[bitstream::max_symbols];
        bitstream::SymbolTable t;
        require(io::CacheGenReader::table(part, h.table_count(side) == 1 ? std::min<index_t>(c, 0) : c, Coder::table_bits, starts, t));
        std::vector<double> counts(256);
        for (index_t sub = 0; sub < h.sub_chunks(); ++sub) {
          const index_t n = h.tokens_of(sub), a = h.anchors_in(n);
          const auto symbols = static_cast<std::size_t>(c < 0 ? a * channels : n - a);
          require(Coder::decode(part.stream(sub * streams + c + h.delta()), t, symbols, [&](std::size_t, int s) {
            ++counts[static_cast<std::size_t>(s)], ++(c < 0 ? anchors : layer)[static_cast<std::size_t>(s)];
            all.by_channel.push_back(static_cast<std::uint8_t>(s));
          }));
          const int used = c < 0 ? 255 : h.delta() ? part.symbols : part.symbols - 1;
          all.plain += static_cast<double>(symbols) * std::ceil(std::log2(used));
        }
        if (c >= 0) all.channel_entropy += entropy_bits(counts);
      }
      all.layer_entropy += entropy_bits(layer) + entropy_bits(anchors);
      all.channel_entropy += entropy_bits(anchors);
    }
  return all;
}

/// Squared error of keys or values over their squares, as a square root.
double error_of(const eval::Recording& r, const io::CacheGenReader& chunk, KvSide side) {
  Error e;
  each_number(r, chunk.head(), side, [&](index_t l, KvSide s, index_t sub, TensorView<float, 3> out) { return chunk.decode(l, s, sub, out); },
              [&](index_t l, index_t h, index_t t, index_t d, float x) {
                e.add(static_cast<double>(number(r, side, l, h, t, d)), static_cast<double>(x));
              });
  return e.value();
}

void row(const char* name, CacheGen m, const eval::Recording& r, const eval::Recording& profile) {
  const double numbers = static_cast<double>(2 * r.shape.layers * r.shape.kv_heads * r.shape.head_dim * r.tokens);
  const auto bits = [&](std::size_t bytes) { return 8.0 * static_cast<double>(bytes) / numbers; };
  const std::vector<std::byte> base = chunk_of(r, m);
  const auto chunk = io::CacheGenReader::open(base);
  require(chunk.status());
  require(chunk->check());
  const Codes codes = codes_of<bitstream::RangeCoder>(*chunk);
  std::printf("| %s | %.2f | %.2f | %.2f | %.2f |", name, codes.plain / numbers, zstd_bits(codes.by_channel.data(), codes.by_channel.size()) / numbers,
              codes.layer_entropy / numbers, codes.channel_entropy / numbers);
  for (const auto coder : {quant::EntropyCoder::range, quant::EntropyCoder::rans}) {
    m.coder = coder;
    for (const auto tables : {quant::CacheGenTables::per_channel, quant::CacheGenTables::per_layer}) {
      m.tables = tables;
      std::printf(" %.2f |", bits(chunk_of(r, m).size()));
    }
    m.tables = quant::CacheGenTables::per_channel;
    const auto from = chunk_of(profile, m);
    const auto offline = io::CacheGenReader::open(from);
    require(offline.status());
    std::printf(" %.2f |", bits(chunk_of(r, m, &*offline).size()));
  }
  std::printf(" %.3f | %.3f |\n", error_of(r, *chunk, KvSide::keys), error_of(r, *chunk, KvSide::values));
}

CacheGen bins(int n) {
  CacheGen m;
  for (auto* b : {&m.key_bins, &m.value_bins}) b->first = b->second = b->third = n;
  return m;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2 || argc > 3) return std::fprintf(stderr, "cachegen_sizes FILE [PROFILE]\n"), 2;
  const eval::Recording r = eval::read_qkv(argv[1]), profile = eval::read_qkv(argv[argc - 1]);
  std::printf("%d layers, %d KV heads of %d, %d tokens; tables profiled on %d tokens%s\n\n", static_cast<int>(r.shape.layers),
              static_cast<int>(r.shape.kv_heads), static_cast<int>(r.shape.head_dim), static_cast<int>(r.tokens),
              static_cast<int>(profile.tokens), argc == 2 ? ", the same" : "");
  std::printf("| | codes | zstd | entropy, layer | entropy, channel | range, own tables | per layer | profiled | rans, own tables | per layer "
              "| profiled | error of keys | of values |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
  row("16 bins", bins(16), r, profile);
  row("256 bins", bins(256), r, profile);
  for (int n = 1; n <= CacheGen::levels; ++n) row(("level " + std::to_string(n)).c_str(), CacheGen::level(n), r, profile);
  CacheGen delta;
  delta.form = quant::CacheGenForm::delta;
  row("delta", delta, r, profile);
  delta.widths = {0.25f, 0.5f, 0.75f, 1, 2, 3};
  row("delta, half the steps", delta, r, profile);
  return 0;
} catch (const std::exception& e) {
  return std::fprintf(stderr, "cachegen_sizes: %s\n", e.what()), 1;
}
