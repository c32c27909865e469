// Pages of groups that are joined on CUDA, beside decoding and coding on the CPU: the same bytes.

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/backend/cuda/words.cuh>

#include "device.hpp"
#include "paged_heads.hpp"

using namespace kvcondense;
using test::at;

namespace {

/// Three pages in one buffer, and which of their slots live.
template <int Bits>
class Pages {
 public:
  using Codec = prim::GroupInt<Bits>;
  using Coder = prim::PageCodec<Cpu, Codec>;

  Pages(const Codec& codec, index_t slots, index_t dim, unsigned seed)
      : codec_(codec), slots_(slots), dim_(dim), each_((codec.page_bytes(slots, dim) + 63) / 64 * 64), host_(3 * each_) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> rows(at(slots * dim));
    for (index_t p = 0; p < 3; ++p) {
      for (float& x : rows) x = normal(random);
      Coder::encode(codec, page(p), 0, slots, {rows.data(), slots, dim});
    }
  }
  std::size_t bytes_of_page() const { return each_; }
  std::vector<std::byte> bytes() const { return {host_.bytes.get(), host_.bytes.get() + host_.size}; }

  /// The live slots of page a and of page b become page `into`, as on the CPU.
  void join(index_t into, index_t a, index_t b, const std::vector<bool>& live_a, const std::vector<bool>& live_b) {
    std::vector<float> rows(at(2 * slots_ * dim_));
    index_t n = 0;
    for (const auto& [p, live] : {std::pair{a, &live_a}, {b, &live_b}})
      for (index_t s = 0; s < slots_; ++s)
        if ((*live)[at(s)]) Coder::decode(codec_, page(p), s, 1, {rows.data() + dim_ * n++, 1, dim_});
    const index_t group = codec_.group_slots(), full = (n + group - 1) / group * group;
    for (index_t i = n; i < full; ++i) std::copy_n(rows.data() + (n - 1) * dim_, dim_, rows.data() + i * dim_);
    Coder::encode(codec_, page(into), 0, full, {rows.data(), full, dim_});
  }

 private:
  prim::PageSpan page(index_t i) { return {host_.bytes.get() + at(i) * each_, slots_, dim_}; }

  Codec codec_;
  index_t slots_, dim_;
  std::size_t each_;
  test::HostPage host_;
};

/// `n` of the first `of` slots of a page of `slots`.
std::vector<bool> some(index_t n, index_t of, index_t slots, std::mt19937& random) {
  std::vector<bool> live(at(slots));
  std::fill_n(live.begin(), n, true);
  std::shuffle(live.begin(), live.begin() + of, random);
  return live;
}

/// Two chains: one of two joins, the second of what the first has made, in place or in a page of its own; and one of slots that nearly fill a page.
template <int Bits>
void compare(const prim::GroupInt<Bits>& codec, index_t slots, index_t dim) {
  INFO(Bits << " bits, groups of " << codec.group_size << " in pages of " << slots << ", rows of " << dim);
  std::mt19937 random(7);
  for (const bool in_place : {true, false}) {
    const index_t into = in_place ? 0 : 2, used = slots / codec.group_size * codec.group_size / 2, third = used / 3 + 1;
    Pages<Bits> pages(codec, slots, dim, 3);
    Pages<Bits> others(codec, slots, dim, 4);
    const auto a = some(third, slots, slots, random), b = some(1, used, slots, random);
    std::vector<bool> ab(at(slots)), c = some(1, slots, slots, random);
    std::fill_n(ab.begin(), third + 1, true);
    const auto most = some(slots - 2, slots, slots, random), two = some(2, used, slots, random);
    const std::vector<std::byte> before = pages.bytes(), before_others = others.bytes();
    pages.join(into, 0, 1, a, b);
    pages.join(into, into, 1, ab, c);
    others.join(into, 0, 1, most, two);
    test::each_way([&] {
      test::Device device;
      test::OnDevice<std::byte> first(device, before), second(device, before_others);
      const auto job = [&](test::OnDevice<std::byte>& on, index_t to, index_t from, const std::vector<bool>& live_a, const std::vector<bool>& live_b) {
        const auto page = [&](index_t i) { return on.data() + at(i) * pages.bytes_of_page(); };
        prim::JoinedPages j{page(to), {page(from), page(1)}, {}};
        for (std::size_t s = 0; s < live_a.size(); ++s) j.live[0][s / 32] |= static_cast<std::uint32_t>(live_a[s]) << s % 32, j.live[1][s / 32] |= static_cast<std::uint32_t>(live_b[s]) << s % 32;
        return j;
      };
      test::OnDevice<prim::JoinedPages> jobs(device, {job(first, into, 0, a, b), job(first, into, into, ab, c), job(second, into, 0, most, two)});
      test::OnDevice<index_t> chain(device, {0, 2, 3});
      prim::GroupWork work;
      test::OnDevice<float> rows(device, std::vector<float>(at(2 * codec.group_slots() * dim)));
      work.joins = jobs.data(), work.chain = chain.data(), work.chains = 2, work.rows = rows.data();
      prim::ColumnParts column;
      column.coded.page_slots = slots, column.coded.dim = dim;
      REQUIRE(prim::GroupPages::join(device, codec, column, work) == Status::ok);
      CHECK(first.read() == pages.bytes());
      CHECK(second.read() == others.bytes());
    });
  }
}

}  // namespace

TEST_CASE("cuda group_pages: pages that are joined have the bytes of the host") {
  constexpr prim::GroupAxis channel = prim::GroupAxis::channel;
  compare(prim::GroupInt<4>{.axis = channel, .group_size = 16}, 32, 64);
  compare(prim::GroupInt<4>{.axis = channel, .group_size = 16}.for_scores(), 64, 64);
  compare(prim::GroupInt<4>{.axis = channel, .group_size = 32}.for_sums(), 64, 96);
  compare(prim::GroupInt<2>{.axis = channel, .group_size = 32}.for_scores(), 128, 128);
  compare(prim::GroupInt<3>{.axis = channel, .group_size = 4, .form = prim::GroupForm::float_zero, .params = prim::ParamType::f32}, 8, 80);
  compare(prim::GroupInt<8>{.axis = channel, .group_size = 128, .form = prim::GroupForm::symmetric, .params = prim::ParamType::bf16, .rounding = prim::Rounding::half_up}, 256, 256);
  compare(prim::GroupInt<5>{.axis = channel, .group_size = 1, .form = prim::GroupForm::integer_zero}, 12, 24);
  compare(prim::GroupInt<8>{.axis = channel, .group_size = 256, .form = prim::GroupForm::mid_rise}, 256, 256);
}
