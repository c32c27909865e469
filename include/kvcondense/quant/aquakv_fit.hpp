#pragma once

#include <cmath>
#include <cstdint>
#include <span>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/quant/aquakv.hpp>
#include <kvcondense/quant/blocks/grid_rows.hpp>
#include <kvcondense/quant/layer_predictor.hpp>

namespace kvcondense::quant {

/// Finds the map of one side of a layer, and puts decoded rows in the place of the given ones, as the next map wants them.
///
/// Source   AQUA-KV, arXiv:2501.19392: maps are found from rows as they are decoded, not as they were.
/// Shapes   below [tokens, inputs] without gaps, of which there are none for the first layer; rows [tokens, channels] without
///          gaps; map [inputs + 1, channels], the last row what is added. Inputs of keys: the decoded keys of the layer below; of
///          values: the layer's own decoded keys, then the decoded values of the layer below.
/// Numbers  as fit_layer_predictor; `ridge` keeps what few tokens leave open near 0.
/// Cost     as fit_layer_predictor.
/// Errors   what fit_layer_predictor says, invalid_argument for a method that is none, out_of_memory. Nothing is written then.
inline Status fit_aquakv_side(const Aquakv& method, bool keys, index_t layer, TensorView<const float, 2> below, TensorView<float, 2> rows,
                              std::span<float> map, double ridge = 1e-4, MemoryResource<Cpu>& memory = heap_memory()) {
  if (const Status s = method.validate(); s != Status::ok) return s;
  const index_t tokens = rows.extent[0], channels = rows.extent[1], inputs = below.extent[1];
  if (static_cast<index_t>(map.size()) != (inputs + 1) * channels) return Status::shape_mismatch;
  if (tokens < 1 || channels < 1) return Status::invalid_argument;
  const GridRows code = GridRows::of(channels, method.group);
  Workspace work;
  Buffer<float> predicted(memory);
  Status s = work.reserve(Scratch::align + layer_predictor_bytes(inputs, channels) + Scratch::bytes_for<float>(code.stored()) +
                              Scratch::bytes_for<half>(code.pieces()) + Scratch::bytes_for<std::uint8_t>(code.pairs()), memory);
  if (s == Status::ok) s = predicted.resize(tokens * channels);
  if (s != Status::ok) return s;
  const auto weights = dense_view(map.data(), inputs + 1, channels);
  const auto next = dense_view(predicted.data(), tokens, channels);
  if (inputs > 0) {
    s = fit_layer_predictor(below, rows, weights, Scratch(work.bytes()), ridge);
    if (s == Status::ok) s = predict_layer(weights, below, next);
    if (s != Status::ok) return s;
  } else {
    for (index_t i = 0; i < rows.size(); ++i)
      if (!std::isfinite(rows.data[i])) return Status::invalid_argument;
    for (index_t c = 0; c < channels; ++c) {
      double sum = 0.0;
      for (index_t t = 0; t < tokens; ++t) sum += static_cast<double>(rows(t, c));
      map[static_cast<std::size_t>(c)] = static_cast<float>(sum / static_cast<double>(tokens));
      for (index_t t = 0; t < tokens; ++t) next(t, c) = map[static_cast<std::size_t>(c)];
    }
  }
  Scratch scratch(work.bytes());
  float* points = scratch.take<float>(code.stored());
  half* lengths = scratch.take<half>(code.pieces());
  std::uint8_t* symbols = scratch.take<std::uint8_t>(code.pairs());
  const auto grid = normal_grid(method.bits(keys, layer));
  for (index_t t = 0; t < tokens; ++t) {
    for (index_t c = 0; c < channels; ++c) rows(t, c) -= next(t, c);
    code.encode(grid, &rows(t, 0), lengths, symbols, points);
    code.take_points(grid, symbols, points);
    for (index_t c = 0; c < channels; ++c) rows(t, c) = next(t, c);
    code.add(lengths, points, &rows(t, 0));
  }
  return Status::ok;
}

}  // namespace kvcondense::quant
