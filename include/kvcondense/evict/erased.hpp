#pragma once

#include <concepts>

#include <kvcondense/evict/detail/chain.hpp>
#include <kvcondense/evict/detail/erased_choice.hpp>
#include <kvcondense/evict/detail/erased_scores.hpp>
#include <kvcondense/evict/pipeline.hpp>

namespace kvcondense::evict {
namespace detail {

/// The block a run-time wrapper wraps: whatever the link below holds.
template <class Table, template <class> class Calls>
struct Beneath : Calls<Beneath<Table, Calls>> {
  const Link<Table>* at = nullptr;
  const Link<Table>* top() const { return at; }
};

/// Any block of one kind as a value.
template <class Table, template <class> class Calls>
class AnyBlock : public Chain<Table>, public Calls<AnyBlock<Table, Calls>> {
 public:
  using Chain<Table>::top;

  AnyBlock() = default;
  template <class Block>
    requires(!std::derived_from<Block, Chain<Table>>)
  explicit AnyBlock(const Block& block) {
    if constexpr (requires { { block.base } -> std::same_as<const AnyBlock&>; }) {
      using Under = Beneath<Table, Calls>;
      using Wrapper = decltype(block.over(Under{}));
      *this = block.base;
      if (top() != nullptr) this->push(block.over(Under{}), table<Wrapper>);
    } else {
      this->push(block, table<Block>);
    }
  }

 private:
  template <class Block>
  static constexpr Table table = Table::template of<Block>();
};

using AnySource = AnyBlock<SourceTable, SourceCalls>;
using AnyPool = AnyBlock<PoolTable, PoolCalls>;
using AnyProtect = AnyBlock<ProtectTable, ProtectCalls>;
using AnyAllocate = AnyBlock<AllocateTable, AllocateCalls>;
using AnySelect = AnyBlock<SelectTable, SelectCalls>;
using AnyTrigger = AnyBlock<TriggerTable, TriggerCalls>;

}  // namespace detail

/// Any pipeline as a value, for recipes chosen at run time: the same interface, on the CPU.
///
/// Needs    trivially copyable blocks of at most 192 bytes. A block that wraps another of its kind (a
///          budget over a budget) names it `base` and has `over(other)`; so a wrapper may wrap an
///          AnyPipeline and become one again, up to three times.
/// Cost     trivially copyable, about 5 KiB; no allocation; one indirect call per block and step.
/// Errors   an empty AnyPipeline, or one with more than three wrappers, answers not_supported.
class AnyPipeline
    : public Pipeline<detail::AnySource, detail::AnyPool, detail::AnyProtect, detail::AnyAllocate,
                      detail::AnySelect, detail::AnyTrigger> {
 public:
  AnyPipeline() : Pipeline{} {}
  template <class S, class Po, class Pr, class A, class Se, class T>
  explicit AnyPipeline(const Pipeline<S, Po, Pr, A, Se, T>& p)
      : Pipeline{detail::AnySource(p.source),     detail::AnyPool(p.pool),
                 detail::AnyProtect(p.protect),   detail::AnyAllocate(p.allocate),
                 detail::AnySelect(p.select),     detail::AnyTrigger(p.trigger),   p.residual, p.reuse} {}

  /// Whether every block is there: false for an empty pipeline and for too many wrappers.
  bool complete() const {
    return source.top() != nullptr && pool.top() != nullptr && protect.top() != nullptr &&
           allocate.top() != nullptr && select.top() != nullptr && trigger.top() != nullptr;
  }
};

}  // namespace kvcondense::evict
