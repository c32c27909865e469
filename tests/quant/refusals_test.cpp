// What lies just beyond the ends of settings and shapes is refused, by every fit and every method alike.

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/core/workspace.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/quant/aquakv_fit.hpp>
#include <kvcondense/quant/bit_search.hpp>
#include <kvcondense/quant/cachegen.hpp>
#include <kvcondense/quant/channel_clusters.hpp>
#include <kvcondense/quant/channel_order.hpp>
#include <kvcondense/quant/complex_book.hpp>
#include <kvcondense/quant/kvtc.hpp>
#include <kvcondense/quant/layer_predictor.hpp>
#include <kvcondense/quant/level_search.hpp>

using namespace kvcondense;
using namespace kvcondense::quant;

namespace {

constexpr CacheShape shape{.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 32};
constexpr index_t too_long = 0x80000000;
constexpr Status bad = Status::invalid_argument;

/// Numbers per head of which the codecs read nothing here.
HeadRows rows_of(const std::vector<float>& x, index_t numbers, index_t layers = shape.layers) { return {x.data(), layers, shape.kv_heads, numbers}; }

template <class Stage, class Change>
Status with(Stage s, Change change) {
  change(s);
  return s.validate(shape);
}

}  // namespace

TEST_CASE("quant: fields beyond their ends are refused", "[quant][refusals]") {
  CHECK(with(BitAllocation{}, [](auto& s) { s.key_bits = 0; }) == bad);
  CHECK(with(BitAllocation{}, [](auto& s) { s.key_bits = 9; }) == bad);
  CHECK(with(Bfp{}, [](auto& s) { s.bits = 1; }) == bad);
  CHECK(with(Bfp{}, [](auto& s) { s.value_bits = 9; }) == bad);
  CHECK(with(Ggml{}, [](auto& s) { s.format = GgmlFormat::same; }) == bad);
  CHECK(with(TurboQuant{}, [](auto& s) { s.value_bits = 0; }) == bad);
  CHECK(with(TurboQuant{}, [](auto& s) { s.value_bits = 5; }) == bad);
  CHECK(with(TurboQuant{}, [](auto& s) { s.residual_window = -1; }) == bad);
  CHECK(with(PolarRecursive{}, [](auto& s) { s.bits = 0; }) == bad);
  CHECK(with(PolarRecursive{}, [](auto& s) { s.bits = 4; }) == bad);
  CHECK(with(RotateKv{}, [](auto& s) { s.bits = 0; }) == bad);
  CHECK(with(RotateKv{}, [](auto& s) { s.bits = 5; }) == bad);
  CHECK(with(RotateKv{}, [](auto& s) { s.group_size = max_head_dim + 1; }) == bad);
  CHECK(with(Skvq{}, [](auto& s) { s.group_size = max_head_dim + 1; }) == bad);
  CHECK(with(ZipCache<>{}, [](auto& s) { s.random = 1.1; }) == bad);
  CHECK(with(MiKV<>{}, [](auto& s) { s.block = 1; }) == bad);
  CHECK(with(GroupInt<4>{}, [](auto& s) { s.sinks = index_t{1} << 31; }) == bad);
  CHECK(with(GroupInt<4>{}, [](auto& s) { s.sinks = -1; }) == bad);
  CHECK(with(Kivi<2>{}, [](auto& s) { s.residual_window = index_t{1} << 31; }) == bad);
}

TEST_CASE("quant: tables of another shape are refused", "[quant][refusals]") {
  const std::vector<float> x(4096, 1.0f);
  CHECK(with(RotateKv{}, [&](auto& s) { s.key_clusters = rows_of(x, 31); }) == bad);
  CHECK(with(RotateKv{}, [&](auto& s) { s.value_clusters = rows_of(x, 31); }) == bad);
  CHECK(with(Skvq{}, [&](auto& s) { s.value_clusters = rows_of(x, 31); }) == bad);
  Skvq skvq;
  skvq.value_clusters = rows_of(x, 32);
  CHECK(skvq.differs_per_head());
  const auto kvquant = [&](auto change) {
    return with(KvQuant{}, [&](auto& s) {
      s.key_lower = s.key_upper = rows_of(x, 32);
      change(s);
    });
  };
  CHECK(kvquant([](auto&) {}) == Status::ok);
  CHECK(kvquant([&](auto& s) { s.key_lower = rows_of(x, 31); }) == bad);
  CHECK(kvquant([&](auto& s) { s.key_upper = rows_of(x, 32, 1); }) == bad);
  CHECK(kvquant([&](auto& s) { s.value_levels = rows_of(x, 3); }) == bad);
  CHECK(kvquant([](auto& s) { s.bits = 0; }) == bad);
  CHECK(kvquant([](auto& s) { s.bits = 5; }) == bad);
  CHECK(kvquant([](auto& s) { s.outliers = 0.6f; }) == bad);
  CommVq vq;
  vq.base = 2;
  const auto books = [&](index_t keys, index_t values) { return with(vq, [&](auto& s) { s.key_books = rows_of(x, keys), s.value_books = rows_of(x, values); }); };
  CHECK(books(64, 64) == Status::ok);
  CHECK(books(63, 64) == bad);  // less than a stage
  CHECK(books(64, 96) == bad);  // no whole number of stages
  CHECK(with(vq, [&](auto& s) { s.key_books = s.value_books = rows_of(x, 64), s.stages = 2; }) == bad);
  CHECK(with(vq, [&](auto& s) { s.key_books = s.value_books = rows_of(x, 64), s.base = 0; }) == bad);
  CHECK(with(vq, [&](auto& s) { s.key_books = s.value_books = rows_of(x, 64), s.base = index_t{1} << 20; }) == bad);
}

TEST_CASE("quant: a rotation over what is mapped already, or that does not fit, is refused", "[quant][refusals]") {
  CHECK(Hadamard{GroupInt<4>{}}.validate(shape) == Status::ok);
  CHECK(Hadamard{TurboQuant{}}.validate(shape) == Status::incompatible);
  CHECK(with(Hadamard{GroupInt<4>{}}, [](auto& s) { s.base.sinks = -1; }) == bad);
  CacheShape odd = shape;
  odd.value_dim = 48;
  CHECK(Hadamard{GroupInt<4>{.group_size = 16}}.validate(odd) == Status::ok);
  CHECK(Hadamard<>{.base = {.group_size = 16}, .block = 32}.validate(odd) == bad);  // no blocks of 32 in a value
}

TEST_CASE("quant: streams' settings that no file can hold are refused", "[quant][refusals]") {
  CHECK(Aquakv{.chunk = too_long}.validate() == bad);
  CHECK(Kvtc{.chunk = too_long}.validate() == bad);
  CHECK(CacheGen{.chunk = too_long}.validate() == bad);
  CacheGen c;
  c.key_bins.of = 65537;
  CHECK(c.validate() == bad);
  c = {}, c.widths.first_end = -1;
  CHECK(c.validate() == bad);
  CHECK(bits_of(KvtcType::none) == 0);
  CHECK(symbols_of(KvtcType::fp8) == 256);
}

TEST_CASE("quant: fits refuse shapes that disagree, and write nothing", "[quant][refusals]") {
  std::vector<float> x(64, 1.0f), map(64, 7.0f), out(64, 7.0f);
  std::vector<std::byte> memory(1 << 16);
  const Scratch scratch(memory);
  const auto view = [&](index_t n, index_t m) { return dense_view(static_cast<const float*>(x.data()), n, m); };
  const auto into = [&](index_t n, index_t m) { return dense_view(out.data(), n, m); };

  CHECK(fit_layer_predictor(view(4, 0), view(4, 2), into(1, 2), scratch) == bad);
  CHECK(fit_layer_predictor(view(4, 2), view(4, 0), into(3, 0), scratch) == bad);
  CHECK(fit_layer_predictor(view(4, 2), view(4, 2), into(4, 2), scratch) == Status::shape_mismatch);
  CHECK(fit_layer_predictor(view(4, 2), view(4, 2), into(3, 1), scratch) == Status::shape_mismatch);
  for (const std::size_t bytes : {std::size_t{0}, layer_predictor_bytes(2, 2) - 1})
    CHECK(fit_layer_predictor(view(4, 2), view(4, 2), into(3, 2), Scratch(std::span(memory).first(bytes))) == Status::workspace_too_small);
  CHECK(predict_layer(view(3, 1), view(4, 2), view(4, 0), into(4, 2)) == Status::shape_mismatch);
  CHECK(predict_layer(view(3, 2), view(3, 2), view(4, 0), into(4, 2)) == Status::shape_mismatch);
  CHECK(predict_layer(view(3, 2), view(4, 2), view(3, 0), into(4, 2)) == Status::shape_mismatch);
  auto gaps = view(3, 2);
  gaps.stride[0] = 4;
  CHECK(predict_layer(gaps, view(4, 2), view(4, 0), into(4, 2)) == Status::shape_mismatch);
  gaps = view(3, 2), gaps.stride[1] = 2;
  CHECK(predict_layer(gaps, view(4, 2), view(4, 0), into(4, 2)) == Status::shape_mismatch);
  auto wide = into(4, 2);
  wide.stride[1] = 2;
  CHECK(predict_layer(view(3, 2), view(4, 2), view(4, 0), wide) == Status::shape_mismatch);

  CHECK(fit_aquakv_side({}, true, 1, view(0, 16), into(0, 2), std::span(map).first(34)) == bad);
  CHECK(fit_aquakv_side({}, true, 1, view(1, 16), into(1, 0), std::span(map).first(0)) == bad);

  CHECK(cluster_channels(view(2, 0), 2, {}) == bad);
  CHECK(order_by_sums(view(2, 0), 2, {}) == bad);
  CHECK(order_by_sums(TensorView<const float, 2>{x.data(), {0, max_head_dim + 1}, {1, 1}}, 64, std::span(out)) == bad);

  const ComplexBookFit fit{.stages = 1, .base = 2, .rounds = 1};
  CHECK(fit_complex_book(view(4, 4), {.stages = 1, .base = 257, .rounds = 1}, std::span(out).first(8), scratch) == bad);
  CHECK(fit_complex_book(TensorView<const float, 2>{x.data(), {0, max_head_dim + 2}, {1, 1}}, fit, std::span(out).first(8), scratch) == bad);
  Status s = Status::workspace_too_small;
  for (std::size_t bytes = 0; s == Status::workspace_too_small; bytes += Scratch::align)
    s = fit_complex_book(view(4, 4), fit, std::span(map).first(8), Scratch(std::span(memory).first(bytes)));
  CHECK(s == Status::ok);  // at last, and nothing else on the way

  CHECK(fit_levels_1d(std::span<const float>(x), std::span<const float>(std::vector<float>(64, std::numeric_limits<float>::infinity())), std::span(out).first(4), scratch) == bad);
  CHECK(fit_levels_1d(std::span<const float>(x), {}, std::span(out).first(4), Scratch(std::span(memory).first(16 * 65))) == Status::workspace_too_small);
  CHECK(find_thresholds(view(4, 2), -0.1, std::span(out).first(2), std::span(out).first(2), scratch) == bad);
  CHECK(find_thresholds(view(4, 2), 0.1, std::span(out).first(2), std::span(out).first(3), scratch) == Status::shape_mismatch);
  CHECK(out == std::vector<float>(64, 7.0f));
}

TEST_CASE("quant: orders of channels that do not fit their projection are refused", "[quant][refusals]") {
  std::vector<float> x(64, 1.0f), out(64, 7.0f);
  const auto view = [&](index_t n, index_t m) { return dense_view(static_cast<const float*>(x.data()), n, m); };
  const auto into = [&](index_t n, index_t m) { return dense_view(out.data(), n, m); };
  std::vector<std::int32_t> order(16, 0);
  const auto orders = [&](index_t heads, index_t dim) { return dense_view(order.data(), heads, dim); };
  const auto named = [&](index_t heads, index_t dim) { return dense_view(static_cast<const std::int32_t*>(order.data()), heads, dim); };
  CHECK(order_channels(view(8, 2), {.rotary_dim = 0}, orders(2, 0)) == bad);
  CHECK(order_channels(view(8, 2), {.rotary_dim = 0}, TensorView<std::int32_t, 2>{order.data(), {1, max_head_dim + 1}, {1, 1}}) == bad);
  CHECK(order_channels(view(8, 2), {.rotary_dim = 4}, orders(0, 4)) == Status::shape_mismatch);
  CHECK(order_channels(view(7, 2), {.rotary_dim = 4}, orders(2, 4)) == Status::shape_mismatch);
  CHECK(permute_rows(view(8, 2), named(0, 4), into(8, 2)) == Status::shape_mismatch);
  CHECK(permute_rows(view(8, 2), named(2, 0), into(8, 2)) == Status::shape_mismatch);
  CHECK(permute_rows(view(8, 2), named(2, 4), into(4, 2)) == Status::shape_mismatch);
  CHECK(permute_rows(view(8, 2), named(2, 4), into(8, 1)) == Status::shape_mismatch);
  order.assign(16, 4);
  CHECK(permute_rows(view(8, 2), named(2, 4), into(8, 2)) == bad);

  const auto angles = [&](std::vector<std::int32_t> head, prim::RopePairing pairing, std::size_t pairs = 2, std::size_t results = 2, index_t rotary = 4) {
    return permute_angles(std::span<const float>(x).first(pairs), {.rotary_dim = rotary, .pairing = pairing}, head, std::span(out).first(results));
  };
  constexpr auto split = prim::RopePairing::half_split, adjacent = prim::RopePairing::interleaved;
  CHECK(angles({0, 1, 2, 3}, split, 2, 1) == Status::shape_mismatch);
  CHECK(angles({0, 1}, split) == Status::shape_mismatch);
  CHECK(angles({-1, 1, 2, 3}, split) == bad);
  CHECK(angles({2, 1, 4, 3}, split) == bad);      // begins with a second channel
  CHECK(angles({-2, -1, 2, 3}, adjacent) == bad);
  CHECK(angles({4, 5, 2, 3}, adjacent) == bad);   // one that does not turn
  CHECK(angles({1, 2, 0, 3}, adjacent) == bad);   // begins in the middle of a pair
  CHECK(angles({0, 2, 1, 3}, adjacent) == bad);   // torn
  CHECK(out == std::vector<float>(64, 7.0f));
}

TEST_CASE("quant: tables of choices that no search can read are refused", "[quant][refusals]") {
  std::vector<index_t> cost(600, 1);
  std::vector<double> error(600, 1.0);
  const auto choices = [&](index_t items, index_t n, index_t error_items, index_t error_n) {
    return BitChoices{dense_view(static_cast<const index_t*>(cost.data()), items, n), dense_view(static_cast<const double*>(error.data()), error_items, error_n)};
  };
  CHECK(choices(2, 3, 2, 3).valid());
  CHECK_FALSE(choices(0, 3, 0, 3).valid());
  CHECK_FALSE(choices(2, 0, 2, 0).valid());
  CHECK_FALSE(choices(2, 257, 2, 257).valid());
  CHECK_FALSE(choices(2, 3, 1, 3).valid());
  CHECK_FALSE(choices(2, 3, 2, 2).valid());
  error[4] = std::numeric_limits<double>::infinity();
  CHECK_FALSE(choices(2, 3, 2, 3).valid());
  error[4] = 1.0;
  std::vector<std::int32_t> choice(2, -1);
  std::vector<std::byte> memory(1 << 12);
  const auto front = [&](std::size_t n, std::size_t bytes) {
    return bit_front(choices(2, 3, 2, 3), 8, std::span(choice).first(n), Scratch(std::span(memory).first(bytes)), [](index_t, double) {});
  };
  CHECK(front(1, memory.size()) == Status::shape_mismatch);
  std::size_t bytes = 0;
  for (; front(2, bytes) == Status::workspace_too_small; bytes += 1) CHECK(choice == std::vector<std::int32_t>(2, -1));
  CHECK(front(2, bytes) == Status::ok);
  CHECK(choice == std::vector<std::int32_t>(2, 0));
}
