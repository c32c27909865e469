#pragma once

// Pages that the CPU codes, coded on CUDA too: the same bytes, and the same numbers out of them.

#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include <kvcondense/backend/cuda/words.cuh>

#include "device.hpp"

namespace cuda_pages {

using namespace kvcondense;
using test::at;

struct Job {
  index_t first, count;
};

/// Rows with everything in them that codecs must survive.
inline std::vector<float> rows_of(index_t n, index_t dim, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(at(n * dim));
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = normal(random) * (i % 7 == 0 ? 30.0f : 1.0f);
    const auto odd = static_cast<unsigned>(random() % 400);
    if (odd == 0) x[i] = std::numeric_limits<float>::quiet_NaN();
    if (odd == 1) x[i] = std::numeric_limits<float>::infinity();
    if (odd == 2) x[i] = -2e38f;
    if (odd == 3) x[i] = -0.0f;
    if (odd == 4) x[i] = 1e-41f;
    if (odd == 5) x[i] = 70000.0f;
  }
  for (index_t c = 0; n > 0 && c < dim; ++c) x[at(c)] = 0.25f;  // a constant row
  return x;
}

/// Kernels take what a codec looks up from tables on the device.
template <class Codec>
void compare(const Codec& codec, index_t slots, index_t dim, const std::vector<Job>& jobs, bool repairs = true) {
  INFO("dim " << dim << " slots " << slots << " fingerprint " << codec.fingerprint());
  const std::size_t bytes = codec.page_bytes(slots, dim);
  index_t most = 0, repaired = 0;
  std::vector<std::vector<float>> rows, decoded;
  std::vector<std::vector<std::byte>> pages;
  for (const Job& j : jobs) {
    most = std::max(most, j.count);
    rows.push_back(rows_of(j.count, dim + 3, static_cast<unsigned>(j.first + 31 * dim)));
    // Pages begin 64-byte aligned in a cache; vectors of 8-byte words do here what codecs need.
    pages.emplace_back(bytes);
    decoded.emplace_back(at(j.count * dim));
    const prim::PageSpan page{pages.back().data(), slots, dim};
    repaired += prim::PageCodec<Cpu, Codec>::encode(codec, page, j.first, j.count, {rows.back().data(), j.count, dim + 3});
    prim::PageCodec<Cpu, Codec>::decode(codec, page, j.first, j.count, {decoded.back().data(), j.count, dim});
  }
  test::each_way([&] {
    test::Device device;
    using Form = prim::DeviceForm<Codec>;
    std::vector<float> table(at(std::max<index_t>(1, Form::floats(codec, dim))));
    Form::fill(codec, dim, table.data());
    test::OnDevice<float> tables(device, table);
    const prim::DeviceCodec<Codec> there = Form::of(codec, tables.data(), 0, dim);
    using Pages = prim::PageCodec<Cuda, prim::DeviceCodec<Codec>>;
    std::vector<test::OnDevice<float>> in, out;
    std::vector<test::OnDevice<std::byte>> store;
    std::vector<prim::PageRows> encode, decode;
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      in.emplace_back(device, rows[i]);
      out.emplace_back(device, std::vector<float>(decoded[i].size()));
      store.emplace_back(device, std::vector<std::byte>(bytes));
      const auto first = static_cast<std::int32_t>(jobs[i].first), count = static_cast<std::int32_t>(jobs[i].count);
      encode.push_back({store[i].data(), in[i].data(), dim + 3, first, count});
      decode.push_back({store[i].data(), out[i].data(), dim, first, count});
    }
    test::OnDevice<prim::PageRows> encode_jobs(device, encode), decode_jobs(device, decode);
    test::OnDevice<index_t> sum(device, {5});
    prim::PageBatch batch{encode_jobs.data(), static_cast<index_t>(jobs.size()), most, slots, dim};
    REQUIRE(Pages::encode(device, there, batch, sum.data()) == Status::ok);
    batch.jobs = decode_jobs.data();
    REQUIRE(Pages::decode(device, there, batch) == Status::ok);
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      REQUIRE(store[i].read() == pages[i]);
      const std::vector<float> got = out[i].read();
      REQUIRE((got.empty() || std::memcmp(got.data(), decoded[i].data(), got.size() * sizeof(float)) == 0));
    }
    if (repairs) CHECK(sum.read()[0] == 5 + repaired);
  });
  if (repairs) CHECK(repaired > 0);
}

}  // namespace cuda_pages
