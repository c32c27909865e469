#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include <kvcondense/cache/column.hpp>
#include <kvcondense/cache/column_pair.hpp>
#include <kvcondense/cache/snapshot_file.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::cache {

/// The same part of the heads before one that share rows with it, the nearest first.
template <class T>
struct Before {
  const T* at[max_row_group] = {};
  index_t count = 0;

  template <class F>
  auto each(F&& part) const {
    Before<std::remove_cvref_t<decltype(part(*at[0]))>> b;
    for (; b.count < count; ++b.count) b.at[b.count] = &part(*at[b.count]);
    return b;
  }
};

/// A page's payload; what was taken back or left stays out of the file, where a page has slots that hold nothing.
template <class C>
void save_payload(ByteWriter& w, const Segment<C>& segment, const PageRef& ref) {
  const std::size_t bytes = ref.page->payload_bytes, at = (bytes + sizeof(float) - 1) / sizeof(float) * sizeof(float);
  if (ref.live == segment.page_slots() || segment.shares(ref)) return w.bytes({ref.page->payload(), bytes});
  Page* copy = segment.make_page(at + static_cast<std::size_t>(segment.dim()) * sizeof(float));
  if (copy == nullptr) return w.fail(Status::out_of_memory);
  std::copy_n(ref.page->payload(), bytes, copy->payload());
  segment.clear_empty(ref, {copy->payload(), segment.page_slots(), segment.dim()}, reinterpret_cast<const float*>(copy->payload() + at));
  w.bytes({copy->payload(), bytes});
  segment.drop_page(copy);
}

template <class C>
void save_segment(ByteWriter& w, const Segment<C>& segment, bool paired = false, const Before<Segment<C>>& before = {}) {
  w.put(static_cast<std::uint32_t>(segment.pages().size()));
  index_t from[max_row_group] = {};
  for (const PageRef& ref : segment.pages()) {
    PageHead head{ref.page->format, static_cast<std::uint32_t>(ref.used)};
    std::copy(std::begin(ref.dead), std::end(ref.dead), std::begin(head.dead));
    head.save(w);
    PageForm form = segment.shares(ref) ? PageForm::rows : PageForm::alone;
    index_t at = -1;
    for (index_t n = 0; n < before.count && form == PageForm::rows; ++n)
      if ((at = page_above(before.at[n]->pages(), ref.page->under, from[n])) >= 0)
        form = static_cast<PageForm>(static_cast<index_t>(PageForm::shared) + n);
    if (paired) w.put(static_cast<std::uint32_t>(form));
    if (form >= PageForm::shared) w.put(static_cast<std::uint32_t>(at));
    if (form != PageForm::alone) w.put(static_cast<std::uint32_t>(ref.page->payload_bytes));
    save_payload(w, segment, ref);
    if (form == PageForm::rows) w.bytes({ref.page->under->payload(), ref.page->under->payload_bytes});
  }
}

/// The page that was just added gets the rows below it: those of another page, or new ones of these bytes.
template <class C>
Status put_under(Segment<C>& segment, Page* rows, std::span<const std::byte> bytes) {
  Page* page = segment.pages().back().page;
  if (rows != nullptr && rows->format != segment.rows_format()) return Status::incompatible;
  segment.may_share();
  if (rows != nullptr) {
    page->under = retain(rows);
    return Status::ok;
  }
  page->under = segment.make_rows_page();
  if (page->under == nullptr) return Status::out_of_memory;
  std::copy(bytes.begin(), bytes.end(), page->under->payload());
  return Status::ok;
}

template <class C>
Status load_segment(ByteReader& r, Segment<C>& segment, bool paired = false, const Before<Segment<C>>& before = {}) {
  std::uint32_t pages = 0;
  const std::size_t payload = segment.page_payload();
  if (!load_pages(r, paired ? 0 : payload, pages)) return Status::corrupt_data;
  for (std::uint32_t p = 0; p < pages; ++p) {
    PageHead head;
    std::uint32_t form = 0, at = 0, own = 0;
    std::span<const std::byte> bytes, rows;
    if (const Status s = head.load(r, segment.format()); s != Status::ok) return s;
    if (paired && !r.read(form)) return Status::corrupt_data;
    const index_t n = static_cast<index_t>(form) - static_cast<index_t>(PageForm::shared);
    if (n >= before.count) return Status::corrupt_data;
    const Segment<C>* below = n < 0 ? nullptr : before.at[n];
    if (below != nullptr && (!r.read(at) || at >= below->pages().size() || !below->shares(below->pages()[at]))) return Status::corrupt_data;
    const PageForm kind = n < 0 ? static_cast<PageForm>(form) : PageForm::shared;
    if (kind != PageForm::alone && (!r.read(own) || head.used != segment.page_slots())) return Status::corrupt_data;
    if (!r.take(1, kind == PageForm::alone ? payload : own, bytes)) return Status::corrupt_data;
    if (kind == PageForm::rows && !r.take(1, payload, rows)) return Status::corrupt_data;
    if (!head.fits(segment.page_slots(), segment.codec().group_slots())) return Status::corrupt_data;
    if (const Status s = segment.add_page(head.used, head.dead, bytes.size()); s != Status::ok) return s;
    std::copy(bytes.begin(), bytes.end(), segment.pages().back().page->payload());
    if (kind == PageForm::alone) continue;
    if (const Status s = put_under(segment, kind == PageForm::shared ? below->pages()[at].page->under : nullptr, rows); s != Status::ok) return s;
  }
  return Status::ok;
}

template <class C>
auto coded_of(const Before<Column<C>>& before) {
  return before.each([](const Column<C>& c) -> const auto& { return c.coded(); });
}

/// Only where a transform is found from data: how many numbers it found (none yet, or all), and they.
template <class C>
Status load_state(ByteReader& r, Column<C>& column) {
  std::uint32_t count = 0;
  std::span<const std::byte> bytes;
  if (!r.read(count) || (count != 0 && count != static_cast<std::uint32_t>(column.map().state_floats()))) return Status::corrupt_data;
  if (count == 0) return column.coded().live() == 0 ? Status::ok : Status::corrupt_data;
  if (!r.take(count, sizeof(float), bytes)) return Status::corrupt_data;
  return column.map().restore(bytes);
}

template <class C>
Status load_column(ByteReader& r, Column<C>& column, const Before<Column<C>>& before) {
  Status s = load_segment(r, column.sinks());
  if (s == Status::ok) s = load_segment(r, column.coded(), column.paired(), coded_of(before));
  for (const PageRef& ref : column.coded().pages())
    if (s == Status::ok && column.coded().shares(ref) && !column.own_fits(ref)) s = Status::corrupt_data;
  if (s == Status::ok) s = load_segment(r, column.window());
  if (s == Status::ok && column.map().state_floats() > 0) s = load_state(r, column);
  return s;
}

template <class C>
void save_column(ByteWriter& w, const Column<C>& column, const Before<Column<C>>& before) {
  save_segment(w, column.sinks());
  save_segment(w, column.coded(), column.paired(), coded_of(before));
  save_segment(w, column.window());
  if (column.map().state_floats() == 0) return;
  w.put(static_cast<std::uint32_t>(column.map().state().size()));
  w.bytes(std::as_bytes(column.map().state()));
}

}  // namespace kvcondense::cache
