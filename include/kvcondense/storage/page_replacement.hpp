#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::storage {

/// Which page leaves when a new one needs room.
enum class Replacement : std::uint8_t {
  lru,               ///< the one whose last request is oldest
  lfu,               ///< the one with the fewest requests since it came, of those the least recent
  discard,           ///< one that is predicted to leave before its next request; all, where none is
  mark0,             ///< what is predicted to leave goes at once; of the others one that this phase did not request
  mark_and_predict,  ///< one that this phase did not request, first those predicted not to be in the next
};

/// Chooses which pages stay in a small fast memory, with or without a one-bit prediction per request.
///
/// Idea     one bit of advice, right most of the time, brings the misses of a replacement rule close to those of
///          one that knows the future; when it is wrong, marking bounds the damage.
/// Source   Paging with Succinct Predictions, arXiv:2210.02775; the bits of `discard` and `mark0` say that the
///          best rule would evict the page before its next request, that of `mark_and_predict` that the next
///          phase will not request it.
/// Needs    for the last three a bit per request: any score against a threshold.
/// Shapes   pages 0 .. pages - 1 of which at most `capacity` are resident.
/// Cost     per miss a pass over the resident pages.
/// Numbers  ties keep the page with the smaller number out: it leaves first. With a seed the random rules
///          draw; with seed 0 they take the smallest.
/// Errors   out_of_range: a page that does not exist, nothing changes; invalid_argument: sizes below 1.
class PageReplacement {
 public:
  static constexpr Descriptor about{"page_replacement", Stage::storage, "arXiv:2210.02775"};

  static Expected<PageReplacement> make(Replacement rule, index_t pages, index_t capacity, std::uint64_t seed = 0,
                                        MemoryResource<Cpu>& memory = heap_memory()) {
    if (pages < 1 || capacity < 1) return Status::invalid_argument;
    PageReplacement r(memory);
    r.rule_ = rule, r.capacity_ = capacity, r.seed_ = seed;
    if (const Status s = r.state_.resize(pages); s != Status::ok) return s;
    if (const Status s = r.resident_.reserve(std::min(pages, capacity), true); s != Status::ok) return s;
    if (const Status s = r.evicted_.reserve(std::min(pages, capacity), true); s != Status::ok) return s;
    return Expected<PageReplacement>(std::move(r));
  }

  /// A page is used. `predicted` is the bit of this request. Afterwards `missed()` says whether it had to be
  /// brought in and `evicted()` which pages leave (with mark0 perhaps the page itself, once it was used).
  Status request(index_t page, bool predicted = false) {
    if (page < 0 || page >= state_.size()) return Status::out_of_range;
    evicted_.shrink(0);
    missed_ = !state_[page].resident;
    if (missed_) {
      ++misses_;
      if (resident_.size() == std::min(capacity_, state_.size())) make_room();
      resident_.append_reserved(page);
      state_[page].resident = true;
      state_[page].requests = 0;
    }
    State& s = state_[page];
    s.last = ++clock_;
    ++s.requests;
    s.predicted = predicted;
    s.marked = true;
    if (rule_ == Replacement::mark0 && predicted) leave(page);
    return Status::ok;
  }

  bool missed() const { return missed_; }
  std::span<const index_t> evicted() const { return evicted_.span(); }
  std::span<const index_t> resident() const { return resident_.span(); }  ///< in no order
  bool is_resident(index_t page) const { return state_[page].resident; }
  index_t misses() const { return misses_; }

 private:
  struct State {
    index_t last = 0, requests = 0;
    bool resident = false, predicted = false;
    bool marked = false;  ///< requested in this phase
  };

  explicit PageReplacement(MemoryResource<Cpu>& memory) : state_(memory), resident_(memory), evicted_(memory) {}

  void make_room() {
    switch (rule_) {
      case Replacement::lru: return leave(least([&](const State& s) { return std::pair{index_t{0}, s.last}; }));
      case Replacement::lfu: return leave(least([&](const State& s) { return std::pair{s.requests, s.last}; }));
      case Replacement::discard: {
        const index_t page = draw([](const State& s) { return s.predicted; }, false);
        if (page >= 0) return leave(page);
        while (!resident_.empty()) leave(*std::min_element(resident_.begin(), resident_.end()));
        return;
      }
      case Replacement::mark0:
      case Replacement::mark_and_predict: {
        index_t page = draw_unmarked();
        if (page < 0) {  // every page was requested: a new phase
          for (State& s : state_) s.marked = false;
          page = draw_unmarked();
        }
        return leave(page);
      }
    }
  }

  index_t draw_unmarked() {
    if (rule_ == Replacement::mark_and_predict) {
      const index_t page = draw([](const State& s) { return !s.marked && s.predicted; }, true);
      if (page >= 0) return page;
    }
    return draw([](const State& s) { return !s.marked; }, true);
  }

  template <class Key>
  index_t least(Key key) const {
    index_t best = -1;
    for (const index_t p : resident_)
      if (best < 0 || key(state_[p]) < key(state_[best])) best = p;
    return best;
  }

  /// One of the resident pages that fit; -1: none does.
  template <class Fits>
  index_t draw(Fits fits, bool randomly) {
    index_t smallest = -1, count = 0;
    for (const index_t p : resident_)
      if (fits(state_[p])) ++count, smallest = smallest < 0 ? p : std::min(smallest, p);
    if (count < 2 || seed_ == 0 || !randomly) return smallest;
    index_t nth = static_cast<index_t>(random_bits(seed_, static_cast<std::uint64_t>(draws_++)) % static_cast<std::uint64_t>(count));
    for (const index_t p : resident_)
      if (fits(state_[p]) && nth-- == 0) return p;
    return smallest;
  }

  void leave(index_t page) {
    state_[page].resident = false;
    index_t* at = std::find(resident_.begin(), resident_.end(), page);
    *at = resident_.back();
    resident_.shrink(resident_.size() - 1);
    (void)evicted_.push_back(page);
  }

  Replacement rule_ = Replacement::lru;
  index_t capacity_ = 1, clock_ = 0, misses_ = 0, draws_ = 0;
  std::uint64_t seed_ = 0;
  bool missed_ = false;
  Buffer<State> state_;
  Buffer<index_t> resident_, evicted_;
};

/// What a rule that knows all requests does: the yardstick. The page whose next request is farthest leaves;
/// among those that never come again the smallest.
struct BestReplacement {
  index_t misses = 0;

  /// `bits` (as many as requests, or empty): whether the page of a request leaves before its next one, which is
  /// what `discard` and `mark0` want predicted. `next` is scratch of that length.
  Status run(std::span<const index_t> requests, index_t capacity, MemoryResource<Cpu>& memory, std::span<std::uint8_t> bits = {}) {
    if (capacity < 1 || (!bits.empty() && bits.size() != requests.size())) return Status::invalid_argument;
    const auto n = static_cast<index_t>(requests.size());
    index_t pages = 0;
    for (const index_t p : requests) {
      if (p < 0 || p >= (index_t{1} << 40)) return Status::out_of_range;
      pages = std::max(pages, p + 1);
    }
    Buffer<index_t> next(memory), seen(memory), resident(memory);  // seen: last request of each page
    for (Buffer<index_t>* b : {&next, &seen, &resident})
      if (const Status s = b == &next ? b->resize(n, n) : b == &seen ? b->resize(pages, n) : b->reserve(std::min(capacity, pages)); s != Status::ok)
        return s;
    for (index_t t = n; t-- > 0;) {
      next[t] = seen[at(requests, t)];
      seen[at(requests, t)] = t;
    }
    std::fill(seen.begin(), seen.end(), index_t{-1});
    std::fill(bits.begin(), bits.end(), std::uint8_t{0});
    misses = 0;
    for (index_t t = 0; t < n; ++t) {
      const index_t page = at(requests, t);
      if (std::find(resident.begin(), resident.end(), page) == resident.end()) {
        ++misses;
        if (resident.size() == std::min(capacity, pages)) {
          index_t* out = resident.begin();
          for (index_t& p : resident) {
            const index_t far = next[seen[p]], best = next[seen[*out]];
            if (far > best || (far == best && p < *out)) out = &p;
          }
          if (!bits.empty()) bits[static_cast<std::size_t>(seen[*out])] = 1;
          *out = page;
        } else {
          resident.append_reserved(page);
        }
      }
      seen[page] = t;
    }
    return Status::ok;
  }

 private:
  static index_t at(std::span<const index_t> x, index_t i) { return x[static_cast<std::size_t>(i)]; }
};

/// Whether the page of each request is not requested in the next phase, which is what `mark_and_predict` wants
/// predicted. A phase is a longest stretch with `capacity` different pages; in the last one all bits are 1.
inline Status phase_bits(std::span<const index_t> requests, index_t capacity, MemoryResource<Cpu>& memory, std::span<std::uint8_t> bits) {
  if (capacity < 1 || bits.size() != requests.size()) return Status::invalid_argument;
  index_t pages = 0;
  for (const index_t p : requests) {
    if (p < 0 || p >= (index_t{1} << 40)) return Status::out_of_range;
    pages = std::max(pages, p + 1);
  }
  Buffer<index_t> mark(memory);  // the last phase that requested a page
  if (const Status s = mark.resize(pages, -1); s != Status::ok) return s;
  std::fill(bits.begin(), bits.end(), std::uint8_t{1});
  index_t phase = 0, different = 0;
  std::size_t before = 0, begin = 0;  // where the phase before this one begins, and this one
  for (std::size_t t = 0; t < requests.size(); ++t) {
    if (mark[requests[t]] != phase && ++different > capacity) {
      before = begin, begin = t, different = 1, ++phase;
    }
    mark[requests[t]] = phase;
    if (phase > 0)
      for (std::size_t u = before; u < begin; ++u)
        if (requests[u] == requests[t]) bits[u] = 0;
  }
  return Status::ok;
}

}  // namespace kvcondense::storage
