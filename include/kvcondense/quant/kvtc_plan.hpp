#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/quant/kvtc.hpp>

namespace kvcondense::quant {

namespace detail {

/// Searches blocks for components in order of their energy.
class KvtcSearch {
 public:
  KvtcSearch(const Kvtc& method, std::span<const float> energy, MemoryResource<Cpu>& memory)
      : method_(method), count_(static_cast<index_t>(energy.size())), before_(memory), best_(memory), spent_(memory), chosen_(memory) {
    step_ = std::gcd(2 * method.sub_chunk, Kvtc::block_bits);
  }

  Status run(std::span<const float> energy, index_t budget, Buffer<KvtcBlock>& plan, index_t most_cells) {
    Status s = before_.resize(count_ + 1);
    if (s != Status::ok) return s;
    for (index_t i = 0; i < count_; ++i) before_[i + 1] = before_[i] + static_cast<double>(energy[static_cast<std::size_t>(i)]);
    // More than every component for itself in 8 bits is of no use.
    const index_t units = std::min(budget, count_ * (8 * method_.sub_chunk + Kvtc::block_bits)) / step_;
    s = units < most_cells / (count_ + 1) ? exact(units, plan) : by_price(budget, plan);
    return s;
  }

 private:
  static constexpr double none = std::numeric_limits<double>::infinity();

  index_t cost(index_t size, int type) const {
    return size * bits_of(static_cast<KvtcType>(type)) * method_.sub_chunk + Kvtc::block_bits;
  }
  double error(index_t from, index_t to, int type) const {
    return method_.error[static_cast<std::size_t>(type)] * (before_[to] - before_[from]);
  }
  /// What components from `from` on leave without bits.
  double tail(index_t from) const { return error(from, count_, 0); }

  /// visit(choice, size, type) for every block that may end at component `end`.
  template <class Visit>
  void each(index_t end, Visit&& visit) const {
    for (std::size_t i = 0; i < method_.blocks.size(); ++i) {
      const index_t size = method_.blocks[i];
      for (int t = 1; size > 0 && size <= end && t < kvtc_types; ++t)
        if (method_.error[static_cast<std::size_t>(t)] < none) visit(static_cast<int>(i) * kvtc_types + t, size, t);
    }
  }
  Status put(std::uint8_t choice, Buffer<KvtcBlock>& plan) const {
    return plan.push_back({static_cast<std::uint16_t>(method_.blocks[choice / kvtc_types]), static_cast<KvtcType>(choice % kvtc_types)});
  }

  /// The least error of the first i components at each cost.
  Status exact(index_t units, Buffer<KvtcBlock>& plan) {
    const index_t width = units + 1;
    best_.shrink(0);
    Status s = best_.resize((count_ + 1) * width, none);
    if (s == Status::ok) s = chosen_.resize((count_ + 1) * width);
    if (s != Status::ok) return s;
    best_[0] = 0.0;
    for (index_t i = 1; i <= count_; ++i)
      each(i, [&](int choice, index_t size, int type) {
        const index_t w = cost(size, type) / step_;
        const double e = error(i - size, i, type);
        const double* from = best_.data() + (i - size) * width;
        double* to = best_.data() + i * width;
        for (index_t c = w; c <= units; ++c)
          if (from[c - w] + e < to[c]) to[c] = from[c - w] + e, chosen_[i * width + c] = static_cast<std::uint8_t>(choice);
      });
    index_t end = 0, at = 0;
    double least = tail(0);
    for (index_t c = 1; c <= units; ++c)
      for (index_t i = 1; i <= count_; ++i)
        if (best_[i * width + c] + tail(i) < least) least = best_[i * width + c] + tail(i), end = i, at = c;
    while (end > 0) {
      const std::uint8_t choice = chosen_[end * width + at];
      if (s = put(choice, plan); s != Status::ok) return s;
      const index_t size = method_.blocks[choice / kvtc_types];
      end -= size, at -= cost(size, choice % kvtc_types) / step_;
    }
    std::reverse(plan.begin(), plan.end());
    return Status::ok;
  }

  /// Where the table of all costs is too large: each bit has a price, and the price is found at which the budget suffices.
  Status by_price(index_t budget, Buffer<KvtcBlock>& plan) {
    Status s = best_.resize(count_ + 1);
    if (s == Status::ok) s = spent_.resize(count_ + 1);
    if (s == Status::ok) s = chosen_.resize(count_ + 1);
    if (s != Status::ok) return s;
    double low = 0.0, high = before_[count_];  // per bit: at `high` no block pays
    index_t coded = cheapest(low);
    if (s = trace(coded, plan); s != Status::ok) return s;
    index_t spent = spent_[coded];
    if (spent > budget) {
      for (int round = 0; round < 60; ++round) {
        const double price = 0.5 * (low + high);
        (spent_[cheapest(price)] > budget ? low : high) = price;
      }
      coded = cheapest(high);
      if (s = trace(coded, plan); s != Status::ok) return s;
      spent = spent_[coded];
    }
    return fill(coded, budget - spent, plan);
  }
  Status trace(index_t end, Buffer<KvtcBlock>& plan) const {
    plan.shrink(0);
    while (end > 0) {
      if (const Status s = put(chosen_[end], plan); s != Status::ok) return s;
      end -= method_.blocks[chosen_[end] / kvtc_types];
    }
    std::reverse(plan.begin(), plan.end());
    return Status::ok;
  }
  /// The least error plus price at one price; how many components it codes.
  index_t cheapest(double price) {
    best_[0] = 0.0, spent_[0] = 0;
    index_t end = 0;
    double least = tail(0);
    for (index_t i = 1; i <= count_; ++i) {
      best_[i] = none;
      each(i, [&](int choice, index_t size, int type) {
        const double e = best_[i - size] + error(i - size, i, type) + price * static_cast<double>(cost(size, type));
        if (e < best_[i]) best_[i] = e, spent_[i] = spent_[i - size] + cost(size, type), chosen_[i] = static_cast<std::uint8_t>(choice);
      });
      if (best_[i] + tail(i) < least) least = best_[i] + tail(i), end = i;
    }
    return end;
  }
  /// What is left of the budget goes to better types and to further blocks, what saves most per bit first.
  Status fill(index_t coded, index_t left, Buffer<KvtcBlock>& plan) const {
    for (;;) {
      KvtcBlock to;
      index_t at = -1, price = 0;
      double rate = 0.0;
      const auto offer = [&](index_t block, index_t from, index_t size, int old, int type) {
        const index_t more = cost(size, type) - (old == 0 ? 0 : cost(size, old));
        if (more <= 0 || more > left) return;
        const double saved = (error(from, from + size, old) - error(from, from + size, type)) / static_cast<double>(more);
        if (saved > rate) rate = saved, at = block, price = more, to = {static_cast<std::uint16_t>(size), static_cast<KvtcType>(type)};
      };
      for (int t = 1; t < kvtc_types; ++t) {
        index_t from = 0;
        for (index_t b = 0; b < plan.size(); from += plan[b++].count) offer(b, from, plan[b].count, static_cast<int>(plan[b].type), t);
        for (const index_t size : method_.blocks)
          if (size > 0 && size <= count_ - coded) offer(plan.size(), coded, size, 0, t);
      }
      if (at < 0) return Status::ok;
      left -= price;
      if (at < plan.size()) {
        plan[at] = to;
      } else {
        if (const Status s = plan.push_back(to); s != Status::ok) return s;
        coded += to.count;
      }
    }
  }

  const Kvtc& method_;
  index_t count_, step_ = 1;
  Buffer<double> before_, best_;
  Buffer<index_t> spent_;
  Buffer<std::uint8_t> chosen_;
};

}  // namespace detail

/// Finds the blocks of the components, best first, that leave the least error within a budget; components behind the last
/// block get no bits.
///
/// Source   KVTC, arXiv:2511.01815: dynamic programming over contiguous blocks.
/// Shapes   energy: of each component, descending. `budget` in bits per full sub-chunk; a block costs size * bits * sub_chunk
///          and Kvtc::block_bits. A component leaves energy times the error of its block's type.
/// Numbers  double; exact where components times distinct costs are at most `most_cells`. Else bits are bought at one price for
///          all, found by bisection (the lower convex hull of error over bits), and what is left buys better types and blocks
///          behind, one by one: near the best plan where energies fall, and never above the budget.
/// Cost     blocks times types steps per cell, 9 bytes each; by price 60 times per component, 17 bytes each.
/// Errors   invalid_argument for what Kvtc::validate refuses, energies that ascend or are no numbers, a negative budget;
///          out_of_memory. `plan` then holds anything.
inline Status plan_kvtc(const Kvtc& method, std::span<const float> energy, index_t budget, Buffer<KvtcBlock>& plan,
                        MemoryResource<Cpu>& memory = heap_memory(), index_t most_cells = index_t{1} << 23) {
  if (const Status s = method.validate(); s != Status::ok) return s;
  if (budget < 0) return Status::invalid_argument;
  for (std::size_t i = 0; i < energy.size(); ++i)
    if (!(energy[i] >= 0.0f && std::isfinite(energy[i])) || (i > 0 && energy[i] > energy[i - 1])) return Status::invalid_argument;
  plan.shrink(0);
  if (energy.empty()) return Status::ok;
  return detail::KvtcSearch(method, energy, memory).run(energy, budget, plan, most_cells);
}

/// What a plan costs, in bits per full sub-chunk.
inline index_t kvtc_cost(const Kvtc& method, std::span<const KvtcBlock> plan) {
  index_t bits = 0;
  for (const KvtcBlock& b : plan) bits += b.count * bits_of(b.type) * method.sub_chunk + Kvtc::block_bits;
  return bits;
}
/// What a plan leaves of the energies' sum.
inline double kvtc_error(const Kvtc& method, std::span<const float> energy, std::span<const KvtcBlock> plan) {
  double sum = 0.0;
  std::size_t i = 0;
  for (const KvtcBlock& b : plan)
    for (const std::size_t end = i + b.count; i < end && i < energy.size(); ++i)
      sum += method.error[static_cast<std::size_t>(b.type)] * static_cast<double>(energy[i]);
  for (; i < energy.size(); ++i) sum += method.error[0] * static_cast<double>(energy[i]);
  return sum;
}

}  // namespace kvcondense::quant
