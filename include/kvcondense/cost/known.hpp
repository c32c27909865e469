#pragma once

#include <span>
#include <string_view>

#include <kvcondense/cost/model.hpp>

namespace kvcondense::cost {

/// A model that has a name.
struct KnownModel {
  std::string_view name;
  Model model;
};

/// A device that has a name. Speeds are those of data sheets, dense 16 bit; links PCIe at what copies reach.
struct KnownDevice {
  std::string_view name;
  Device device;
};

inline constexpr KnownModel known_models[] = {
    {"llama-2-7b", {32, 4096, 11008, 32, 32, 128, 32000}},
    {"llama-3-8b", {32, 4096, 14336, 32, 8, 128, 128256}},
    {"llama-3-70b", {80, 8192, 28672, 64, 8, 128, 128256}},
    {"mistral-7b", {32, 4096, 14336, 32, 8, 128, 32000}},
    {"qwen2.5-7b", {28, 3584, 18944, 28, 4, 128, 152064}},
    {"yi-34b", {60, 7168, 20480, 56, 8, 128, 64000}},
};

inline constexpr KnownDevice known_devices[] = {
    {"a6000", {154.8385e12, 768e9, 48e9, 20e9}},      {"a100-40g", {312e12, 1555e9, 40e9, 20e9}},
    {"a100-80g", {312e12, 2039e9, 80e9, 20e9}},       {"h100-sxm", {989.5e12, 3072e9, 80e9, 50e9}},
    {"h100-pcie", {756.5e12, 2048e9, 80e9, 50e9}},    {"l40", {181e12, 864e9, 48e9, 20e9}},
    {"v100", {112e12, 900e9, 32e9, 10e9}},
};

/// Null: no model or device of this name.
constexpr const Model* find_model(std::string_view name) {
  for (const KnownModel& m : known_models)
    if (m.name == name) return &m.model;
  return nullptr;
}
constexpr const Device* find_device(std::string_view name) {
  for (const KnownDevice& d : known_devices)
    if (d.name == name) return &d.device;
  return nullptr;
}

}  // namespace kvcondense::cost
