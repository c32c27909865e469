// kvtc_sizes FILE BASES [MAPS]: what the keys and values of a recorded context cost as streams of KVTC, in bits per number, and
// how much they err, beside AQUA-KV, CacheGen, plain integers and zstd. FILE comes from kvcondense-eval --dump-qkv, BASES from
// kvcondense-eval calibrate --method kvtc, MAPS from the same with aquakv. docs/results/kvtc.md is its output.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <string>

#include <eval/bases_file.hpp>
#include <kvcondense/io/aquakv.hpp>
#include <kvcondense/io/cachegen.hpp>
#include <kvcondense/io/kvtc.hpp>
#include <kvcondense/prim/group_bits.hpp>
#include <stream_sizes.hpp>

namespace {

using namespace sizes;
using quant::CacheGen;
using quant::Kvtc;

double numbers_of(const eval::Recording& r) {
  return static_cast<double>(2 * r.shape.layers * r.shape.kv_heads * r.shape.head_dim * r.tokens);
}

struct Model {
  io::KvtcTransform transform;
  const prim::RopeTable* rope = nullptr;
};

/// Sinks, coded chunks and window, as save_kvtc and save_aquakv cut a cache.
template <class Writer, class Method>
std::vector<std::byte> cut(const eval::Recording& r, const Method& m, Expected<Writer> writer) {
  require(writer.status());
  Sink sink;
  const index_t sinks = std::min(m.sinks, r.tokens), coded_end = std::max(sinks, r.tokens - m.window);
  for (index_t first = 0; first < r.tokens;) {
    const bool exact = first < sinks || first >= coded_end;
    const index_t end = first < sinks ? sinks : exact ? r.tokens : std::min(first + m.chunk, coded_end);
    require(writer->write(sink, {end - first, first, r.tokens, first, false}, exact, [&](index_t l, index_t from, auto k, auto v) {
      fill(r, KvSide::keys, l, first + from, k), fill(r, KvSide::values, l, first + from, v);
      return Status::ok;
    }));
    first = end;
  }
  return sink.bytes;
}
std::vector<std::byte> stream_of(const eval::Recording& r, const Kvtc& m, const Model& model) {
  return cut(r, m, io::KvtcWriter::make(m, r.shape, model.transform, model.rope));
}

/// Keys and values as they come back, [layer, head, token, dim].
struct Rows {
  std::vector<float> x[2];
  const eval::Recording* r;

  explicit Rows(const eval::Recording& recording) : r(&recording) {
    for (auto& side : x) side.resize(static_cast<std::size_t>(numbers_of(recording) / 2));
  }
  const float* at(KvSide side, index_t l, index_t h, index_t t) const {
    return x[static_cast<int>(side)].data() + ((l * r->shape.kv_heads + h) * r->tokens + t) * r->shape.head_dim;
  }
  float& put(KvSide side, index_t l, index_t h, index_t t, index_t d) { return const_cast<float*>(at(side, l, h, t))[d]; }

  double error(KvSide side) const {
    Error e;
    for (index_t l = 0; l < r->shape.layers; ++l)
      for (index_t h = 0; h < r->shape.kv_heads; ++h)
        for (index_t t = 0; t < r->tokens; ++t)
          for (index_t d = 0; d < r->shape.head_dim; ++d)
            e.add(static_cast<double>(number(*r, side, l, h, t, d)), static_cast<double>(at(side, l, h, t)[d]));
    return e.value();
  }
  /// Of what attention gives for every eighth query of the second half.
  double output_error(const Rows& exact) const {
    Error e;
    const CacheShape& s = r->shape;
    std::vector<double> want(static_cast<std::size_t>(s.head_dim)), got(want);
    for (index_t l = 0; l < s.layers; ++l)
      for (index_t q = 0; q < s.q_heads; ++q)
        for (index_t t = r->tokens / 2; t < r->tokens; t += 8) {
          exact.attend(l, q, t, want), attend(l, q, t, got);
          for (std::size_t d = 0; d < want.size(); ++d) e.add(want[d], got[d]);
        }
    return e.value();
  }

 private:
  void attend(index_t l, index_t q, index_t t, std::vector<double>& out) const {
    const CacheShape& s = r->shape;
    const float* query = r->layers[static_cast<std::size_t>(l)].q.data() + (t * s.q_heads + q) * s.head_dim;
    const index_t h = q / s.group();
    const double scale = s.softmax_scale > 0 ? static_cast<double>(s.softmax_scale) : 1.0 / std::sqrt(static_cast<double>(s.head_dim));
    std::vector<double> logit(static_cast<std::size_t>(t + 1));
    for (index_t i = 0; i <= t; ++i) {
      const float* key = at(KvSide::keys, l, h, i);
      float sum = 0;
      for (index_t d = 0; d < s.head_dim; ++d) sum += query[d] * key[d];
      logit[static_cast<std::size_t>(i)] = static_cast<double>(sum) * scale;
    }
    const double top = *std::max_element(logit.begin(), logit.end());
    double all = 0;
    std::fill(out.begin(), out.end(), 0.0);
    for (index_t i = 0; i <= t; ++i) {
      const double w = std::exp(logit[static_cast<std::size_t>(i)] - top);
      const float* value = at(KvSide::values, l, h, i);
      all += w;
      for (std::size_t d = 0; d < out.size(); ++d) out[d] += w * static_cast<double>(value[d]);
    }
    for (double& v : out) v /= all;
  }
};

void print_errors(const Rows& rows, const Rows& exact) {
  std::printf(" %.3f | %.3f | %.3f |\n", rows.error(KvSide::keys), rows.error(KvSide::values), rows.output_error(exact));
}

/// What is in a stream: the rows, codes one per byte, components.
struct Content {
  Rows rows;
  std::vector<std::uint8_t> codes;
  index_t key_components = 0, value_components = 0;

  explicit Content(const eval::Recording& r) : rows(r) {}
};

Content read(const eval::Recording& r, std::span<const std::byte> bytes, const Model& model) {
  Content c(r);
  for (; !bytes.empty();) {
    const auto chunk = io::KvtcReader::open(bytes, model.transform, model.rope);
    require(chunk.status());
    require(chunk->check());
    bytes = bytes.subspan(chunk->bytes());
    for (const auto side : {KvSide::keys, KvSide::values}) {
      Workspace work;
      require(work.reserve(chunk->scratch_bytes(side)));
      each_number(r, chunk->head(), side,
                  [&](index_t l, KvSide s, index_t sub, TensorView<float, 3> out) { return chunk->decode(l, s, sub, out, Scratch(work.bytes())); },
                  [&](index_t l, index_t h, index_t t, index_t d, float x) { c.rows.put(side, l, h, t, d) = x; });
      if (chunk->head().exact) continue;
      io::KvtcPart part;
      require(chunk->read_part(side, part));
      (side == KvSide::keys ? c.key_components : c.value_components) = part.components;
      for (index_t sub = 0; sub < chunk->head().sub_chunks(); ++sub)
        for (index_t b = 0; b < part.blocks; ++b) {
          const quant::KvtcBlock block = part.at_block(b);
          std::uint16_t starts[bitstream::max_symbols];
          bitstream::SymbolTable table;
          const std::byte* at = part.tables.data() + part.table_at[static_cast<std::size_t>(block.type)];
          require(io::read_table(at, quant::symbols_of(block.type), bitstream::RangeCoder::table_bits, starts, table));
          require(bitstream::RangeCoder::decode(part.stream(sub * part.blocks + b), table,
                                                static_cast<std::size_t>(chunk->head().tokens_of(sub) * block.count),
                                                [&](std::size_t, int s) { c.codes.push_back(static_cast<std::uint8_t>(s)); }));
        }
    }
  }
  return c;
}

void kvtc_row(const char* name, Kvtc m, const eval::Recording& r, const Model& model, const Rows& exact) {
  const auto all = stream_of(r, m, model);
  m.sinks = m.window = 0;
  const auto coded = stream_of(r, m, model);
  const Content c = read(r, coded, model);
  m.coder = quant::EntropyCoder::rans;
  const auto rans = stream_of(r, m, model);
  const double n = numbers_of(r);
  std::printf("| %s | %.2f | %.2f | %.2f | %.2f | %.2f | %d, %d |", name, static_cast<double>(m.key_bits + m.value_bits) / 2,
              8.0 * static_cast<double>(coded.size()) / n, 8.0 * static_cast<double>(rans.size()) / n,
              zstd_bits(c.codes.data(), c.codes.size()) / n, 8.0 * static_cast<double>(all.size()) / n, static_cast<int>(c.key_components),
              static_cast<int>(c.value_components));
  print_errors(c.rows, exact);
}

void aquakv_row(const char* name, quant::Aquakv m, const eval::Recording& r, const io::AquakvMaps& maps, const prim::RopeTable* rope, const Rows& exact) {
  const auto stream = [&] { return cut(r, m, io::AquakvWriter::make(m, r.shape, maps, rope)); };
  const auto all = stream();
  m.sinks = m.window = 0;
  const auto coded = stream();
  Rows rows(r);
  double bits = 0;
  for (index_t l = 0; l < r.shape.layers; ++l) bits += static_cast<double>(m.bits(true, l) + m.bits(false, l)) / static_cast<double>(2 * r.shape.layers);
  for (std::span<const std::byte> bytes = coded; !bytes.empty();) {
    const auto chunk = io::AquakvReader::open(bytes, maps, rope);
    require(chunk.status());
    require(chunk->check());
    bytes = bytes.subspan(chunk->bytes());
    Workspace work;
    require(work.reserve(chunk->scratch_bytes()));
    for (const auto side : {KvSide::keys, KvSide::values})
      each_number(r, chunk->head(), side,
                  [&](index_t l, KvSide s, index_t sub, TensorView<float, 3> out) { return chunk->decode(l, s, sub, out, Scratch(work.bytes())); },
                  [&](index_t l, index_t h, index_t t, index_t d, float x) { rows.put(side, l, h, t, d) = x; });
  }
  m.coder = quant::EntropyCoder::rans;
  const auto rans = stream();
  const double n = numbers_of(r), piece = static_cast<double>(quant::GridRows::of(r.shape.kv_heads * r.shape.head_dim, m.group).piece);
  std::printf("| %s | %.2f | %.2f | %.2f | | %.2f | |", name, bits + 16.0 / piece, 8.0 * static_cast<double>(coded.size()) / n,
              8.0 * static_cast<double>(rans.size()) / n, 8.0 * static_cast<double>(all.size()) / n);
  print_errors(rows, exact);
}

void cachegen_row(const char* name, const CacheGen& m, const eval::Recording& r, const Rows& exact) {
  auto writer = io::CacheGenWriter::make(m, r.shape);
  require(writer.status());
  Sink sink;
  require(writer->write(sink, {.tokens = r.tokens, .total = r.tokens}, [&](index_t l, auto k, auto v) {
    fill(r, KvSide::keys, l, 0, k), fill(r, KvSide::values, l, 0, v);
    return Status::ok;
  }));
  const auto chunk = io::CacheGenReader::open(sink.bytes);
  require(chunk.status());
  Rows rows(r);
  for (const auto side : {KvSide::keys, KvSide::values})
    each_number(r, chunk->head(), side, [&](index_t l, KvSide s, index_t sub, TensorView<float, 3> out) { return chunk->decode(l, s, sub, out); },
                [&](index_t l, index_t h, index_t t, index_t d, float x) { rows.put(side, l, h, t, d) = x; });
  std::printf("| %s | | %.2f | | | | |", name, 8.0 * static_cast<double>(sink.bytes.size()) / numbers_of(r));
  print_errors(rows, exact);
}

/// Integers of each token and head: a scale and a minimum of 16 bits for 32 numbers.
void plain_row(const char* name, int bits, const eval::Recording& r, const Rows& exact) {
  constexpr index_t group = 32;
  Rows rows(r);
  std::vector<std::uint8_t> codes;
  double groups = 0;
  for (const auto side : {KvSide::keys, KvSide::values})
    for (index_t l = 0; l < r.shape.layers; ++l)
      for (index_t h = 0; h < r.shape.kv_heads; ++h)
        for (index_t t = 0; t < r.tokens; ++t)
          for (index_t d = 0; d < r.shape.head_dim; d += group, ++groups) {
            prim::GroupRange range;
            for (index_t i = d; i < std::min(d + group, r.shape.head_dim); ++i) range.include(number(r, side, l, h, t, i));
            const auto p = prim::fit_group(prim::GroupForm::minimum, bits, prim::ParamType::f16, range);
            for (index_t i = d; i < std::min(d + group, r.shape.head_dim); ++i) {
              const float x = number(r, side, l, h, t, i);
              const int code = std::clamp(prim::round_half_even((x - p.offset) * p.inverse), 0, (1 << bits) - 1);
              codes.push_back(static_cast<std::uint8_t>(code));
              rows.put(side, l, h, t, i) = static_cast<float>(code) * p.scale + p.offset;
            }
          }
  const double n = numbers_of(r), params = 32.0 * groups / n;
  std::printf("| %s | %.2f | | | %.2f | | |", name, bits + params, zstd_bits(codes.data(), codes.size()) / n + params);
  print_errors(rows, exact);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3 && argc != 4) return std::fprintf(stderr, "kvtc_sizes FILE BASES [MAPS]\n"), 2;
  const eval::Recording r = eval::read_qkv(argv[1]);
  const eval::BasesFile file = eval::read_bases({argv[2]}, r.shape);
  const eval::BasesFile more = eval::read_bases(argc == 4 ? std::vector<std::string>{argv[3]} : std::vector<std::string>{}, r.shape);
  const NamedBases* bases = file.view().find("kvtc");
  if (bases == nullptr) throw std::runtime_error("no bases of kvtc in the file");
  const auto transform = io::KvtcTransform::make(bases->keys, bases->values, r.shape);
  require(transform.status());
  prim::RopeTable rope;
  io::AquakvMaps maps;
  if (argc == 4) {
    const auto made = io::AquakvMaps::make(more.maps(), r.shape);
    require(made.status());
    maps = *made;
  }
  if (transform->raw_keys() || (argc == 4 && maps.raw_keys())) {
    if (!r.rope) throw std::runtime_error("the recording does not say how its keys are rotated");
    auto made = prim::RopeTable::make(*r.rope, r.shape.head_dim, heap_memory());
    require(made.status());
    rope = std::move(*made);
  }
  const Model model{*transform, transform->raw_keys() ? &rope : nullptr};
  std::printf("%d layers, %d KV heads of %d, %d tokens; %d components of keys, %d of values\n\n", static_cast<int>(r.shape.layers),
              static_cast<int>(r.shape.kv_heads), static_cast<int>(r.shape.head_dim), static_cast<int>(r.tokens),
              static_cast<int>(bases->keys.columns), static_cast<int>(bases->values.columns));
  std::printf("| | codes | range | rans | zstd of codes | with sinks and window | components of keys, values | error of keys | of values | of outputs |\n"
              "|---|---|---|---|---|---|---|---|---|---|\n");
  Rows exact(r);
  for (const auto side : {KvSide::keys, KvSide::values})
    for (index_t l = 0; l < r.shape.layers; ++l)
      for (index_t h = 0; h < r.shape.kv_heads; ++h)
        for (index_t t = 0; t < r.tokens; ++t)
          for (index_t d = 0; d < r.shape.head_dim; ++d) exact.put(side, l, h, t, d) = number(r, side, l, h, t, d);
  for (int n = 1; n <= Kvtc::levels; ++n) kvtc_row(("kvtc, level " + std::to_string(n)).c_str(), Kvtc::level(n), r, model, exact);
  Kvtc fine;
  fine.key_bits = fine.value_bits = 6.0f;
  kvtc_row("kvtc, 6 bits", fine, r, model, exact);
  const auto aquakv = [&](const char* name, int keys, int values, int first) {
    aquakv_row(name, {.key_bits = keys, .value_bits = values, .first_bits = first}, r, maps, maps.raw_keys() ? &rope : nullptr, exact);
  };
  if (argc == 4) {
    aquakv("aquakv, 2 bits, all layers", 2, 2, 2), aquakv("aquakv, 2 bits, first layer 4", 2, 2, 4);
    aquakv("aquakv, keys 3, values 2, first layer 4", 3, 2, 4), aquakv("aquakv, 3 bits, first layer 4", 3, 3, 4), aquakv("aquakv, 4 bits", 4, 4, 4);
  }
  for (int n = 1; n <= CacheGen::levels; ++n) cachegen_row(("cachegen, level " + std::to_string(n)).c_str(), CacheGen::level(n), r, exact);
  for (const int bits : {2, 4, 8}) plain_row(("int" + std::to_string(bits) + ", groups of 32").c_str(), bits, r, exact);
  std::vector<half> halves;
  for (const auto& layer : r.layers)
    for (const auto* x : {&layer.k, &layer.v})
      for (const float v : *x) halves.emplace_back(v);
  std::printf("| float16 | 16.00 | | | %.2f | | | | | |\n", zstd_bits(halves.data(), 2 * halves.size()) / numbers_of(r));
  return 0;
} catch (const std::exception& e) {
  return std::fprintf(stderr, "kvtc_sizes: %s\n", e.what()), 1;
}
