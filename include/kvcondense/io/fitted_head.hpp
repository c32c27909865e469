#pragma once

#include <cstdint>
#include <span>

#include <kvcondense/io/stream_chunk.hpp>
#include <kvcondense/quant/blocks/entropy_coder.hpp>

namespace kvcondense::io {

/// What a chunk begins with in formats that code with arrays found by calibration.
struct FittedHead : StreamHead {
  quant::EntropyCoder coder = quant::EntropyCoder::range;
  bool exact = false;        ///< tokens as the cache stores them, not coded
  bool turned = false;       ///< coded keys are without the rotation that the cache's have
  std::uint64_t arrays = 0;  ///< which ones, with which rotation

 protected:
  std::uint64_t write_fitted(ByteSink& sink, std::uint32_t magic, std::uint32_t version, std::uint32_t number, Status& status) const {
    Own own{.number = number, .id = arrays};
    own.kind[1] = exact, own.kind[2] = static_cast<std::uint8_t>(coder), own.kind[6] = turned;
    return write_head(sink, magic, version, own, status);
  }
  Status read_fitted(std::span<const std::byte> file, std::uint32_t magic, std::uint32_t version, std::uint32_t& number, std::uint64_t& sum) {
    Own own;
    if (const Status s = read_head(file, magic, version, own, sum); s != Status::ok) return s;
    for (const int i : {1, 2, 6})
      if (own.kind[i] > 1) return Status::corrupt_data;
    for (const int i : {3, 4, 7})
      if (own.kind[i] != 0) return Status::corrupt_data;
    exact = own.kind[1] != 0, coder = static_cast<quant::EntropyCoder>(own.kind[2]), turned = own.kind[6] != 0;
    number = own.number, arrays = own.id;
    return sub_chunk <= 1024 && !(turned && raw_keys) ? Status::ok : Status::corrupt_data;
  }
};

}  // namespace kvcondense::io
