#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include <kvcondense/cache/column.hpp>
#include <kvcondense/cache/column_pair.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::cache {

/// How a page of the coded part of a layer that shares rows lies in a file.
enum class PageForm : std::uint32_t {
  alone,   ///< its payload
  rows,    ///< bytes of what the layer has of its own u32, these, then the payload of the rows
  shared,  ///< page of the layer before that holds the rows u32, bytes u32, then what the layer has of its own
};

template <class C>
void save_segment(ByteWriter& w, const Segment<C>& segment, bool paired = false, const Segment<C>* below = nullptr) {
  w.put(static_cast<std::uint32_t>(segment.pages().size()));
  index_t from = 0;
  for (const PageRef& ref : segment.pages()) {
    w.put(ref.page->format);
    w.put(static_cast<std::uint32_t>(ref.used));
    for (const std::uint64_t word : ref.dead) w.put(word);
    const index_t at = below == nullptr || !segment.shares(ref) ? -1 : page_above(below->pages(), ref.page->under, from);
    const PageForm form = !segment.shares(ref) ? PageForm::alone : at < 0 ? PageForm::rows : PageForm::shared;
    if (paired) w.put(static_cast<std::uint32_t>(form));
    if (form == PageForm::shared) w.put(static_cast<std::uint32_t>(at));
    if (form != PageForm::alone) w.put(static_cast<std::uint32_t>(ref.page->payload_bytes));
    w.bytes({ref.page->payload(), ref.page->payload_bytes});
    if (form == PageForm::rows) w.bytes({ref.page->under->payload(), ref.page->under->payload_bytes});
  }
}

/// The page that was just added gets the rows below it: those of another page, or new ones of these bytes.
template <class C>
Status put_under(Segment<C>& segment, Page* rows, std::span<const std::byte> bytes) {
  Page* page = segment.pages().back().page;
  if (rows != nullptr && rows->format != segment.format()) return Status::incompatible;
  segment.may_share();
  if (rows != nullptr) {
    page->under = retain(rows);
    return Status::ok;
  }
  page->under = segment.make_page(bytes.size());
  if (page->under == nullptr) return Status::out_of_memory;
  std::copy(bytes.begin(), bytes.end(), page->under->payload());
  return Status::ok;
}

template <class C>
Status load_segment(ByteReader& r, Segment<C>& segment, bool paired = false, const Segment<C>* below = nullptr) {
  std::uint32_t pages = 0;
  if (!r.read(pages)) return Status::corrupt_data;
  const std::size_t payload = segment.page_payload();
  if (pages > r.left() / ((paired ? 0 : payload) + sizeof(PageRef::dead))) return Status::corrupt_data;
  for (std::uint32_t p = 0; p < pages; ++p) {
    std::uint64_t format = 0;
    std::uint32_t used = 0, form = 0, at = 0, own = 0;
    std::uint64_t dead[max_page_slots / 64];
    std::span<const std::byte> bytes, rows;
    if (!r.read(format)) return Status::corrupt_data;
    if (format != segment.format()) return Status::incompatible;
    if (!r.read(used) || !r.read(dead) || (paired && !r.read(form)) || form > static_cast<std::uint32_t>(PageForm::shared)) return Status::corrupt_data;
    const auto kind = static_cast<PageForm>(form);
    if (kind == PageForm::shared && (!r.read(at) || below == nullptr || at >= below->pages().size() || !below->shares(below->pages()[at])))
      return Status::corrupt_data;
    if (kind != PageForm::alone && (!r.read(own) || used != segment.page_slots())) return Status::corrupt_data;
    if (!r.take(1, kind == PageForm::alone ? payload : own, bytes)) return Status::corrupt_data;
    if (kind == PageForm::rows && !r.take(1, payload, rows)) return Status::corrupt_data;
    if (used == 0 || used > segment.page_slots() || used % segment.codec().group_slots() != 0) return Status::corrupt_data;
    if (const Status s = segment.add_page(used, dead, bytes.size()); s != Status::ok) return s;
    std::copy(bytes.begin(), bytes.end(), segment.pages().back().page->payload());
    if (kind == PageForm::alone) continue;
    if (const Status s = put_under(segment, kind == PageForm::shared ? below->pages()[at].page->under : nullptr, rows); s != Status::ok) return s;
  }
  return Status::ok;
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

/// `below`: of the layer in front that shares rows with this one, or null.
template <class C>
Status load_column(ByteReader& r, Column<C>& column, const Column<C>* below) {
  Status s = load_segment(r, column.sinks());
  if (s == Status::ok) s = load_segment(r, column.coded(), column.paired(), below == nullptr ? nullptr : &below->coded());
  for (const PageRef& ref : column.coded().pages())
    if (s == Status::ok && column.coded().shares(ref) && !column.own(ref).valid()) s = Status::corrupt_data;
  if (s == Status::ok) s = load_segment(r, column.window());
  if (s == Status::ok && column.map().state_floats() > 0) s = load_state(r, column);
  return s;
}

template <class C>
void save_column(ByteWriter& w, const Column<C>& column, const Column<C>* below) {
  save_segment(w, column.sinks());
  save_segment(w, column.coded(), column.paired(), below == nullptr ? nullptr : &below->coded());
  save_segment(w, column.window());
  if (column.map().state_floats() == 0) return;
  w.put(static_cast<std::uint32_t>(column.map().state().size()));
  w.bytes(std::as_bytes(column.map().state()));
}

}  // namespace kvcondense::cache
