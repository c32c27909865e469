// cachegen_sizes FILE [PROFILE]: what the keys and values of a recorded context cost as streams of CacheGen, in bits per
// number, beside plain codes, zstd and the entropy. FILE comes from kvcondense-eval --dump-qkv; tables are profiled on
// PROFILE where one is given. docs/results/cachegen.md is its output.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include <eval/recording.hpp>
#include <kvcondense/io/cachegen.hpp>

#ifdef KVCONDENSE_BENCH_ZSTD
#include <zstd.h>
#endif

namespace {

using namespace kvcondense;
using io::KvSide;
using quant::CacheGen;

struct Sink final : ByteSink {
  std::vector<std::byte> bytes;
  bool write(std::span<const std::byte> b) noexcept override {
    bytes.insert(bytes.end(), b.begin(), b.end());
    return true;
  }
};

void require(Status s) {
  if (s != Status::ok) throw std::runtime_error(to_string(s));
}

float number(const eval::Recording& r, KvSide side, index_t l, index_t h, index_t t, index_t d) {
  const auto& layer = r.layers[static_cast<std::size_t>(l)];
  const auto& x = side == KvSide::keys ? layer.k : layer.v;
  return x[static_cast<std::size_t>((t * r.shape.kv_heads + h) * r.shape.head_dim + d)];
}

std::vector<std::byte> chunk_of(const eval::Recording& r, const CacheGen& m, const io::CacheGenReader* tables = nullptr) {
  auto writer = io::CacheGenWriter::make(m, r.shape, tables);
  require(writer.status());
  Sink sink;
  require(writer->write(sink, {.tokens = r.tokens, .total = r.tokens}, [&](index_t l, auto k, auto v) {
    for (const auto side : {KvSide::keys, KvSide::values}) {
      auto& x = side == KvSide::keys ? k : v;
      for (index_t h = 0; h < x.extent[0]; ++h)
        for (index_t t = 0; t < x.extent[1]; ++t)
          for (index_t d = 0; d < x.extent[2]; ++d) x(h, t, d) = number(r, side, l, h, t, d);
    }
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

double zstd_bits([[maybe_unused]] const std::vector<std::uint8_t>& codes) {
#ifdef KVCONDENSE_BENCH_ZSTD
  std::vector<char> out(ZSTD_compressBound(codes.size()));
  return 8.0 * static_cast<double>(ZSTD_compress(out.data(), out.size(), codes.data(), codes.size(), 19));
#else
  return std::nan("");
#endif
}

/// Squared error of keys or values over their squares, as a square root.
double error_of(const eval::Recording& r, const io::CacheGenReader& chunk, KvSide side) {
  const io::CacheGenHead& h = chunk.head();
  double error = 0, square = 0;
  for (index_t l = 0; l < h.layers; ++l)
    for (index_t sub = 0; sub < h.sub_chunks(); ++sub) {
      const index_t n = h.tokens_of(sub);
      std::vector<float> x(static_cast<std::size_t>(h.channels(side) * n));
      const auto out = dense_view(x.data(), h.kv_heads, n, h.dim(side));
      require(chunk.decode(l, side, sub, out));
      for (index_t k = 0; k < h.kv_heads; ++k)
        for (index_t t = 0; t < n; ++t)
          for (index_t d = 0; d < h.dim(side); ++d) {
            const auto want = static_cast<double>(number(r, side, l, k, sub * h.sub_chunk + t, d));
            error += std::pow(want - static_cast<double>(out(k, t, d)), 2), square += want * want;
          }
    }
  return std::sqrt(error / square);
}

void row(const char* name, CacheGen m, const eval::Recording& r, const eval::Recording& profile) {
  const double numbers = static_cast<double>(2 * r.shape.layers * r.shape.kv_heads * r.shape.head_dim * r.tokens);
  const auto bits = [&](std::size_t bytes) { return 8.0 * static_cast<double>(bytes) / numbers; };
  const std::vector<std::byte> base = chunk_of(r, m);
  const auto chunk = io::CacheGenReader::open(base);
  require(chunk.status());
  require(chunk->check());
  const Codes codes = codes_of<bitstream::RangeCoder>(*chunk);
  std::printf("| %s | %.2f | %.2f | %.2f | %.2f |", name, codes.plain / numbers, zstd_bits(codes.by_channel) / numbers,
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
