#pragma once

#include <algorithm>
#include <concepts>
#include <cstring>
#include <limits>
#include <span>
#include <utility>

#include <kvcondense/backend/cuda/head_slots.cuh>
#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/steering.cuh>
#include <kvcondense/cache/cuda_codec.cuh>
#include <kvcondense/cache/cuda_column_plan.cuh>
#include <kvcondense/cache/cuda_groups.cuh>
#include <kvcondense/cache/cuda_kept.cuh>
#include <kvcondense/cache/cuda_page_table.cuh>
#include <kvcondense/cache/cuda_pages.cuh>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/object_array.hpp>
#include <kvcondense/prim/slot_runs.hpp>

namespace kvcondense::cache {

/// All keys or all values of a layer: pages of each part of each head, listed by the host, read through a table by kernels.
///
/// How many slots a part holds is known to the device; the host knows a number that they do not exceed, which is exact from `learn` on until
/// slots leave.
template <class Codec>
class CudaColumn {
 public:
  using Plan = CudaColumnPlan<Codec>;
  static constexpr int parts = Plan::parts;
  using Most = CudaMost;

  CudaColumn(const Plan& plan, MemoryResource<Cuda>& memory)
      : plan_(plan), memory_(&memory), most_(heap_memory()), groups_(plan.codec.group_slots(), plan.slots_of(1), plan.dim, plan.bytes_of(1), memory),
        table_(plan.heads, plan.grouped(), memory), counts_(memory), codec_(plan.codec, plan.dim, plan.slots_of(1), memory) {
    for (auto& s : spare_) s = Buffer<CudaPage*>(heap_memory());
  }
  CudaColumn(CudaColumn&&) = default;
  CudaColumn& operator=(CudaColumn&&) = delete;
  ~CudaColumn() { give_pages(); }

  Status make() {
    Status s = most_.resize(plan_.heads);
    for (auto& p : pages_)
      if (s == Status::ok) s = p.fill(heap_memory(), plan_.heads, [](index_t) { return Buffer<CudaPage*>(heap_memory()); });
    if (s == Status::ok) s = groups_.make(plan_.heads);
    if (s == Status::ok) s = codec_.make(plan_.heads, plan_.fingerprint);
    if (s == Status::ok) s = counts_.resize(plan_.heads);
    // Whoever reads an empty column must find it empty.
    if (s == Status::ok) s = cuda::settled(cudaMemsetAsync(counts_.data(), 0, static_cast<std::size_t>(plan_.heads) * sizeof(prim::PartCounts), nullptr));
    return s;
  }
  /// Behind `make`: the codecs of the heads, where these differ.
  template <class Of>
  Status describe(Of&& of) { return codec_.describe(of); }
  prim::DeviceCodec<Codec> codec() const { return codec_.on_device(); }
  std::int64_t fingerprint(index_t head) const { return codec_.fingerprint(head); }
  /// Of a page of a part; heads may differ in how many numbers of a row they store.
  std::size_t bytes_of(int part, index_t head) const { return part == 1 ? codec_.page_bytes(head) : plan_.bytes_of(part); }
  index_t stored_dim(index_t head) const { return codec_.stored_dim(head); }

  /// Page-locked memory, an entry per head.
  void tell_at(std::span<prim::PartCounts> told) {
    told_ = told;
    for (auto& t : told_) t = {};
  }

  const Plan& plan() const { return plan_; }
  const Most& most(index_t head) const { return most_[head]; }

  /// Whether only the device knows how many slots the parts hold, until `learn`.
  bool counted() const { return counted_; }
  /// Behind the last step: numbers are exact. `slots(head)`: of all parts together.
  template <class Slots>
  void learn(Slots&& slots) {
    for (index_t h = 0; h < plan_.heads; ++h) {
      const auto& t = told_[static_cast<std::size_t>(h)];
      most_[h] = {t.first + fresh_, t.coded, slots(h) - t.first - fresh_ - t.coded};
    }
    counted_ = false;
  }

  /// Pages for `first` more first slots of each head and `newest` more newest ones. On refusal nothing that counts changes.
  Status reserve(const Context<Cuda>& ctx, index_t first, index_t newest) {
    Status s = Status::ok;
    for (index_t h = 0; h < plan_.heads && s == Status::ok; ++h) {
      s = take_pages(0, h, most_[h].first + first);
      if (s == Status::ok) s = take_pages(2, h, most_[h].newest + newest);
      // Rows go behind those that there are: where these are not exactly known, something has left since a fork and no page is shared.
      if (s == Status::ok && first > 0) s = own(ctx, 0, h, most_[h].first / plan_.slots_of(0));
      if (s == Status::ok && newest > 0) s = own(ctx, 2, h, most_[h].newest / plan_.slots_of(2));
    }
    return s == Status::ok ? reserve_table(ctx) : s;
  }
  /// The slots that those pages were for are there, or (numbers below 0) are taken back.
  void count(index_t first, index_t newest) {
    for (auto& m : most_) m.first += first, m.newest += newest;
    fresh_ += first, laid_ = laid_ && first == 0;
  }

  /// Whether a step after which nothing has left has slots to code. Behind `learn`.
  bool due() const {
    return std::any_of(most_.begin(), most_.end(), [&](const Most& m) { return due_in(m, rule_of(true)) > 0; });
  }
  /// Slots of a head in front of those that become codes in the next step, unless some leave; where none do, the largest number there is. Behind `learn`.
  index_t settled(index_t head) const { return due() ? most_[head].first + most_[head].coded : std::numeric_limits<index_t>::max(); }
  /// Bytes that slots [first, last) of a head with `slots` slots take as they are stored, without tombstones. Once the stream has passed the last step.
  std::size_t slot_bytes(index_t head, index_t slots, index_t first, index_t last) const {
    const auto& t = told_[static_cast<std::size_t>(head)];
    const index_t ends[] = {t.first + fresh_, t.first + fresh_ + t.coded, slots};
    std::size_t sum = 0;
    for (int p = 0; p < parts; ++p) {
      const index_t begin = p == 0 ? 0 : ends[p - 1], n = std::min(last, ends[p]) - std::max(first, begin);
      if (n > 0) sum += static_cast<std::size_t>(n) * bytes_of(p, head) / static_cast<std::size_t>(plan_.slots_of(p));
    }
    return sum;
  }
  /// Whether pages of codes are to be joined in a step, whatever else happens.
  bool unsettled() const { return plan_.grouped() && groups_.unsettled(); }
  /// Whether a step has to be told which slots stay, not only how many.
  bool wants_lists() const { return plan_.grouped(); }

  /// Pages for what becomes codes when the slots stay that `kept` says, and pages of its own for what moves; `leaves`: these are fewer than there are;
  /// `codes`: what is due becomes codes. As `reserve`.
  Status reserve_codes(const Context<Cuda>& ctx, bool leaves, bool codes, const CudaKept& kept) {
    const Flush rule = rule_of(codes);
    Status s = may_find(rule) ? codec_.reserve_finding() : Status::ok;
    if (s == Status::ok && leaves) s = own_all(ctx);
    const bool due_alone = codes && !leaves && due();  // of what is shared, the last page of codes and all newest slots
    for (index_t h = 0; h < plan_.heads && s == Status::ok; ++h) {
      if (!plan_.grouped()) s = take_pages(1, h, coded_after(rule, most_[h], kept.size(h)));
      if (s == Status::ok && due_alone) s = own(ctx, 1, h, most_[h].coded / plan_.slots_of(1));
      if (s == Status::ok && due_alone) s = own(ctx, 2, h, 0);
    }
    if (s == Status::ok && plan_.grouped()) {
      const auto first_code = [&](index_t h) { return most_[h].first; };
      const auto waits = [&](index_t h) { return !codes && kept.size(h) == most_[h].first + most_[h].coded + most_[h].newest; };
      s = groups_.plan(ctx, waits, [&](index_t h) { return kept.of(h); }, first_code, [&](index_t h) { return due_after(rule, h, kept); });
    }
    return s == Status::ok ? reserve_table(ctx) : s;
  }

  /// Whether slots become codes that scores tell apart when the slots stay that `kept` says.
  bool grades(const CudaKept& kept) const {
    bool any = false;
    for (index_t h = 0; h < plan_.heads && prim::cuda_kernels::GradedCodec<prim::DeviceCodec<Codec>>; ++h) any = any || due_after(plan_.flush, h, kept) > 0;
    return any;
  }

  template <class T>
  Status append(Context<Cuda>& ctx, index_t first, const index_t* slots, TensorView<const T, 3> rows, index_t* repaired) {
    return prim::HeadSlots::append<T>(ctx, plan_.exact, device(), first, slots, rows, repaired);
  }

  /// Keeps the listed slots, `leaves`: fewer than there are; `codes`: codes what is due, after `reserve_codes`. `slots` are those before;
  /// `ranges`: device scratch of range_count() entries.
  /// `scores`: of all slots, where the column `grades`. `queries`: of the step, for maps that are found from them too.
  Status step(Context<Cuda>& ctx, const index_t* slots, const prim::KeptSlots& keep, bool leaves, bool codes, prim::KeptRange* ranges, index_t* repaired,
              RaggedView<const float> scores, TensorView<const float, 3> queries) {
    const prim::ExactRows& exact = plan_.exact;
    if (!leaves && !due() && !unsettled()) return Status::ok;
    counted_ = true;
    if (!plan_.has_parts()) {
      const Status s = upload(ctx);
      return s == Status::ok ? prim::KeepRows<Cuda>::rows(ctx, exact, device().newest, keep) : s;
    }
    const Flush rule = rule_of(codes);
    index_t most = 0;
    bool rest = leaves;  // newest slots that stay so
    for (const Most& m : most_) most = std::max(most, most_due_in(m, rule)), rest = rest || due_in(m, rule) < m.newest;
    Status s = upload(ctx);
    const prim::ColumnParts column = device();
    if (s == Status::ok) s = prim::HeadSlots::plan(ctx, column, slots, keep, rule, codec_.flags(), counts_.data(), told_.data(), ranges);
    if (s == Status::ok) fresh_ = 0, laid_ = false;  // else `counts_` is as it was
    const auto part = [&](int i) { return prim::KeptSlots{keep.list, keep.count, ranges + i * plan_.heads}; };
    if (s == Status::ok && may_find(rule)) s = codec_.find(ctx, {plan_.exact, column, part(2), codec_.flags(), queries, queries.extent[0] / plan_.heads}, told_);
    if (s == Status::ok && leaves && plan_.sinks > 0) s = prim::KeepRows<Cuda>::rows(ctx, exact, column.first, part(0));
    if constexpr (!std::same_as<Codec, prim::ExactRows>) {
      if (plan_.grouped()) {
        if (s == Status::ok) s = step_groups(ctx, column, part(2), scores, repaired);
      } else if constexpr (prim::cuda_kernels::RowCodec<prim::DeviceCodec<Codec>>) {
        if (s == Status::ok && leaves) s = prim::KeepRows<Cuda>::rows(ctx, codec(), column.coded, part(1));
        if (s == Status::ok && most > 0) s = prim::HeadSlots::code(ctx, codec(), exact, column, part(2), most, repaired);
      }
    }
    return s == Status::ok && rest ? prim::KeepRows<Cuda>::rows(ctx, exact, column.newest, part(3)) : s;
  }
  index_t range_count() const { return 4 * plan_.heads; }

  /// After `step`, of which `kept(head)` slots stayed; `codes` as it was there.
  template <class Kept>
  void stepped(Kept&& kept, bool codes = true) {
    const Flush rule = rule_of(codes);
    for (index_t h = 0; h < plan_.heads; ++h) {
      Most& m = most_[h];
      const index_t n = kept(h), due = due_in(m, rule);
      if (m.first + m.coded + m.newest == n) m.coded += due, m.newest -= due;  // nothing left: exact as before
      else m = {std::min(m.first, n), coded_after(rule, m, n), std::min(n, codec_.waits(h) ? m.newest : most_left_of(rule, m.newest))};
    }
  }

  /// The newest slots leave until `left(head)` are there. Behind `learn`.
  template <class Left>
  Status cut(const Context<Cuda>& ctx, Left&& left) {
    bool same = true;
    for (index_t h = 0; h < plan_.heads; ++h) {
      const Most& m = most_[h];
      const index_t n = left(h), first = std::min(m.first, n), coded = std::min(m.coded, n - first);
      same = same && first == m.first && coded == m.coded;
      if (plan_.grouped() && coded < m.coded) groups_.pop_back(h, m.coded - coded), moved_ = true;
      told_[static_cast<std::size_t>(h)] = {first, coded};
      most_[h] = {first, coded, n - first - coded};
    }
    return same && fresh_ == 0 ? Status::ok : tell_device(ctx);
  }

  /// What the host says of pages goes to the device, and runs follow.
  Status settle(Context<Cuda>& ctx) {
    Status s = upload(ctx);
    if (s == Status::ok && !laid_ && !table_.empty()) s = prim::HeadSlots::lay(ctx, device(), table_.offsets(parts), table_.runs()), laid_ = s == Status::ok;
    return s;
  }

  /// Gives up the pages behind what there can be. Some are kept for the slots to come; the others go back when the stream
  /// has done with them.
  Status trim(const Context<Cuda>& ctx) {
    groups_.abandon();
    bool many = groups_.spare() > 2 * plan_.spare_pages(1) || groups_.parts() || codec_.finding();
    for (int p = 0; p < parts; ++p) {
      for (index_t h = 0; h < plan_.heads; ++h) {
        auto& list = pages_[p][h];
        const index_t needed = plan_.pages_for(p, most_[h].of(p));
        for (; list.size() > needed; list.shrink(list.size() - 1), moved_ = true) {
          if (list.back()->shared()) CudaPage::drop(list.back(), *memory_);
          else if (spare_[p].push_back(list.back()) != Status::ok) break;
        }
      }
      many = many || spare_[p].size() > 2 * plan_.spare_pages(p);
    }
    if (!many) return Status::ok;
    const Status s = ctx.wait();
    if (s != Status::ok) return s;  // somebody may still read them
    groups_.trim(plan_.spare_pages(1)), codec_.leave_finding();
    for (int p = 0; p < parts; ++p)
      for (; spare_[p].size() > plan_.spare_pages(p); spare_[p].shrink(spare_[p].size() - 1)) CudaPage::drop(spare_[p].back(), *memory_);
    return s;
  }

  // What kernels read.
  prim::ColumnParts device() const { return {pages(0), pages(1), pages(2), table_.coded_runs(), counts_.data(), fresh_}; }
  prim::ColumnRuns runs() const { return {table_.runs(), table_.offsets(parts), plan_.slots_of(1)}; }
  SlotRows<Cuda> rows(const index_t* slots, index_t longest) const {
    if constexpr (std::same_as<Codec, prim::ExactRows>) return {plan_.exact, runs(), slots, plan_.heads, longest, plan_.dim};
    else return {codec(), plan_.exact, runs(), slots, plan_.heads, longest, plan_.dim};
  }

  /// In pages of a part; those that wait for slots to come are counted too.
  std::size_t page_bytes(int part) const {
    std::size_t n = part == 1 ? groups_.page_bytes() : 0;
    for (const CudaPage* page : spare_[part]) n += page->bytes;
    for (const auto& list : pages_[part])
      for (const CudaPage* page : list) n += page->bytes;
    return n;
  }
  std::size_t dead_bytes() const {
    std::size_t sum = 0;
    for (index_t h = 0; h < plan_.heads; ++h) sum += static_cast<std::size_t>(groups_.dead(h)) * bytes_of(1, h) / static_cast<std::size_t>(plan_.slots_of(1));
    return sum;
  }
  index_t coded_again(index_t head) const { return groups_.coded_again(head); }
  std::size_t side_bytes() const {
    return table_.bytes() + groups_.side_bytes() + codec_.bytes() + static_cast<std::size_t>(counts_.size()) * sizeof(prim::PartCounts);
  }

  // Rows that other heads hold too: cuda_column_shared.cuh. Behind `learn`.
  const Buffer<CudaGroups::Ref>& coded_pages(index_t head) const { return groups_.pages(head); }
  CudaCodec<Codec>& found() { return codec_; }
  const CudaCodec<Codec>& found() const { return codec_; }
  index_t settled_together(index_t head) const { return most_[head].first + most_[head].coded; }
  index_t due_together(index_t head, index_t pending) const { return most_[head].newest - pending - plan_.flush.keep; }
  Status reserve_shared(index_t head, index_t pages);
  void take_shared(index_t head, index_t p, CudaPage* page);
  void leave_newest(index_t head, index_t pages);
  Status tell_shared(Context<Cuda>& ctx);

  /// Makes an empty column of the same plan one of the same rows: pages are shared until either side writes them. Behind `learn`.
  Status fork(const Context<Cuda>& ctx, CudaColumn& out);

  /// Empty again; only while no kernel uses it.
  Status clear(const Context<Cuda>& ctx);

 private:
  friend class CudaColumnFile<Codec>;  // fills an empty one from a file
  /// What is told to the host becomes what the device has.
  Status tell_device(const Context<Cuda>& ctx) {
    fresh_ = 0, laid_ = false;
    const Status s = cuda::settled(cudaMemcpyAsync(counts_.data(), told_.data(), told_.size_bytes(), cudaMemcpyHostToDevice, ctx.stream()));
    return s == Status::ok ? ctx.wait() : s;
  }
  /// What `groups_` has planned for a step: cuda_column_shared.cuh.
  Status step_groups(Context<Cuda>& ctx, const prim::ColumnParts& column, const prim::KeptSlots& due, RaggedView<const float> scores, index_t* repaired);
  /// Slots of a head that a rule codes now: unless some leave, and at most.
  index_t due_in(const Most& m, const Flush& rule) const { return enough(m, rule, due_of(rule, m.newest, m.coded > 0)); }
  /// Those that become codes in a step, where it is known which stay.
  index_t due_after(const Flush& rule, index_t head, const CudaKept& kept) const {
    const Most& m = most_[head];
    return enough(m, rule, due_of(rule, kept.size(head) - kept.of(head).below(m.first + m.coded), groups_.live(head) > 0));
  }
  index_t most_due_in(const Most& m, const Flush& rule) const { return enough(m, rule, most_due_of(rule, m.newest)); }
  index_t enough(const Most& m, const Flush& rule, index_t due) const { return due < rule.first && codec_.waits(&m - most_.data()) ? 0 : due; }
  bool may_find(const Flush& rule) const { return codec_.may_find([&](index_t h) { return most_due_in(most_[h], rule) > 0; }); }
  Flush rule_of(bool codes) const { return codes && !plan_.paired() ? plan_.flush : Flush{.block = 0}; }
  index_t coded_after(const Flush& rule, const Most& m, index_t kept) const { return std::min(kept, m.coded + most_due_in(m, rule)); }
  Status take_pages(int part, index_t head, index_t slots) {
    auto& list = pages_[part][head];
    while (list.size() < plan_.pages_for(part, slots)) {
      if (const Status s = list.reserve(list.size() + 1); s != Status::ok) return s;
      CudaPage* page = CudaPage::take(spare_[part], *memory_, bytes_of(part, head));
      if (page == nullptr) return Status::out_of_memory;
      list.append_reserved(page), moved_ = true;
    }
    return Status::ok;
  }
  /// Pages of a head from the one at `first` on become this column's alone: those that a fork has too are copied.
  Status own(const Context<Cuda>& ctx, int part, index_t head, index_t first) {
    if (!shares_) return Status::ok;
    auto& list = pages_[part][head];
    for (index_t i = first; i < list.size(); ++i) {
      if (!list[i]->shared()) continue;
      CudaPage* page = CudaPage::take(spare_[part], *memory_, bytes_of(part, head));
      if (page == nullptr) return Status::out_of_memory;
      const Status s = cuda::settled(cudaMemcpyAsync(page->rows, list[i]->rows, page->bytes, cudaMemcpyDeviceToDevice, ctx.stream()));
      CudaPage::drop(s == Status::ok ? std::exchange(list[i], page) : page, *memory_);
      if (s != Status::ok) return s;
      moved_ = true;
    }
    return Status::ok;
  }

  prim::PageTable pages(int part) const { return {table_.pages(), table_.offsets(part), plan_.heads, plan_.slots_of(part), plan_.dim}; }
  const CudaGroups* groups() const { return plan_.grouped() ? &groups_ : nullptr; }

  /// Room in the table for the pages and runs that there are, so that `upload` needs no memory.
  Status reserve_table(const Context<Cuda>& ctx) {
    index_t n = groups_.runs();
    for (const auto& p : pages_)
      for (const auto& list : p) n += list.size();
    return table_.reserve(ctx, n, moved_);
  }
  Status upload(const Context<Cuda>& ctx) {
    if (!moved_) return Status::ok;
    if (const Status s = reserve_table(ctx); s != Status::ok) return s;
    if (table_.empty()) return Status::ok;  // there is no page yet
    if (const Status s = table_.send(ctx, pages_, groups()); s != Status::ok) return s;
    moved_ = laid_ = false;
    return Status::ok;
  }

  /// No page is shared with a fork any more, but those of codes that do not move. As `reserve`.
  Status own_all(const Context<Cuda>& ctx);
  void give_pages() {
    groups_.clear();
    for (int p = 0; p < parts; ++p) {
      const auto give = [&](auto& list) {
        for (CudaPage* page : list) CudaPage::drop(page, *memory_);
        list.shrink(0);
      };
      for (auto& list : pages_[p]) give(list);
      give(spare_[p]);
    }
    moved_ = true;
  }

  Plan plan_;
  MemoryResource<Cuda>* memory_;
  Buffer<Most> most_;
  ObjectArray<Buffer<CudaPage*>> pages_[parts];
  Buffer<CudaPage*> spare_[parts];
  CudaGroups groups_;
  CudaPageTable table_;
  cuda::DeviceArray<prim::PartCounts> counts_;
  CudaCodec<Codec> codec_;
  std::span<prim::PartCounts> told_;  ///< the same as the last step left them, for the host
  cuda::Staging staging_;             ///< of them, where nobody waits
  index_t fresh_ = 0;                 ///< first slots that came since
  bool counted_ = false;  ///< a step wrote them since the host has learned
  bool shares_ = false; ///< a fork may have some of the pages too
  bool moved_ = true;   ///< pages came or went since the table was written
  bool laid_ = false;   ///< runs are those of the table and the counts
};

}  // namespace kvcondense::cache

#include <kvcondense/cache/cuda_column_fork.cuh>
#include <kvcondense/cache/cuda_column_shared.cuh>
