#include <limits>
#include <set>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/quant/channel_clusters.hpp>

#include <support/fill.hpp>

using namespace kvcondense;

namespace {

TensorView<const float, 2> view(const std::vector<float>& x, index_t rows, index_t dim) { return {x.data(), {rows, dim}, {dim, 1}}; }

}  // namespace

TEST_CASE("channel_clusters: channels of like ranges are found, whatever their number", "[quant][channel_clusters]") {
  std::vector<float> x(100 * 64);
  test::fill_normal(x.data(), x.size(), 5);
  // Three kinds: plain, strong, and off to one side.
  const auto kind = [](std::size_t c) { return c % 16 == 3 ? 1 : c % 8 == 6 ? 2 : 0; };
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = kind(i % 64) == 1 ? 12.0f * x[i] : kind(i % 64) == 2 ? x[i] + 20.0f : x[i];
  std::vector<float> cluster(64);
  REQUIRE(quant::cluster_channels(view(x, 100, 64), 3, cluster) == Status::ok);
  for (std::size_t c = 0; c < 64; ++c)
    for (std::size_t d = 0; d < 64; ++d) REQUIRE((cluster[c] == cluster[d]) == (kind(c) == kind(d)));
  REQUIRE(cluster[0] == 0.0f);  // by their first channels
  REQUIRE(cluster[3] == 1.0f);
  REQUIRE(cluster[6] == 2.0f);
  const prim::ClusterRows codec{.cluster = cluster.data(), .channels = 64};
  REQUIRE(codec.valid(64));
}

TEST_CASE("channel_clusters: equal channels need fewer groups, numbers that are none are left out", "[quant][channel_clusters]") {
  std::vector<float> x(8 * 4, 1.0f), cluster(4);
  REQUIRE(quant::cluster_channels(view(x, 8, 4), 3, cluster) == Status::ok);
  REQUIRE(cluster == std::vector<float>(4, 0.0f));
  x = {1, 1, 9, 9, std::numeric_limits<float>::quiet_NaN(), 1, 9, std::numeric_limits<float>::infinity()};
  REQUIRE(quant::cluster_channels(view(x, 2, 4), 2, cluster) == Status::ok);
  REQUIRE(cluster == std::vector<float>{0, 0, 1, 1});
  REQUIRE(quant::cluster_channels(view(x, 0, 4), 2, cluster) == Status::ok);
  REQUIRE(quant::cluster_channels(view(x, 2, 4), 0, cluster) == Status::invalid_argument);
  REQUIRE(quant::cluster_channels(view(x, 2, 4), 33, cluster) == Status::invalid_argument);
  REQUIRE(quant::cluster_channels(view(x, 4, 2), 1, cluster) == Status::shape_mismatch);
  std::vector<float> wide(300);
  REQUIRE(quant::cluster_channels(view(wide, 1, 300), 2, wide) == Status::invalid_argument);
}

TEST_CASE("channel_clusters: an order by sums fills groups of one size", "[quant][channel_clusters]") {
  const std::vector<float> x = {3, -1, 7, 0, 2, 3, -1, 7, 0, 2};
  std::vector<float> cluster(5);
  REQUIRE(quant::order_by_sums(view(x, 2, 5), 2, cluster) == Status::ok);
  REQUIRE(cluster == std::vector<float>{1, 0, 2, 0, 1});
  const std::vector<float> same(10, 1.0f);
  REQUIRE(quant::order_by_sums(view(same, 2, 5), 2, cluster) == Status::ok);
  REQUIRE(cluster == std::vector<float>{0, 0, 1, 1, 2});
  const std::vector<float> odd = {std::numeric_limits<float>::quiet_NaN(), 1, 1, 1, 1, -5, 1, 1, 1, 1};
  REQUIRE(quant::order_by_sums(view(odd, 2, 5), 4, cluster) == Status::ok);
  REQUIRE(cluster == std::vector<float>{0, 0, 0, 0, 1});
  REQUIRE(quant::order_by_sums(view(x, 2, 5), 0, cluster) == Status::invalid_argument);
  REQUIRE(quant::order_by_sums(view(x, 5, 2), 2, cluster) == Status::shape_mismatch);
  std::vector<float> wide(256);
  REQUIRE(quant::order_by_sums(view(wide, 1, 256), 7, wide) == Status::invalid_argument);
  REQUIRE(quant::order_by_sums(view(wide, 1, 256), 8, wide) == Status::ok);
}
