// An engine with cells, as llama.cpp has them: a cell holds one token of all layers, its position,
// and which sequences it belongs to; sequences share the cells of a prompt, and free cells lie
// anywhere. When slots leave, their cells lose the sequence, nothing moves, and the positions of
// those behind close up: their keys turn where they lie (a context shift that may keep any tokens).
// A cell that another sequence has too is copied before its key turns.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <vector>

// --- engine ---
namespace {

constexpr int layers = 2, q_heads = 4, kv_heads = 2, dim = 64, cells = 400;

/// Turns a row from no position to `position`, pairs (d, d + dim / 2).
void rotate(float* x, int position) {
  for (int d = 0; d < dim / 2; ++d) {
    const double angle = position * std::pow(10000.0, -2.0 * d / dim);
    const float a = x[d], b = x[d + dim / 2], c = static_cast<float>(std::cos(angle)),
                s = static_cast<float>(std::sin(angle));
    x[d] = a * c - b * s, x[d + dim / 2] = b * c + a * s;
  }
}

struct Engine {
  std::vector<float> keys[layers],
      values[layers];  // [cells, kv_heads, dim]; values [kv_heads, dim, cells]
  std::vector<int> pos = std::vector<int>(cells, -1);
  std::vector<std::int32_t> owners =
      std::vector<std::int32_t>(cells, 0);             // how many sequences have the cell
  std::map<int, std::vector<std::int32_t>> sequences;  // their cells, by position
  std::function<bool(int id, int layer, const float* q, int n)> after_attention;
  std::function<bool(int id)> after_pass;

  Engine() {
    for (int l = 0; l < layers; ++l) keys[l].resize(cells * kv_heads * dim), values[l] = keys[l];
  }
  float* key(int layer, int cell, int head) {
    return keys[layer].data() + (cell * kv_heads + head) * dim;
  }
  float& value(int layer, int cell, int head, int d) {
    return values[layer][static_cast<std::size_t>((head * dim + d) * cells + cell)];
  }

  std::int32_t take() {
    const auto free = std::find(owners.begin(), owners.end(), 0);
    if (free == owners.end()) return -1;
    *free = 1;
    return static_cast<std::int32_t>(free - owners.begin());
  }
  void leave(std::int32_t cell) {
    if (--owners[static_cast<std::size_t>(cell)] == 0) pos[static_cast<std::size_t>(cell)] = -1;
  }
  /// A cell of a sequence's own with the same numbers; one must be free.
  std::int32_t copy(std::int32_t cell) {
    const std::int32_t to = take();
    for (int l = 0; l < layers; ++l)
      for (int h = 0; h < kv_heads; ++h)
        for (int d = 0; d < dim; ++d)
          key(l, to, h)[d] = key(l, cell, h)[d], value(l, to, h, d) = value(l, cell, h, d);
    pos[static_cast<std::size_t>(to)] = pos[static_cast<std::size_t>(cell)];
    leave(cell);
    return to;
  }
  /// A sequence that begins with all that `from` has.
  void share(int from, int id) {
    sequences[id] = sequences[from];
    for (const std::int32_t c : sequences[id]) ++owners[static_cast<std::size_t>(c)];
  }
  /// Whether the cell at a place of a list must be copied before it takes the place as its
  /// position.
  bool copies(const std::vector<std::int32_t>& list, std::size_t i) const {
    const auto c = static_cast<std::size_t>(list[i]);
    return pos[c] != static_cast<int>(i) && owners[c] > 1;
  }
  /// Whether cells are there for the copies that `keep_first` makes.
  bool can_keep(const std::vector<std::int32_t>& list, std::size_t n) const {
    auto free = std::count(owners.begin(), owners.end(), 0);
    for (std::size_t i = 0; i < list.size(); ++i)
      if (i < n)
        free -= copies(list, i);
      else
        free += owners[static_cast<std::size_t>(list[i])] == 1;
    return free >= 0;
  }
  /// The first `n` cells of a list stay a sequence's, the others lose it. Those that will have
  /// another position are its own then.
  void keep_first(int id, std::vector<std::int32_t> list, std::size_t n) {
    for (std::size_t i = n; i < list.size(); ++i) leave(list[i]);
    list.resize(n);
    for (std::size_t i = 0; i < n; ++i)
      if (copies(list, i)) list[i] = copy(list[i]);
    sequences[id] = list;
  }
  void number(int id) {
    for (std::size_t i = 0; i < sequences[id].size(); ++i)
      pos[static_cast<std::size_t>(sequences[id][i])] = static_cast<int>(i);
  }
  void remove(int id) {
    for (const std::int32_t c : sequences[id]) leave(c);
    sequences.erase(id);
  }

  /// q [layers, q_heads, n, dim], k and v [layers, kv_heads, n, dim], before rotation; out like q.
  bool pass(int id, const float* q, const float* k, const float* v, int n, float* out) {
    std::vector<std::int32_t>& own = sequences[id];
    const int before = static_cast<int>(own.size());
    if (std::count(owners.begin(), owners.end(), 0) < n) return false;
    for (int t = 0; t < n; ++t) {
      own.push_back(take());
      pos[static_cast<std::size_t>(own.back())] = before + t;  // positions are always 0, 1, 2, ...
    }
    for (int l = 0; l < layers; ++l) {
      std::vector<float> turned(q + l * q_heads * n * dim, q + (l + 1) * q_heads * n * dim);
      for (int t = 0; t < n; ++t) {
        for (int h = 0; h < q_heads; ++h) rotate(turned.data() + (h * n + t) * dim, before + t);
        for (int h = 0; h < kv_heads; ++h) {
          const float *x = k + ((l * kv_heads + h) * n + t) * dim,
                      *y = v + ((l * kv_heads + h) * n + t) * dim;
          const std::int32_t cell = own[static_cast<std::size_t>(before + t)];
          std::copy_n(x, dim, key(l, cell, h)), rotate(key(l, cell, h), before + t);
          for (int d = 0; d < dim; ++d) value(l, cell, h, d) = y[d];
        }
      }
      for (int h = 0; h < q_heads; ++h)
        for (int t = 0; t < n; ++t) {
          const float* x = turned.data() + (h * n + t) * dim;
          std::vector<double> sum(dim, 0.0);
          double all = 0;
          for (int j = 0; j <= before + t; ++j) {
            const std::int32_t cell = own[static_cast<std::size_t>(j)];
            double dot = 0;
            for (int d = 0; d < dim; ++d) dot += static_cast<double>(x[d]) * key(l, cell, h / 2)[d];
            const double w = std::exp(dot / 8);
            all += w;
            for (int d = 0; d < dim; ++d)
              sum[static_cast<std::size_t>(d)] += w * value(l, cell, h / 2, d);
          }
          for (int d = 0; d < dim; ++d)
            out[((l * q_heads + h) * n + t) * dim + d] =
                static_cast<float>(sum[static_cast<std::size_t>(d)] / all);
        }
      if (after_attention && !after_attention(id, l, turned.data(), n)) return false;
    }
    return !after_pass || after_pass(id);
  }
};

}  // namespace

// --- adapter ---
#include <kvcondense/any/recipe_text.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/external/condenser.hpp>
#include <kvcondense/external/rerotate.hpp>

namespace kvc = kvcondense;

namespace {

class Condense {
 public:
  Condense(Engine& engine, const kvc::any::AnyRecipe& recipe) : engine_(engine), recipe_(recipe) {
    engine.after_attention = [this](int id, int layer, const float* q, int n) {
      return step(id, layer, q, n);
    };
    engine.after_pass = [this](int id) { return shift(id, *state(id)); };
  }
  static kvc::CacheShape shape() { return {layers, q_heads, kv_heads, dim, dim, kvc::DType::f32}; }
  /// With Engine::share and Engine::remove.
  bool share(int from, int id) {
    auto copy = state(from)->fork();
    if (copy) states_.insert_or_assign(id, std::move(*copy));
    return copy.status() == kvc::Status::ok;
  }
  void remove(int id) { states_.erase(id); }

 private:
  using Condenser = kvc::external::Condenser<kvc::any::AnyRecipe>;
  using Turn = kvc::external::RerotateKeys;
  Condenser* state(int id) {
    if (states_.count(id) > 0) return &states_.at(id);
    auto made = Condenser::make(shape(), recipe_, {kvc::external::Sharing::per_sequence});
    return made ? &states_.emplace(id, std::move(*made)).first->second : nullptr;
  }
  kvc::external::BorrowedLayer rows(int id, int layer) {
    auto b = kvc::external::borrow_cells(engine_.keys[layer].data(), engine_.values[layer].data(),
                                         shape(), cells, engine_.sequences.at(id), true);
    b.owners = engine_.owners;
    return b;
  }
  bool step(int id, int layer, const float* q, int n) {
    Condenser* c = state(id);
    if (c == nullptr || scratch_.reserve(c->workspace_bytes(cells, n, cells)) != kvc::Status::ok)
      return false;
    kvc::Context<kvc::Cpu> ctx(scratch_.bytes());
    const kvc::StepInputs inputs{.queries = kvc::dense_view(q, q_heads, n, dim)};
    return c->step(ctx, layer, rows(id, layer), n, inputs) == kvc::Status::ok;
  }
  /// Cells of slots that leave lose the sequence, and positions close up.
  bool shift(int id, Condenser& c) {
    kvc::Context<kvc::Cpu> ctx(scratch_.bytes());
    if (c.settle(ctx) != kvc::Status::ok) return false;
    if (!c.leaves(0)) return true;
    std::vector<std::int32_t> own = engine_.sequences.at(id);
    const auto left = static_cast<std::size_t>(kvc::external::part_places(own, c.kept(0).of(0)));
    if (!engine_.can_keep(own, left)) return false;
    for (int l = 0; l < layers; ++l)
      if (c.relist(ctx, l, rows(id, l)) != kvc::Status::ok) return false;
    std::vector<kvc::index_t> from;
    engine_.keep_first(id, own, left);
    for (const std::int32_t cell : engine_.sequences.at(id))
      from.push_back(engine_.pos[static_cast<std::size_t>(cell)]);
    for (int l = 0; l < layers; ++l)
      if (Turn::run(ctx, rows(id, l), shape(), {}, from) != kvc::Status::ok) return false;
    engine_.number(id);
    return true;
  }

  Engine& engine_;
  kvc::any::AnyRecipe recipe_;
  std::map<int, Condenser> states_;
  kvc::Workspace scratch_;
};

}  // namespace

// --- check ---
#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/core/random.hpp>

namespace {

std::vector<float> random(int heads, int n, std::uint64_t seed) {
  std::vector<float> x(static_cast<std::size_t>(layers * heads * n * dim));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = 3.0f * (kvc::random_uniform(seed, i) - 0.5f);
  return x;
}

/// Two sequences with one prompt, each as long as it likes; beside each a cache of the library,
/// whose positions are places too.
float compare(const char* text, bool same) {
  const auto recipe = kvc::any::parse(text);
  Engine engine;
  Condense condense(engine, recipe->stages);
  const std::string whole = std::string(text) + " + reindex";
  std::vector<kvc::any::AnyCache> caches;
  auto first = kvc::any::AnyCache::make(kvc::any::parse(whole)->stages, whole, Condense::shape());
  if (!first) return 1e9f;
  caches.push_back(std::move(*first));
  kvc::Workspace scratch;
  if (scratch.reserve(caches[0].workspace_bytes(cells, cells)) != kvc::Status::ok) return 1e9f;
  kvc::Context<kvc::Cpu> ctx(scratch.bytes());
  float worst = 0.0f;
  const auto pass = [&](int id, int n, std::uint64_t seed) {
    const auto q = random(q_heads, n, 3 * seed), k = random(kv_heads, n, 3 * seed + 1),
               v = random(kv_heads, n, 3 * seed + 2);
    std::vector<float> mine(q.size()), theirs(q.size());
    bool ok = engine.pass(id, q.data(), k.data(), v.data(), n, mine.data());
    for (int l = 0; l < layers && same; ++l)
      ok = caches[static_cast<std::size_t>(id)].forward(
               ctx, l, kvc::dense_view(q.data() + l * q_heads * n * dim, q_heads, n, dim),
               kvc::dense_view(k.data() + l * kv_heads * n * dim, kv_heads, n, dim),
               kvc::dense_view(v.data() + l * kv_heads * n * dim, kv_heads, n, dim),
               kvc::dense_view(theirs.data() + l * q_heads * n * dim, q_heads, n, dim)) ==
               kvc::Status::ok &&
           ok;
    for (std::size_t i = 0; i < mine.size() && same; ++i)
      if (const float diff = std::abs(mine[i] - theirs[i]); !(diff <= worst)) worst = diff;
    if (!ok) worst = 1e9f;
  };
  pass(0, 100, 1);
  engine.share(0, 1);
  if (!condense.share(0, 1)) return 1e9f;
  if (auto fork = caches[0].fork(); fork) caches.push_back(std::move(*fork));
  const auto cells_now = engine.sequences[0];
  std::vector<float> before;
  for (const std::int32_t c : cells_now)
    before.insert(before.end(), engine.key(1, c, 1), engine.key(1, c, 1) + dim);
  for (std::uint64_t step = 0; step < 40; ++step) pass(1, step % 9 == 0 ? 3 : 1, 100 + step);
  // What the second sequence did is nothing to the first.
  for (std::size_t i = 0; i < cells_now.size(); ++i)
    if (!std::equal(before.begin() + static_cast<std::ptrdiff_t>(i * dim),
                    before.begin() + static_cast<std::ptrdiff_t>((i + 1) * dim),
                    engine.key(1, cells_now[i], 1)) ||
        engine.pos[static_cast<std::size_t>(cells_now[i])] != static_cast<int>(i))
      worst = 1e9f;
  for (std::uint64_t step = 0; step < 50; ++step) pass(0, 1, 200 + step), pass(1, 1, 300 + step);
  std::printf("%-52s %zu and %zu cells, outputs differ by %.1e\n", text, engine.sequences[0].size(),
              engine.sequences[1].size(), static_cast<double>(worst));
  if (engine.sequences[0].size() > 96 || engine.sequences[1].size() > 96) worst = 1e9f;
  for (const int id : {0, 1}) engine.remove(id), condense.remove(id);
  if (std::count(engine.owners.begin(), engine.owners.end(), 0) != cells)
    worst = 1e9f;  // all cells are free again
  return worst;
}

/// Cells for the rows of a token and none for copies: the eviction is refused, and no cell is lost.
bool full_refuses() {
  const auto recipe = kvc::any::parse("sink_window(sinks=4, recent=60)");
  Engine engine;
  Condense condense(engine, recipe->stages);
  const auto q = random(q_heads, 64, 1), k = random(kv_heads, 64, 2), v = random(kv_heads, 64, 3);
  std::vector<float> out(q.size());
  if (!engine.pass(0, q.data(), k.data(), v.data(), 64, out.data())) return false;
  engine.share(0, 1);
  if (!condense.share(0, 1)) return false;
  std::vector<std::int32_t> others;
  while (std::count(engine.owners.begin(), engine.owners.end(), 0) > 1)
    others.push_back(engine.take());
  if (engine.pass(1, q.data(), k.data(), v.data(), 1, out.data())) return false;
  if (engine.pass(1, q.data(), k.data(), v.data(), 1, out.data())) return false;  // none is free
  for (const std::int32_t c : others) engine.leave(c);
  const std::size_t held = engine.sequences[1].size();
  for (const int id : {0, 1}) engine.remove(id), condense.remove(id);
  return held == 65 && std::count(engine.owners.begin(), engine.owners.end(), 0) == cells;
}

}  // namespace

int main() {
  const bool good = compare("every(sink_window(sinks=4, recent=60), tokens=16)", true) < 2e-3f &&
                    compare("every(h2o(heavy=30, recent=34), tokens=16)", false) < 1e-3f &&
                    full_refuses();
  return good ? 0 : 1;
}
