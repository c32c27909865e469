// Decode attention of one layer and one token, this library's and its peers', in one run: whoever is measured takes turns,
// so that a machine that slows down slows all of them. Answers are checked before anything is timed, against attention
// in double over the rows as each one stores them.
//
//   hot    one layer again and again; the first call of a turn is not timed
//   cold   layers take turns, so many that their bytes do not fit the processor's caches; likewise
//   read   the same bytes, added up by one thread: what the machine gives
//
// This library's caches, and the bytes that are added up, lie in memory of `--memory`; peers have their own.

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <memory>
#include <new>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/core/huge_memory.hpp>
#include <kvcondense/cpu.hpp>

#include "peer.hpp"

namespace {

using namespace kvcondense;
using peers::Attention;
using peers::Problem;

std::size_t size(long n) { return static_cast<std::size_t>(n); }

/// Threads that wait by spinning between `awake` and `asleep`, and cost nothing otherwise: peers need the cores, too.
class Pool final : public Executor {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) helpers_.emplace_back([this, i] { help(i); });
  }
  ~Pool() override {
    stop_ = true;
    awake();
    for (std::thread& t : helpers_) t.join();
  }
  index_t workers() const noexcept override { return static_cast<index_t>(helpers_.size()) + 1; }
  void awake() {
    spin_ = true;
    spin_.notify_all();
  }
  void asleep() { spin_ = false; }
  void run(index_t tasks, void (*body)(void*, index_t, index_t), void* state) noexcept override {
    tasks_ = tasks, body_ = body, state_ = state;
    next_.store(0), done_.store(0);
    round_.fetch_add(1, std::memory_order_release);
    work(0);
    while (done_.load(std::memory_order_acquire) < static_cast<int>(helpers_.size())) {}
  }

 private:
  void work(index_t worker) {
    for (index_t t; (t = next_.fetch_add(1)) < tasks_;) body_(state_, t, worker);
  }
  void help(int worker) {
    for (int seen = 0; !stop_;) {
      if (round_.load(std::memory_order_acquire) != seen) {
        ++seen;
        work(worker);
        done_.fetch_add(1, std::memory_order_release);
      } else {
        spin_.wait(false);
      }
    }
  }
  index_t tasks_ = 0;
  void (*body_)(void*, index_t, index_t) = nullptr;
  void* state_ = nullptr;
  std::atomic<index_t> next_{0};
  std::atomic<int> round_{0}, done_{0};
  std::atomic<bool> spin_{false}, stop_{false};
  std::vector<std::thread> helpers_;
};

/// A cache of this library, as its own peer.
class Ours final : public Attention {
 public:
  static std::unique_ptr<Ours> make(const std::string& recipe, const Problem& p, long page_slots, Pool* pool, MemoryResource<Cpu>& memory) {
    const CacheShape shape{.layers = p.layers, .q_heads = p.q_heads, .kv_heads = p.kv_heads, .head_dim = p.dim, .page_slots = page_slots};
    auto made = any::make(recipe, shape, any::on<Cpu>, memory);
    if (!made) {
      std::fprintf(stderr, "%s: %.*s\n", recipe.c_str(), static_cast<int>(made.message().size()), made.message().data());
      return nullptr;
    }
    auto mine = std::unique_ptr<Ours>(new Ours(std::move(*made), p, pool));
    return mine->failed_ == Status::ok ? std::move(mine) : nullptr;
  }
  double bytes_per_layer() const override {
    const Report r = cache_.report();
    return static_cast<double>(r.exact_bytes + r.coded_bytes) / static_cast<double>(p_.layers);
  }
  bool attend(long layer, const float* queries, float* out) override {
    return cache_.attend(ctx_, layer, dense_view(queries, p_.q_heads, 1, p_.dim), dense_view(out, p_.q_heads, 1, p_.dim)) == Status::ok;
  }
  bool decode(long layer, long head, float* keys, float* values) override {
    return cache_.read(layer, head, 0, {keys, {p_.slots, p_.dim}, {p_.dim, 1}}, {values, {p_.slots, p_.dim}, {p_.dim, 1}}) == Status::ok;
  }

 private:
  Ours(any::AnyCache&& cache, const Problem& p, Pool* pool) : cache_(std::move(cache)), p_(p) {
    constexpr long chunk = 512;
    const auto bytes = cache_.workspace_bytes(p.slots + chunk, chunk, pool == nullptr ? 1 : pool->workers());
    if (failed_ = work_.reserve(bytes); failed_ != Status::ok) return;
    ctx_ = Context<Cpu>(work_.bytes(), pool);
    std::vector<float> k, v;
    for (long at = 0; at < p.slots; at += chunk) {
      const long n = std::min(chunk, p.slots - at);
      k.clear(), v.clear();
      for (long h = 0; h < p.kv_heads; ++h) {
        const long from = (h * p.slots + at) * p.dim;
        k.insert(k.end(), p.keys + from, p.keys + from + n * p.dim);
        v.insert(v.end(), p.values + from, p.values + from + n * p.dim);
      }
      const auto view = [&](const std::vector<float>& x) { return dense_view(x.data(), p.kv_heads, n, p.dim); };
      for (long l = 0; l < p.layers && failed_ == Status::ok; ++l) {
        failed_ = cache_.append(ctx_, l, view(k), view(v));
        if (failed_ == Status::ok) failed_ = cache_.step(ctx_, l, {}, Phase::prefill_chunk);
      }
    }
  }
  any::AnyCache cache_;
  Problem p_;
  Workspace work_;
  Context<Cpu> ctx_;
  Status failed_ = Status::ok;
};

/// A module: a peer's name, its forms and how to make one.
struct Peer {
  std::string name;
  std::span<const peers::Form> forms;
  peers::MakeFunction* make = nullptr;
};

Peer load_peer(const std::string& name, const std::string& path) {
  void* module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (module == nullptr) {
    std::fprintf(stderr, "%s: %s\n", path.c_str(), dlerror());
    std::exit(1);
  }
  auto* forms = reinterpret_cast<peers::FormsFunction*>(dlsym(module, "peer_forms"));
  auto* make = reinterpret_cast<peers::MakeFunction*>(dlsym(module, "peer_make"));
  if (forms == nullptr || make == nullptr) {
    std::fprintf(stderr, "%s is no peer\n", path.c_str());
    std::exit(1);
  }
  const peers::Form* list = nullptr;
  const std::size_t n = forms(&list);
  return {name, {list, n}, make};
}

/// Attention of all query heads in double over rows of one KV head after the other.
class Exact {
 public:
  Exact(const Problem& p, std::vector<float> queries) : p_(p), q_(std::move(queries)), out_(size(p.q_heads * p.dim)), logit_(size(p.slots)) {}
  void head(long kv, const float* keys, const float* values) {
    const long group = p_.q_heads / p_.kv_heads;
    for (long h = kv * group; h < (kv + 1) * group; ++h) {
      const float* q = q_.data() + h * p_.dim;
      double* out = out_.data() + h * p_.dim;
      double top = -1e300, total = 0;
      for (long s = 0; s < p_.slots; ++s) {
        double sum = 0;
        for (long c = 0; c < p_.dim; ++c) sum += static_cast<double>(q[c]) * static_cast<double>(keys[s * p_.dim + c]);
        logit_[size(s)] = sum / std::sqrt(static_cast<double>(p_.dim));
        top = std::max(top, logit_[size(s)]);
      }
      std::fill(out, out + p_.dim, 0.0);
      for (long s = 0; s < p_.slots; ++s) {
        const double w = std::exp(logit_[size(s)] - top);
        total += w;
        for (long c = 0; c < p_.dim; ++c) out[c] += w * static_cast<double>(values[s * p_.dim + c]);
      }
      for (long c = 0; c < p_.dim; ++c) out[c] /= total;
    }
  }
  /// Of `x`: the length of the difference over the length.
  double error(const std::vector<float>& x) const {
    double off = 0, all = 0;
    for (std::size_t i = 0; i < x.size(); ++i) off += std::pow(static_cast<double>(x[i]) - out_[i], 2), all += out_[i] * out_[i];
    return std::sqrt(off / all);
  }

 private:
  Problem p_;
  std::vector<float> q_;
  std::vector<double> out_, logit_;
};

double now(bool wall) {
  if (wall) return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

volatile std::uint64_t sink;

/// Seconds to add up `n` words.
double read_seconds(const std::uint64_t* x, std::size_t n) {
  const double a = now(false);
  std::uint64_t sum[8] = {};
  for (std::size_t i = 0; i + 64 <= n; i += 64) {
    for (std::size_t line = 0; line < 64; line += 8) __builtin_prefetch(x + i + 1024 + line, 0, 2);
    for (std::size_t line = 0; line < 64; line += 8)
      for (std::size_t j = 0; j < 8; ++j) sum[j] += x[i + line + j];
  }
  for (const std::uint64_t s : sum) sink = sink + s;
  return now(false) - a;
}

double busy_programs() {
  double load = 0;
  return getloadavg(&load, 1) == 1 ? load : 0;
}

double quantile(std::vector<double> x, double q) {
  const auto at = static_cast<std::ptrdiff_t>(q * static_cast<double>(x.size() - 1) + 0.5);
  std::nth_element(x.begin(), x.begin() + at, x.end());
  return x[static_cast<std::size_t>(at)];
}

/// One that takes turns.
struct Contender {
  std::string who, form;
  bool ours = false;
  long layers = 1;
  double bytes = 0, error = 0, whole_error = 0;
  std::unique_ptr<Attention> run;
  long at = 0;
  std::vector<double> seconds, read;
};

struct Options {
  std::vector<std::string> peers, turn = {"hot", "cold"};
  std::vector<long> slots = {1024, 4096, 16384, 65536};
  std::vector<int> threads = {1, 2}, bits = {16, 8, 4};
  std::string shape = "32/8/128", memory = "huge", json;
  long cold_mib = 1024, page_slots = CacheShape{}.page_slots;
  int rounds = 9;
  double peer_tolerance = 5e-2;
};

struct Recipe {
  const char* text;
  int bits;
  double tolerance = 2e-3;  ///< of ours, against double over the rows as stored
};

/// What is compared with peers of so many bits, f16 first. Per-channel keys, groups of 64 and no exact window: codes alone;
/// then the recipes as they come.
std::vector<Recipe> recipes(int bits) {
  if (bits == 16) return {{"keep_all", 16}};
  if (bits == 8)
    return {{"keep_all", 16},
            {"group_int(bits=8, group=64, key_axis=channel)", 8},
            {"group_int(bits=8, group=64, key_axis=channel, math=int8)", 8, 3e-2},
            {"int8", 8}};
  return {{"keep_all", 16},
          {"group_int(bits=4, group=64, key_axis=channel)", 4},
          {"group_int(bits=4, group=64, key_axis=channel, math=int8)", 4, 3e-2},
          {"kivi4", 4},
          {"kivi4(math=int8)", 4, 3e-2},
          {"group_int(bits=2, group=64, key_axis=channel)", 2},
          {"group_int(bits=2, group=64, key_axis=channel, math=int8)", 2, 3e-2},
          {"kivi2", 2},
          {"kivi2(math=int8)", 2, 3e-2}};
}

class Run {
 public:
  explicit Run(Options o) : o_(std::move(o)) {
    if (std::sscanf(o_.shape.c_str(), "%ld/%ld/%ld", &q_heads_, &kv_heads_, &dim_) != 3 || kv_heads_ < 1 || q_heads_ % kv_heads_ != 0 || dim_ < 1)
      throw CLI::ValidationError("--shape", "wants query heads/KV heads/head size");
    for (const std::string& p : o_.peers) {
      const auto cut = p.find('=');
      if (cut == std::string::npos) throw CLI::ValidationError("--peer", "wants name=module");
      peers_.push_back(load_peer(p.substr(0, cut), p.substr(cut + 1)));
    }
    if (o_.memory != "heap" && o_.memory != "huge") throw CLI::ValidationError("--memory", "wants heap or huge");
    pages_ = o_.memory == "huge" ? static_cast<MemoryResource<Cpu>*>(&huge_) : &heap_memory();
    words_.emplace(*pages_);
    more_words(size(std::max(o_.cold_mib, 1L)) << 17);
  }

  int all() {
    const double busy = busy_programs();
    std::printf("%ld query heads, %ld KV heads of %ld numbers; kernels: %s; %d rounds; cold: %ld MiB each; memory: %s, in pages of %ld slots\n\n", q_heads_, kv_heads_, dim_,
                prim::cpu::row_ops().name, o_.rounds, o_.cold_mib, o_.memory.c_str(), o_.page_slots);
    std::printf("| slots | threads | turn | who | form | ns/slot | spread | GB/s | of read | of own f16 |");
    for (const Peer& p : peers_) std::printf(" of %s |", p.name.c_str());
    std::printf(" error | with coding |\n|--:|--:|---|---|---|--:|--:|--:|--:|--:|");
    for (std::size_t i = 0; i < peers_.size(); ++i) std::printf("--:|");
    std::printf("--:|--:|\n");
    for (const long slots : o_.slots) {
      prepare(slots);
      for (const int threads : o_.threads)
        for (const int bits : o_.bits) compare(bits, threads, slots);
    }
    std::printf("\nbusy programs, in the mean of the last minute: %.1f at the start, %.1f at the end (this one is one)\n", busy, busy_programs());
    if (o_.memory == "huge") std::printf("this library's memory: up to %.0f MiB that the system agreed to back with huge pages\n", static_cast<double>(most_huge_) / (1 << 20));
    if (!o_.json.empty()) std::ofstream(o_.json) << json_.dump(1) << "\n";
    return wrong_ == 0 ? 0 : 1;
  }

 private:
  /// At least so many to add up.
  void more_words(std::size_t n) {
    if (words_->size() < static_cast<index_t>(n) && words_->resize(static_cast<index_t>(n), 1) != Status::ok) throw std::bad_alloc();
  }

  Problem problem(long slots, int threads) const {
    return {q_heads_, kv_heads_, dim_, slots, 1, threads, keys_.data(), values_.data()};
  }

  void prepare(long slots) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& x, long n) {
      x.resize(size(n));
      for (float& e : x) e = normal(random);
    };
    fill(keys_, kv_heads_ * slots * dim_), fill(values_, kv_heads_ * slots * dim_), fill(queries_, q_heads_ * dim_);
    const Problem p = problem(slots, 1);
    whole_ = std::make_unique<Exact>(p, queries_);
    for (long h = 0; h < kv_heads_; ++h) whole_->head(h, keys_.data() + h * slots * dim_, values_.data() + h * slots * dim_);
  }

  /// As many layers as numbers of so many bits need to be larger than the caches.
  long layers(int bits, long slots) const {
    if (std::find(o_.turn.begin(), o_.turn.end(), "cold") == o_.turn.end()) return 1;
    const double layer = static_cast<double>(2 * kv_heads_ * slots * dim_) * bits / 8;
    return std::max(2L, static_cast<long>(static_cast<double>(o_.cold_mib << 20) / layer));
  }

  void add(std::vector<Contender>& list, std::string who, std::string form, bool ours, double tolerance, std::unique_ptr<Attention> run, const Problem& p) {
    if (run == nullptr) {
      std::fprintf(stderr, "%s, %s: cannot be made\n", who.c_str(), form.c_str());
      ++wrong_;
      return;
    }
    Contender c;
    c.who = std::move(who), c.form = std::move(form), c.ours = ours, c.layers = p.layers, c.bytes = run->bytes_per_layer();
    c.run = std::move(run);
    more_words(static_cast<std::size_t>(c.bytes / 8));
    std::vector<float> out(queries_.size()), k(size(p.slots * p.dim)), v = k;
    Exact exact(p, queries_);
    bool good = true;
    for (long h = 0; h < p.kv_heads && good; ++h) {
      good = c.run->decode(p.layers - 1, h, k.data(), v.data());
      exact.head(h, k.data(), v.data());
    }
    good = good && c.run->attend(p.layers - 1, queries_.data(), out.data());
    c.error = exact.error(out), c.whole_error = whole_->error(out);
    if (!good || !(c.error <= tolerance)) {
      std::fprintf(stderr, "%s, %s: wrong by %g, not timed\n", c.who.c_str(), c.form.c_str(), c.error);
      ++wrong_;
      return;
    }
    list.push_back(std::move(c));
  }

  void compare(int bits, int threads, long slots) {
    std::unique_ptr<Pool> pool = threads > 1 ? std::make_unique<Pool>(threads) : nullptr;
    std::vector<Contender> list;
    Problem p = problem(slots, threads);
    if (pool) pool->awake();
    for (const Recipe& r : recipes(bits)) {
      p.layers = layers(r.bits, slots);
      add(list, "ours", r.text, true, r.tolerance, Ours::make(r.text, p, o_.page_slots, pool.get(), *pages_), p);
    }
    if (pool) pool->asleep();
    most_huge_ = std::max(most_huge_, huge_.huge_bytes());
    p.layers = layers(bits, slots);
    for (const Peer& peer : peers_)
      for (std::size_t f = 0; f < peer.forms.size(); ++f)
        if (peer.forms[f].bits == bits) add(list, peer.name, peer.forms[f].name, false, o_.peer_tolerance, std::unique_ptr<Attention>(peer.make(f, p)), p);
    for (const std::string& turn : o_.turn) {
      for (Contender& c : list) c.seconds.clear(), c.read.clear();
      for (int round = 0; round < o_.rounds; ++round)
        for (std::size_t i = 0; i < list.size(); ++i) take_turn(list[(i + size(round)) % list.size()], turn == "cold", threads, pool.get());
      for (const Contender& c : list) print(list, c, turn, bits, threads, slots);
      std::fflush(stdout);
    }
  }

  void take_turn(Contender& c, bool cold, int threads, Pool* pool) {
    // Threads of whoever had the turn before stop spinning.
    if (threads > 1) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    if (c.ours && pool != nullptr) pool->awake();
    std::vector<float> out(queries_.size());
    constexpr double enough = 4e-3;
    constexpr int most = 16;
    const auto words = static_cast<std::size_t>(c.bytes / 8);
    double spent = 0;
    for (int i = 0; i <= most && (i <= 1 || spent < enough); ++i) {
      if (cold) c.at = (c.at + 1) % c.layers;
      const double a = now(threads > 1);
      if (!c.run->attend(c.at, queries_.data(), out.data())) ++wrong_;
      const double t = now(threads > 1) - a;
      if (i > 0) c.seconds.push_back(t), spent += t;
    }
    if (c.ours && pool != nullptr) pool->asleep();
    const auto all = static_cast<std::size_t>(words_->size());
    const std::size_t fit = std::max<std::size_t>(1, all / std::max<std::size_t>(1, words));
    for (int i = 0; i < 3; ++i) {
      const std::size_t from = cold ? (read_at_++ % fit) * words : 0;
      const double t = read_seconds(words_->data() + from, std::min(words, all - from));
      if (i > 0) c.read.push_back(t);
    }
  }

  void print(const std::vector<Contender>& list, const Contender& c, const std::string& turn, int bits, int threads, long slots) {
    const double t = quantile(c.seconds, 0.5), spread = (quantile(c.seconds, 0.75) - quantile(c.seconds, 0.25)) / t;
    const double read = quantile(c.read, 0.5) / t, own = quantile(list.front().seconds, 0.5) / t;
    std::printf("| %ld | %d | %s | %s | `%s` | %.1f | %.0f %% | %.2f | %.2f | %.2f |", slots, threads, turn.c_str(), c.who.c_str(), c.form.c_str(),
                t / static_cast<double>(slots) * 1e9, spread * 100, c.bytes / t * 1e-9, read, own);
    nlohmann::json row = {{"slots", slots}, {"bits", bits}, {"threads", threads}, {"turn", turn}, {"who", c.who}, {"form", c.form},
                          {"ns_per_slot", t / static_cast<double>(slots) * 1e9}, {"spread", spread}, {"GB_per_s", c.bytes / t * 1e-9},
                          {"bytes", c.bytes}, {"layers", c.layers}, {"of_read", read}, {"of_own_f16", own}, {"error", c.error},
                          {"error_with_coding", c.whole_error}, {"memory", o_.memory}, {"page_slots", o_.page_slots}, {"samples", c.seconds.size()}, {"shape", o_.shape}};
    for (const Peer& peer : peers_) {
      double best = 0;
      for (const Contender& other : list)
        if (other.who == peer.name) {
          const double theirs = quantile(other.seconds, 0.5);
          best = best == 0 ? theirs : std::min(best, theirs);
        }
      if (best == 0 || !c.ours || (c.form == "keep_all" && bits != 16)) {
        std::printf(" |");
        continue;
      }
      std::printf(" %.2fx |", best / t);
      row["of_" + peer.name] = best / t;
    }
    std::printf(" %.0e | %.2g |\n", c.error, c.whole_error);
    json_.push_back(row);
  }

  Options o_;
  long q_heads_ = 0, kv_heads_ = 0, dim_ = 0;
  std::vector<Peer> peers_;
  std::vector<float> keys_, values_, queries_;
  HugeMemory huge_;
  std::size_t most_huge_ = 0;
  MemoryResource<Cpu>* pages_ = nullptr;
  std::optional<Buffer<std::uint64_t>> words_;
  std::size_t read_at_ = 0;
  std::unique_ptr<Exact> whole_;
  nlohmann::json json_ = nlohmann::json::array();
  int wrong_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  Options o;
#ifdef PEER_MODULES
  for (std::string all = PEER_MODULES; !all.empty();) {
    const auto cut = all.find('|');
    o.peers.push_back(all.substr(0, cut));
    all = cut == std::string::npos ? "" : all.substr(cut + 1);
  }
#endif
  CLI::App app("Attention of one token: this library and its peers in turns.");
  app.option_defaults()->always_capture_default();
  app.add_option("--peer", o.peers, "name=module, in place of those compiled in");
  app.add_option("--slots", o.slots, "slots of a head")->delimiter(',');
  app.add_option("--threads", o.threads, "threads of a call")->delimiter(',');
  app.add_option("--bits", o.bits, "of the peers' numbers: 16, 8, 4")->delimiter(',');
  app.add_option("--turns", o.turn, "hot, cold")->delimiter(',');
  app.add_option("--shape", o.shape, "query heads/KV heads/head size");
  app.add_option("--cold-mib", o.cold_mib, "bytes that take turns");
  app.add_option("--memory", o.memory, "of this library: heap, or huge for pages of 2 MiB where the system has them");
  app.add_option("--page-slots", o.page_slots, "slots of a page of this library's caches");
  app.add_option("--rounds", o.rounds, "turns of each");
  app.add_option("--json", o.json, "write the table to this file, too");
  try {
    app.parse(argc, argv);
    return Run(o).all();
  } catch (const CLI::Error& e) {
    return app.exit(e);
  }
}
