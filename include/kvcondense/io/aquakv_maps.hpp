#pragma once

#include <cmath>
#include <cstdint>
#include <span>

#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/io/stream_rows.hpp>
#include <kvcondense/quant/layer_predictor.hpp>

namespace kvcondense::io {

/// Keys and values of a layer of some tokens, all heads of a token side by side: [tokens, channels].
struct AquakvRows {
  TensorView<float, 2> keys, values;

  const TensorView<float, 2>& side(KvSide s) const { return s == KvSide::keys ? keys : values; }
};

/// The maps from layer to layer that writer and reader of a stream of AQUA-KV share. Borrows the arrays.
///
/// Cost     `make` reads every number once, for the id.
/// Errors   missing_input without maps; shape_mismatch for those of another model; invalid_argument for numbers that are none.
class AquakvMaps {
 public:
  AquakvMaps() = default;

  static Expected<AquakvMaps> make(const LayerMaps& maps, const CacheShape& shape) {
    if (const Status s = kvcondense::validate(shape); s != Status::ok) return s;
    if (maps.empty()) return Status::missing_input;
    if (maps.layers != shape.layers || maps.key_channels != shape.kv_heads * shape.head_dim ||
        maps.value_channels != shape.kv_heads * shape.values())
      return Status::shape_mismatch;
    AquakvMaps m;
    m.maps_ = maps;
    Checksum id;
    const std::uint64_t sizes[] = {static_cast<std::uint64_t>(maps.layers), static_cast<std::uint64_t>(maps.key_channels),
                                   static_cast<std::uint64_t>(maps.value_channels), maps.form == KeyForm::raw};
    id.add(std::as_bytes(std::span(sizes)));
    const auto add = [&](const float* x, index_t n) {
      for (index_t i = 0; i < n; ++i)
        if (!std::isfinite(x[i])) return false;
      id.add(std::as_bytes(std::span(x, static_cast<std::size_t>(n))));
      return true;
    };
    const index_t behind = maps.layers - 1;
    const bool good = add(maps.first_keys, maps.key_channels) && add(maps.first_values, maps.value_channels) &&
                      add(maps.keys, behind * maps.key_numbers()) && add(maps.values, behind * maps.value_numbers());
    m.id_ = id.value();
    return good ? Expected<AquakvMaps>(m) : Expected<AquakvMaps>(Status::invalid_argument);
  }

  /// Whether they are of keys before rotation.
  bool raw_keys() const { return maps_.form == KeyForm::raw; }
  index_t layers() const { return maps_.layers; }
  index_t channels(KvSide side) const { return side == KvSide::keys ? maps_.key_channels : maps_.value_channels; }
  /// With the rotation of keys that are turned, else null.
  std::uint64_t id(const prim::RopeTable* rope) const { return id_with_rotation(id_, rope); }

  /// out = what the maps say of a layer. Of keys: `rows` are the layer below's; of values: keys are the layer's own, values the
  /// layer below's. Rows of `out` without gaps.
  Status predict(KvSide side, index_t layer, const AquakvRows& rows, TensorView<float, 2> out) const {
    const index_t channels = this->channels(side);
    if (layer > 0) {
      const auto map = [&](const float* x, index_t inputs) { return TensorView<const float, 2>{x, {inputs + 1, channels}, {channels, 1}}; };
      if (side == KvSide::keys) return quant::predict_layer(map(maps_.keys_of(layer), maps_.key_channels), rows.keys, out);
      return quant::predict_layer(map(maps_.values_of(layer), maps_.key_channels + maps_.value_channels), rows.keys, rows.values, out);
    }
    const float* mean = side == KvSide::keys ? maps_.first_keys : maps_.first_values;
    for (index_t t = 0; t < out.extent[0]; ++t)
      for (index_t c = 0; c < channels; ++c) out(t, c) = mean[c];
    return Status::ok;
  }

 private:
  LayerMaps maps_;
  std::uint64_t id_ = 0;
};

}  // namespace kvcondense::io
