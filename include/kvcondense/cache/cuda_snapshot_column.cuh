#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <span>

#include <kvcondense/backend/cuda/keep_rows.cuh>
#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/backend/cuda/steering.cuh>
#include <kvcondense/cache/cuda_code_room.cuh>
#include <kvcondense/cache/cuda_column.cuh>
#include <kvcondense/cache/cuda_snapshot_shared.cuh>
#include <kvcondense/cache/own_part.hpp>
#include <kvcondense/cache/page.hpp>
#include <kvcondense/cache/snapshot_file.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/bytes.hpp>

namespace kvcondense::cache {

/// Page-locked memory through which pages come down, as many at a time as there is room for, and device memory for one whose empty groups of slots
/// become rows of zeros.
class SnapshotRoom {
 public:
  static constexpr std::size_t least = std::size_t{1} << 20;

  explicit SnapshotRoom(MemoryResource<Cuda>& memory) : codes_(memory), page_(memory), zeros_(memory), jobs_(memory) {}

  /// `page`: bytes of the largest page; `laid`: what CodeRoom wants; `dim`: of the longest row, 0 where nothing is coded.
  Status make(const Context<Cuda>& ctx, std::size_t page, std::size_t laid, index_t dim) {
    Status s = down_.make(std::max(page, least));
    if (s == Status::ok) s = codes_.make(laid);
    if (s != Status::ok || dim == 0) return s;
    s = page_.resize(static_cast<index_t>(page));
    if (s == Status::ok) s = zeros_.resize(dim);
    if (s == Status::ok) s = jobs_.resize(most_jobs);
    if (s == Status::ok) s = staging_.reserve(jobs_.bytes().size());
    return s == Status::ok ? zeros_.fill_bytes(ctx, 0) : s;
  }
  index_t pages_of(std::size_t bytes) const { return static_cast<index_t>(down_.size() / bytes); }
  std::span<std::byte> part(index_t i, std::size_t bytes) const { return down_.part(static_cast<std::size_t>(i) * bytes, bytes); }

  /// Through which codes come down as files have them.
  CodeRoom& codes() { return codes_; }

  /// Enqueues the copy of a page of codes, which kernels read by `codec`: groups of slots of which none lives become those of zeros.
  template <class Codec, class Named>
  Status fetch(Context<Cuda>& ctx, const Codec& codec, const CudaColumnPlan<Named>& plan, const std::byte* from, const PageHead& page, index_t dim, std::span<std::byte> to) {
    const index_t slots = plan.slots_of(1);
    prim::PageRows jobs[most_jobs];
    index_t n = 0, most = 0;
    const index_t group = codec.group_slots();
    for (index_t first = 0; first < slots; first += group) {
      index_t end = first;
      while (end < slots && empty(page, end, group)) end += group;
      if (end == first) continue;
      jobs[n++] = {page_.data(), zeros_.data(), 0, static_cast<std::int32_t>(first), static_cast<std::int32_t>(end - first)};
      most = std::max(most, end - first);
      first = end;  // lives
    }
    if (n == 0) return codes_.down(ctx, plan, from, dim, to);
    std::span<std::byte> room;
    Status s = staging_.next(room);
    if (s != Status::ok) return s;
    const auto bytes = std::as_bytes(std::span(jobs, static_cast<std::size_t>(n)));
    std::ranges::copy(bytes, room.begin());
    s = staging_.send(ctx, jobs_.data(), bytes.size());
    if (s == Status::ok) s = cuda::settled(cudaMemcpyAsync(page_.data(), from, to.size(), cudaMemcpyDeviceToDevice, ctx.stream()));
    if (s == Status::ok) s = prim::PageCodec<Cuda, Codec>::encode(ctx, codec, {jobs_.data(), n, most, slots, dim});
    return s == Status::ok ? codes_.down(ctx, plan, page_.data(), dim, to) : s;
  }

 private:
  static constexpr index_t most_jobs = max_page_slots / 2;  ///< stretches of a page that hold nothing

  static bool empty(const PageHead& page, index_t first, index_t group) {
    for (index_t slot = first; slot < std::min(first + group, static_cast<index_t>(page.used)); ++slot)
      if (page.alive(slot)) return false;
    return true;
  }

  cuda::SteeringMemory down_;
  CodeRoom codes_;
  cuda::DeviceArray<std::byte> page_;
  cuda::DeviceArray<float> zeros_;
  cuda::DeviceArray<prim::PageRows> jobs_;
  cuda::Staging staging_;
};

/// A column beside its bytes in a file, whose pages of exact newest slots may be smaller, and may have tombstones where the column has none: what the CPU
/// wrote is moved to the front. Codes that cannot move alone have the pages of the file, with their tombstones.
template <class Codec>
class CudaColumnFile {
 public:
  using Column = CudaColumn<Codec>;
  using Plan = CudaColumnPlan<Codec>;
  static constexpr int parts = Plan::parts;

  static index_t page_slots(const Plan& p, int part) { return part == 2 ? window_page_slots(p.flush, p.page_slots) : p.slots_of(part); }
  static std::size_t payload(const Column& column, int part, index_t head) {
    const Plan& p = column.plan_;
    return part == 1 ? column.bytes_of(1, head) : p.exact.page_bytes(page_slots(p, part), p.dim);
  }
  /// Bytes of the largest page of all heads.
  static std::size_t most(const Column& column) {
    std::size_t bytes = 0;
    for (int part = 0; part < parts; ++part)
      for (index_t h = 0; h < column.plan_.heads; ++h) bytes = std::max(bytes, payload(column, part, h));
    return bytes;
  }
  static std::uint64_t format(const Column& column, int part, index_t head) {
    const Plan& p = column.plan_;
    return page_format(part == 1 ? column.fingerprint(head) : p.exact.fingerprint(), page_slots(p, part), part == 1 ? column.stored_dim(head) : p.dim);
  }

  /// Writes a head of so many slots. The stream has been waited for.
  static void save(ByteWriter& w, Context<Cuda>& ctx, const Column& column, index_t head, const CudaBefore<Column>& before, index_t slots, SnapshotRoom& room) {
    const prim::PartCounts& told = column.told_[static_cast<std::size_t>(head)];
    const index_t first = told.first + column.fresh_;
    const index_t count[parts] = {first, told.coded, slots - first - told.coded};
    for (int part = 0; part < parts; ++part) save_part(w, ctx, column, part, head, before, count[part], room);
    if (column.codec_.state_floats() == 0) return;
    w.put(static_cast<std::uint32_t>(column.codec_.state(head).size()));
    w.bytes(std::as_bytes(column.codec_.state(head)));
  }

  /// `codes`: through which pages go up; it stays until the stream is waited for.
  CudaColumnFile(Column& to, CodeRoom& codes) : column_(&to), codes_(&codes), list_(heap_memory()), offset_(heap_memory()) {}

  Status make() {
    if (const Status s = offset_.resize(plan().heads + 1); s != Status::ok) return s;
    return rows_.reserve(std::max(plan().bytes_of(0), plan().bytes_of(2)));
  }
  /// Reads the next head, which has so many slots. The bytes that `r` reads stay until the stream is waited for.
  Status load(ByteReader& r, const Context<Cuda>& ctx, index_t head, const CudaBefore<Column>& before, index_t slots) {
    index_t count[parts] = {};
    for (int part = 0; part < parts; ++part)
      if (const Status s = load_part(r, ctx, part, head, before, count[part]); s != Status::ok) return s;
    if (count[0] + count[1] + count[2] != slots || count[0] > plan().sinks) return Status::corrupt_data;
    if (column_->codec_.state_floats() > 0)
      if (const Status s = load_state(r, ctx, head, count[1]); s != Status::ok) return s;
    column_->most_[head] = {count[0], count[1], count[2]};
    column_->told_[static_cast<std::size_t>(head)] = {count[0], count[1]};
    return Status::ok;
  }
  /// Behind all heads: codes move to the front of their pages where slots have left. Waits for the stream.
  Status settle(Context<Cuda>& ctx) {
    Status s = column_->reserve_table(ctx);
    if (s == Status::ok) s = column_->tell_device(ctx);
    if constexpr (prim::cuda_kernels::RowCodec<prim::DeviceCodec<Codec>>)
      if (s == Status::ok && !dense_) s = move_codes(ctx);
    return s;
  }

 private:
  Status move_codes(Context<Cuda>& ctx) {
    cuda::DeviceArray<std::int32_t> list(*column_->memory_);
    cuda::DeviceArray<index_t> offset(*column_->memory_), count(*column_->memory_);
    Buffer<index_t> coded(heap_memory());
    Status s = coded.resize(plan().heads);
    for (index_t h = 0; h < coded.size(); ++h) coded[h] = offset_[h + 1] - offset_[h];
    if (s == Status::ok) s = column_->upload(ctx);
    if (s == Status::ok) s = list.upload(ctx, list_.span());
    if (s == Status::ok) s = offset.upload(ctx, offset_.span());
    if (s == Status::ok) s = count.upload(ctx, coded.span());
    if (s == Status::ok)
      s = prim::KeepRows<Cuda>::rows(ctx, column_->codec(), column_->pages(1), prim::KeptSlots{{list.data(), offset.data(), plan().heads}, count.data()});
    const Status done = ctx.wait();  // the lists go
    if (s == Status::ok) s = done;
    return s == Status::ok ? column_->trim(ctx) : s;
  }
  const Plan& plan() const { return column_->plan_; }

  /// What a head has found of a map: nothing yet, or all.
  Status load_state(ByteReader& r, const Context<Cuda>& ctx, index_t head, index_t coded) {
    std::uint32_t count = 0;
    std::span<const std::byte> bytes;
    if (!r.read(count) || (count != 0 && count != static_cast<std::uint32_t>(column_->codec_.state_floats(head)))) return Status::corrupt_data;
    if (count == 0) return coded == 0 ? Status::ok : Status::corrupt_data;
    if (!r.take(count, sizeof(float), bytes)) return Status::corrupt_data;
    return column_->codec_.restore(ctx, head, bytes);
  }
  static void save_part(ByteWriter& w, Context<Cuda>& ctx, const Column& column, int part, index_t head, const CudaBefore<Column>& before, index_t count, SnapshotRoom& room) {
    const Plan& plan = column.plan_;
    const bool grouped = part == 1 && plan.grouped();
    const index_t slots = page_slots(plan, part), pages = grouped ? column.groups_.pages(head).size() : (count + slots - 1) / slots;
    const std::size_t bytes = payload(column, part, head);
    const index_t dim = column.stored_dim(head);  // of codes
    const auto codec = prim::cuda_kernels::stored_codec(column.codec());  // what lies in pages, whatever its numbers are of
    w.put(static_cast<std::uint32_t>(pages));
    SharedPlaces fetched(before, part == 1 && plan.paired()), places(before, part == 1 && plan.paired());
    const auto head_of = [&](index_t page) {
      PageHead of{format(column, part, head)};
      if (!grouped) return of.used = static_cast<std::uint32_t>(std::min(slots, count - page * slots)), of;
      const auto& ref = column.groups_.pages(head)[page];
      of.used = static_cast<std::uint32_t>(ref.used);
      std::ranges::copy(ref.dead, of.dead);
      return of;
    };
    for (index_t page = 0, n = 0; page < pages && w.status() == Status::ok; page += n) {
      n = std::min(pages - page, room.pages_of(bytes));
      Status s = Status::ok;
      for (index_t i = 0; i < n && s == Status::ok; ++i) {
        const std::span<std::byte> to = room.part(i, bytes);
        const PageHead of = head_of(page + i);
        if (part == 1 && shares(column, head, page + i) && fetched.has(column, head, page + i)) continue;
        s = part == 1 && shares(column, head, page + i) ? room.codes().down(ctx, plan, column.groups_.pages(head)[page + i].page->under->rows, dim, to)
            : part == 1 ? room.fetch(ctx, prim::of_head(codec, head), plan, codes_at(column, head, page + i), of, dim, to)
                        : fetch_rows(ctx, column, part, head, (page + i) * slots, static_cast<index_t>(of.used), to);
      }
      const Status done = ctx.wait();
      if (s != Status::ok || done != Status::ok) return w.fail(s != Status::ok ? s : done);
      for (index_t i = 0; i < n; ++i) {
        const std::span<std::byte> to = room.part(i, bytes);
        const PageHead of = head_of(page + i);
        if (part == 1) column.codec_.clear_gap(head, to);
        else std::ranges::fill(to.subspan(bytes / static_cast<std::size_t>(slots) * of.used), std::byte{});
        of.save(w);
        if (part != 1 || !places.save(w, ctx, column, head, page + i)) w.bytes(to);
      }
    }
  }
  static Status fetch_rows(const Context<Cuda>& ctx, const Column& column, int part, index_t head, index_t first, index_t count, std::span<std::byte> to) {
    const Plan& plan = column.plan_;
    const std::size_t row = plan.exact.page_bytes(1, plan.dim);
    const index_t slots = plan.slots_of(part);
    for (index_t done = 0, n = 0; done < count; done += n) {
      const index_t at = (first + done) % slots;
      n = std::min(count - done, slots - at);
      const std::byte* from = column.pages_[part][head][(first + done) / slots]->rows + static_cast<std::size_t>(at) * row;
      const auto bytes = static_cast<std::size_t>(n) * row;
      const cudaError_t e = cudaMemcpyAsync(to.data() + static_cast<std::size_t>(done) * row, from, bytes, cudaMemcpyDeviceToHost, ctx.stream());
      if (const Status s = cuda::settled(e); s != Status::ok) return s;
    }
    return Status::ok;
  }
  static const std::byte* codes_at(const Column& column, index_t head, index_t page) {
    return column.plan_.grouped() ? column.groups_.pages(head)[page].page->at() : column.pages_[1][head][page]->rows;
  }
  static bool shares(const Column& column, index_t head, index_t page) { return column.plan_.paired() && column.groups_.pages(head)[page].page->under != nullptr; }
  Status load_part(ByteReader& r, const Context<Cuda>& ctx, int part, index_t head, const CudaBefore<Column>& before, index_t& count) {
    const bool paired = part == 1 && plan().paired();
    const index_t slots = page_slots(plan(), part), group = part == 1 ? plan().codec.group_slots() : 1;
    const std::size_t bytes = payload(*column_, part, head);
    std::uint32_t pages = 0;
    if (!load_pages(r, paired ? 0 : bytes, pages)) return Status::corrupt_data;
    if (pages > 0 && part == 1 && plan().flush.block == 0 && !paired) return Status::corrupt_data;  // this recipe codes nothing
    for (index_t p = 0; p < static_cast<index_t>(pages); ++p) {
      PageHead page;
      std::span<const std::byte> from;
      if (const Status s = page.load(r, format(*column_, part, head)); s != Status::ok) return s;
      if (paired) {
        if (const Status s = load_paired(r, ctx, head, before, page, bytes, count); s != Status::ok) return s;
        continue;
      }
      if (!r.take(1, bytes, from) || !page.fits(slots, group)) return Status::corrupt_data;
      const Status s = part != 1          ? put_rows(ctx, part, head, page, from, count)
                       : plan().grouped() ? put_groups(ctx, head, page, from, count)
                                          : put_codes(ctx, head, p, page, from, count);
      if (s != Status::ok) return s;
    }
    if (part == 1) offset_[head + 1] = list_.size();
    return part == 1 ? Status::ok : send_rows(ctx, part, head, count);
  }
  /// A page of a head that may share rows with those `before`.
  Status load_paired(ByteReader& r, const Context<Cuda>& ctx, index_t head, const CudaBefore<Column>& before, const PageHead& head_of, std::size_t bytes, index_t& count) {
    std::uint32_t form = 0, at = 0, own = 0;
    std::span<const std::byte> from;
    if (!r.read(form) || !head_of.fits(plan().slots_of(1), plan().codec.group_slots())) return Status::corrupt_data;
    const index_t n = static_cast<index_t>(form) - static_cast<index_t>(PageForm::shared);
    if (n < 0 && static_cast<PageForm>(form) == PageForm::alone) return r.take(1, bytes, from) ? put_groups(ctx, head, head_of, from, count) : Status::corrupt_data;
    if (n >= before.count) return Status::corrupt_data;
    CudaPage* under = nullptr;
    if (n >= 0) {
      const auto& [column, of] = before.at[n];
      const auto& list = column->groups_.pages(of);
      if (!r.read(at) || at >= list.size() || (under = list[at].page->under) == nullptr) return Status::corrupt_data;
      if (column->codec_.code_fingerprint(of) != column_->codec_.code_fingerprint(head) || under->bytes != bytes) return Status::incompatible;
    }
    if (!r.read(own) || static_cast<index_t>(head_of.used) != plan().slots_of(1)) return Status::corrupt_data;
    std::span<const std::byte> part;
    if (!r.take(1, own, part) || (n < 0 && !r.take(1, bytes, from))) return Status::corrupt_data;
    const bool directions = plan().together == Together::directions;
    if (!directions && own != 0) return Status::corrupt_data;
    CudaPage* page = nullptr;
    const std::size_t room = directions ? sizeof(prim::PairedHead) + own : 0;
    if (const Status s = column_->groups_.add_page(head, static_cast<index_t>(head_of.used), head_of.dead, room, page); s != Status::ok) return s;
    column_->moved_ = true, count += head_of.live();
    page->under = n < 0 ? CudaPage::make(*column_->memory_, bytes) : CudaPage::retain(under);
    if (page->under == nullptr) return Status::out_of_memory;
    if (directions)
      if (const Status s = put_own(ctx, *page, part); s != Status::ok) return s;
    return n >= 0 ? Status::ok : put(ctx, head, from, page->under->rows);
  }
  /// What a layer has of its own of a page of directions. Waits for the copy.
  Status put_own(const Context<Cuda>& ctx, CudaPage& page, std::span<const std::byte> bytes) {
    Page* const copy = Page::make(heap_memory(), bytes.size(), 0);
    if (copy == nullptr) return Status::out_of_memory;
    std::ranges::copy(bytes, copy->payload());
    const OwnPart own(plan().exact.dtype, plan().dim, plan().slots_of(1), *copy);
    Status s = own.valid() ? Status::ok : Status::corrupt_data;
    if (s == Status::ok)
      for (index_t k = 0; k < own.kept(); ++k) page.stays[own.kept_slot(k) / 64] |= std::uint64_t{1} << (own.kept_slot(k) % 64);
    const prim::PairedHead head{page.under->rows, static_cast<std::int32_t>(own.kept()), 0};
    if (s == Status::ok) s = cuda::settled(cudaMemcpyAsync(page.rows, &head, sizeof head, cudaMemcpyHostToDevice, ctx.stream()));
    if (s == Status::ok) s = cuda::settled(cudaMemcpyAsync(page.rows + sizeof head, bytes.data(), bytes.size(), cudaMemcpyHostToDevice, ctx.stream()));
    const Status done = ctx.wait();
    release(copy, heap_memory());
    return s == Status::ok ? done : s;
  }
  /// A page of codes goes up.
  Status put(const Context<Cuda>& ctx, index_t head, std::span<const std::byte> from, std::byte* to) { return codes_->up(ctx, plan(), from, to, column_->stored_dim(head)); }
  /// With its tombstones, and it stays so.
  Status put_groups(const Context<Cuda>& ctx, index_t head, const PageHead& head_of, std::span<const std::byte> from, index_t& count) {
    CudaPage* page = nullptr;
    if (const Status s = column_->groups_.add_page(head, static_cast<index_t>(head_of.used), head_of.dead, page); s != Status::ok) return s;
    column_->moved_ = true, count += head_of.live();
    return put(ctx, head, from, page->rows);
  }
  /// With its tombstones; which of its slots are live is remembered.
  Status put_codes(const Context<Cuda>& ctx, index_t head, index_t page, const PageHead& head_of, std::span<const std::byte> from, index_t& count) {
    const index_t slots = plan().slots_of(1), used = static_cast<index_t>(head_of.used), live = head_of.live();
    if (const Status s = column_->take_pages(1, head, page * slots + used); s != Status::ok) return s;
    if (const Status s = list_.reserve(list_.size() + live); s != Status::ok) return s;
    dense_ = dense_ && live == used && count == page * slots;
    for (index_t s = 0; s < used; ++s)
      if (head_of.alive(s)) list_.append_reserved(static_cast<std::int32_t>(page * slots + s));
    count += live;
    return put(ctx, head, from, column_->pages_[1][head][page]->rows);
  }
  /// Live rows go behind those that are there, a page of the column at a time.
  Status put_rows(const Context<Cuda>& ctx, int part, index_t head, const PageHead& page, std::span<const std::byte> from, index_t& count) {
    const std::size_t row = plan().exact.page_bytes(1, plan().dim);
    const index_t slots = plan().slots_of(part);
    for (index_t s = 0; s < static_cast<index_t>(page.used); ++s) {
      if (!page.alive(s)) continue;
      if (count % slots == 0)
        if (const Status r = rows_.next(filled_); r != Status::ok) return r;
      std::memcpy(filled_.data() + static_cast<std::size_t>(count % slots) * row, from.data() + static_cast<std::size_t>(s) * row, row);
      if (++count % slots == 0)
        if (const Status r = send(ctx, part, head, count / slots - 1, slots); r != Status::ok) return r;
    }
    return Status::ok;
  }
  Status send_rows(const Context<Cuda>& ctx, int part, index_t head, index_t count) {
    const index_t slots = plan().slots_of(part), rest = count % slots;
    return rest == 0 ? Status::ok : send(ctx, part, head, count / slots, rest);
  }
  Status send(const Context<Cuda>& ctx, int part, index_t head, index_t page, index_t rows) {
    if (const Status s = column_->take_pages(part, head, page * plan().slots_of(part) + rows); s != Status::ok) return s;
    return rows_.send(ctx, column_->pages_[part][head][page]->rows, plan().exact.page_bytes(rows, plan().dim));
  }

  Column* column_;
  CodeRoom* codes_;
  cuda::Staging rows_;
  std::span<std::byte> filled_{};  ///< the half of it that the next page is written to
  Buffer<std::int32_t> list_;      ///< live slots of codes of the heads so far, one behind the other
  Buffer<index_t> offset_;         ///< where each head's begin
  bool dense_ = true;              ///< every slot lies where it belongs
};

}  // namespace kvcondense::cache
