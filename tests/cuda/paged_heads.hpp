#pragma once

// Heads whose keys and values lie in pages, ragged and with holes, on the host and on the device; and how the CPU
// backend attends to them.

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include <kvcondense/backend/cpu/attend.hpp>
#include <kvcondense/backend/cpu/exact_rows.hpp>
#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/prim/slot_runs.hpp>

#include "device.hpp"

namespace kvcondense::test {

/// A page of bytes as a cache allocates it.
struct HostPage {
  std::shared_ptr<std::byte> bytes;
  std::size_t size;
  explicit HostPage(std::size_t n)
      : bytes(static_cast<std::byte*>(::operator new(n, std::align_val_t{64})), [](std::byte* p) { ::operator delete(p, std::align_val_t{64}); }), size(n) {
    std::fill_n(bytes.get(), n, std::byte{0});
  }
};

/// How many slots a head has in each part of a column; `dead` of ten places of coded pages are tombstones.
struct ColumnShape {
  index_t sinks = 0, coded = 0, window = 0;
  unsigned dead = 0;
  index_t slots() const { return sinks + coded + window; }
};

/// One column of all heads. `coded_dim`: numbers of coded rows, where those are not as long as exact ones.
template <class Codec>
class HostColumn {
 public:
  HostColumn(const Codec& codec, prim::ExactRows exact, index_t dim, index_t page_slots, const std::vector<ColumnShape>& shapes,
             unsigned seed, index_t coded_dim = 0)
      : codec_(codec), exact_(exact), dim_(dim), coded_dim_(coded_dim > 0 ? coded_dim : dim), page_slots_(page_slots), random_(seed) {
    for (const ColumnShape& s : shapes) {
      begin_ = 0;
      add_exact(s.sinks);
      add_coded(s.coded, s.dead);
      add_exact(s.window);
      offset_.push_back(static_cast<index_t>(runs_.size()));
    }
  }

  prim::ColumnRuns runs() const { return {runs_.data(), offset_.data(), page_slots_}; }
  index_t dim() const { return dim_; }

  /// Calls use(run, place, first, count) for the pieces of slots [first, first + n) of a head.
  template <class Use>
  void each(index_t head, index_t first, index_t n, Use&& use) const {
    for (index_t i = first; i < first + n;) {
      const prim::SlotRun& run = prim::run_of(runs(), head, static_cast<std::int32_t>(i));
      const prim::SlotRun* next = &run + 1;
      const index_t end = next < runs_.data() + offset_[at(head + 1)] ? next->begin : first + n;
      const index_t count = std::min(end, first + n) - i;
      use(run, run.place + (i - run.begin), i - first, count);
      i += count;
    }
  }
  prim::PageSpan page(const prim::SlotRun& run) const { return {run.page, run.coded ? page_slots_ : 0, run.coded ? coded_dim_ : dim_}; }
  const Codec& codec() const { return codec_; }
  const prim::ExactRows& exact() const { return exact_; }

  /// The same on a device: copies of pages and of runs that point to them.
  struct Copy {
    std::vector<OnDevice<std::byte>> pages;
    std::vector<OnDevice<prim::SlotRun>> runs;
    std::vector<OnDevice<index_t>> offset;
    index_t page_slots = 0;
    prim::ColumnRuns view() { return {runs[0].data(), offset[0].data(), page_slots}; }
  };
  Copy on(Device& device) const {
    Copy copy;
    copy.page_slots = page_slots_;
    std::vector<prim::SlotRun> runs = runs_;
    for (const HostPage& p : pages_) {
      copy.pages.emplace_back(device, std::vector<std::byte>(p.bytes.get(), p.bytes.get() + p.size));
      for (std::size_t r = 0; r < runs.size(); ++r)
        if (runs_[r].page == p.bytes.get()) runs[r].page = copy.pages.back().data();
    }
    copy.runs.emplace_back(device, runs);
    copy.offset.emplace_back(device, offset_);
    return copy;
  }

 private:
  std::vector<float> rows(index_t n, index_t dim) {
    std::normal_distribution<float> normal;
    std::vector<float> x(at(n * dim));
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = normal(random_) * (i % static_cast<std::size_t>(dim) == 3 ? 6.0f : 1.0f);
    return x;
  }
  void add_exact(index_t n) {
    constexpr index_t most = 48;
    for (index_t done = 0; done < n; done += most) {
      const index_t m = std::min(most, n - done);
      pages_.emplace_back(exact_.page_bytes(m, dim_));
      const auto x = rows(m, dim_);
      prim::PageCodec<Cpu, prim::ExactRows>::encode(exact_, {pages_.back().bytes.get(), m, dim_}, 0, m, {x.data(), m, dim_});
      runs_.push_back({pages_.back().bytes.get(), begin_, 0, false});
      begin_ += static_cast<std::int32_t>(m);
    }
  }
  void add_coded(index_t n, unsigned dead) {
    while (n > 0) {
      pages_.emplace_back(codec_.page_bytes(page_slots_, coded_dim_));
      const auto x = rows(page_slots_, coded_dim_);
      prim::PageCodec<Cpu, Codec>::encode(codec_, {pages_.back().bytes.get(), page_slots_, coded_dim_}, 0, page_slots_,
                                          {x.data(), page_slots_, coded_dim_});
      bool before = false;
      for (index_t s = 0; s < page_slots_ && n > 0; ++s) {
        const bool live = random_() % 10 >= dead;
        if (live && !before) runs_.push_back({pages_.back().bytes.get(), begin_, static_cast<std::int32_t>(s), true});
        begin_ += static_cast<std::int32_t>(live), n -= static_cast<index_t>(live);
        before = live;
      }
    }
  }

  Codec codec_;
  prim::ExactRows exact_;
  index_t dim_, coded_dim_, page_slots_;
  std::mt19937 random_;
  std::vector<HostPage> pages_;
  std::vector<prim::SlotRun> runs_;
  std::vector<index_t> offset_{0};
  std::int32_t begin_ = 0;
};

/// A head as prim::Attend<Cpu> reads it.
template <class K, class V>
struct HostHead {
  struct Cursor {
    index_t at = 0;
  };
  const HostColumn<K>* keys;
  const HostColumn<V>* values;
  index_t head, n;

  index_t slots() const { return n; }
  prim::SlotScalars scalars() const { return {}; }
  void prepare_query(float*, index_t, index_t) const {}
  void key_scores(Cursor& c, index_t count, prim::RowBlock<const float> q, prim::RowBlock<float> out, index_t) const {
    keys->each(head, c.at, count, [&](const prim::SlotRun& run, index_t place, index_t to, index_t m) {
      const prim::RowBlock<float> o{out.data + to, out.rows, out.step};
      if (run.coded) prim::PageCodec<Cpu, K>::scores(keys->codec(), keys->page(run), place, m, q, o);
      else prim::PageCodec<Cpu, prim::ExactRows>::scores(keys->exact(), keys->page(run), place, m, q, o);
    });
    c.at += count;
  }
  void add_values(Cursor& c, index_t count, prim::RowBlock<const float> w, prim::RowBlock<float> out) const {
    values->each(head, c.at, count, [&](const prim::SlotRun& run, index_t place, index_t from, index_t m) {
      const prim::RowBlock<const float> weights{w.data + from, w.rows, w.step};
      if (run.coded) prim::PageCodec<Cpu, V>::accumulate(values->codec(), values->page(run), place, m, weights, out);
      else prim::PageCodec<Cpu, prim::ExactRows>::accumulate(values->exact(), values->page(run), place, m, weights, out);
    });
    c.at += count;
  }
};

}  // namespace kvcondense::test
