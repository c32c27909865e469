// An engine on CUDA: its own stream, its own device memory, a cache in which H2O decides which
// tokens stay and KIVI stores them in 4 bits. At the end attention of one more query is compared
// with what the host makes of the rows that the cache says it holds. nvcc -std=c++20 compiles it.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include <kvcondense/cuda.cuh>

namespace kvc = kvcondense;
using kvc::index_t;

namespace {

const kvc::CacheShape shape{
    .layers = 2, .q_heads = 8, .kv_heads = 2, .head_dim = 64, .page_slots = 32};
constexpr index_t prompt = 256, steps = 24, group = 4;  // query heads of a KV head

bool good(kvc::Status s, const char* what) {
  if (s != kvc::Status::ok) std::printf("%s: %s\n", what, to_string(s));
  return s == kvc::Status::ok;
}
bool good(cudaError_t e, const char* what) {
  if (e != cudaSuccess) std::printf("%s: %s\n", what, cudaGetErrorString(e));
  return e == cudaSuccess;
}

/// Device memory of the engine's own.
template <class T>
struct DeviceMemory {
  T* data = nullptr;

  explicit DeviceMemory(std::size_t n) {
    if (!good(cudaMalloc(&data, n * sizeof(T)), "cudaMalloc")) data = nullptr;
  }
  ~DeviceMemory() { static_cast<void>(cudaFree(data)); }
  DeviceMemory(const DeviceMemory&) = delete;
};

/// Stands for the engine's projections: rows [heads, tokens, 64] that a kernel before the cache
/// left on the device.
__global__ void project(float* rows, index_t n, std::uint64_t seed) {
  const index_t i = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) rows[i] = 4 * kvc::random_uniform(seed, static_cast<std::uint64_t>(i)) - 2;
}
kvc::TensorView<const float, 3> projected(cudaStream_t stream, DeviceMemory<float>& rows,
                                          index_t heads, index_t tokens, std::uint64_t seed) {
  const index_t n = heads * tokens * 64;
  project<<<static_cast<unsigned>((n + 255) / 256), 256, 0, stream>>>(rows.data, n, seed);
  return kvc::dense_view<const float>(rows.data, heads, tokens, 64);
}

/// What attention of a query over `slots` rows gives, on the host.
std::vector<double> attention(const float* query, const std::vector<float>& keys,
                              const std::vector<float>& values) {
  std::vector<double> out(64, 0.0);
  double all = 0.0;
  for (std::size_t j = 0; j < keys.size() / 64; ++j) {
    double dot = 0.0;
    for (std::size_t d = 0; d < 64; ++d) dot += double{query[d]} * double{keys[j * 64 + d]};
    const double weight = std::exp(dot / 8);
    all += weight;
    for (std::size_t d = 0; d < 64; ++d) out[d] += weight * double{values[j * 64 + d]};
  }
  for (double& x : out) x /= all;
  return out;
}

bool serve(cudaStream_t stream) {
  auto cache = kvc::make_cache<kvc::Cuda>(
      shape, kvc::recipe(kvc::evict::H2O{.heavy = 32, .recent = 32},
                         kvc::quant::Kivi<4>{.group_size = 32, .residual_window = 32}));
  if (!good(cache.status(), "make_cache")) return false;

  // Scratch is the caller's, on the device, allocated once: the size is a pure function. No head
  // ever holds more slots than the prompt has tokens.
  const std::size_t bytes = cache->workspace_bytes(prompt, prompt);
  const DeviceMemory<std::byte> scratch(bytes);
  DeviceMemory<float> q_rows(8 * prompt * 64), k_rows(2 * prompt * 64), v_rows(2 * prompt * 64),
      outputs(8 * prompt * 64);
  if (!scratch.data || !q_rows.data || !k_rows.data || !v_rows.data || !outputs.data) return false;
  auto ctx = kvc::Context<kvc::Cuda>::make(stream, {scratch.data, bytes});
  if (!good(ctx.status(), "context")) return false;

  // A prompt of 256 tokens, then 24 generated ones; every layer sees each of them once.
  std::uint64_t seed = 0;
  for (index_t pass = 0; pass <= steps; ++pass)
    for (index_t layer = 0; layer < shape.layers; ++layer) {
      const index_t n = pass == 0 ? prompt : 1;
      const auto q = projected(stream, q_rows, 8, n, ++seed);
      const auto k = projected(stream, k_rows, 2, n, ++seed);
      const auto v = projected(stream, v_rows, 2, n, ++seed);
      const auto out = kvc::dense_view(outputs.data, 8, n, 64);
      if (!good(cudaGetLastError(), "project")) return false;
      // Behind the projections on the same stream: stores k and v, attends, condenses.
      if (!good(cache->forward(*ctx, layer, q, k, v, out), "forward")) return false;
    }

  // One more query per head, over what layer 1 holds now.
  std::vector<float> queries(8 * 64), got(8 * 64);
  const auto q = projected(stream, q_rows, 8, 1, ++seed);
  if (!good(cudaGetLastError(), "project") ||
      !good(cache->attend(*ctx, 1, q, kvc::dense_view(outputs.data, 8, 1, 64)), "attend"))
    return false;
  const auto fetch = [&](std::vector<float>& to, const float* from) {
    return good(
        cudaMemcpyAsync(to.data(), from, to.size() * sizeof(float), cudaMemcpyDeviceToHost, stream),
        "copy");
  };
  if (!fetch(queries, q_rows.data) || !fetch(got, outputs.data)) return false;
  double apart = 0.0;
  for (index_t head = 0; head < shape.kv_heads; ++head) {
    const index_t n = cache->slots(1, head);
    std::vector<float> keys(static_cast<std::size_t>(n * 64)), values(keys);
    // Codes as the numbers that they stand for, in slot order.
    if (!good(cache->read(*ctx, 1, head, 0, kvc::dense_view(k_rows.data, n, 64),
                          kvc::dense_view(v_rows.data, n, 64)),
              "read") ||
        !fetch(keys, k_rows.data) || !fetch(values, v_rows.data) || !good(ctx->wait(), "wait"))
      return false;
    for (index_t h = head * group; h < (head + 1) * group; ++h) {
      const auto expected = attention(&queries[static_cast<std::size_t>(h * 64)], keys, values);
      for (std::size_t d = 0; d < 64; ++d)
        apart =
            std::fmax(apart, std::fabs(expected[d] - got[static_cast<std::size_t>(h * 64) + d]));
    }
  }

  const auto report = cache->report(*ctx);
  if (!good(report.status(), "report")) return false;
  const auto beside = report->side_bytes + report->index_bytes + report->fixed_bytes;
  std::printf("%lld tokens seen, %lld slots in each head\n", static_cast<long long>(report->tokens),
              static_cast<long long>(cache->slots(1, 0)));
  std::printf("%zu bytes of exact rows, %zu of codes, %zu beside them, instead of %zu\n",
              report->exact_bytes, report->coded_bytes, beside, report->dense_bytes);
  // Tensor cores round queries, rows and weights to halves.
  std::printf("attention as the host has it: %s\n", apart < 4e-3 ? "yes" : "no");
  return apart < 4e-3 && report->tokens == prompt + steps && cache->slots(1, 1) == 64;
}

}  // namespace

int main() {
  cudaStream_t stream = nullptr;
  if (!good(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream")) return 1;
  const bool served = serve(stream);
  return good(cudaStreamDestroy(stream), "stream") && served ? 0 : 1;
}
