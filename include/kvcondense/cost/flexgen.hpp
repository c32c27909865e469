#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/core/policy.hpp>
#include <kvcondense/cost/model.hpp>

namespace kvcondense::cost {

/// Which part of something lies on the device, on the host and on a disk; they add up to 1.
struct Placement {
  double device = 1.0;
  double host = 0.0;
  double disk = 0.0;

  constexpr bool whole() const {
    const double sum = device + host + disk;
    return device >= 0.0 && host >= 0.0 && disk >= 0.0 && sum > 1.0 - 1e-9 && sum < 1.0 + 1e-9;
  }
};

/// Bytes and operations per second of a machine that offloads; as measured on a T4 by default.
struct OffloadMachine {
  static constexpr double gib = 1073741824.0;

  double host_to_device = 12.89 * gib;
  double device_to_host_cache = 0.97 * gib;
  double device_to_host_hidden = 4.82 * gib;
  double disk_to_host = 0.473 * gib;
  double host_to_disk_cache = 0.746 * gib;
  double host_to_disk_hidden = 2.015 * gib;
  double host_to_disk_decode = 2.015 * gib;
  double matmul_prefill = 21.24e12;
  double matmul_decode = 4.3e12;
  double batched_prefill = 9.97e12;  ///< attention of a prompt
  double batched_decode = 0.079e12;
  double host_attention = 0.0123e12;
};

/// Seconds of each lane of one layer, and of the layer.
struct OffloadTimes {
  double host_to_device = 0;
  double device_to_host = 0;
  double disk_to_host = 0;
  double host_to_disk = 0;
  double compute = 0;
  double layer = 0;          ///< as the authors' code adds the lanes up
  double overlapped = 0;     ///< the slowest lane: all of them run side by side

  double slowest() const { return std::max({host_to_device, device_to_host, disk_to_host, host_to_disk, compute}); }
  /// One after another.
  double serial() const { return host_to_device + device_to_host + disk_to_host + host_to_disk + compute; }
};

/// Tells how fast a model runs whose weights, cache and activations are spread over device, host and disk.
///
/// Idea     one layer at a time for a large block of sequences; loads and stores run beside the arithmetic, so
///          a layer takes as long as its slowest lane.
/// Source   FlexGen, arXiv:2303.06865.
/// Needs    hidden sizes, lengths, batch sizes, where things lie, the machine's speeds.
/// Shapes   scalars.
/// Cost     a few operations.
/// Numbers  double; 16 bit everywhere, heads without groups, feed-forward without a gate, as the authors assume.
///          Attention over a cache on the host is computed there, at a speed per byte read. Times a batch smaller than 64 or a hidden
///          size below 4096 makes slower by their fitted correction.
/// Differs  their search for the best placement is not here: this tells what one costs.
/// Errors   validate: invalid_argument unless sizes and speeds are positive and placements add up to 1.
struct FlexGen {
  static constexpr Descriptor about{"flexgen", Stage::cost, "arXiv:2303.06865"};

  double layers = 0;
  double hidden = 0;
  double intermediate = 0;
  double prompt = 0;
  double generated = 0;
  double block_batch = 0;   ///< sequences whose layers run one after the other
  double device_batch = 0;  ///< of them, at once
  double cache_factor = 1.0;  ///< of 4 hidden bytes per token and layer: what grouped heads and a recipe leave
  Placement weights{};
  Placement cache{};
  Placement activations{};
  OffloadMachine machine{};

  double layer_weight_bytes() const { return 8.0 * hidden * hidden + 4.0 * hidden * intermediate; }

  OffloadTimes prefill() const {
    const OffloadMachine& m = machine;
    const double rows = 2.0 * prompt * hidden * block_batch;  // bytes of activations
    const double kv = 4.0 * (prompt + 1.0) * hidden * block_batch * cache_factor;
    OffloadTimes t;
    t.host_to_device = (layer_weight_bytes() * off(weights) + rows * off(activations)) / m.host_to_device;
    t.device_to_host = kv * off(cache) / m.device_to_host_cache + rows * off(activations) / m.device_to_host_hidden;
    t.disk_to_host = (layer_weight_bytes() * weights.disk + rows * activations.disk) / m.disk_to_host;
    t.host_to_disk = kv * cache.disk / m.host_to_disk_cache + rows * activations.disk / m.host_to_disk_hidden;
    t.compute = block_batch * prompt * row_flops() / m.matmul_prefill +
                4.0 * block_batch * prompt * prompt * hidden / m.batched_prefill;
    t.layer = std::max({t.host_to_device + t.disk_to_host, t.device_to_host + t.host_to_disk, t.compute});
    return finish(t);
  }

  OffloadTimes decode() const {
    const OffloadMachine& m = machine;
    const double rows = 2.0 * hidden * block_batch;
    const double token = 4.0 * block_batch * hidden * cache_factor;
    const double kv = token * (prompt + generated / 2.0);  // in the mean over the answer
    OffloadTimes t;
    t.host_to_device = (layer_weight_bytes() * off(weights) + rows * off(activations)) / m.host_to_device;
    t.device_to_host = rows * off(activations) / m.device_to_host_hidden;
    t.disk_to_host = (kv * cache.disk + rows * activations.disk) / m.disk_to_host +
                     layer_weight_bytes() * weights.disk / (0.95 * m.disk_to_host);
    t.host_to_disk = (token * cache.disk + rows * activations.disk) / m.host_to_disk_decode;
    t.compute = block_batch * row_flops() / m.matmul_decode + kv * cache.device / m.batched_decode +
                kv * off(cache) / host_attention();
    t.layer = t.host_to_device + std::max({t.device_to_host, t.disk_to_host, t.host_to_disk, t.compute});
    return finish(t);
  }

  /// What the host reaches in attention with these batches.
  double host_attention() const {
    const double a = std::max(0.0, std::log2(64.0 / device_batch)), b = std::max(0.0, std::log2(4096.0 / hidden));
    return machine.host_attention * std::max(0.1, 1.0 + 0.0168 * a * b - 0.0328 * a - 0.0621 * b);
  }
  /// Of the whole block, from the first prompt token to the last generated one.
  double seconds() const { return layers * (prefill().layer + (generated - 1.0) * decode().layer); }
  double overlapped_seconds() const { return layers * (prefill().overlapped + (generated - 1.0) * decode().overlapped); }
  double tokens_per_second() const { return block_batch * generated / seconds(); }
  double overlapped_tokens_per_second() const { return block_batch * generated / overlapped_seconds(); }

  Status validate() const {
    const auto sane = [](double x) { return x > 0.0 && x < 1e18; };
    const OffloadMachine& m = machine;
    bool all = sane(layers) && sane(hidden) && sane(intermediate) && sane(prompt) && sane(generated) &&
               sane(block_batch) && sane(device_batch) && sane(cache_factor) && weights.whole() && cache.whole() && activations.whole();
    for (const double x : {m.host_to_device, m.device_to_host_cache, m.device_to_host_hidden, m.disk_to_host,
                           m.host_to_disk_cache, m.host_to_disk_hidden, m.host_to_disk_decode, m.matmul_prefill,
                           m.matmul_decode, m.batched_prefill, m.batched_decode, m.host_attention})
      all = all && sane(x);
    return all ? Status::ok : Status::invalid_argument;
  }

 private:
  static double off(const Placement& p) { return p.host + p.disk; }
  double row_flops() const { return 8.0 * hidden * hidden + 4.0 * hidden * intermediate; }
  static OffloadTimes finish(OffloadTimes t) {
    t.overlapped = t.slowest();
    return t;
  }
};

}  // namespace kvcondense::cost
