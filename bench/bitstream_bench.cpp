// Entropy coders, chunks of CacheGen, of KVTC and of AQUA-KV on one thread. Rows walk from token to token (correlation 0.9), some channels wide;
// bytes_per_second counts the numbers as 16-bit ones, `bits` are what one number costs.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <vector>

#include <benchmark/benchmark.h>

#include <kvcondense/bitstream/range_coder.hpp>
#include <kvcondense/bitstream/rans.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/io/aquakv_reader.hpp>
#include <kvcondense/io/aquakv_writer.hpp>
#include <kvcondense/io/cachegen_writer.hpp>
#include <kvcondense/io/kvtc_reader.hpp>
#include <kvcondense/io/kvtc_writer.hpp>

namespace {

using namespace kvcondense;

constexpr CacheShape shape{.layers = 1, .q_heads = 8, .kv_heads = 8, .head_dim = 128};
constexpr index_t tokens = 1536;

struct Sink final : ByteSink {
  std::vector<std::byte> bytes;
  bool write(std::span<const std::byte> b) noexcept override {
    bytes.insert(bytes.end(), b.begin(), b.end());
    return true;
  }
};

const std::vector<float>& rows() {
  static const std::vector<float> all = [] {
    std::vector<float> x(static_cast<std::size_t>(shape.kv_heads * tokens * shape.head_dim));
    for (std::size_t i = 0; i < x.size(); ++i) {
      float noise = -2.0f;
      for (std::uint64_t k = 0; k < 4; ++k) noise += random_uniform(k, i);
      const bool first = i / static_cast<std::size_t>(shape.head_dim) % static_cast<std::size_t>(tokens) == 0;
      x[i] = first ? noise : 0.9f * x[i - static_cast<std::size_t>(shape.head_dim)] + 0.44f * noise;
    }
    for (std::size_t i = 0; i < x.size(); ++i) x[i] *= i % 16 == 5 ? 3.0f : 1.0f;
    return x;
  }();
  return all;
}

Status fill(index_t, TensorView<float, 3> keys, TensorView<float, 3> values) {
  std::memcpy(keys.data, rows().data(), rows().size() * sizeof(float));
  std::memcpy(values.data, rows().data(), rows().size() * sizeof(float));
  return Status::ok;
}

quant::CacheGen method(quant::CacheGenForm form, quant::EntropyCoder coder) {
  quant::CacheGen m;
  m.form = form, m.coder = coder;
  return m;
}

void count(benchmark::State& state, std::size_t stream, std::size_t layers = 1) {
  const auto numbers = 2 * layers * rows().size();
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(numbers * 2));
  state.counters["bits"] = static_cast<double>(stream) * 8 / static_cast<double>(numbers);
}

void encode_chunk(benchmark::State& state, quant::CacheGenForm form, quant::EntropyCoder coder) {
  auto writer = io::CacheGenWriter::make(method(form, coder), shape);
  if (!writer) return state.SkipWithError(to_string(writer.status()));
  Sink sink;
  for (auto _ : state) {
    sink.bytes.clear();
    if (writer->write(sink, {.tokens = tokens, .total = tokens}, fill) != Status::ok) return state.SkipWithError("write");
  }
  count(state, sink.bytes.size());
}

void decode_chunk(benchmark::State& state, quant::CacheGenForm form, quant::EntropyCoder coder) {
  auto writer = io::CacheGenWriter::make(method(form, coder), shape);
  Sink sink;
  if (!writer || writer->write(sink, {.tokens = tokens, .total = tokens}, fill) != Status::ok) return state.SkipWithError("write");
  const auto chunk = io::CacheGenReader::open(sink.bytes);
  std::vector<float> out(static_cast<std::size_t>(shape.kv_heads * 256 * shape.head_dim));
  for (auto _ : state) {
    if (chunk->check() != Status::ok) return state.SkipWithError("check");
    for (const auto side : {io::KvSide::keys, io::KvSide::values})
      for (index_t sub = 0; sub < chunk->head().sub_chunks(); ++sub)
        if (chunk->decode(0, side, sub, dense_view(out.data(), shape.kv_heads, chunk->head().tokens_of(sub), shape.head_dim)) != Status::ok)
          return state.SkipWithError("decode");
    benchmark::DoNotOptimize(out.data());
  }
  count(state, sink.bytes.size());
}

/// A cosine transform of a token's 1024 numbers, its energies as text has them: they fall like one over the component.
struct Cosines {
  static constexpr index_t n = 1024;
  std::vector<float> basis = std::vector<float>(n * n), energy = std::vector<float>(n);
  io::KvtcTransform transform;

  Cosines() {
    for (index_t j = 0; j < n; ++j) {
      energy[static_cast<std::size_t>(j)] = 1.0f / static_cast<float>(1 + j);
      for (index_t d = 0; d < n; ++d)
        basis[static_cast<std::size_t>(d * n + j)] = static_cast<float>(
            std::sqrt((j == 0 ? 1.0 : 2.0) / n) * std::cos(std::numbers::pi / n * (static_cast<double>(d) + 0.5) * static_cast<double>(j)));
    }
    const HeadBases side{basis.data(), nullptr, nullptr, energy.data(), nullptr, 1, 1, n, n, KeyForm::rotated};
    if (const auto t = io::KvtcTransform::make(side, side, shape)) transform = *t;
  }
};

Status kvtc_chunk(io::KvtcWriter& writer, Sink& sink) {
  sink.bytes.clear();
  return writer.write(sink, {.tokens = tokens, .total = tokens}, false, [](index_t, index_t first, auto keys, auto values) {
    for (index_t h = 0; h < shape.kv_heads; ++h)
      for (const auto& to : {keys, values})
        std::memcpy(&to(h, 0, 0), rows().data() + (h * tokens + first) * shape.head_dim, static_cast<std::size_t>(to.extent[1] * shape.head_dim) * sizeof(float));
    return Status::ok;
  });
}

Expected<io::KvtcWriter> kvtc_writer(const Cosines& c, quant::EntropyCoder coder) {
  quant::Kvtc m = quant::Kvtc::level(2);
  m.coder = coder;
  return io::KvtcWriter::make(m, shape, c.transform);
}

void encode_kvtc(benchmark::State& state, quant::EntropyCoder coder) {
  const Cosines c;
  auto writer = kvtc_writer(c, coder);
  if (!writer) return state.SkipWithError(to_string(writer.status()));
  Sink sink;
  for (auto _ : state)
    if (kvtc_chunk(*writer, sink) != Status::ok) return state.SkipWithError("write");
  count(state, sink.bytes.size());
}

void decode_kvtc(benchmark::State& state, quant::EntropyCoder coder) {
  const Cosines c;
  auto writer = kvtc_writer(c, coder);
  Sink sink;
  if (!writer || kvtc_chunk(*writer, sink) != Status::ok) return state.SkipWithError("write");
  const auto chunk = io::KvtcReader::open(sink.bytes, c.transform);
  std::vector<float> out(static_cast<std::size_t>(shape.kv_heads * 256 * shape.head_dim));
  Workspace work;
  if (work.reserve(std::max(chunk->scratch_bytes(io::KvSide::keys), chunk->scratch_bytes(io::KvSide::values))) != Status::ok)
    return state.SkipWithError("memory");
  for (auto _ : state) {
    if (chunk->check() != Status::ok) return state.SkipWithError("check");
    for (const auto side : {io::KvSide::keys, io::KvSide::values})
      for (index_t sub = 0; sub < chunk->head().sub_chunks(); ++sub)
        if (chunk->decode(0, side, sub, dense_view(out.data(), shape.kv_heads, chunk->head().tokens_of(sub), shape.head_dim), Scratch(work.bytes())) != Status::ok)
          return state.SkipWithError("decode");
    benchmark::DoNotOptimize(out.data());
  }
  state.counters["components"] = static_cast<double>(*chunk->component_count(io::KvSide::keys));
  count(state, sink.bytes.size());
}

/// Two layers of which the second is half the first: its keys those of the layer below, its values these values.
struct Maps {
  static constexpr CacheShape shape{.layers = 2, .q_heads = 8, .kv_heads = 8, .head_dim = 128};
  static constexpr index_t n = 1024;
  std::vector<float> first = std::vector<float>(n), keys = std::vector<float>((n + 1) * n), values = std::vector<float>((2 * n + 1) * n);
  Expected<io::AquakvMaps> maps;

  Maps() : maps(Status::invalid_argument) {
    for (index_t c = 0; c < n; ++c) keys[static_cast<std::size_t>(c * n + c)] = values[static_cast<std::size_t>((n + c) * n + c)] = 0.5f;
    maps = io::AquakvMaps::make({first.data(), first.data(), keys.data(), values.data(), shape.layers, n, n, KeyForm::rotated}, shape);
  }
};

Expected<io::AquakvWriter> aquakv_writer(const Maps& m, quant::EntropyCoder coder) {
  if (!m.maps) return m.maps.status();
  quant::Aquakv method{};
  method.coder = coder;
  return io::AquakvWriter::make(method, Maps::shape, *m.maps);
}

Status aquakv_chunk(io::AquakvWriter& writer, Sink& sink) {
  sink.bytes.clear();
  return writer.write(sink, {.tokens = tokens, .total = tokens}, false,
                      [](index_t, index_t, auto keys, auto values) { return fill(0, keys, values); });
}

void encode_aquakv(benchmark::State& state, quant::EntropyCoder coder) {
  const Maps m;
  auto writer = aquakv_writer(m, coder);
  if (!writer) return state.SkipWithError(to_string(writer.status()));
  Sink sink;
  for (auto _ : state)
    if (aquakv_chunk(*writer, sink) != Status::ok) return state.SkipWithError("write");
  count(state, sink.bytes.size(), 2);
}

void decode_aquakv(benchmark::State& state, quant::EntropyCoder coder) {
  const Maps m;
  auto writer = aquakv_writer(m, coder);
  Sink sink;
  if (!writer || aquakv_chunk(*writer, sink) != Status::ok) return state.SkipWithError("write");
  const auto chunk = io::AquakvReader::open(sink.bytes, *m.maps);
  Workspace work;
  if (!chunk || work.reserve(chunk->scratch_bytes()) != Status::ok) return state.SkipWithError("open");
  std::vector<float> out(static_cast<std::size_t>(Maps::n * 256)), below[2] = {out, out};
  for (auto _ : state) {
    if (chunk->check() != Status::ok) return state.SkipWithError("check");
    for (index_t sub = 0; sub < chunk->head().sub_chunks(); ++sub) {
      const index_t n = chunk->head().tokens_of(sub);
      const io::AquakvRows layers{dense_view(below[0].data(), n, Maps::n), dense_view(below[1].data(), n, Maps::n)};
      for (index_t l = 0; l < Maps::shape.layers; ++l) {
        if (chunk->advance(l, sub, layers, Scratch(work.bytes())) != Status::ok) return state.SkipWithError("decode");
        for (const auto side : {io::KvSide::keys, io::KvSide::values})
          if (chunk->expand(l, side, sub, layers, dense_view(out.data(), shape.kv_heads, n, shape.head_dim)) != Status::ok)
            return state.SkipWithError("decode");
      }
    }
    benchmark::DoNotOptimize(out.data());
  }
  count(state, sink.bytes.size(), 2);
}

/// Symbols alone, streams of 256: millions of symbols a second.
template <class Coder>
struct Streams {
  static constexpr std::size_t n = 256, count = 512;
  std::vector<std::uint8_t> symbols;
  std::uint16_t starts[32];
  bitstream::SymbolTable table{starts, 32, Coder::table_bits};
  std::vector<std::byte> out = std::vector<std::byte>(count * Coder::most_bytes(n));
  std::vector<std::size_t> bytes = std::vector<std::size_t>(count);

  Streams() : symbols(n * count) {
    std::uint32_t counts[32] = {};
    for (std::size_t i = 0; i < symbols.size(); ++i) {
      float sum = 0.0f;
      for (std::uint64_t k = 0; k < 12; ++k) sum += random_uniform(k, i);
      symbols[i] = static_cast<std::uint8_t>(15.0f + (sum - 6.0f) * 2.2f + 0.5f);
      ++counts[symbols[i]];
    }
    if (bitstream::make_table(counts, Coder::table_bits, starts) != Status::ok) table.symbols = 0;
  }
  std::span<std::byte> room(std::size_t i) { return {out.data() + i * Coder::most_bytes(n), Coder::most_bytes(n)}; }
  bool encode() {
    bool ok = true;
    for (std::size_t i = 0; i < count; ++i)
      ok &= Coder::encode(std::span(symbols).subspan(i * n, n), table, room(i), bytes[i]) == Status::ok;
    return ok;
  }
};

template <class Coder>
void encode_symbols(benchmark::State& state) {
  Streams<Coder> s;
  for (auto _ : state)
    if (!s.encode()) return state.SkipWithError("encode");
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(s.symbols.size()));
}

template <class Coder>
void decode_symbols(benchmark::State& state) {
  Streams<Coder> s;
  if (!s.encode()) return state.SkipWithError("encode");
  std::vector<std::uint8_t> back(s.n);
  for (auto _ : state)
    for (std::size_t i = 0; i < s.count; ++i) {
      const Status st = Coder::decode(s.room(i).first(s.bytes[i]), s.table, s.n, [&](std::size_t k, int x) { back[k] = static_cast<std::uint8_t>(x); });
      if (st != Status::ok) return state.SkipWithError("decode");
      benchmark::DoNotOptimize(back.data());
    }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(s.symbols.size()));
}

BENCHMARK(encode_symbols<bitstream::RangeCoder>);
BENCHMARK(encode_symbols<bitstream::Rans>);
BENCHMARK(decode_symbols<bitstream::RangeCoder>);
BENCHMARK(decode_symbols<bitstream::Rans>);
BENCHMARK_CAPTURE(encode_chunk, scaled/range, quant::CacheGenForm::scaled, quant::EntropyCoder::range)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(encode_chunk, scaled/rans, quant::CacheGenForm::scaled, quant::EntropyCoder::rans)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(encode_chunk, delta/range, quant::CacheGenForm::delta, quant::EntropyCoder::range)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(encode_chunk, delta/rans, quant::CacheGenForm::delta, quant::EntropyCoder::rans)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(decode_chunk, scaled/range, quant::CacheGenForm::scaled, quant::EntropyCoder::range)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(decode_chunk, scaled/rans, quant::CacheGenForm::scaled, quant::EntropyCoder::rans)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(decode_chunk, delta/range, quant::CacheGenForm::delta, quant::EntropyCoder::range)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(decode_chunk, delta/rans, quant::CacheGenForm::delta, quant::EntropyCoder::rans)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(encode_kvtc, range, quant::EntropyCoder::range)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(encode_kvtc, rans, quant::EntropyCoder::rans)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(decode_kvtc, range, quant::EntropyCoder::range)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(decode_kvtc, rans, quant::EntropyCoder::rans)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(encode_aquakv, range, quant::EntropyCoder::range)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(encode_aquakv, rans, quant::EntropyCoder::rans)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(decode_aquakv, range, quant::EntropyCoder::range)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(decode_aquakv, rans, quant::EntropyCoder::rans)->Unit(benchmark::kMillisecond);

}  // namespace
