#include <catch2/catch.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/storage/partial_attention.hpp>
#include <support/oracle.hpp>
#include <vector>

using namespace kvcondense;
using Split = storage::PartialAttention;

TEST_CASE("partial attention: slices cover the prompt in order, later tokens are the last shard's", "[storage][partial_attention]") {
  for (const index_t tokens : {0, 1, 2, 7, 100})
    for (const index_t shards : {1, 2, 3, 5, 8}) {
      const Split s{shards, tokens};
      REQUIRE(s.validate() == Status::ok);
      CHECK(s.begin(0) == 0);
      CHECK(s.end(shards - 1) == tokens);
      for (index_t r = 0; r < shards; ++r)
        for (index_t t = s.begin(r); t < s.end(r); ++t) REQUIRE(s.owner(t) == r);
      CHECK(s.owner(tokens) == shards - 1);
      CHECK(s.owner(tokens + 1000) == shards - 1);
    }
  CHECK(Split{0, 4}.validate() == Status::invalid_argument);
  CHECK(Split{2, -1}.validate() == Status::invalid_argument);
}

TEST_CASE("partial attention: messages hold a part, and joined they are attention over all", "[storage][partial_attention]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "lse_merge");
  std::vector<std::vector<float>> messages;
  std::vector<prim::PartialAttention> parts;
  for (const auto& p : o.at("partials")) {
    const auto out = test::floats(p.at("out"));
    const float lse = p.at("lse").is_string() ? -std::numeric_limits<float>::infinity() : p.at("lse").get<float>();
    messages.emplace_back(static_cast<std::size_t>(Split::message_numbers(1, 1, 2)));
    REQUIRE(Split::pack({dense_view(out.data(), 1, 1, 2), dense_view(&lse, 1, 1)}, messages.back()) == Status::ok);
  }
  for (const auto& m : messages) parts.push_back(Split::unpack(m, 1, 1, 2));
  std::vector<float> out(2);
  float lse = 0;
  Context<Cpu> ctx;
  REQUIRE(prim::MergePartials<Cpu>::run(ctx, parts, dense_view(out.data(), 1, 1, 2), dense_view(&lse, 1, 1)) == Status::ok);
  for (std::size_t d = 0; d < 2; ++d) CHECK(out[d] == Approx(o.at("merged").at("out")[d].get<double>()).epsilon(1e-5));
  CHECK(lse == Approx(o.at("merged").at("lse").get<double>()).epsilon(1e-5));

  // Several heads and queries land where they were.
  std::vector<float> rows(3 * 2 * 4), lses(3 * 2), message(3 * 2 * 5);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i);
  for (std::size_t i = 0; i < lses.size(); ++i) lses[i] = static_cast<float>(100 + i);
  const prim::PartialAttention whole{dense_view(std::as_const(rows).data(), 3, 2, 4), dense_view(std::as_const(lses).data(), 3, 2)};
  REQUIRE(Split::pack(whole, message) == Status::ok);
  const auto back = Split::unpack(message, 3, 2, 4);
  for (index_t h = 0; h < 3; ++h)
    for (index_t t = 0; t < 2; ++t) {
      CHECK(back.lse(h, t) == whole.lse(h, t));
      for (index_t d = 0; d < 4; ++d) CHECK(back.out(h, t, d) == whole.out(h, t, d));
    }
  message.pop_back();
  CHECK(Split::pack(whole, message) == Status::shape_mismatch);
}

TEST_CASE("partial attention: sums and a maximum mean the same lse, traffic knows no context", "[storage][partial_attention]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "lse_merge");
  for (std::size_t i = 0; i < o.at("partials").size(); ++i) {
    const auto& sums = o.at("max_sum_partials")[i];
    if (sums.at("m").is_string()) continue;
    const storage::PartialSums s{sums.at("m").get<double>(), sums.at("e").get<double>()};
    CHECK(s.lse() == Approx(o.at("partials")[i].at("lse").get<double>()));
    for (std::size_t d = 0; d < 2; ++d)
      CHECK(sums.at("o")[d].get<double>() / s.sum == Approx(o.at("partials")[i].at("out")[d].get<double>()));
  }
  CHECK(Split::traffic(32, 128, 128) == 32 * 257);
  CHECK(Split::message_numbers(32, 1, 128) == 32 * 129);
}
