#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include <kvcondense/cache/page.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/memory.hpp>

namespace kvcondense::cache {

/// Pages that emptied and wait for slots to come, so that a stream asks for none. `clear` gives them back: no destructor knows the resource.
///
/// A stream wants pages for as many slots as came since pages emptied the last time, since as many will come until they empty again. What came but
/// once, a prompt, is no stream, and what an eviction leaves of its pages goes back at once: of the last two such runs of slots the shorter one
/// counts. One page more, since what stays lies now in one page, now across two.
class SparePages {
 public:
  SparePages() = default;
  SparePages(const SparePages&) = delete;
  SparePages& operator=(const SparePages&) = delete;

  /// So many slots came.
  void count_slots(index_t slots) { since_ += static_cast<std::int32_t>(std::min<index_t>(slots, most - since_)); }
  /// How many slots a stream brings between two times that pages empty; 0: there is none.
  index_t steady() const { return steady_; }
  index_t most_pages(index_t page_slots) const { return steady_ == 0 ? 0 : (steady_ + page_slots - 1) / page_slots + 1; }

  /// A page that nobody else owns has emptied.
  void put(Page* page, index_t page_slots, MemoryResource<Cpu>& memory) {
    if (since_ > 0) steady_ = std::min(since_, last_), last_ = since_, since_ = 0;  // else more of the same eviction
    page->next = first_, first_ = page, ++count_;
    while (count_ > most_pages(page_slots)) release(unlink(), memory);
  }
  /// An empty page, its payload zero; null where none waits.
  Page* take() {
    if (first_ == nullptr) return nullptr;
    Page* page = unlink();
    std::memset(page->payload(), 0, page->payload_bytes);
    return page;
  }
  void clear(MemoryResource<Cpu>* memory) {
    while (first_ != nullptr) release(unlink(), *memory);
    since_ = last_ = steady_ = 0;
  }

  std::size_t bytes() const { return first_ == nullptr ? 0 : static_cast<std::size_t>(count_) * first_->bytes(); }

  void swap(SparePages& o) noexcept {
    std::swap(first_, o.first_), std::swap(count_, o.count_);
    std::swap(since_, o.since_), std::swap(last_, o.last_), std::swap(steady_, o.steady_);
  }

 private:
  static constexpr std::int32_t most = std::int32_t{1} << 30;

  Page* unlink() {
    --count_;
    return std::exchange(first_, std::exchange(first_->next, nullptr));
  }

  Page* first_ = nullptr;  ///< all of one size
  std::int32_t count_ = 0, since_ = 0, last_ = 0, steady_ = 0;
};

}  // namespace kvcondense::cache
