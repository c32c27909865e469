#include <eval/calibrate_quant.hpp>

#include <cmath>

#include <eval/error.hpp>
#include <eval/table.hpp>
#include <kvcondense/backend/cpu/complex_vq.hpp>
#include <kvcondense/quant/aquakv_fit.hpp>
#include <kvcondense/quant/complex_book.hpp>

namespace eval {
namespace {

using kvcondense::Scratch;
using kvcondense::Workspace;
namespace prim = kvcondense::prim;
namespace quant = kvcondense::quant;

TensorView<const float, 2> view(const std::vector<float>& rows, index_t width) {
  return {rows.data(), {width > 0 ? static_cast<index_t>(rows.size()) / width : 0, width}, {width, 1}};
}

/// Keys or values of a layer in all texts, [tokens, heads * dim].
std::vector<float> layer_rows(const Texts& texts, index_t layer, bool keys) {
  std::vector<float> rows;
  for (const Recording* r : texts) {
    const Recording::Layer& l = r->layers[static_cast<std::size_t>(layer)];
    rows.insert(rows.end(), (keys ? l.k : l.v).begin(), (keys ? l.k : l.v).end());
  }
  return rows;
}

/// Square differences as a part of the squares of `all` around `middle`.
double part_of(const std::vector<float>& all, const std::vector<float>& near, const std::vector<double>& middle) {
  double off = 0, squares = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const double x = static_cast<double>(all[i]), m = middle.empty() ? 0.0 : middle[i % middle.size()];
    off += (x - static_cast<double>(near[i])) * (x - static_cast<double>(near[i])), squares += (x - m) * (x - m);
  }
  return squares > 0 ? off / squares : 0;
}

std::vector<double> means(const std::vector<float>& rows, index_t width) {
  std::vector<double> m(static_cast<std::size_t>(width));
  for (std::size_t i = 0; i < rows.size(); ++i) m[i % m.size()] += static_cast<double>(rows[i]);
  for (double& x : m) x /= static_cast<double>(rows.size()) / static_cast<double>(width);
  return m;
}

std::vector<float> book_of(const std::vector<float>& rows, index_t dim, const quant::ComplexBookFit& fit, const std::string& what, double& lost) {
  const auto n = static_cast<index_t>(rows.size()) / dim;
  std::vector<float> book(static_cast<std::size_t>(fit.stages * fit.base * dim));
  Workspace work;
  require(work.reserve(Scratch::align + quant::complex_book_bytes(n, dim, fit)), what);
  require(quant::fit_complex_book(view(rows, dim), fit, book, Scratch(work.bytes())), what);
  using Codec = prim::PageCodec<kvcondense::Cpu, prim::ComplexVq>;
  const prim::ComplexVq codec{.book = book.data(), .stages = static_cast<std::int32_t>(fit.stages), .base = static_cast<std::int32_t>(fit.base),
                              .channels = static_cast<std::int32_t>(dim), .pairing = fit.pairing};
  if (!codec.valid(dim)) throw Error(what + ": --stages and --words make more codes than a row may have");
  std::vector<std::byte> bytes(codec.page_bytes(n, dim));
  std::vector<float> back(rows.size());
  Codec::encode(codec, {bytes.data(), n, dim}, 0, n, {rows.data(), n, dim});
  Codec::decode(codec, {bytes.data(), n, dim}, 0, n, {back.data(), n, dim});
  lost = part_of(rows, back, {});
  return book;
}

}  // namespace

HeadArrays head_books(const HeadOfTexts& of, const Calibration& how, std::uint64_t seed) {
  quant::ComplexBookFit fit{.stages = how.stages, .base = how.words, .seed = seed};
  if (of.texts[0]->rope) fit.pairing = of.texts[0]->rope->pairing;
  if (how.steps > 0) fit.rounds = static_cast<int>(how.steps);
  HeadArrays found;
  for (const bool keys : {true, false}) {
    const index_t dim = keys ? of.shape().head_dim : of.shape().values();
    const std::string what = std::string("books of ") + (keys ? "keys" : "values") + ", layer " + std::to_string(of.layer) + ", head " + std::to_string(of.head);
    double lost = 0;
    found.arrays.push_back({keys ? "key.books" : "value.books", {how.stages, how.words, dim}, book_of(keys ? of.keys() : of.values(), dim, fit, what, lost)});
    found.said.push_back(short_number(lost, 3));
  }
  return found;
}

std::string put_layer_maps(const Texts& texts, MethodBases& to) {
  const CacheShape& s = texts[0]->shape;
  const index_t key_channels = s.kv_heads * s.head_dim, value_channels = s.kv_heads * s.values();
  const quant::Aquakv method;
  LayerArrays& m = to.maps;
  m.layers = s.layers, m.key_channels = key_channels, m.value_channels = value_channels;
  std::vector<std::vector<std::string>> text{{"layer", "side", "not predicted", "lost"}};
  std::vector<float> below[2];
  for (index_t l = 0; l < s.layers; ++l)
    for (const bool keys : {true, false}) {
      const index_t width = keys ? key_channels : value_channels;
      const std::string what = "maps of layer " + std::to_string(l);
      std::vector<float> rows = layer_rows(texts, l, keys), from;
      const std::vector<float> given = rows;
      const auto n = static_cast<index_t>(rows.size()) / width;
      for (index_t t = 0; t < n && l > 0; ++t)
        for (int side = 0; side <= (keys ? 0 : 1); ++side) {
          const auto part = static_cast<std::ptrdiff_t>(side == 0 ? key_channels : value_channels);
          from.insert(from.end(), below[side].begin() + t * part, below[side].begin() + (t + 1) * part);
        }
      const index_t inputs = l == 0 ? 0 : key_channels + (keys ? 0 : value_channels);
      const TensorView<const float, 2> x{from.data(), {n, inputs}, {inputs, 1}};
      std::vector<float> map(static_cast<std::size_t>((inputs + 1) * width)), predicted(rows.size());
      require(quant::fit_aquakv_side(method, keys, l, x, {rows.data(), {n, width}, {width, 1}}, map), what);
      require(quant::predict_layer(view(map, width), x, {predicted.data(), {n, width}, {width, 1}}), what);
      const auto middle = means(given, width);
      text.push_back({std::to_string(l), keys ? "keys" : "values", short_number(part_of(given, predicted, middle), 3), short_number(part_of(given, rows, middle), 3)});
      std::vector<float>& list = l == 0 ? (keys ? m.first_keys : m.first_values) : (keys ? m.keys : m.values);
      list.insert(list.end(), map.begin(), map.end());
      below[keys ? 0 : 1] = std::move(rows);
    }
  return aligned(text);
}

}  // namespace eval
