// Methods without a cache: what an eviction policy thinks of arrays, what a quantizer makes of them, and the words of recipes.

#include <algorithm>
#include <numeric>
#include <optional>

#include <kvcondense/any/recipe_text.hpp>
#include <kvcondense/any/tools.hpp>
#include <kvcondense/backend/cpu/paged_rows.hpp>
#include <kvcondense/cache/row_map.hpp>
#include <kvcondense/cpu.hpp>

#include "arrays.hpp"

namespace kvcondense::python {
namespace {

any::ParsedRecipe parsed(const std::string& recipe, const any::ModelFacts& facts) {
  const auto r = any::parse(recipe, facts);
  if (!r) raise(Status::invalid_argument, std::string(r.message()), static_cast<std::int64_t>(r.position()));
  if (const any::MissingFact lacks = missing_fact(r->stages); lacks.fact != nullptr)
    raise(Status::missing_input, std::string(lacks.word) + " needs '" + lacks.fact + "' of the model");
  return *r;
}

/// What a stage says of its fields and of arrays of this shape.
void fits(Status s, const char* call, const char* word) {
  if (s != Status::ok) raise(s, std::string(call) + ": " + word + ": " + to_string(s) + ": its fields do not fit together, or not to these arrays");
}

CacheShape shape_of(const Rows& keys, const Rows& values, index_t q_heads, index_t layers, float softmax_scale) {
  const CacheShape s{.layers = layers, .q_heads = q_heads, .kv_heads = keys.extent(0), .head_dim = keys.extent(2), .value_dim = values.extent(2),
                     .dtype = keys.is_half() ? DType::f16 : DType::f32, .softmax_scale = softmax_scale};
  require(validate(s), "choose");
  return s;
}

prim::PagedTensor pages_of(const Rows& rows) {
  prim::PagedTensor t;
  const auto v = rows.view<half>();  // strides are in numbers, whatever their size
  t.data = const_cast<std::byte*>(reinterpret_cast<const std::byte*>(v.data));
  t.dtype = rows.is_half() ? DType::f16 : DType::f32, t.dim = v.extent[2];
  t.layout = {0, v.stride[0], v.stride[1], v.extent[2], v.extent[2]};
  return t;
}

/// What an eviction policy thinks of a prompt.
struct Choice {
  bool fired = false;
  std::string text;
  py::array_t<float> scores;
  py::list kept;
  py::array_t<std::int64_t> budget;
};

/// A prompt in arrays, as the pipeline of a recipe sees it when the prompt ends.
class Prompt {
 public:
  Prompt(const any::AnyEvict& stage, const CacheShape& shape, index_t layer, Rows keys, Rows values, const Rows& queries, const StepInputs& inputs)
      : pipeline_(stage.pipeline()), shape_(shape), n_(keys.extent(1)), queries_(queries.view<float>()), keys_(std::move(keys)), values_(std::move(values)) {
    if (shape_.softmax_scale == 0.0f) shape_.softmax_scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
    slots_.assign(static_cast<std::size_t>(shape.kv_heads), n_);
    offset_.resize(slots_.size() + 1);
    for (std::size_t h = 0; h < offset_.size(); ++h) offset_[h] = static_cast<index_t>(h) * n_;
    sequence_ = {pages_of(keys_), pages_of(values_), &page_, std::max<index_t>(1, n_), slots_.data()};
    view_ = {.shape = shape_, .layer = layer, .appended = n_, .seen = n_, .stepped = n_, .next_position = n_, .phase = Phase::prefill_end, .inputs = inputs};
    view_.inputs.queries = queries_;
    view_.offset = offset_.data();
  }

  /// What the policy reads and was not given.
  const char* lacks = nullptr;
  /// Whether its budgets come from all layers together: then there is nothing to say of one.
  bool looks_at_all_layers() const { return evict::model_share(pipeline_.allocate).keep > 0.0; }

  Status judge(float* scores, std::int32_t* kept, index_t* count, index_t* budget, bool& fired) {
    if (!pipeline_.complete()) return Status::not_supported;
    const index_t total = view_.total(), m = queries_.extent[1], lanes = pipeline_.lanes();
    const AttentionNeed mass = pipeline_.attention(), asked = pipeline_.queries();
    if (mass.of(n_) > m || asked.of(n_) > m) return lacks = "q", Status::missing_input;
    for (const Input i : all_inputs)
      if (i != Input::attention && i != Input::queries && i != Input::hidden_norms && pipeline_.inputs().has(i))
        if (const Status s = check_input(view_.inputs, i, shape_, n_); s != Status::ok) return lacks = to_string(i), s;

    std::vector<float> sums, remembered(static_cast<std::size_t>(lanes * total));
    if (mass.rows != AttentionNeed::Rows::none) {
      sums.resize(static_cast<std::size_t>(total));
      if (const Status s = measure(sums, mass.of(n_)); s != Status::ok) return s;
      view_.inputs.attention = {{sums.data(), offset_.data(), shape_.kv_heads}, mass.of(n_)};
    }
    std::vector<RaggedView<float>> lane;
    for (index_t i = 0; i < lanes; ++i) lane.push_back({remembered.data() + i * total, offset_.data(), shape_.kv_heads});

    const PagedRows keys(sequence_, false), values(sequence_, true);
    std::vector<std::byte> column_scratch(prim::AttendColumns<Cpu>::workspace_bytes(1, shape_, std::max<index_t>(1, m)) + Scratch::align);
    const PagedColumns columns(sequence_, shape_, queries_, column_scratch);
    view_.keys = &keys, view_.values = &values, view_.columns = m > 0 ? &columns : nullptr;
    std::vector<std::byte> bytes(pipeline_.workspace_bytes(shape_, total) + Scratch::bytes_for<evict::Protected>(shape_.kv_heads) + 2 * Scratch::align);
    Context<Cpu> ctx;
    if (const Status s = pipeline_.observe(ctx, view_, lane); s != Status::ok) return s;
    Scratch scratch(bytes);
    auto* shield = scratch.take<evict::Protected>(shape_.kv_heads);
    pipeline_.protect_ends(view_, shield);
    const RaggedView<float> to{scores, offset_.data(), shape_.kv_heads};
    std::vector<float> once(remembered);  // a score may be remembered, and what is chosen must not know of this one
    std::vector<RaggedView<float>> lane_once(lane);
    for (index_t i = 0; i < lanes; ++i) lane_once[static_cast<std::size_t>(i)].data = once.data() + i * total;
    if (const Status s = pipeline_.rank(ctx, view_, lane_once, shield, to, scratch); s != Status::ok) return s;
    const evict::KeepSet keep{{kept, offset_.data(), shape_.kv_heads}, count, budget};
    for (index_t h = 0; h < shape_.kv_heads; ++h) {
      count[h] = budget[h] = n_;
      std::iota(keep.slots.row(h), keep.slots.row(h) + n_, 0);
    }
    fired = pipeline_.fires(view_);
    return fired ? pipeline_.choose(ctx, view_, lane, keep, Scratch(bytes)) : Status::ok;
  }

 private:
  /// Attention of the newest `rows` queries, summed as a cache sums it.
  Status measure(std::vector<float>& sums, index_t rows) {
    TensorView<const float, 3> newest = queries_;
    newest.data += (queries_.extent[1] - rows) * queries_.stride[1], newest.extent[1] = rows;
    const index_t value_dim = shape_.values();
    std::vector<float> out(static_cast<std::size_t>(shape_.q_heads * rows * value_dim));
    prim::AttendRequest request{newest, dense_view(out.data(), shape_.q_heads, rows, value_dim)};
    request.mass = {sums.data(), offset_.data(), shape_.kv_heads};
    request.mass_rows = rows, request.softmax_scale = shape_.softmax_scale;
    std::vector<std::byte> bytes(
        prim::Attend<Cpu>::workspace_bytes(1, shape_.kv_heads, shape_.group() * rows, n_, shape_.head_dim, value_dim, true) + Scratch::align);
    Context<Cpu> ctx(bytes);
    return prim::Attend<Cpu>::run(ctx, request, shape_.kv_heads, [&](index_t h) { return prim::PagedHead{&sequence_, h}; });
  }

  evict::AnyPipeline pipeline_;
  CacheShape shape_;
  index_t n_;
  TensorView<const float, 3> queries_;
  Rows keys_, values_;
  std::vector<index_t> slots_, offset_;
  std::int32_t page_ = 0;
  prim::PagedSequence sequence_;
  StepView<Cpu> view_;
};

Choice choose(const std::string& recipe, const py::object& k, const py::object& v, const py::object& q, index_t q_heads, index_t layer, index_t layers,
              float softmax_scale, const py::dict& model, const py::kwargs& given) {
  const Facts facts(model);
  const Given inputs(given);
  Rows keys(k, "k"), values(v, "v");
  agree(keys, values);
  const Rows queries = q.is_none() ? Rows() : Rows(q, "q").widened();
  if (values.extent(0) != keys.extent(0) || values.extent(1) != keys.extent(1)) raise(Status::shape_mismatch, "choose: k and v have the same heads and tokens");
  if (!q.is_none() && (queries.extent(2) != keys.extent(2) || queries.extent(1) > keys.extent(1)))
    raise(Status::shape_mismatch, "choose: q is [q_heads, newest tokens, head_dim], of at most as many tokens as k");
  const CacheShape shape = shape_of(keys, values, !q.is_none() ? queries.extent(0) : q_heads > 0 ? q_heads : keys.extent(0), layers, softmax_scale);
  if (layer < 0 || layer >= layers) raise(Status::out_of_range, "choose: there is no layer " + std::to_string(layer));
  const any::ParsedRecipe r = parsed(recipe, facts.facts);
  fits(r.stages.evict.validate(shape), "choose", r.stages.evict.word());

  const index_t heads = shape.kv_heads, n = keys.extent(1);
  Choice c;
  c.text = std::string(r.text.view());
  c.scores = py::array_t<float>({heads, n}), c.budget = py::array_t<std::int64_t>(heads);
  float* scores = c.scores.mutable_data();
  index_t* budget = c.budget.mutable_data();
  std::fill_n(scores, heads * n, 0.0f);
  std::vector<std::int32_t> kept(static_cast<std::size_t>(heads * n));
  std::vector<index_t> count(static_cast<std::size_t>(heads));
  Prompt prompt(r.stages.evict, shape, layer, keys, values, queries, inputs.in);
  if (prompt.looks_at_all_layers()) raise(Status::not_supported, "choose: '" + recipe + "' looks at all layers together; take Cache.turn");
  const Status s = [&] {
    py::gil_scoped_release others;
    return prompt.judge(scores, kept.data(), count.data(), budget, c.fired);
  }();
  require(s, "choose", s == Status::missing_input ? prompt.lacks : nullptr);
  for (index_t h = 0; h < heads; ++h) c.kept.append(py::array_t<std::int32_t>(count[static_cast<std::size_t>(h)], kept.data() + h * n));
  return c;
}

/// Rows as a quantizer stores them: pages of bytes, and what they stand for.
struct Coded {
  py::list pages;                ///< per head, uint8 [pages, bytes]
  py::array_t<float> decoded;
  index_t page_slots = 0, group_slots = 0, repaired = 0;
  double bits = 0.0;
};

Coded encode(const std::string& recipe, const py::object& array, const std::string& part, index_t layer, index_t layers, index_t page_slots,
             const py::object& q, const std::optional<Floats>& saliency, const py::dict& model) {
  const Facts facts(model);
  const Rows rows = Rows(array, "rows").widened();
  const Rows queries = q.is_none() ? Rows() : Rows(q, "q").widened();
  if (part != "keys" && part != "values") raise(Status::invalid_argument, "encode: rows are 'keys' or 'values'");
  const index_t heads = rows.extent(0), n = rows.extent(1), dim = rows.extent(2);
  const CacheShape shape{.layers = layers, .q_heads = q.is_none() ? heads : queries.extent(0), .kv_heads = heads, .head_dim = dim, .page_slots = page_slots};
  require(validate(shape), "encode");
  if (layer < 0 || layer >= layers) raise(Status::out_of_range, "encode: there is no layer " + std::to_string(layer));
  if (!q.is_none() && queries.extent(2) != dim) raise(Status::shape_mismatch, "encode: q has the head_dim of the rows");
  if (saliency && (saliency->ndim() != 2 || saliency->shape(0) != heads || saliency->shape(1) != n))
    raise(Status::shape_mismatch, "encode: saliency is [heads, tokens]");
  const any::ParsedRecipe r = parsed(recipe, facts.facts);
  const auto stage = storage_of(r.stages);
  fits(stage.validate(shape), "encode", r.stages.quant.word());

  Coded c;
  c.decoded = py::array_t<float>({heads, n, dim});
  float* decoded = c.decoded.mutable_data();
  std::size_t bytes = 0;
  for (index_t h = 0; h < heads; ++h) {
    const any::AnyCodec codec = part == "keys" ? stage.key_codec(shape, {layer, h}) : stage.value_codec(shape, {layer, h});
    if (!codec.valid(dim)) raise(Status::invalid_argument, "encode: '" + recipe + "' cannot store rows of " + std::to_string(dim));
    if (codec.wants_scores() && !saliency) raise(Status::missing_input, "encode: '" + recipe + "' needs 'saliency'");
    const index_t group = codec.group_slots(), room = (page_slots + group - 1) / group * group, pages = (n + room - 1) / room;
    if (n % group != 0)
      raise(Status::shape_mismatch, "encode: '" + recipe + "' codes " + std::to_string(group) + " rows at once, " + std::to_string(n) + " are no multiple");
    const auto transform = codec.transform();
    const index_t stored = transform.stored_dim(dim);
    const std::size_t size = codec.page_bytes(room, stored);
    c.page_slots = room, c.group_slots = group;
    py::array_t<std::uint8_t> payload({pages, static_cast<index_t>(size)});
    std::uint8_t* to = payload.mutable_data();
    const float* scores = saliency ? saliency->data() + h * n : nullptr;
    const auto from = rows.view<float>();
    const auto run = [&] {
      std::fill_n(to, static_cast<std::size_t>(pages) * size, std::uint8_t{0});
      cache::RowMap<any::AnyCodec::Transform> map(transform, dim, heap_memory());
      if (const Status s = map.reserve(); s != Status::ok) return s;
      std::vector<float> tile(static_cast<std::size_t>(room * dim));
      const auto load = [&](index_t first, index_t count) {
        for (index_t i = 0; i < count; ++i)
          for (index_t d = 0; d < dim; ++d) tile[static_cast<std::size_t>(i * dim + d)] = from(h, first + i, d);
        return prim::RowBlock<float>{tile.data(), count, dim};
      };
      if (map.waits() && n > 0)
        map.find({queries.view<float>(), h * shape.group(), q.is_none() ? 0 : shape.group()}, [&](auto&& observe) {
          for (index_t first = 0; first < n; first += room) observe(load(first, std::min(room, n - first)));
        });
      std::vector<std::uint64_t> page((size + 7) / 8);  // pages are aligned
      for (index_t p = 0; p < pages; ++p) {
        const index_t first = p * room, count = std::min(room, n - first);
        const auto mapped = load(first, count);
        map.forward(mapped);
        std::fill(page.begin(), page.end(), 0);
        const prim::PageSpan span{reinterpret_cast<std::byte*>(page.data()), room, stored};
        using Coder = prim::PageCodec<Cpu, any::AnyCodec>;
        c.repaired += Coder::encode(codec, span, 0, count, {mapped.data, count, dim}, scores == nullptr ? nullptr : scores + first);
        const prim::RowBlock<float> back{decoded + (h * n + first) * dim, count, dim};
        Coder::decode(codec, span, 0, count, back);
        map.backward(back);
        std::copy_n(reinterpret_cast<const std::uint8_t*>(page.data()), size, to + static_cast<std::size_t>(p) * size);
      }
      return Status::ok;
    };
    const Status s = [&] {
      py::gil_scoped_release others;
      return run();
    }();
    require(s, "encode");
    bytes += size;
    c.pages.append(payload);
  }
  c.bits = 8.0 * static_cast<double>(bytes) / static_cast<double>(heads * c.page_slots * dim);
  return c;
}

std::string summary(const any::Entry& e) {
  std::string text(e.summary);
  for (const any::Alias& a : e.aliases) text.append(&a == e.aliases.data() ? " Also: " : ", ").append(a.word);
  return text;
}

std::string help(const std::string& word) {
  if (const any::Tool* t = any::find_tool(word)) return word + ": " + std::string(t->summary) + "\n  stands beside a cache, in no recipe\n";
  const any::Entry* e = any::builtin().find(word);
  if (e == nullptr) raise(Status::invalid_argument, "there is no method '" + word + "'");
  std::string text = std::string(e->word) + ": " + summary(*e) + "\n  source: " + std::string(e->source) + "; needs: " + std::string(any::needs(*e).view()) + "\n";
  for (const any::Field& f : e->fields)
    text += "  " + std::string(f.name) + "=" + std::string(any::value_text(f, any::default_of(*e, f)).view()) + "  " + std::string(any::accepts_text(f).view()) +
            "; " + std::string(f.meaning) + "\n";
  return text;
}

py::list words(const std::optional<std::string>& room) {
  py::list all;
  for (const any::Entry* e : any::builtin().entries())
    if (!room || *room == to_string(e->room)) all.append(std::string(e->word));
  if (all.empty()) raise(Status::invalid_argument, "there is no room '" + *room + "'");
  return all;
}

}  // namespace

void bind_methods(py::module_& m) {
  using namespace py::literals;
  py::class_<Choice>(m, "Choice", "What an eviction policy thinks of a prompt.")
      .def_readonly("fired", &Choice::fired, "Whether it acts when a prompt of this length ends.")
      .def_readonly("text", &Choice::text, "The recipe in its canonical form.")
      .def_readonly("scores", &Choice::scores, "float32 [kv_heads, tokens], pooled as selection sees them; larger stays. Those of protected tokens say nothing.")
      .def_readonly("kept", &Choice::kept, "Per KV head the tokens that stay, int32, ascending.")
      .def_readonly("budget", &Choice::budget, "int64 [kv_heads]: slots that were asked for; fewer than kept where more are protected.");
  py::class_<Coded>(m, "Coded", "Rows as a quantizer stores them.")
      .def_readonly("pages", &Coded::pages, "Per head uint8 [pages, bytes of a page].")
      .def_readonly("decoded", &Coded::decoded, "float32 [heads, tokens, dim]: what the bytes stand for.")
      .def_readonly("page_slots", &Coded::page_slots, "Rows of a page.")
      .def_readonly("group_slots", &Coded::group_slots, "Rows that share scales.")
      .def_readonly("repaired", &Coded::repaired, "NaN and Inf that were replaced.")
      .def_readonly("bits", &Coded::bits, "Bits per number of a full page, scales included.");
  m.def("choose", &choose, "recipe"_a, "k"_a, "v"_a, "q"_a = py::none(), py::kw_only(), "q_heads"_a = 0, "layer"_a = 0, "layers"_a = 1, "softmax_scale"_a = 0.0f,
        "model"_a = py::dict(),
        "Scores and kept tokens of a recipe's eviction stage for a prompt in arrays, without a cache. `q`: of the newest tokens, as many as the policy looks at.");
  m.def("encode", &encode, "recipe"_a, "rows"_a, "part"_a = "keys", py::kw_only(), "layer"_a = 0, "layers"_a = 1, "page_slots"_a = 64, "q"_a = py::none(),
        "saliency"_a = py::none(), "model"_a = py::dict(),
        "Codes of rows [heads, tokens, dim] by a recipe's quantizer and low-rank stage, and what they stand for, without a cache.");
  m.def("parse", [](const std::string& recipe) {
    const auto r = any::parse(recipe);
    if (!r) raise(Status::invalid_argument, std::string(r.message()), static_cast<std::int64_t>(r.position()));
    return std::string(r->text.view());
  }, "recipe"_a, "The canonical form of a recipe.");
  m.def("words", &words, "room"_a = py::none(), "The words that recipes are made of, all or those of a room ('evict', 'budget', 'quant', ...).");
  m.def("help", &help, "word"_a, "What a word means, what it needs, and its fields.");
}

}  // namespace kvcondense::python
