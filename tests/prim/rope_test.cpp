#include <array>
#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/rope.hpp>

#include <support/fill.hpp>
#include <support/guarded.hpp>
#include <support/memory.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using namespace kvcondense::prim;

namespace {

RopeAngles angles_of(const RopeConfig& config, index_t dim) {
  const auto angles = rope_angles(config, dim);
  REQUIRE(angles.status() == Status::ok);
  return *angles;
}

/// The oracle: one row in double, pair by pair, from the formula.
std::vector<double> turned(const std::vector<float>& row, const RopeAngles& a, double position) {
  std::vector<double> out(row.begin(), row.end());
  for (index_t t = 0; t < a.pairs; ++t) {
    const bool split = a.pairing == RopePairing::half_split;
    const auto i = static_cast<std::size_t>(split ? t : 2 * t), j = static_cast<std::size_t>(split ? t + a.pairs : 2 * t + 1);
    const double angle = position * static_cast<double>(a.frequency[t]);
    out[i] = static_cast<double>(row[i]) * std::cos(angle) - static_cast<double>(row[j]) * std::sin(angle);
    out[j] = static_cast<double>(row[j]) * std::cos(angle) + static_cast<double>(row[i]) * std::sin(angle);
  }
  return out;
}

void require_close(const float* got, const std::vector<double>& want, double margin) {
  for (std::size_t i = 0; i < want.size(); ++i) REQUIRE(got[i] == Approx(want[i]).margin(margin));
}

std::vector<float> rotate(const RopeConfig& config, std::vector<float> row, index_t position, RopeTurn turn = {}) {
  Context<Cpu> ctx;
  const auto dim = static_cast<index_t>(row.size());
  const auto view = dense_view(row.data(), 1, 1, dim);
  REQUIRE(Rope<Cpu>::rotate(ctx, angles_of(config, dim), view, test::view2<const index_t>(&position, 1, 1), view, turn) ==
          Status::ok);
  return row;
}

}  // namespace

TEST_CASE("rope: every head, token and pairing turns as the formula says", "[prim][rope]") {
  const index_t heads = GENERATE(1, 3), tokens = GENERATE(0, 1, 17), dim = GENERATE(2, 64, 80, 96, 128, 256);
  const RopePairing pairing = GENERATE(RopePairing::half_split, RopePairing::interleaved);
  const index_t rotary = GENERATE(0, 2);
  CAPTURE(heads, tokens, dim, static_cast<int>(pairing), rotary);
  const RopeAngles angles = angles_of({.pairing = pairing, .rotary_dim = rotary}, dim);
  const auto size = static_cast<std::size_t>(heads * tokens * dim);
  std::vector<float> rows(size);
  test::fill_normal(rows.data(), size, 1);
  std::vector<index_t> positions(static_cast<std::size_t>(tokens));
  for (std::size_t t = 0; t < positions.size(); ++t) positions[t] = static_cast<index_t>(t * t * 31) - 40;
  test::Guarded<float> out(size);
  Context<Cpu> ctx;
  REQUIRE(Rope<Cpu>::rotate(ctx, angles, dense_view(rows.data(), heads, tokens, dim),
                            test::view2<const index_t>(positions.data(), 1, tokens),
                            dense_view(out.data(), heads, tokens, dim)) == Status::ok);
  for (index_t r = 0; r < heads * tokens; ++r) {
    const std::vector<float> row(rows.begin() + r * dim, rows.begin() + (r + 1) * dim);
    const auto want = turned(row, angles, static_cast<double>(positions[static_cast<std::size_t>(r % tokens)]));
    double worst = 0.0;
    for (index_t d = 0; d < dim; ++d)
      worst = std::max(worst, std::abs(want[static_cast<std::size_t>(d)] - static_cast<double>(out[r * dim + d])));
    REQUIRE(worst < 1e-6);
  }
  REQUIRE(out.ok());
}

TEST_CASE("rope: turning back undoes, in place, with positions per head", "[prim][rope]") {
  const RopeAngles angles = angles_of({}, 64);
  std::vector<float> rows(2 * 5 * 64);
  test::fill_normal(rows.data(), rows.size(), 2);
  const std::vector<float> before = rows;
  const std::array<index_t, 10> positions{0, 1, 2, 1000, 100000, -3, 7, 8, 9, 131071};
  Context<Cpu> ctx;
  const auto view = dense_view(rows.data(), 2, 5, 64);
  const auto at = test::view2<const index_t>(positions.data(), 2, 5);
  REQUIRE(Rope<Cpu>::rotate(ctx, angles, view, at, view) == Status::ok);
  REQUIRE(rows != before);
  REQUIRE(Rope<Cpu>::rotate(ctx, angles, view, at, view, {.back = true}) == Status::ok);
  for (std::size_t i = 0; i < rows.size(); ++i) REQUIRE(rows[i] == Approx(before[i]).margin(1e-6));
}

TEST_CASE("rope: rotations add up, keep the norm and leave scores relative", "[prim][rope]") {
  const RopePairing pairing = GENERATE(RopePairing::half_split, RopePairing::interleaved);
  const RopeConfig config{.pairing = pairing, .rotary_dim = 48};
  std::vector<float> q(64), k(64);
  test::fill_normal(q.data(), 64, 3);
  test::fill_normal(k.data(), 64, 4);
  const auto dot = [](const std::vector<float>& a, const std::vector<float>& b) {
    double s = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) s += static_cast<double>(a[i]) * b[i];
    return s;
  };
  const auto twice = rotate(config, rotate(config, k, 11), 31), once = rotate(config, k, 42);
  for (std::size_t i = 0; i < 64; ++i) REQUIRE(twice[i] == Approx(once[i]).margin(2e-6));
  REQUIRE(dot(once, once) == Approx(dot(k, k)).epsilon(1e-6));
  REQUIRE(dot(rotate(config, q, 900), rotate(config, k, 877)) == Approx(dot(q, rotate(config, k, -23))).margin(1e-4));
}

TEST_CASE("rope: the two pairings are one rotation of permuted channels", "[prim][rope]") {
  std::vector<float> split(32), mixed(32);
  test::fill_normal(split.data(), 32, 5);
  for (std::size_t t = 0; t < 16; ++t) mixed[2 * t] = split[t], mixed[2 * t + 1] = split[t + 16];
  const auto a = rotate({}, split, 9), b = rotate({.pairing = RopePairing::interleaved}, mixed, 9);
  for (std::size_t t = 0; t < 16; ++t) {
    REQUIRE(b[2 * t] == a[t]);
    REQUIRE(b[2 * t + 1] == a[t + 16]);
  }
}

TEST_CASE("rope: rotated keys of the worked cases", "[prim][rope][oracle]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "rope");
  const std::vector<float> key = test::floats(o.at("key"));
  const auto require_same = [](const std::vector<float>& got, const nlohmann::json& want) {
    require_close(got.data(), want.get<std::vector<double>>(), 2e-6);
  };
  require_same(rotate({}, key, 3), o.at("half_split_pos3"));
  require_same(rotate({.pairing = RopePairing::interleaved}, key, 3), o.at("interleaved_pos3"));
  require_same(rotate({.rotary_dim = 4}, key, 3), o.at("partial_rd4_pos3_half_split"));

  // Frequencies changed since the key was stored: un-rotate with the old ones, rotate with the new.
  const RopeConfig ntk{.scaling = RopeScaling::dynamic_ntk, .factor = 2.0, .original_length = 2048, .length = 4096};
  const auto& rebase = o.at("dynamic_rebase");
  const auto raw = rotate({}, test::floats(rebase.at("k_stored")), rebase.at("stored_pos"), {.back = true});
  require_same(rotate(ntk, raw, rebase.at("new_pos")), rebase.at("k_new"));

  // Static scalings: the difference of positions, scaled frequencies, no second attention factor.
  const RopeConfig yarn{.scaling = RopeScaling::yarn, .factor = 4.0, .original_length = 4096};
  const auto& delta = o.at("yarn_delta");
  require_same(rotate(yarn, test::floats(delta.at("k_stored")), 2), delta.at("k_new"));
  require_same(rotate(yarn, key, 7, {.scale = angles_of(yarn, 8).attention_factor}), delta.at("k_stored"));

  const auto move = test::load_oracle("eviction.json", "rope_reposition");
  require_same(rotate({}, test::floats(move.at("key_pre_rope")), 7), move.at("rotated_at_7"));
  require_same(rotate({}, test::floats(move.at("key_pre_rope")), 3), move.at("rotated_at_3"));
  require_same(rotate({}, test::floats(move.at("rotated_at_7")), -4), move.at("rerotated_7_to_3"));
}

TEST_CASE("rope table: covered and uncovered positions turn alike", "[prim][rope]") {
  const RopePairing pairing = GENERATE(RopePairing::half_split, RopePairing::interleaved);
  auto table = RopeTable::make({.pairing = pairing, .base = 5e5}, 128, heap_memory());
  REQUIRE(table.has_value());
  REQUIRE(table->reserve(100) == Status::ok);
  REQUIRE(table->slots() == 112);
  std::vector<float> row(128);
  test::fill_normal(row.data(), 128, 6);
  for (const index_t p : {0, 1, 15, 16, 17, 99, 111, 112, 5000, 1000000, -1, -16, -111, -112, -70000}) {
    std::vector<float> got = row;
    table->rotate(got.data(), p);
    require_close(got.data(), turned(row, table->angles(), static_cast<double>(p)), 2e-6);
  }
}

TEST_CASE("rope table: small angles on keys and large ones on queries give the score at the slot", "[prim][rope]") {
  auto table = RopeTable::make({}, 64, heap_memory());
  REQUIRE(table.has_value());
  REQUIRE(table->reserve(5000) == Status::ok);
  std::vector<float> q(64), k(64);
  test::fill_normal(q.data(), 64, 7);
  test::fill_normal(k.data(), 64, 8);
  for (const index_t slot : {0, 5, 16, 31, 1000, 4999}) {
    std::vector<float> key = k, query = q;
    prim::cpu::turn_rows(key.data(), 1, 0, table->fine(slot % RopeTable::tile), 0, table->angles());
    prim::cpu::turn_rows(query.data(), 1, 0, table->coarse(slot / RopeTable::tile), 0, table->angles(), true);
    const auto at_slot = turned(k, table->angles(), static_cast<double>(slot));
    double got = 0.0, want = 0.0;
    for (std::size_t i = 0; i < 64; ++i) got += static_cast<double>(query[i]) * key[i], want += static_cast<double>(q[i]) * at_slot[i];
    REQUIRE(got == Approx(want).margin(2e-5));
  }
}

TEST_CASE("rope table: grows only, copies, and survives refused memory", "[prim][rope]") {
  test::CountingMemory memory;
  {
    auto table = RopeTable::make({}, 64, memory);
    REQUIRE(table.has_value());
    REQUIRE(table->reserve(64) == Status::ok);
    const long requests = memory.requests;
    REQUIRE(table->reserve(10) == Status::ok);
    REQUIRE(table->reserve(64) == Status::ok);
    REQUIRE(memory.requests == requests);
    memory.refuse_from = memory.requests;
    REQUIRE(table->reserve(100000) == Status::out_of_memory);
    REQUIRE(table->slots() == 64);
    memory.refuse_from = -1;
    auto copy = RopeTable::make({}, 64, memory);
    REQUIRE(copy.has_value());
    REQUIRE(table->fork(*copy) == Status::ok);
    REQUIRE(copy->slots() == 64);
    REQUIRE(std::equal(copy->coarse(3), copy->coarse(3) + 64, table->coarse(3)));
    REQUIRE(table->bytes() + copy->bytes() == memory.live_bytes);
    auto other = RopeTable::make({.pairing = RopePairing::interleaved, .base = 5e5}, 64, memory);
    REQUIRE(other.has_value());
    memory.refuse_from = memory.requests;
    REQUIRE(table->fork(*other) == Status::out_of_memory);
    memory.refuse_from = -1;
    REQUIRE(table->fork(*other) == Status::ok);
    std::vector<float> row(64), same(64);
    for (const index_t at : {63, -70, 1000}) {  // in the table, and beyond it
      test::fill_normal(row.data(), 64, 3), same = row;
      table->rotate(row.data(), at), other->rotate(same.data(), at);
      REQUIRE(same == row);
    }
  }
  REQUIRE(memory.live_bytes == 0);
  memory.refuse_from = memory.requests;
  REQUIRE(RopeTable::make({}, 64, memory).status() == Status::out_of_memory);
}

TEST_CASE("rope: views that disagree are refused", "[prim][rope]") {
  Context<Cpu> ctx;
  std::vector<float> x(2 * 3 * 8);
  std::vector<index_t> p(6);
  const RopeAngles angles = angles_of({}, 8);
  const auto rows = dense_view(x.data(), 2, 3, 8);
  const auto refused = [&](TensorView<float, 3> in, TensorView<const index_t, 2> at, TensorView<float, 3> out) {
    return Rope<Cpu>::rotate(ctx, angles, in, at, out) == Status::shape_mismatch;
  };
  REQUIRE(refused(rows, test::view2<const index_t>(p.data(), 1, 2), rows));
  REQUIRE(refused(rows, test::view2<const index_t>(p.data(), 3, 3), rows));
  REQUIRE(refused(rows, test::view2<const index_t>(p.data(), 2, 3), dense_view(x.data(), 3, 2, 8)));
  REQUIRE(refused(dense_view(x.data(), 2, 3, 6), test::view2<const index_t>(p.data(), 2, 3), dense_view(x.data(), 2, 3, 6)));
  // Each number of the output, and channels that do not lie side by side in one of the two.
  const auto places = test::view2<const index_t>(p.data(), 2, 3);
  REQUIRE(refused(rows, places, dense_view(x.data(), 2, 2, 8)));
  REQUIRE(refused(rows, places, dense_view(x.data(), 2, 3, 7)));
  const TensorView<float, 3> apart{x.data(), {2, 1, 8}, {1, 16, 2}}, whole{x.data(), {2, 1, 8}, {8, 8, 1}};
  const auto place = test::view2<const index_t>(p.data(), 2, 1);
  REQUIRE(refused(apart, place, whole));
  REQUIRE(refused(whole, place, apart));
  const auto none = dense_view(x.data(), 0, 3, 8);
  REQUIRE(Rope<Cpu>::rotate(ctx, angles, none, test::view2<const index_t>(p.data(), 1, 3), none) == Status::ok);
}
