// An engine with block tables, as vLLM has them: one pool, sequences that come and go, prompts that
// share their first blocks. One list of blocks serves all heads and layers, so they agree on what
// stays; a block that another sequence reads too is never written: what moves goes to blocks of the
// sequence's own.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <optional>
#include <vector>

// --- engine ---
namespace {

using Half = std::uint16_t;
float widen(Half x);
Half narrow(float x);

constexpr int layers = 2, q_heads = 8, kv_heads = 2, dim = 64, block = 16, blocks = 96,
              prefix = 3 * block;

struct Sequence {
  std::vector<int> tokens;          // all that it ever had
  std::vector<std::int32_t> table;  // its blocks
  int slots = 0;                    // rows in them
  int shared = 0;                   // tokens of the prompt that were there already
};

/// Blocks [blocks, block, kv_heads, dim] of each layer, and who has them.
struct Pool {
  std::vector<Half> keys[layers], values[layers];
  std::vector<std::int32_t> owners = std::vector<std::int32_t>(blocks, 0);
  Pool() {
    for (int l = 0; l < layers; ++l)
      keys[l].resize(blocks * block * kv_heads * dim), values[l] = keys[l];
  }
  std::int32_t take() {
    const auto free = std::find(owners.begin(), owners.end(), 0);
    if (free == owners.end()) return -1;
    *free = 1;
    return static_cast<std::int32_t>(free - owners.begin());
  }
  void drop(std::vector<std::int32_t>& table, int keep) {
    for (; static_cast<int>(table.size()) > keep; table.pop_back())
      --owners[static_cast<std::size_t>(table.back())];
  }
  std::size_t at(const Sequence& s, int slot, int head) const {
    return static_cast<std::size_t>(
        ((s.table[static_cast<std::size_t>(slot / block)] * block + slot % block) * kv_heads +
         head) *
        dim);
  }
};

/// What the engine asks of whoever condenses its sequences.
struct Hooks {
  virtual ~Hooks() = default;
  virtual bool begin(int id) = 0;
  virtual bool layer(int id, int layer, const float* q, int queries, int tokens) = 0;
  virtual bool step_end(int id) = 0;
  virtual void end(int id) = 0;
};

/// A "model": queries, keys and values are functions of a token, its place in the text and the
/// layer.
float number(int layer, int what, int head, int token, int place, int d);

struct Engine {
  Pool pool;
  std::map<int, Sequence> batch;
  std::vector<std::int32_t>
      system_prompt;  // blocks that many requests begin with, once they are there
  Hooks* hooks = nullptr;

  bool arrive(int id, const std::vector<int>& prompt, bool begins_alike, std::vector<float>& out) {
    Sequence& s = batch[id];
    s.tokens = prompt;
    if (begins_alike && !system_prompt.empty()) {
      s.slots = s.shared = prefix;
      s.table = system_prompt;
      for (const std::int32_t b : s.table) ++pool.owners[static_cast<std::size_t>(b)];
    }
    keeps_prefix = begins_alike && system_prompt.empty();
    return (hooks == nullptr || hooks->begin(id)) &&
           pass(id, s, static_cast<int>(prompt.size()) - s.shared, out);
  }
  bool decode(int id, int token, std::vector<float>& out) {
    Sequence& s = batch[id];
    s.tokens.push_back(token);
    return pass(id, s, 1, out);
  }
  void depart(int id) {
    if (hooks != nullptr) hooks->end(id);
    pool.drop(batch[id].table, 0);
    batch.erase(id);
  }

  bool keeps_prefix = false;
  bool pass(int id, Sequence& s, int n, std::vector<float>& out) {
    const int before = s.slots, first = static_cast<int>(s.tokens.size()) - n;
    while (static_cast<int>(s.table.size()) * block < before + n) {
      const std::int32_t b = pool.take();
      if (b < 0) return false;
      s.table.push_back(b);
    }
    s.slots += n;
    out.assign(static_cast<std::size_t>(layers * q_heads * n * dim), 0.0f);
    for (int l = 0; l < layers; ++l) {
      std::vector<float> q(static_cast<std::size_t>(q_heads * n * dim));
      for (int t = 0; t < n; ++t)
        for (int d = 0; d < dim; ++d) {
          const int token = s.tokens[static_cast<std::size_t>(first + t)];
          for (int h = 0; h < q_heads; ++h)
            q[static_cast<std::size_t>((h * n + t) * dim + d)] =
                number(l, 0, h, token, first + t, d);
          for (int h = 0; h < kv_heads; ++h) {
            pool.keys[l][pool.at(s, before + t, h) + static_cast<std::size_t>(d)] =
                narrow(number(l, 1, h, token, first + t, d));
            pool.values[l][pool.at(s, before + t, h) + static_cast<std::size_t>(d)] =
                narrow(number(l, 2, h, token, first + t, d));
          }
        }
      for (int h = 0; h < q_heads; ++h)
        for (int t = 0; t < n; ++t)
          attend(s, l, h, q.data() + (h * n + t) * dim, before + t + 1,
                 out.data() + ((l * q_heads + h) * n + t) * dim);
      // A prompt whose first part was there is one step of all its tokens.
      if (hooks != nullptr &&
          !hooks->layer(id, l, q.data(), n, first == s.shared ? n + s.shared : n))
        return false;
    }
    if (keeps_prefix) {
      system_prompt.assign(s.table.begin(), s.table.begin() + prefix / block);
      for (const std::int32_t b : system_prompt) ++pool.owners[static_cast<std::size_t>(b)];
      keeps_prefix = false;
    }
    return hooks == nullptr || hooks->step_end(id);
  }

  void attend(const Sequence& s, int l, int h, const float* q, int seen, float* out) const {
    std::vector<float> weight(static_cast<std::size_t>(seen));
    float sum = 0;
    for (int j = 0; j < seen; ++j) {
      const Half* k = pool.keys[l].data() + pool.at(s, j, h / (q_heads / kv_heads));
      float dot = 0;
      for (int d = 0; d < dim; ++d) dot += q[d] * widen(k[d]);
      sum += weight[static_cast<std::size_t>(j)] = std::exp(dot / 8.0f);
    }
    for (int j = 0; j < seen; ++j) {
      const Half* v = pool.values[l].data() + pool.at(s, j, h / (q_heads / kv_heads));
      for (int d = 0; d < dim; ++d)
        out[d] += weight[static_cast<std::size_t>(j)] / sum * widen(v[d]);
    }
  }
};

}  // namespace

// --- adapter ---
#include <kvcondense/any/recipe_text.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/external/condenser.hpp>

namespace kvc = kvcondense;

namespace {

class Condense final : public Hooks {
 public:
  Condense(Engine& engine, const kvc::any::AnyRecipe& recipe) : engine_(engine), recipe_(recipe) {
    engine.hooks = this;
  }
  static kvc::CacheShape shape() {
    return {.layers = layers, .q_heads = q_heads, .kv_heads = kv_heads, .head_dim = dim};
  }

  bool begin(int id) override {
    auto made =
        Condenser::make(shape(), recipe_, {.sharing = kvc::external::Sharing::per_sequence});
    if (made) states_.insert_or_assign(id, std::move(*made));
    return made.status() == kvc::Status::ok;
  }
  bool layer(int id, int layer, const float* q, int queries, int tokens) override {
    Condenser& c = states_.at(id);
    if (scratch_.reserve(c.workspace_bytes(blocks * block, tokens, blocks)) != kvc::Status::ok)
      return false;
    kvc::Context<kvc::Cpu> ctx(scratch_.bytes());
    return c.step(ctx, layer, rows(id, layer), tokens,
                  {.queries = kvc::dense_view(q, q_heads, queries, dim)}) == kvc::Status::ok;
  }
  bool step_end(int id) override {
    Condenser& c = states_.at(id);
    Sequence& s = engine_.batch.at(id);
    kvc::Context<kvc::Cpu> ctx(scratch_.bytes());
    if (c.settle(ctx) != kvc::Status::ok) return false;
    if (!c.leaves(0)) return true;
    kvc::index_t own[blocks];
    std::vector<std::int32_t> to = s.table;
    const auto n = kvc::external::pages_to_own(rows(id, 0), c.kept(0), own);
    bool good = true;
    for (kvc::index_t i = 0; i < n && good; ++i) {
      const std::int32_t b = engine_.pool.take();
      if (good = b >= 0; good) to[static_cast<std::size_t>(own[i])] = b;
    }
    for (int l = 0; l < layers && good; ++l)
      good = c.compact(ctx, l, rows(id, l), to) == kvc::Status::ok;
    // Blocks that only one of the two tables has: the old ones go, or the fresh ones go back.
    for (std::size_t i = 0; i < to.size(); ++i)
      if (to[i] != s.table[i])
        --engine_.pool.owners[static_cast<std::size_t>(good ? s.table[i] : to[i])];
    if (!good) return false;
    s.table = to, s.slots = static_cast<int>(c.longest(0));
    engine_.pool.drop(s.table, (s.slots + block - 1) / block);
    return true;
  }
  void end(int id) override { states_.erase(id); }

 private:
  using Condenser = kvc::external::Condenser<kvc::any::AnyRecipe>;
  kvc::external::BorrowedLayer rows(int id, int layer) {
    Pool& p = engine_.pool;
    auto b = kvc::external::borrow_blocks(reinterpret_cast<kvc::half*>(p.keys[layer].data()),
                                          reinterpret_cast<kvc::half*>(p.values[layer].data()),
                                          shape(), block, blocks, engine_.batch.at(id).table);
    b.owners = p.owners;
    return b;
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

float widen(Half x) { return kvc::detail::half_value(x); }
Half narrow(float x) { return kvc::detail::half_bits(x); }
float number(int layer, int what, int head, int token, int place, int d) {
  const auto at =
      static_cast<std::uint64_t>((((layer * 3 + what) * q_heads + head) * 4096 + place) * dim + d);
  return 3.0f * (kvc::random_uniform(static_cast<std::uint64_t>(token + 1), at) - 0.5f);
}

struct Request {
  int arrives, prompt, answer;
  bool alike;  // begins with the system prompt
};
constexpr Request requests[] = {{0, 70, 40, true},  {2, 120, 25, true}, {5, 64, 60, true},
                                {9, 33, 10, false}, {20, 90, 30, true}, {45, 60, 12, true}};
constexpr int count = static_cast<int>(std::size(requests));

std::vector<int> prompt(int id) {
  std::vector<int> t;
  for (int i = 0; i < requests[id].prompt; ++i)
    t.push_back(i < prefix && requests[id].alike ? i % 7 : (id + 2) * (i + 3) % 101);
  return t;
}
int answer(int id, int i) { return (5 * id + 3 * i) % 89; }

/// Outputs of one request, step by step.
using Outputs = std::vector<std::vector<float>>;

/// The system prompt as it lies in the pool.
std::vector<Half> bytes_of(const Engine& e) {
  std::vector<Half> x;
  constexpr std::ptrdiff_t size = block * kv_heads * dim;
  for (int l = 0; l < layers; ++l)
    for (const std::int32_t b : e.system_prompt)
      for (const auto* rows : {&e.pool.keys[l], &e.pool.values[l]})
        x.insert(x.end(), rows->begin() + b * size, rows->begin() + (b + 1) * size);
  return x;
}

/// All requests in one batch, in and out as they come. Nothing where something is wrong.
std::optional<std::vector<Outputs>> together(const kvc::any::AnyRecipe& recipe, int& most_blocks) {
  Engine engine;
  Condense condense(engine, recipe);
  std::vector<Outputs> out(count);
  std::vector<int> done(count, -1);
  std::vector<Half> written;
  for (int now = 0; now < 90; ++now)
    for (int id = 0; id < count; ++id) {
      const Request& r = requests[id];
      int& i = done[static_cast<std::size_t>(id)];
      if (now < r.arrives || i > r.answer) continue;
      std::vector<float> o;
      if (++i > r.answer) {
        engine.depart(id);
        continue;
      }
      if (!(i == 0 ? engine.arrive(id, prompt(id), r.alike, o)
                   : engine.decode(id, answer(id, i), o)))
        return std::nullopt;
      out[static_cast<std::size_t>(id)].push_back(o);
      if (written.empty()) written = bytes_of(engine);
      if (bytes_of(engine) != written) return std::nullopt;  // a shared block has been altered
      most_blocks =
          std::max(most_blocks, blocks - static_cast<int>(std::count(engine.pool.owners.begin(),
                                                                     engine.pool.owners.end(), 0)));
    }
  engine.pool.drop(engine.system_prompt, 0);
  const bool all_back =
      std::count(engine.pool.owners.begin(), engine.pool.owners.end(), 0) == blocks &&
      engine.batch.empty();
  return all_back && !written.empty() ? std::optional(out) : std::nullopt;
}

/// One request alone, its whole prompt computed.
std::optional<Outputs> alone(int id, const kvc::any::AnyRecipe* recipe) {
  Engine engine;
  std::optional<Condense> condense;
  if (recipe != nullptr) condense.emplace(engine, *recipe);
  Outputs out(1);
  if (!engine.arrive(id, prompt(id), false, out[0])) return std::nullopt;
  for (int i = 1; i <= requests[id].answer; ++i)
    if (!engine.decode(id, answer(id, i), out.emplace_back())) return std::nullopt;
  return out;
}

/// A pool without a free block: the request is refused, and no block is lost.
bool full_pool_refuses(const kvc::any::AnyRecipe& recipe) {
  Engine engine;
  Condense condense(engine, recipe);
  std::vector<float> out;
  if (!engine.arrive(0, prompt(0), true, out)) return false;
  int held = 0, left = 0;  // blocks that nobody has but this check
  const auto free = [&] {
    return static_cast<int>(std::count(engine.pool.owners.begin(), engine.pool.owners.end(), 0));
  };
  // Enough for the rows of the next prompt and one copy of a shared block: it then needs more.
  for (const int rows = (requests[1].prompt - prefix + block - 1) / block; free() > rows + 1;
       ++held)
    engine.pool.take();
  left = free();
  if (engine.arrive(1, prompt(1), true, out)) return false;
  engine.depart(1);
  return held > 0 && free() == left;
}

/// The largest difference; of a prompt that was partly there, only what was computed is compared.
float difference(const Outputs& a, const Outputs& b) {
  float worst = a.size() == b.size() ? 0.0f : 1e9f;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const std::size_t n = a[i].size() / (layers * q_heads * dim),
                      m = b[i].size() / (layers * q_heads * dim);
    for (std::size_t h = 0; h < layers * q_heads; ++h)
      for (std::size_t t = 1; t <= std::min(n, m); ++t)
        for (std::size_t d = 0; d < dim; ++d)
          if (const float diff =
                  std::abs(a[i][((h + 1) * n - t) * dim + d] - b[i][((h + 1) * m - t) * dim + d]);
              !(diff <= worst))
            worst = diff;
  }
  return worst;
}

}  // namespace

int main() {
  bool good = true;
  for (const char* text :
       {"sink_window(sinks=20, recent=28)", "snapkv(tokens=48, window=8)", "tova(tokens=48)"}) {
    const auto recipe = kvc::any::parse(text);
    int most = 0;
    const auto batch = together(recipe->stages, most);
    float worst = batch ? 0.0f : 1e9f;
    for (int id = 0; id < count && batch; ++id) {
      const auto single = alone(id, &recipe->stages);
      const float diff =
          single ? difference((*batch)[static_cast<std::size_t>(id)], *single) : 1e9f;
      if (!(diff <= worst)) worst = diff;
    }
    std::printf("%-34s batch and single runs differ by %.1e, at most %d of %d blocks\n", text,
                static_cast<double>(worst), most, blocks);
    good = good && worst == 0.0f && most > 0;
  }

  good = full_pool_refuses(kvc::any::parse("snapkv(tokens=48, window=8)")->stages) && good;

  // Where all heads keep the same anyway, a cache of the library is the same too.
  const char* text = "sink_window(sinks=20, recent=28)";
  const auto recipe = kvc::any::parse(text);
  auto cache = kvc::any::AnyCache::make(recipe->stages, text, Condense::shape());
  const auto mine = alone(1, &recipe->stages), full = alone(1, nullptr);
  kvc::Workspace scratch;
  if (!cache || !mine || !full ||
      scratch.reserve(cache->workspace_bytes(256, 128)) != kvc::Status::ok)
    return 1;
  kvc::Context<kvc::Cpu> ctx(scratch.bytes());
  Outputs theirs;
  int seen = 0;
  for (std::size_t i = 0; i < mine->size(); ++i) {
    const int n = i == 0 ? requests[1].prompt : 1;
    theirs.emplace_back(static_cast<std::size_t>(layers * q_heads * n * dim));
    for (int l = 0; l < layers; ++l) {
      std::vector<float> x[3];
      for (int what = 0; what < 3; ++what)
        for (int h = 0; h < (what == 0 ? q_heads : kv_heads); ++h)
          for (int t = 0; t < n; ++t)
            for (int d = 0; d < dim; ++d)
              x[what].push_back(number(
                  l, what, h,
                  i == 0 ? prompt(1)[static_cast<std::size_t>(t)] : answer(1, static_cast<int>(i)),
                  seen + t, d));
      if (cache->forward(ctx, l, kvc::dense_view<const float>(x[0].data(), q_heads, n, dim),
                         kvc::dense_view<const float>(x[1].data(), kv_heads, n, dim),
                         kvc::dense_view<const float>(x[2].data(), kv_heads, n, dim),
                         kvc::dense_view(theirs.back().data() + l * q_heads * n * dim, q_heads, n,
                                         dim)) != kvc::Status::ok)
        return 1;
    }
    seen += n;
  }
  const float worst = difference(*mine, theirs);
  std::printf("beside a cache of the library: %.1e; from the full cache: %.1e\n",
              static_cast<double>(worst), static_cast<double>(difference(*mine, *full)));
  return good && worst < 1e-4f && difference(*mine, *full) > 1e-3f ? 0 : 1;
}
