#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/read_all.hpp>

namespace kvcondense::retrieve {

/// Any retrieval pipeline as a value, for recipes chosen at run time: the same interface, on the CPU.
///
/// Needs    a trivially copyable pipeline of at most 256 bytes; what is larger is borrowed.
/// Cost     trivially copyable; no allocation; one indirect call per question of the cache.
/// Errors   an empty AnyPipeline reads every slot.
class AnyPipeline {
 public:
  AnyPipeline() = default;
  explicit AnyPipeline(ReadAll::Nothing) {}
  template <class... Blocks>
  explicit AnyPipeline(const Pipeline<Blocks...>& p) : table_(&table<Pipeline<Blocks...>>) {
    using P = Pipeline<Blocks...>;
    static_assert(std::is_trivially_copyable_v<P> && sizeof(P) <= sizeof bytes_,
                  "kvcondense: a retrieval pipeline chosen at run time is trivially copyable and has at most 256 bytes; let "
                  "it borrow what is larger.");
    std::memcpy(bytes_, &p, sizeof(P));
  }

  bool active() const { return table_ != nullptr; }
  bool holds() const { return active() && table_->holds(bytes_); }
  bool reads_all(index_t layer) const { return table_->reads_all(bytes_, layer); }
  bool due(index_t seen, index_t tokens) const { return table_->due(bytes_, seen, tokens); }
  bool at_prompt_end() const { return table_->at_prompt_end(bytes_); }
  index_t rows(const CacheShape& shape) const { return table_->rows(bytes_, shape); }
  Positions read_at() const { return table_->read_at(bytes_); }
  index_t longest_call() const { return active() ? table_->longest_call(bytes_) : 0; }
  index_t reach() const { return active() ? table_->reach(bytes_) : 0; }
  Watch watch() const { return active() ? table_->watch(bytes_) : Watch{}; }
  bool biases() const { return active() && table_->biases(bytes_); }
  bool shares() const { return active() && table_->shares(bytes_); }
  bool composes() const { return !active() || table_->composes(bytes_); }
  void mean_value(const ReadView<Cpu>& view, index_t head, float* out) const { table_->mean_value(bytes_, view, head, out); }
  index_t found_floats(const CacheShape& shape, index_t slots) const { return active() ? table_->found_floats(bytes_, shape, slots) : 0; }
  bool found_fits(const CacheShape& shape, index_t floats) const { return active() ? table_->found_fits(bytes_, shape, floats) : floats == 0; }
  std::int64_t fingerprint() const { return active() ? table_->fingerprint(bytes_) : 0; }
  bool fit_queries() const { return active() && table_->fit_queries(bytes_); }
  std::size_t fit_bytes(const CacheShape& shape, index_t slots) const { return table_->fit_bytes(bytes_, shape, slots); }
  void fit(const HeadRows<Cpu>& rows, const PromptQueries& queries, UnitState& state, const Scratch& scratch) const {
    table_->fit(bytes_, rows, queries, state, scratch);
  }
  index_t most_units(index_t slots) const { return table_->most_units(bytes_, slots); }
  Status reserve(const CacheShape& shape, index_t slots, UnitState& state) const { return table_->reserve(bytes_, shape, slots, state); }
  void refresh(const HeadRows<Cpu>& rows, index_t from, UnitState& state) const { table_->refresh(bytes_, rows, from, state); }
  UnitRange candidates(const ReadView<Cpu>& view, index_t head) const { return table_->candidates(bytes_, view, head); }
  bool takes_all(const ReadView<Cpu>& view) const { return table_->takes_all(bytes_, view); }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots, index_t tokens) const {
    return table_->workspace_bytes(bytes_, shape, slots, tokens);
  }
  Status choose(Context<Cpu>& ctx, const ReadView<Cpu>& view, const UnitLists& lists, ReadCounts* counts, const Scratch& scratch) const {
    return table_->choose(bytes_, ctx, view, lists, counts, scratch);
  }
  index_t runs(const ReadView<Cpu>& view, index_t head, UnitRange among, const std::int32_t* units, index_t count, index_t since,
               std::int32_t* sorted, SlotRun* out) const {
    return table_->runs(bytes_, view, head, among, units, count, since, sorted, out);
  }

  void spread_bias(const std::int32_t* units, const float* bias, index_t count, const SlotRun* runs, index_t run_count, float* out) const {
    table_->spread_bias(bytes_, units, bias, count, runs, run_count, out);
  }

 private:
  using At = const std::byte*;
  struct Table {
    bool (*holds)(At);
    bool (*reads_all)(At, index_t);
    bool (*due)(At, index_t, index_t);
    bool (*at_prompt_end)(At);
    index_t (*rows)(At, const CacheShape&);
    Positions (*read_at)(At);
    index_t (*longest_call)(At);
    index_t (*reach)(At);
    Watch (*watch)(At);
    bool (*biases)(At);
    bool (*shares)(At);
    bool (*composes)(At);
    void (*mean_value)(At, const ReadView<Cpu>&, index_t, float*);
    index_t (*found_floats)(At, const CacheShape&, index_t);
    bool (*found_fits)(At, const CacheShape&, index_t);
    std::int64_t (*fingerprint)(At);
    bool (*fit_queries)(At);
    std::size_t (*fit_bytes)(At, const CacheShape&, index_t);
    void (*fit)(At, const HeadRows<Cpu>&, const PromptQueries&, UnitState&, const Scratch&);
    index_t (*most_units)(At, index_t);
    Status (*reserve)(At, const CacheShape&, index_t, UnitState&);
    void (*refresh)(At, const HeadRows<Cpu>&, index_t, UnitState&);
    UnitRange (*candidates)(At, const ReadView<Cpu>&, index_t);
    bool (*takes_all)(At, const ReadView<Cpu>&);
    std::size_t (*workspace_bytes)(At, const CacheShape&, index_t, index_t);
    Status (*choose)(At, Context<Cpu>&, const ReadView<Cpu>&, const UnitLists&, ReadCounts*, const Scratch&);
    index_t (*runs)(At, const ReadView<Cpu>&, index_t, UnitRange, const std::int32_t*, index_t, index_t, std::int32_t*, SlotRun*);
    void (*spread_bias)(At, const std::int32_t*, const float*, index_t, const SlotRun*, index_t, float*);
  };
  template <class P>
  static P at(At bytes) {
    P p;
    std::memcpy(static_cast<void*>(&p), bytes, sizeof(P));
    return p;
  }
  template <class P>
  static constexpr Table table{
      [](At b) { return at<P>(b).holds(); },
      [](At b, index_t layer) { return at<P>(b).reads_all(layer); },
      [](At b, index_t seen, index_t tokens) { return at<P>(b).due(seen, tokens); },
      [](At b) { return at<P>(b).at_prompt_end(); },
      [](At b, const CacheShape& shape) { return at<P>(b).rows(shape); },
      [](At b) { return at<P>(b).read_at(); },
      [](At b) { return at<P>(b).longest_call(); },
      [](At b) { return at<P>(b).reach(); },
      [](At b) { return at<P>(b).watch(); },
      [](At b) { return at<P>(b).biases(); },
      [](At b) { return at<P>(b).shares(); },
      [](At b) { return at<P>(b).composes(); },
      [](At b, const ReadView<Cpu>& view, index_t head, float* out) { at<P>(b).mean_value(view, head, out); },
      [](At b, const CacheShape& shape, index_t slots) { return at<P>(b).found_floats(shape, slots); },
      [](At b, const CacheShape& shape, index_t floats) { return at<P>(b).found_fits(shape, floats); },
      [](At b) { return at<P>(b).fingerprint(); },
      [](At b) { return at<P>(b).fit_queries(); },
      [](At b, const CacheShape& shape, index_t slots) { return at<P>(b).fit_bytes(shape, slots); },
      [](At b, const HeadRows<Cpu>& rows, const PromptQueries& queries, UnitState& state, const Scratch& scratch) {
        at<P>(b).fit(rows, queries, state, scratch);
      },
      [](At b, index_t slots) { return at<P>(b).most_units(slots); },
      [](At b, const CacheShape& shape, index_t slots, UnitState& state) { return at<P>(b).reserve(shape, slots, state); },
      [](At b, const HeadRows<Cpu>& rows, index_t from, UnitState& state) { at<P>(b).refresh(rows, from, state); },
      [](At b, const ReadView<Cpu>& view, index_t head) { return at<P>(b).candidates(view, head); },
      [](At b, const ReadView<Cpu>& view) { return at<P>(b).takes_all(view); },
      [](At b, const CacheShape& shape, index_t slots, index_t tokens) { return at<P>(b).workspace_bytes(shape, slots, tokens); },
      [](At b, Context<Cpu>& ctx, const ReadView<Cpu>& view, const UnitLists& lists, ReadCounts* counts, const Scratch& scratch) {
        return at<P>(b).choose(ctx, view, lists, counts, scratch);
      },
      [](At b, const ReadView<Cpu>& view, index_t head, UnitRange among, const std::int32_t* units, index_t count, index_t since,
         std::int32_t* sorted, SlotRun* out) { return at<P>(b).runs(view, head, among, units, count, since, sorted, out); },
      [](At b, const std::int32_t* units, const float* bias, index_t count, const SlotRun* runs, index_t run_count, float* out) {
        at<P>(b).spread_bias(units, bias, count, runs, run_count, out);
      }};

  alignas(16) std::byte bytes_[256] = {};
  const Table* table_ = nullptr;
};

}  // namespace kvcondense::retrieve
