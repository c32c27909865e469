#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/retrieve/blocks/channels.hpp>
#include <kvcondense/retrieve/blocks/group_bound.hpp>

using namespace kvcondense;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

/// Which of four channels a query keeps of `count`.
std::vector<int> kept(index_t count, std::vector<float> query) {
  float out[5];
  retrieve::TopChannels{count}.of(query.data(), 4, out);
  std::vector<int> channels;
  for (int d = 0; d < 4; ++d)
    if (out[d] != 0.0f) channels.push_back(d);
  return channels;
}

}  // namespace

TEST_CASE("retrieve: a channel of NaN ranks last wherever it stands", "[retrieve]") {
  for (std::size_t at = 0; at < 4; ++at) {
    std::vector<float> query{1.0f, -2.0f, 3.0f, -4.0f};
    std::vector<int> others;
    query[at] = not_a_number;
    for (int d = 3; d >= 0 && others.size() < 2; --d)
      if (d != static_cast<int>(at)) others.insert(others.begin(), d);
    CHECK(kept(2, query) == others);
    CHECK(kept(4, query) == std::vector{0, 1, 2, 3});

    const CacheShape shape{.q_heads = 1, .kv_heads = 1, .head_dim = 4};
    retrieve::ReadView<Cpu> view;
    view.shape = shape, view.queries = query.data(), view.tokens = 1;
    float bound[8];
    retrieve::GroupChannels{3}.run(view, 0, 0, 0, bound);
    CHECK(bound[at] == 0.0f);
    CHECK(bound[4 + at] == 0.0f);
  }
}
