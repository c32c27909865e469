#pragma once

#include <kvcondense/external/coded_pages.hpp>
#include <kvcondense/external/columns.hpp>

namespace kvcondense::external {

/// Pages of codes and exact rows as a condenser looks at them: `step` with this in place of a BorrowedLayer, `CodedPages::keep` with
/// what it says, then `accept`.
template <class Q>
struct CodedLayer {
  const CodedPages<Q>* pages = nullptr;
  CodedMemory memory{};

  index_t shared_slots(index_t) const { return 0; }
};

/// As for a BorrowedLayer; shape_mismatch, too, where these are pages of another shape or hold another number of slots.
template <class Q>
Status check(const CodedLayer<Q>& l, const CacheShape& shape, index_t slots, Scratch scratch) {
  const CacheShape& own = l.pages->shape();
  if (own.kv_heads != shape.kv_heads || own.head_dim != shape.head_dim || own.values() != shape.values() || l.pages->slots() != slots)
    return Status::shape_mismatch;
  return l.pages->check(l.memory, scratch);
}

/// Rows of pages of codes as policies read them, decoded tile by tile.
template <class Q>
class CodedRows final : public SlotRows<Cpu> {
 public:
  CodedRows(const CodedLayer<Q>& layer, bool values) : layer_(&layer), values_(values) {}
  index_t dim() const noexcept override { return values_ ? layer_->memory.exact.values.dim : layer_->memory.exact.keys.dim; }
  void read(index_t head, index_t first, prim::RowBlock<float> out) const noexcept override {
    layer_->pages->read(layer_->memory, head, values_, first, out);
  }

 private:
  const CodedLayer<Q>* layer_;
  bool values_;
};

/// A layer of which a part is codes.
template <class Q>
class LayerSlots<CodedLayer<Q>> {
 public:
  LayerSlots(const CodedLayer<Q>& layer, const index_t*, RaggedView<const std::int32_t> ordinals, RaggedView<const float> = {}, RaggedView<const float> = {})
      : tokens(ordinals), keys(layer, false), values(layer, true), layer_(&layer), sequence_(layer.memory.exact.sequence(nullptr)) {}
  LayerSlots(const LayerSlots&) = delete;

  auto head(index_t h) const { return layer_->pages->reader(layer_->memory, sequence_, h); }

  RaggedView<const std::int32_t> tokens;
  const CodedRows<Q> keys, values;

 private:
  const CodedLayer<Q>* layer_;
  prim::PagedSequence sequence_;
};

}  // namespace kvcondense::external
