#pragma once

#include <algorithm>
#include <span>
#include <type_traits>
#include <utility>

#include <kvcondense/backend/cuda/attend.cuh>
#include <kvcondense/backend/cuda/chosen_slots.cuh>
#include <kvcondense/cache/cuda_choose.cuh>
#include <kvcondense/cache/cuda_graph.cuh>
#include <kvcondense/cache/cuda_held.cuh>
#include <kvcondense/cache/cuda_kept.cuh>
#include <kvcondense/cache/cuda_learning.cuh>
#include <kvcondense/cache/cuda_listed.cuh>
#include <kvcondense/cache/cuda_reads.cuh>
#include <kvcondense/cache/cuda_taught.cuh>
#include <kvcondense/cache/cuda_watching.cuh>
#include <kvcondense/cache/cuda_weighed.cuh>
#include <kvcondense/cache/snapshot_file.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/object_array.hpp>
#include <kvcondense/evict/pipeline.hpp>

namespace kvcondense::cache {

/// The retrieval stage of a cache on the device: an index of every layer, which follows the slots, and attention over what is chosen by it.
///
/// Idea     the host knows how many units compete, the device which are chosen. A list of chosen slots becomes a list of runs, the form in
///          which kernels of attention read a cache: they read what was chosen and nothing else, whatever stores it.
/// Cost     a step reads the keys of units whose slots are new, moved, or stored otherwise; nobody waits for it but where an index grows. A call of
///          `attend` waits for the one before of the same layer, for the step before where it chooses by what came in prompts, and for the stream where
///          the host asks what was read. Every query token that chooses starts three to five kernels: a long chunk of a prompt is best kept above `longest_call`.
template <class Pipeline>
class CudaRetrieval {
 public:
  static constexpr bool there = true;

  /// `raw`: keys are stored without rotation, and the index is of such.
  Status make(const Pipeline& pipeline, const CacheShape& shape, bool raw, MemoryResource<Cuda>& memory) {
    pipeline_ = pipeline, raw_ = raw;
    if (!pipeline_.composes()) return Status::incompatible;
    const index_t unit = pipeline_.partition.size(), row = pipeline_.summary.size();
    const bool whole = scores_slots || (row <= unit && unit % row == 0);  // a unit is rows of the index, none of which it shares
    if (!whole || !summary_fits(pipeline_.summary) || (!raw && pipeline_.read_at() != retrieve::Positions::stored)) return Status::not_supported;
    learns_ = Learning::learns(pipeline_, shape);
    if (learns_ && (raw || !Learning::there)) return Status::not_supported;
    if (const Status s = watching_.make(pipeline_.summary, shape, memory); s != Status::ok) return s;
    const std::size_t each = steering_bytes(shape);
    if (const Status s = steering_.make(each * static_cast<std::size_t>(shape.layers)); s != Status::ok) return s;
    Status failed = Status::ok;
    const Status made = index_.fill(heap_memory(), shape.layers, [&](index_t i) {
      CudaIndex index(memory);
      if (failed == Status::ok) failed = index.make(shape.kv_heads, Learning::lead(), steering_.part(static_cast<std::size_t>(i) * each, each));
      return index;
    });
    if (made != Status::ok || failed != Status::ok) return made != Status::ok ? made : failed;
    if (!holds()) return Status::ok;
    const index_t rows = pipeline_.rows(shape);
    const std::size_t choice = Scratch::align + CudaCandidates::bytes(shape) + choice_steering_bytes(pipeline_, shape), own = CudaHeld::steering_bytes(rows, shape.kv_heads) + choice;
    if (const Status s = held_steering_.make(own * static_cast<std::size_t>(shape.layers)); s != Status::ok) return s;
    const Status helds = held_.fill(heap_memory(), shape.layers, [&](index_t i) {
      CudaHeld h(memory, ranks);
      if (failed == Status::ok) failed = h.make(rows, shape.kv_heads, held_steering_.part(static_cast<std::size_t>(i) * own, own));
      return h;
    });
    return helds == Status::ok ? failed : helds;
  }
  /// Whether what a step chooses is read in later calls, so that steps want queries.
  static constexpr bool mixes = std::is_same_v<decltype(Pipeline::summary), retrieve::ChannelPages>;  ///< the index knows values too
  bool holds() const { return pipeline_.holds(); }
  /// Whether steps have to be told their queries.
  bool asks_queries() const { return holds() || watches() || pipeline_.fit_queries(); }
  index_t longest_call() const { return pipeline_.longest_call(); }
  index_t reach() const { return pipeline_.reach(); }
  /// Whether steps tell what attention slots draw, so that they want queries.
  static constexpr bool watches() { return Watching::there; }
  std::size_t fixed_bytes() const { return index_.bytes() + steering_.size() + held_.bytes() + held_steering_.size(); }
  std::size_t index_bytes(index_t layer) const { return index_[layer].bytes() + watching_.bytes(layer) + (holds() ? held_[layer].bytes() : 0); }

  /// Steering memory that a step takes.
  std::size_t step_steering_bytes(const CacheShape& shape) const {
    return 4 * Scratch::bytes_for<index_t>(shape.kv_heads);
  }
  /// Scratch that a step takes; `ends_prompt`: which may teach something.
  std::size_t step_bytes(const CacheShape& shape, index_t slots, index_t tokens, bool ends_prompt) const {
    const index_t n = std::min(tokens, pipeline_.longest_call());
    const std::size_t choice = holds() ? Scratch::align + CudaListed{false, false, raw_}.turned_bytes(shape, n) + pipeline_.workspace_bytes(shape, slots, n) : 0;
    return watching_.step_bytes(slots * shape.kv_heads) + std::max(choice, ends_prompt ? Learning::fit_bytes(pipeline_, shape, slots) : 0);
  }
  /// Scratch of a choice of units and of reading them, attention included.
  template <class Plan>
  std::size_t workspace_bytes(const Plan& plan, index_t slots, index_t tokens, const AttentionNeed& need) const {
    const CacheShape& shape = plan.shape;
    const index_t rows = pipeline_.rows(shape), most = pipeline_.most_units(slots) + 2, n = std::min(tokens, pipeline_.longest_call());
    retrieve::ReadView<Cuda> view;
    view.shape = shape, view.slots = view.known = &slots;
    index_t intervals = most_read(view, 0, most) + 2;  // a shorter head chooses no more
    for (const CudaHeld& h : held_) intervals = std::max(intervals, h.loaded() + 2);
    const std::size_t lists = Scratch::align + Scratch::bytes_for<index_t>(told_numbers(shape.kv_heads, rows)) + Scratch::bytes_for<std::int32_t>(rows * most) + 2 * Scratch::bytes_for<index_t>(rows) +
                              2 * Scratch::bytes_for<prim::SlotRun>(rows * prim::ChosenSlots::most_runs(intervals, most_runs(plan, slots), slots)) +
                              Scratch::bytes_for<prim::ChosenInterval>(rows * intervals) + Scratch::bytes_for<float>(rows * slots) + listed(plan).bytes(shape, rows, slots, n) +
                              (pipeline_.biases() ? Scratch::bytes_for<float>(rows * most) : 0) + Scratch::bytes_for<float>(pipeline_.shares() ? rows : 0) +
                              Scratch::bytes_for<index_t>(walks ? shape.q_heads : 0);
    return lists + std::max(pipeline_.workspace_bytes(shape, slots, n), attend_bytes(shape, rows, slots, n, need, Plan::latent));
  }

  /// Whether a call of `attend` with so many query tokens chooses what it reads.
  bool chooses(index_t layer, index_t tokens) const {
    return tokens > 0 && tokens <= pipeline_.longest_call() && !pipeline_.reads_all(layer) && !index_[layer].empty();
  }

  /// Reads what is chosen; `all`: nothing was done, since every slot is.
  template <class Layer, class Plan>
  Status attend(Context<Cuda>& ctx, index_t layer, const Layer& l, const Plan& plan, const prim::AttendRequest& request, const QueryTurn& turn,
                const AttendOutputs& measure, prim::AttendMath math, bool& all) const {
    const CudaIndex& index = index_[layer];
    const CacheShape& shape = plan.shape;
    const index_t heads = shape.kv_heads, rows = pipeline_.rows(shape), tokens = request.queries.extent[1];
    if (const Status s = index.fence().wait(); s != Status::ok) return s;  // the call before may still read what is written here
    Scratch scratch(ctx.workspace(), index.steering());
    auto* const told = scratch.take_steering<index_t>(told_numbers(heads, rows));
    if (told == nullptr) return Status::workspace_too_small;
    index_t *const slots = told, *const known = slots + heads, *const run_offset = known + heads, *const interval_offset = run_offset + rows + 1;
    index_t *const read_offset = interval_offset + rows + 1, *const room = read_offset + rows + 1;
    for (index_t h = 0; h < heads; ++h) slots[h] = l.slots(h), known[h] = index.covered(h);
    retrieve::ReadView<Cuda> view;
    view.shape = shape, view.layer = layer, view.tokens = tokens, view.seen = l.counters.seen;
    view.slots = slots, view.known = known, view.prompt = index.prompt().data(), view.shape.softmax_scale = request.softmax_scale;
    const CudaRows stored = rows_of(l);
    view.keys = &stored.keys, view.values = &stored.values;
    const bool held = holds() && held_[layer].valid() && !pipeline_.due(l.counters.seen, tokens);
    if (const Status s = asks_for_prompt && !held ? l.fence.wait() : Status::ok; s != Status::ok) return s;  // the step before tells
    all = !held && pipeline_.takes_all(view);
    if (all) return Status::ok;

    CudaCandidates among;
    auto* offset = scratch.take_steering<index_t>(rows + 1);
    for (index_t h = 0; h < heads && ranks && held; ++h) room[h] = room_since(slots[h] - held_[layer].now().slots[h]);
    const bool fits = held ? among.as(held_[layer].now().first, held_[layer].now().last, heads) : among.make(pipeline_, view, scratch);
    if (!fits || offset == nullptr) return Status::workspace_too_small;
    offset[0] = run_offset[0] = interval_offset[0] = read_offset[0] = 0;
    index_t longest = 0;
    for (index_t r = 0; r < rows; ++r) {
      const index_t h = r * heads / rows, units = std::max(most_read(view, h, among.size(h)), held ? held_[layer].loaded() : 0), size = pipeline_.partition.size();
      const index_t front = std::min(slots[h], pipeline_.unit_begin(among.first[h]));
      const index_t back = slots[h] - std::min({slots[h], known[h], pipeline_.unit_begin(among.last[h])});
      const index_t read = std::min(slots[h], front + units * size + back);
      longest = std::max(longest, read);
      offset[r + 1] = offset[r] + among.size(h);
      interval_offset[r + 1] = interval_offset[r] + units + 2;
      run_offset[r + 1] = run_offset[r] + prim::ChosenSlots::most_runs(units + 2, most_runs(plan, slots[h]), read);
      read_offset[r + 1] = read_offset[r] + read;
    }
    CudaLists lists{{{scratch.take<std::int32_t>(held ? 0 : offset[rows]), offset, rows}, scratch.take<index_t>(rows), nullptr,
                     scratch.take<float>(pipeline_.shares() ? rows : 0)}};
    auto* const copy = scratch.take<index_t>(told_numbers(heads, rows));
    const auto on_device = [&](const index_t* p) { return copy + (p - told); };
    prim::ChosenRuns runs;
    runs.keys = scratch.take<prim::SlotRun>(run_offset[rows]), runs.values = scratch.take<prim::SlotRun>(run_offset[rows]);
    runs.intervals = scratch.take<prim::ChosenInterval>(interval_offset[rows]), runs.slots = scratch.take<index_t>(rows);
    runs.run_offset = on_device(run_offset), runs.interval_offset = on_device(interval_offset);
    prim::ListedNumbers numbers;
    TensorView<float, 3> meeting{}, standing{}, far{};  // queries as they meet units and slots
    const CudaListed of_list = listed(plan);
    if (!of_list.take(rows, longest, scratch, numbers) || !of_list.take(shape, held ? 0 : tokens, scratch, meeting) || !of_list.take(shape, tokens, scratch, standing) ||
        !of_list.take(shape, tokens, scratch, far, of_list.reach > 0))
      return Status::workspace_too_small;
    if (pipeline_.biases() && (lists.bias = scratch.take<float>(offset[rows])) == nullptr) return Status::workspace_too_small;
    prim::AttendRequest chosen = request;
    if (request.mass.data != nullptr) chosen.mass = {scratch.take<float>(read_offset[rows]), on_device(read_offset), rows};
    if (lists.units.data == nullptr || lists.count == nullptr || lists.share == nullptr || copy == nullptr || runs.keys == nullptr || runs.values == nullptr || runs.intervals == nullptr ||
        runs.slots == nullptr || (request.mass.data != nullptr && chosen.mass.data == nullptr))
      return Status::workspace_too_small;

    const RaggedView<const std::int32_t> list = held ? held_[layer].units() : RaggedView<const std::int32_t>(lists.units);
    prim::ChosenUnits units{list, held ? held_[layer].count() : lists.count, among.first, among.last, held ? held_[layer].now().base : among.first, on_device(slots),
                            on_device(known), heads, pipeline_.partition.size(), pipeline_.partition.origin(), unread()};
    if constexpr (ranks) units.rank = held ? held_[layer].ranks() : nullptr, units.room = on_device(room);
    const bool asked = measure.reads != nullptr || measure.runs.data != nullptr;
    ChosenReads reads;
    WalkedCounts walked;
    if (walks && asked)
      if (const Status s = walked.make(ctx, heads * pipeline_.query.rows(shape.group()), scratch); s != Status::ok) return s;
    if (asked)
      if (const Status s = reads.make(rows, interval_offset); s != Status::ok) return s;
    const auto read = [&]() -> Status {
      const std::size_t bytes = static_cast<std::size_t>(told_numbers(heads, rows)) * sizeof(index_t);
      if (const Status s = cuda::settled(cudaMemcpyAsync(copy, told, bytes, cudaMemcpyHostToDevice, ctx.stream())); s != Status::ok) return s;
      if (!held) {
        TensorView<const float, 3> queries = request.queries;
        if (const Status s = CudaListed::meet(ctx, pipeline_.query, turn, meeting, queries); s != Status::ok) return s;
        if (const Status s = choose(ctx, pipeline_, view, queries, watching_.told(index.planes(pipeline_, shape, layer), layer), among, lists, measure.reads, scratch, walked.device); s != Status::ok)
          return s;
      }
      auto paged = l.heads({});
      const auto sharing = static_cast<int>(rows / heads);
      paged.key_codec = prim::shared_by(sharing, paged.key_codec), paged.value_codec = prim::shared_by(sharing, paged.value_codec);
      if (const Status s = prim::ChosenSlots::lay(ctx, units, paged.keys, paged.values, runs); s != Status::ok) return s;
      paged.keys.runs = runs.keys, paged.values.runs = runs.values, paged.keys.offset = paged.values.offset = runs.run_offset;
      paged.slots = runs.slots, paged.kv_heads = rows;
      if (const Status s = CudaListed::read(ctx, units, runs, lists.bias, numbers, longest, turn, l.tokens(), standing, far, paged, chosen); s != Status::ok) return s;
      Context<Cuda> rest = ctx.with_workspace(scratch.rest());
      Status s = prim::Attend<Cuda>::run(rest, chosen, paged, longest, math);
      if constexpr (mixes)  // the rest of a row's output is the mean of all values
        if (s == Status::ok) s = prim::ChannelPages::mix(ctx, stored.values, index.planes(pipeline_, shape, layer), slots, known, lists.share, request.out);
      if (s != Status::ok || request.mass.data == nullptr) return s;
      return prim::ChosenSlots::spread(ctx, units, runs, RaggedView<const float>(chosen.mass), l.longest(), request.mass);
    };
    Status s = read();
    const Status behind = index.fence().record(ctx);  // a call that is refused may have started what reads steering memory
    if (s == Status::ok) s = behind;
    if (s == Status::ok && asked) s = reads.tell(ctx, l, shape, units, runs, measure);
    if (s != Status::ok || !walks || measure.reads == nullptr) return s;
    return walked.tell(ctx, heads, tokens, [&](index_t n) { return pipeline_.summary.read_bytes(shape, n); }, *measure.reads);
  }

  /// What a step that keeps `kept(head)` slots makes of the index: room for it, and from where rows change. The host knows what becomes codes, the
  /// device which of the listed slots move. `folds`: sums change slots that stay. Before anything of the layer changes; behind `learn`.
  template <class Layer, class Kept>
  Status reserve(Context<Cuda>& ctx, index_t layer, const Layer& l, const CacheShape& shape, Kept&& kept, bool leaves, bool folds, const evict::KeepSet& keep,
                 Scratch& scratch, IndexChange& change) {
    const index_t heads = shape.kv_heads;
    change.from = scratch.take_steering<index_t>(heads), change.known = scratch.take_steering<index_t>(heads), change.device = leaves;
    change.prompt = scratch.take_steering<index_t>(heads), change.learned = scratch.take_steering<index_t>(heads);
    if (change.from == nullptr || change.known == nullptr || change.prompt == nullptr || change.learned == nullptr) return Status::workspace_too_small;
    std::copy_n(index_[layer].prompt().begin(), heads, change.prompt);  // the device tells it anew
    index_t most = 0;
    const auto joined = [&](const auto& column) { return column.wants_lists() && (leaves || column.due() || column.unsettled()); };
    const bool joins = joined(l.keys) || (mixes && joined(l.values));  // codes get new parameters wherever they lie
    for (index_t h = 0; h < heads; ++h) {
      change.known[h] = kept(h), most = std::max(most, kept(h));
      change.from[h] = folds || joins ? 0 : std::min(unwatched(index_[layer].covered(h)), l.keys.settled(h));
      if (mixes) change.from[h] = std::min(change.from[h], l.values.settled(h));
    }
    const auto stepped = [&](index_t h) { return l.slots(h) - l.counters.pending; };
    if (const Status s = watching_.reserve(ctx, layer, heads, most, stepped); s != Status::ok) return s;
    change.drawn = watching_.numbers(layer);
    if (const Status s = Learning::reserve(ctx, pipeline_, shape, index_[layer].found, change); s != Status::ok) return s;
    if (const Status s = index_[layer].reserve(ctx, pipeline_, shape, most); s != Status::ok || !leaves) return s;
    return prim::UnitIndex::moved(ctx, RaggedView<const std::int32_t>(keep.slots), keep.count, change.from);
  }
  /// Whether a step may choose the units that later calls go on reading, and whether it has to know which slots stay: where a prompt ends all compete.
  bool may_ask(index_t layer, index_t arrived, index_t queries, Phase phase) const;
  bool asks_lists(index_t layer, index_t arrived, index_t queries, Phase phase) const { return phase == Phase::decode && may_ask(layer, arrived, queries, phase); }
  /// In a step that may ask, before anything changes: room for its units, and how many of the slots stay that would compete. `listed`: `kept` says which.
  template <class Layer>
  Status prepare_choice(Context<Cuda>& ctx, index_t layer, const Layer& l, const CacheShape& shape, const CudaKept& kept, bool listed);
  /// What the queries of a step give to slots, and what slots that stay keep of it: see CudaWatching.
  Status watch(Context<Cuda>& ctx, const StepView<Cuda>& view, float* sums) const { return watching_.watch(ctx, pipeline_.summary, view, sums); }
  template <class Layer>
  Status keep_drawn(Context<Cuda>& ctx, index_t layer, const Layer& l, const float* sums, const evict::KeepSet& keep, bool leaves, const Scratch& scratch) const {
    return watching_.keep(ctx, layer, l, sums, keep, leaves, scratch);
  }
  /// Behind the changes of a step that ends a prompt, and `reserve`: heads learn what they have to.
  template <class Layer>
  Status learn(Context<Cuda>& ctx, index_t layer, const Layer& l, const CacheShape& shape, const IndexChange& change, const Scratch& scratch) {
    return Learning::run(ctx, pipeline_, shape, layer, rows_of(l), index_[layer].found, change, scratch);
  }
  /// Behind the changes of a step, whose lengths kernels read already. `prompt`: tokens before it came in prompts.
  template <class Layer>
  Status refresh(Context<Cuda>& ctx, index_t layer, const Layer& l, const CacheShape& shape, index_t prompt, const IndexChange& change) {
    const Status s = index_[layer].refresh(ctx, pipeline_, shape, layer, rows_of(l), change);
    if (s != Status::ok || !asks_for_prompt) return s;
    return prim::UnitIndex::below(ctx, l.ids.view(), change.known, prompt, shape.kv_heads, index_[layer].prompt().data());
  }
  /// Whether a step that brought `arrived` tokens chooses those units; what was chosen before is let go where it does, and where slots `left`.
  bool asks(index_t layer, index_t seen, index_t arrived, index_t queries, Phase phase, bool left);
  /// Behind a step that `asks`, and what becomes of its rows: chooses them. The tokens of a step are no answer to themselves. `queries`: the newest of the
  /// step, no more than `longest_call`.
  template <class Layer>
  Status hold(Context<Cuda>& ctx, index_t layer, const Layer& l, const CacheShape& shape, TensorView<const float, 3> queries, const QueryTurn& turn, bool prompt, Scratch scratch);
  std::span<std::byte> held_steering(index_t layer) const { return held_[layer].choosing(); }
  /// Tokens from `tokens` on are forgotten; or tokens amid others, where all is let go.
  void forget(index_t layer, index_t tokens) {
    if (holds()) held_[layer].truncate(tokens);
  }
  void save_held(ByteWriter& w, const Context<Cuda>& ctx, index_t layer) const {
    if (holds()) held_[layer].save(w, ctx);
  }
  template <class Layer>
  void save_drawn(ByteWriter& w, const Context<Cuda>& ctx, index_t layer, const Layer& l, index_t heads) const {
    watching_.save(w, ctx, layer, l, heads);
  }
  template <class Stepped>
  Status load_drawn(ByteReader& r, const Context<Cuda>& ctx, index_t layer, index_t heads, Stepped&& stepped) {
    return watching_.load(r, ctx, layer, heads, stepped);
  }
  template <class Layer>
  Status load_held(ByteReader& r, const Context<Cuda>& ctx, index_t layer, const Layer& l) {
    return holds() ? held_[layer].load(r, ctx, l.counters.seen) : Status::ok;
  }
  /// So many slots of a head hold tokens of prompts: for loaders, before `settle_held`.
  void tell_prompt(index_t layer, index_t head, index_t slots) { index_[layer].prompt()[static_cast<std::size_t>(head)] = slots; }
  /// Whether loaded units are of loaded slots.
  template <class Layer>
  bool settle_held(index_t layer, const Layer& l, const CacheShape& shape);
  void save_found(ByteWriter& w, const Context<Cuda>& ctx, index_t layer) const {
    if (learns_) index_[layer].found.save(w, ctx);
  }
  Status load_found(ByteReader& r, const Context<Cuda>& ctx, index_t layer, const CacheShape& shape) {
    if (!learns_) return Status::ok;
    return index_[layer].found.load(r, ctx, [&](std::span<const float> found) { return Learning::fits(pipeline_, shape, found); });
  }
  /// What says that a file's held units, what was drawn and what was learned mean the same.
  void add_to(Fingerprint& f, const CacheShape& shape, const char* word) const {
    if (holds() || watches() || learns_) f.add_text(word).add(holds() ? pipeline_.rows(shape) : 0, pipeline_.fingerprint());
  }
  /// Between steps: rows of all slots that a step has seen, anew from the slot `same(head)` on.
  template <class Layer, class Same>
  Status remake(Context<Cuda>& ctx, index_t layer, Layer& l, const CacheShape& shape, Same&& same) {
    if (const Status s = l.fence.wait(); s != Status::ok) return s;
    Scratch scratch({}, l.steering);
    IndexChange change;
    const auto known = [&](index_t h) { return l.slots(h) - l.counters.pending; };
    Status s = reserve(ctx, layer, l, shape, known, false, false, {}, scratch, change);
    if (s != Status::ok) return s;
    for (index_t h = 0; h < shape.kv_heads; ++h) change.from[h] = std::min({unwatched(index_[layer].covered(h)), same(h), known(h)});
    s = refresh(ctx, layer, l, shape, l.counters.prompt, change);
    const Status behind = l.fence.record(ctx);
    return s == Status::ok ? behind : s;
  }
  Status fork(const Context<Cuda>& ctx, index_t layer, CudaRetrieval& out) const {
    Status s = index_[layer].fork(ctx, out.index_[layer]);
    if (s == Status::ok) s = watching_.fork(ctx, layer, out.watching_);
    return s == Status::ok && holds() ? held_[layer].fork(ctx, out.held_[layer]) : s;
  }
  /// Only while no kernel uses it.
  void clear() {
    for (auto& i : index_) i.clear();
    watching_.clear();
    for (auto& h : held_) h.clear();
  }

 private:
  using Learning = CudaLearning<Pipeline>;
  using Watching = CudaWatching<decltype(Pipeline::summary)>;

  /// Slots that draw nothing more, of so many.
  index_t unwatched(index_t slots) const { return std::max<index_t>(0, slots - pipeline_.watch().window); }
  template <class Plan>
  CudaListed listed(const Plan& plan) const {
    return {pipeline_.biases() || plan.bias >= 0, plan.value_scale >= 0, raw_, pipeline_.read_at(), pipeline_.reach(), plan.joins};
  }
  /// Units of a row at most, of so many candidates.
  index_t most_read(const retrieve::ReadView<Cuda>& view, index_t head, index_t candidates) const {
    const index_t each = most_chosen(pipeline_.select, view, head, candidates);
    return std::min(candidates, each * (pipeline_.reduce.rows(view.shape) / pipeline_.rows(view.shape)));
  }
  /// What the host writes in a call of `attend`.
  std::size_t steering_bytes(const CacheShape& shape) const {
    const index_t rows = pipeline_.rows(shape);
    return CudaIndex::told_bytes(shape.kv_heads) + 2 * Scratch::align + Scratch::bytes_for<index_t>(told_numbers(shape.kv_heads, rows)) +
           CudaCandidates::bytes(shape) + choice_steering_bytes(pipeline_, shape) + Scratch::bytes_for<index_t>(rows + 1);
  }
  /// What a call of `attend` tells kernels that read it in their inner loops, of which the device has a copy: slots of KV heads, those that the index
  /// knows, offsets of rows of selection, and how many slots ranked units share.
  static constexpr index_t told_numbers(index_t heads, index_t rows) { return 3 * heads + 3 * (rows + 1); }
  static constexpr bool ranks = requires(const Pipeline p) { p.select.room(index_t{}); };
  index_t room_since(index_t slots) const {
    if constexpr (ranks) return pipeline_.select.room(slots);
    else return slots;
  }
  index_t unread() const {
    if constexpr (requires { pipeline_.partition.unread(); }) return pipeline_.partition.unread();
    else return 0;
  }
  static constexpr bool scores_slots = requires(const Pipeline& p) { p.summary.slots_scored(); };
  static constexpr bool walks = requires(const Pipeline& p) { p.summary.walks(); };
  static constexpr bool asks_for_prompt = std::is_same_v<decltype(Pipeline::keep), retrieve::KeepGenerated>;

  Pipeline pipeline_{};
  bool raw_ = false;     ///< keys are stored without rotation
  bool learns_ = false;  ///< from the first prompt that ends
  cuda::SteeringMemory steering_, held_steering_;  ///< outlive the index, and what is held
  ObjectArray<CudaIndex> index_;
  Watching watching_;
  ObjectArray<CudaHeld> held_;  ///< where `holds`
};

/// No retrieval stage.
template <>
class CudaRetrieval<retrieve::ReadAll::Nothing> {
 public:
  static constexpr bool there = false;
  static constexpr bool holds() { return false; }
  static constexpr bool asks_queries() { return false; }
  static constexpr index_t longest_call() { return 0; }
  static constexpr index_t reach() { return 0; }
  static constexpr bool watches() { return false; }
  static constexpr bool asks(index_t, index_t, index_t, index_t, Phase, bool) { return false; }
  static constexpr bool asks_lists(index_t, index_t, index_t, Phase) { return false; }
  static Status watch(Context<Cuda>&, const StepView<Cuda>&, float*) { return Status::ok; }
  static constexpr std::size_t step_steering_bytes(const CacheShape&) { return 0; }
  static constexpr std::size_t step_bytes(const CacheShape&, index_t, index_t, bool) { return 0; }
};

}  // namespace kvcondense::cache

#include <kvcondense/cache/cuda_hold.cuh>
