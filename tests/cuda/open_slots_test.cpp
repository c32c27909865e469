// Newest slots that tokens join: rows, sums, who passed its slot on and what queries lose, beside OpenSlot of every head.

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include <kvcondense/backend/cuda/open_slots.cuh>
#include <kvcondense/cache/open_slot.hpp>
#include <kvcondense/prim/rope.hpp>

#include "numbers.hpp"

using namespace kvcondense;
using test::at;

namespace {

constexpr index_t heads = 2, q_heads = 4, key_dim = 34, value_dim = 20, width = key_dim + value_dim + 2, room = 220;

/// Both sides of a layer whose tokens take a slot or join one.
class Both {
 public:
  Both(test::Device& device, const prim::JoinGate& gate, const prim::RopeConfig& rope)
      : device_(&device), rows_(device, std::vector<float>(at(heads * room * width))), settled_(device, std::vector<index_t>(at(heads))),
        passed_(device, std::vector<std::uint8_t>(at(heads * room), 9)), repaired_(device, {7}) {
    join_.gate = gate, join_.turned = gate.rotated;
    if (gate.rotated) join_.angles = *prim::rope_angles(rope, key_dim);
    join_.control = prim::ControlComponent::of(gate, gate.rotated ? &join_.angles : nullptr, key_dim);
    for (auto& h : open_) h = cache::OpenSlot(key_dim, value_dim, heap_memory());
  }

  /// Tokens at positions three apart. Of both sides, what their slots are with them.
  template <class T>
  void add(index_t n) {
    std::vector<float> k = test::normals(heads * n * key_dim, seed_), v = test::normals(heads * n * value_dim, seed_ + 1), q = test::normals(q_heads * n * key_dim, seed_ + 2);
    seed_ += 3;
    std::vector<T> tk(k.begin(), k.end()), tv(v.begin(), v.end());
    std::vector<index_t> positions(at(n)), slots(at(heads));
    for (index_t& p : positions) p = position_ += 3;
    std::vector<float> keys, values;
    for (index_t h = 0; h < heads; ++h) {
      cache::OpenSlot& open = open_[at(h)];
      REQUIRE(open.reserve(n) == Status::ok);
      for (index_t t = 0; t < n; ++t) {
        std::vector<float> key(at(key_dim)), value(at(value_dim));
        for (index_t d = 0; d < key_dim; ++d) key[at(d)] = static_cast<float>(tk[at((h * n + t) * key_dim + d)]);
        for (index_t d = 0; d < value_dim; ++d) value[at(d)] = static_cast<float>(tv[at((h * n + t) * value_dim + d)]);
        float sum = 0.0f;
        for (index_t g = 0; g < 2; ++g) sum += join_.control.read(q.data() + ((h * 2 + g) * n + t) * key_dim, positions[at(t)]);
        const bool joins = join_.gate.joins(join_.control.read(key.data(), positions[at(t)]));
        turn(key, positions[at(t)], true);
        open.add(key.data(), value.data(), join_.gate.weight(sum / 2.0f), joins, join_.gate.window);
        turn(key, positions[at(t)], false);
        keys.insert(keys.end(), key.begin(), key.end()), values.insert(values.end(), value.begin(), value.end());
      }
    }
    tokens_ += n;
    for (index_t h = 0; h < heads; ++h) slots[at(h)] = tokens_;
    test::OnDevice<T> dk(*device_, tk), dv(*device_, tv);
    test::OnDevice<float> dq(*device_, q), key_means(*device_, std::vector<float>(keys.size(), NAN)), value_means(*device_, std::vector<float>(values.size(), NAN));
    test::OnDevice<index_t> count(*device_, slots);
    std::vector<std::int32_t> tokens(at(heads * room));
    for (index_t i = 0; i < heads * room; ++i) tokens[at(i)] = static_cast<std::int32_t>(i % room);
    test::OnDevice<std::int32_t> ids(*device_, tokens);
    const auto rows = [n](const auto* x, index_t of, index_t dim) { return dense_view(x, of, n, dim); };
    REQUIRE(prim::OpenSlots::add<T>(*device_, view(), join_, pending_, positions, rows(static_cast<const T*>(dk.data()), heads, key_dim),
                                    rows(static_cast<const T*>(dv.data()), heads, value_dim), rows(static_cast<const float*>(dq.data()), q_heads, key_dim), {ids.data(), room},
                                    count.data(), stepped_ - 1, DType::f32, dense_view(key_means.data(), heads, n, key_dim),
                                    dense_view(value_means.data(), heads, n, value_dim), repaired_.data()) == Status::ok);
    pending_ += n;
    test::close(key_means.read(), keys, 2e-5f, 1.0f);
    test::close(value_means.read(), values, 1e-5f, 1.0f);
    compare();
    heirs();
    queries(q, n, positions);
  }
  void settle() {
    REQUIRE(prim::OpenSlots::settle(*device_, view(), pending_, join_.gate.window) == Status::ok);
    for (auto& h : open_) h.settle(tokens_ - 1, join_.gate.window);
    pending_ = 0, stepped_ = tokens_;
    compare();
  }
  index_t repaired() const { return repaired_.read()[0]; }

 private:
  prim::OpenRows view() { return {rows_.data(), settled_.data(), {passed_.data(), room}, room, heads, key_dim, value_dim}; }
  void turn(std::vector<float>& key, index_t position, bool back) const {
    float cosine[key_dim / 2], sine[key_dim / 2];
    if (join_.turned) {
      prim::rope_cos_sin(join_.angles, position, cosine, sine);
      prim::rotate_row(key.data(), key.data(), cosine, sine, join_.angles.pairs, join_.angles.pairing, back);
    }
    key[at(join_.control.at)] = 0.0f;
  }
  /// The tokens of every newest slot, and which joined.
  void compare() const {
    const std::vector<float> rows = rows_.read();
    const std::vector<index_t> settled = settled_.read();
    const std::vector<std::uint8_t> passed = passed_.read();
    for (index_t h = 0; h < heads; ++h) {
      const cache::OpenSlot& open = open_[at(h)];
      REQUIRE(settled[at(h)] == open.settled());
      const auto begin = rows.begin() + h * room * width;
      test::close({begin, begin + open.tokens() * width}, {open.rows().begin(), open.rows().end()}, 2e-5f, 1.0f);
      for (index_t i = 0; i < pending_; ++i) REQUIRE(passed[at(h * room + i)] == static_cast<std::uint8_t>(open.joined(i)));
    }
  }
  void heirs() {
    test::OnDevice<index_t> offset(*device_, {0, tokens_, 2 * tokens_});
    test::OnDevice<std::int32_t> out(*device_, std::vector<std::int32_t>(at(heads * tokens_), -1));
    REQUIRE(prim::OpenSlots::heirs(*device_, {{passed_.data(), room}, pending_}, {out.data(), offset.data(), heads}) == Status::ok);
    const std::vector<std::int32_t> got = out.read();
    for (index_t h = 0; h < heads; ++h)
      for (index_t j = tokens_ - 1, heir = j; j >= 0; --j) {
        const index_t behind = j + 1 - stepped_;
        if (j == tokens_ - 1 || behind < 0 || !open_[at(h)].joined(behind)) heir = j;
        REQUIRE(got[at(h * tokens_ + j)] == heir);
      }
  }
  void queries(std::vector<float> q, index_t n, const std::vector<index_t>& positions) {
    test::OnDevice<float> in(*device_, q), out(*device_, std::vector<float>(q.size(), NAN));
    REQUIRE(prim::OpenSlots::clear(*device_, join_.control, positions, dense_view(static_cast<const float*>(in.data()), q_heads, n, key_dim),
                                   dense_view(out.data(), q_heads, n, key_dim)) == Status::ok);
    for (index_t i = 0; i < q_heads * n; ++i) join_.control.clear(q.data() + i * key_dim, positions[at(i % n)]);
    test::close(out.read(), q, 1e-6f, 1.0f);
  }

  test::Device* device_;
  prim::Joining join_;
  cache::OpenSlot open_[heads];
  test::OnDevice<float> rows_;
  test::OnDevice<index_t> settled_;
  test::OnDevice<std::uint8_t> passed_;
  test::OnDevice<index_t> repaired_;
  index_t tokens_ = 0, stepped_ = 0, pending_ = 0, position_ = 4;
  unsigned seed_ = 11;
};

/// A call longer than what one launch carries positions of, calls behind one another, steps between them.
template <class T>
void goes_as_on_the_host(const prim::JoinGate& gate, const prim::RopeConfig& rope = {}) {
  INFO("window " << gate.window << ", first " << gate.first << ", rotated " << gate.rotated);
  test::each_way([&] {
    test::Device device;
    Both both(device, gate, rope);
    both.add<T>(131);
    both.add<T>(2);
    both.settle();
    both.add<T>(1);
    both.settle();
    both.add<T>(3);
    both.add<T>(4);
    both.settle();
    CHECK(both.repaired() == 7);
  });
}

}  // namespace

TEST_CASE("cuda open_slots: tokens join as on the CPU") {
  goes_as_on_the_host<float>({.active = true, .window = 4, .init = 0.1f});
  goes_as_on_the_host<half>({.active = true, .window = 0, .init = -0.3f}, {.pairing = prim::RopePairing::interleaved, .rotary_dim = 34});
  goes_as_on_the_host<bfloat16>({.active = true, .window = 3, .init = -1.0f, .first = true}, {.rotary_dim = 16});
  goes_as_on_the_host<float>({.active = true, .window = 1, .init = 0.0f, .slack = 0.0f, .rotated = false});
  goes_as_on_the_host<float>({.active = true, .window = 0, .init = -9.0f, .rotated = false});  // all join
}
