#include <kvcondense/lowrank/xkv.hpp>

#include <cmath>
#include <cstring>
#include <string_view>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/lowrank/online_pca.hpp>
#include <kvcondense/merge/minicache.hpp>
#include <kvcondense/quant/mikv.hpp>
#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>
#include <support/check_snapshot.hpp>
#include <support/oracle.hpp>
#include <support/stored_rows.hpp>

using namespace kvcondense;
using lowrank::XKv;

namespace {

constexpr CacheShape three_layers{.layers = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16};

/// Rows of every layer are one map each of what the layers have in common, and some noise of their own.
struct Stream {
  CacheShape shape;
  std::mt19937 random;
  index_t common = 8;
  float noise = 0.05f;
  std::vector<std::vector<float>> maps{};

  std::vector<test::Tokens> layers(index_t n) {
    std::normal_distribution<float> normal;
    std::vector<test::Tokens> all;
    for (index_t l = 0; l < shape.layers; ++l) all.emplace_back(shape, n, random);
    const auto dim = static_cast<std::size_t>(std::max(shape.head_dim, shape.values()));
    while (maps.size() < 2 * all.size()) {
      auto& map = maps.emplace_back(dim * static_cast<std::size_t>(common));
      for (float& x : map) x = normal(random) / std::sqrt(static_cast<float>(common));
    }
    std::vector<float> shared(static_cast<std::size_t>(shape.kv_heads * n * common * 2));
    for (float& x : shared) x = normal(random);
    for (std::size_t l = 0; l < all.size(); ++l)
      for (std::size_t side = 0; side < 2; ++side) {
        auto& rows = side == 0 ? all[l].k : all[l].v;
        const auto size = static_cast<std::size_t>(side == 0 ? shape.head_dim : shape.values());
        for (std::size_t i = 0; i < rows.size(); ++i) {
          rows[i] = noise * normal(random);
          for (std::size_t c = 0; c < static_cast<std::size_t>(common); ++c)
            rows[i] += maps[2 * l + side][i % size * static_cast<std::size_t>(common) + c] * shared[(i / size * static_cast<std::size_t>(common) + c) * 2 + side];
        }
      }
    return all;
  }
};

template <class R>
void feed(test::CacheRig<R>& rig, const std::vector<test::Tokens>& layers) {
  const CacheShape& s = rig.cache.shape();
  for (index_t l = 0; l < s.layers; ++l) {
    const test::Tokens& t = layers[static_cast<std::size_t>(l)];
    REQUIRE(rig.cache.append(rig.ctx, l, t.keys(s), t.values(s)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, l) == Status::ok);
  }
}

/// The length of what is missing in the keys of all layers.
template <class C>
double lost(const C& cache, const std::vector<test::Tokens>& layers) {
  double sum = 0;
  const CacheShape& s = cache.shape();
  for (index_t l = 0; l < s.layers; ++l)
    for (index_t h = 0; h < s.kv_heads; ++h) {
      const auto rows = test::stored(cache, l, h, false);
      const auto want = layers[static_cast<std::size_t>(l)].keys(s);
      for (index_t i = 0; i < cache.slots(l, h); ++i)
        for (index_t d = 0; d < s.head_dim; ++d) sum += std::pow(static_cast<double>(rows[static_cast<std::size_t>(i * s.head_dim + d)] - want(h, i, d)), 2);
    }
  return std::sqrt(sum);
}

}  // namespace

TEST_CASE("xkv: the oracle's rows and errors, of joint directions and of each layer's own", "[lowrank][xkv]") {
  const auto o = test::load_oracle("lowrank.json", "xkv");
  const auto& want = o["expected"];
  const CacheShape s{.layers = 2, .head_dim = 3, .dtype = DType::f32, .page_slots = 4};
  const std::vector<float> rows[2] = {test::floats(o["inputs"]["K_layer0"]), test::floats(o["inputs"]["K_layer1"])};
  const double joint = o["params"]["joint_rank"].get<double>(), own = o["params"]["separate_rank"].get<double>();
  const auto error = [&](auto& rig) {
    double sum = 0;
    for (index_t l = 0; l < 2; ++l) {
      const float* x = rows[l].data();
      REQUIRE(rig.cache.append(rig.ctx, l, dense_view(x, 1, 4, 3), dense_view(x, 1, 4, 3)) == Status::ok);
      REQUIRE(rig.cache.step(rig.ctx, l) == Status::ok);
    }
    for (index_t l = 0; l < 2; ++l) {
      const auto got = test::stored(rig.cache, l, 0, false);
      REQUIRE(got == test::stored(rig.cache, l, 0, true));
      for (std::size_t i = 0; i < 12; ++i) sum += std::pow(static_cast<double>(got[i] - rows[l][i]), 2);
    }
    return std::sqrt(sum);
  };
  test::CacheRig rig(s, recipe(XKv{.keep = joint / 6, .value_keep = joint / 6, .layers = 2, .tile = 1, .window = 0, .least = 0}), 4, 4);
  REQUIRE(error(rig) == Approx(want["err_joint"].get<double>()).epsilon(1e-5));
  for (index_t l = 0; l < 2; ++l) {
    const auto got = test::stored(rig.cache, l, 0, false);
    for (std::size_t t = 0; t < 4; ++t)
      for (std::size_t d = 0; d < 3; ++d)
        REQUIRE(got[t * 3 + d] == Approx(want["joint_reconstruction"][t][static_cast<std::size_t>(l) * 3 + d].get<double>()).margin(1e-5));
  }
  test::CacheRig apart(s, recipe(lowrank::OnlinePca{.keep = own / 3, .value_keep = own / 3, .tile = 1, .window = 0, .least = 0}), 4, 4);
  REQUIRE(error(apart) == Approx(want["err_separate"].get<double>()).epsilon(1e-5));
}

TEST_CASE("xkv: the oracle's bytes are those of the pages", "[lowrank][xkv]") {
  for (const char* name : {"xkv_bytes_4096", "xkv_bytes_65536"}) {
    const auto o = test::load_oracle("lowrank.json", name);
    const auto number = [&](const char* part, const char* key) { return o[part][key].get<std::size_t>(); };
    const std::size_t tokens = number("inputs", "T"), group = number("inputs", "group"), width = number("inputs", "width"), heads = 32;
    const std::size_t rank_k = number("inputs", "rank_k"), rank_v = number("inputs", "rank_v"), dim = width / heads;
    // One of 32 heads, each with its own directions.
    const CacheShape s{.layers = static_cast<index_t>(group), .head_dim = static_cast<index_t>(dim)};
    const auto all = static_cast<double>(group * width);
    test::CacheRig rig(s, recipe(XKv{.keep = static_cast<double>(rank_k) / all, .value_keep = static_cast<double>(rank_v) / all,
                                     .layers = s.layers, .window = 0}), static_cast<index_t>(tokens), 2048);
    Stream stream{s, std::mt19937(3)};
    const auto some = stream.layers(2048);
    for (std::size_t done = 0; done < tokens; done += 2048) feed(rig, some);
    const Report r = rig.cache.report();
    REQUIRE(r.bytes() == rig.memory.live_bytes);
    REQUIRE(r.across_part() == 1.0);
    const std::size_t pages = 2 * (group + 1) * tokens / static_cast<std::size_t>(s.page_slots);  // with what is each layer's own: a header
    const std::size_t rows = r.coded_bytes - pages * sizeof(cache::Page);
    std::size_t basis = 0;
    for (const auto& l : rig.cache.layers()) basis += l.heads[0].keys.map().state().size() + l.heads[0].values.map().state().size();
    REQUIRE(rows == tokens * (rank_k + rank_v) / heads * 2);
    REQUIRE(basis == group * dim * (rank_k + rank_v) / heads);
    // The paper's one basis for all heads has as many numbers for each of them as all of these together.
    REQUIRE(heads * (rows + 2 * heads * basis) == number("expected", "K") + number("expected", "V"));
    REQUIRE(static_cast<double>(number("expected", "original")) / static_cast<double>(heads * (rows + 2 * heads * basis)) ==
            Approx(o["expected"]["ratio"].get<double>()));
  }
}

TEST_CASE("xkv: any calls", "[lowrank][xkv]") {
  std::uint32_t seed = 40;
  const XKv two{.keep = 0.25, .value_keep = 0.5, .layers = 2, .window = 5, .least = 20};
  test::exercise(three_layers, recipe(two), ++seed, 40, 12.0);
  test::exercise(three_layers, recipe(two, evict::Knorm{.tokens = 60, .recent = 20}), ++seed, 40, 12.0);
  test::exercise(three_layers, recipe(XKv{.keep = 0.25, .value_keep = 0.3, .layers = 3, .least = 0}, position::Rerotate{}), ++seed, 40, 12.0);
  // Heads of a layer share, and heads of layers; groups that are not full, and a head alone.
  CacheShape heads = three_layers;
  heads.q_heads = 6, heads.kv_heads = 3;
  test::exercise(heads, recipe(XKv{.keep = 0.25, .value_keep = 0.5, .layers = 1, .heads = 2, .least = 0}, position::Rerotate{}), ++seed, 40, 12.0);
  test::exercise(heads, recipe(XKv{.keep = 0.2, .value_keep = 0.25, .layers = 2, .heads = 2, .window = 5}), ++seed, 40, 12.0);
  test::exercise(heads, recipe(XKv{.keep = 0.2, .value_keep = 0.25, .layers = 2, .heads = 2, .least = 0}, evict::Knorm{.tokens = 60, .recent = 20}), ++seed, 40, 12.0);
}

TEST_CASE("xkv: attention, whatever the shape", "[lowrank][xkv]") {
  struct Form {
    index_t q_heads, kv_heads, head_dim, value_dim;
  };
  std::uint32_t seed = 90;
  for (const Form& f : {Form{4, 4, 64, 64}, Form{6, 3, 80, 48}, Form{8, 2, 96, 96}, Form{16, 1, 112, 40}, Form{2, 2, 128, 64}})
    for (const DType dtype : {DType::f16, DType::f32}) {
      const CacheShape s{.layers = 2, .q_heads = f.q_heads, .kv_heads = f.kv_heads, .head_dim = f.head_dim, .value_dim = f.value_dim, .dtype = dtype, .page_slots = 20};
      test::exercise(s, recipe(XKv{.keep = 0.3, .value_keep = 0.4, .layers = 2, .tile = 1, .window = 3, .least = 30}), ++seed, 8, 12.0);
    }
}

TEST_CASE("xkv: layers with something in common lose less together than apart in as many coordinates", "[lowrank][xkv]") {
  const CacheShape s{.layers = 4, .q_heads = 4, .kv_heads = 2, .head_dim = 32};
  Stream stream{s, std::mt19937(5)};
  const auto prompt = stream.layers(512);
  test::CacheRig joint(s, recipe(XKv{.window = 0}), 512, 512);
  test::CacheRig apart(s, recipe(lowrank::OnlinePca{.keep = 0.125, .value_keep = 0.1875, .tile = 1, .window = 0}), 512, 512);
  test::CacheRig whole(s, recipe(), 512, 512);
  feed(joint, prompt), feed(apart, prompt), feed(whole, prompt);
  REQUIRE(joint.cache.layers()[3].heads[1].keys.coded().dim() == 16);
  REQUIRE(apart.cache.layers()[3].heads[1].keys.coded().dim() == 4);
  REQUIRE(lost(joint.cache, prompt) < 0.15 * lost(apart.cache, prompt));
  // As many coordinates of a token as four layers have apart, and a header more per page and layer.
  const auto bytes = [](const auto& rig) { return static_cast<double>(rig.cache.report().coded_bytes); };
  REQUIRE(bytes(joint) < 1.03 * bytes(apart));
  REQUIRE(bytes(joint) < 0.2 * static_cast<double>(whole.cache.report().exact_bytes));
  REQUIRE(joint.cache.report().bytes() == joint.memory.live_bytes);
  REQUIRE(joint.cache.report().bytes() < whole.cache.report().bytes() / 2);
  // Full rank is exact: as many coordinates as the rows of both layers have numbers.
  const CacheShape two{.layers = 2, .head_dim = 32, .dtype = DType::f32};
  Stream narrow{two, std::mt19937(6), 16, 0.0f};
  const auto rows = narrow.layers(64);
  double last = 1e9;
  for (const double keep : {0.0625, 0.125, 0.1875, 0.25}) {
    test::CacheRig rig(two, recipe(XKv{.keep = keep, .value_keep = keep, .layers = 2, .tile = 1, .window = 0}), 64, 64);
    feed(rig, rows);
    const double now = lost(rig.cache, rows);
    REQUIRE(now < last);
    last = now;
  }
  REQUIRE(last < 1e-3);
}

TEST_CASE("xkv: what waits, and for whom", "[lowrank][xkv]") {
  const XKv x{.keep = 0.25, .value_keep = 0.25, .layers = 2, .window = 5, .least = 40};
  test::CacheRig rig(three_layers, recipe(x), 256, 64);
  Stream stream{three_layers, std::mt19937(7)};
  const auto shared = [&] { return rig.cache.report().across_rows / (2 * 2 * three_layers.kv_heads); };
  const auto coded = [&](index_t l) { return rig.cache.layers()[l].heads[0].keys.coded().live(); };
  feed(rig, stream.layers(44));
  REQUIRE(shared() == 0);  // 39 behind the window
  feed(rig, stream.layers(1));
  REQUIRE(shared() == 32);
  REQUIRE(coded(2) == 40);  // alone in its group: no page to wait for
  for (int i = 0; i < 7; ++i) feed(rig, stream.layers(1));
  REQUIRE(shared() == 32);
  const auto t = stream.layers(1);
  for (const index_t l : {1, 0}) {
    REQUIRE(shared() == 32);  // one layer's token is pending
    for (index_t k = 0; k <= 1; ++k)
      if (rig.cache.length(k) == 52) REQUIRE(rig.cache.append(rig.ctx, k, t[static_cast<std::size_t>(k)].keys(three_layers), t[static_cast<std::size_t>(k)].values(three_layers)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, l) == Status::ok);
  }
  REQUIRE(shared() == 48);
  REQUIRE(rig.cache.layer_group(1).count == 2);
  REQUIRE(rig.cache.layer_group(2).count == 1);
  REQUIRE(rig.cache.capabilities().lossy_slots);
}

TEST_CASE("xkv: a prompt in chunks finds the directions of the whole prompt", "[lowrank][xkv]") {
  const auto r = recipe(XKv{.keep = 0.25, .value_keep = 0.25, .layers = 2, .window = 5, .least = 8});
  test::CacheRig whole(three_layers, r, 256, 160), chunks(three_layers, r, 256, 160);
  Stream stream{three_layers, std::mt19937(9)};
  const auto first = stream.layers(100), second = stream.layers(60);
  const auto append = [&](auto& rig, const auto& tokens, index_t l) {
    const auto& t = tokens[static_cast<std::size_t>(l)];
    REQUIRE(rig.cache.append(rig.ctx, l, t.keys(three_layers), t.values(three_layers)) == Status::ok);
  };
  for (index_t l = 0; l < three_layers.layers; ++l) {
    append(chunks, first, l);
    REQUIRE(chunks.cache.step(chunks.ctx, l, Phase::prefill_chunk) == Status::ok);
  }
  for (index_t l = 0; l < three_layers.layers; ++l) {
    append(chunks, second, l);
    REQUIRE(chunks.cache.step(chunks.ctx, l, Phase::prefill_end) == Status::ok);
  }
  for (index_t l = 0; l < three_layers.layers; ++l) {
    append(whole, first, l), append(whole, second, l);
    REQUIRE(whole.cache.step(whole.ctx, l, Phase::prefill_end) == Status::ok);
  }
  REQUIRE(whole.cache.report().across_rows > 0);
  REQUIRE(chunks.cache.report().across_rows == whole.cache.report().across_rows);
  for (index_t l = 0; l < 2; ++l)  // of one group
    for (const bool values : {true, false}) REQUIRE(test::stored(chunks.cache, l, 1, values) == test::stored(whole.cache, l, 1, values));
}

TEST_CASE("xkv: files hold rows once, forks share them, damaged files are refused", "[lowrank][xkv]") {
  const XKv x{.keep = 0.25, .value_keep = 0.25, .layers = 3, .window = 4, .least = 8};
  test::check_snapshot(three_layers, recipe(x), recipe(XKv{.keep = 0.25, .value_keep = 0.25, .layers = 2, .window = 4, .least = 8}));
  test::check_snapshot(three_layers, recipe(XKv{.keep = 0.1, .value_keep = 0.1, .heads = 2, .window = 4, .least = 8}),
                       recipe(XKv{.keep = 0.1, .value_keep = 0.1, .heads = 1, .window = 4, .least = 8}));
  Stream stream{three_layers, std::mt19937(4)};
  const auto policy = recipe(x, evict::Knorm{.tokens = 40, .recent = 4});
  test::CacheRig rig(three_layers, policy, 128, 64);
  test::CacheRig copy(three_layers, policy, 128, 64);
  feed(rig, stream.layers(36));
  REQUIRE(rig.cache.report().across_rows > 0);
  test::ByteList file;
  for (int i = 0; i < 40; ++i) {  // layers part: pages that the first has no more are the second's
    feed(rig, stream.layers(1));
    file.bytes.clear();
    REQUIRE(save(rig.cache, file) == Status::ok);
    REQUIRE(load(copy.cache, file.bytes) == Status::ok);
    REQUIRE(copy.cache.report().bytes() == copy.memory.live_bytes);
    REQUIRE(rig.cache.report().bytes() == rig.memory.live_bytes);
    REQUIRE(copy.cache.report().across_rows == rig.cache.report().across_rows);
    for (index_t l = 0; l < 3; ++l) REQUIRE(test::stored(copy.cache, l, 1, true) == test::stored(rig.cache, l, 1, true));
  }
  auto fork = rig.cache.fork();
  REQUIRE(fork);
  REQUIRE(fork->report().shared_bytes > 0);
  REQUIRE(test::stored(*fork, 2, 1, false) == test::stored(rig.cache, 2, 1, false));
}

TEST_CASE("xkv: forged files never lead outside them", "[lowrank][xkv]") {
  const CacheShape s{.layers = 3, .head_dim = 8, .page_slots = 8};
  const XKv x{.keep = 0.25, .value_keep = 0.25, .layers = 3, .tile = 1, .window = 1, .least = 8};
  test::CacheRig rig(s, recipe(x), 64, 64);
  test::CacheRig other(s, recipe(x), 64, 64);
  Stream stream{s, std::mt19937(4), 3};
  feed(rig, stream.layers(17));
  REQUIRE(rig.cache.report().across_rows > 0);
  test::ByteList file;
  REQUIRE(save(rig.cache, file) == Status::ok);
  int accepted = 0;
  for (std::size_t i = 12; i + 8 < file.bytes.size(); ++i)
    for (const int value : {0x00, 0x01, 0x02, 0x03, 0x04, 0xff}) {
      auto forged = file.bytes;
      if (forged[i] == static_cast<std::byte>(value)) continue;
      forged[i] = static_cast<std::byte>(value);
      Checksum sum;
      sum.add(std::span(forged).first(forged.size() - 8));
      const std::uint64_t check = sum.value();
      std::memcpy(forged.data() + forged.size() - 8, &check, 8);
      const Status status = load(other.cache, forged);
      REQUIRE((status == Status::ok || status == Status::corrupt_data || status == Status::incompatible));
      REQUIRE(other.cache.report().bytes() == other.memory.live_bytes);
      accepted += status == Status::ok;
    }
  REQUIRE(accepted > 0);
}

TEST_CASE("xkv: a resource that refuses loses nothing, and what was not shared is shared later", "[lowrank][xkv]") {
  const CacheShape& s = three_layers;
  const auto make = recipe(XKv{.keep = 0.25, .value_keep = 0.25, .layers = 3, .window = 0, .least = 8});
  Stream stream{s, std::mt19937(3)};
  const auto prompt = stream.layers(33), next = stream.layers(1);
  test::CacheRig whole(s, make, 64, 64);
  feed(whole, prompt);
  const long requests = whole.memory.requests;
  index_t least = 1 << 30, full = 0;
  for (long n = 0; n <= requests; ++n) {
    test::CacheRig rig(s, make, 64, 64);
    rig.memory.refuse_from = rig.memory.requests + n;
    for (index_t l = 0; l < s.layers; ++l) {
      const test::Tokens& t = prompt[static_cast<std::size_t>(l)];
      Status status = rig.cache.append(rig.ctx, l, t.keys(s), t.values(s));
      if (status == Status::out_of_memory) {
        rig.memory.refuse_from = -1;
        status = rig.cache.append(rig.ctx, l, t.keys(s), t.values(s));
      }
      REQUIRE(status == Status::ok);
      REQUIRE(rig.cache.step(rig.ctx, l) == Status::ok);
      REQUIRE(rig.cache.report().bytes() == rig.memory.live_bytes);
    }
    least = std::min(least, rig.cache.report().across_rows), full = std::max(full, rig.cache.report().across_rows);
    rig.memory.refuse_from = -1;
    feed(rig, next);
    REQUIRE(rig.cache.report().across_rows == 3 * 2 * s.kv_heads * 32);
    REQUIRE(rig.memory.wrong_releases == 0);
  }
  REQUIRE(least == 0);
  REQUIRE(full == whole.cache.report().across_rows);
  Context<Cpu> small;
  REQUIRE(whole.cache.append(whole.ctx, 0, next[0].keys(s), next[0].values(s)) == Status::ok);
  REQUIRE(whole.cache.step(small, 0) == Status::workspace_too_small);
  REQUIRE(whole.cache.step(whole.ctx, 0) == Status::ok);
}

TEST_CASE("xkv: one side alone, rows without numbers, and what is refused", "[lowrank][xkv]") {
  Stream stream{three_layers, std::mt19937(9)};
  const auto prompt = stream.layers(40);
  for (const bool keys : {false, true}) {
    test::CacheRig rig(three_layers, recipe(XKv{.keep = 0.25, .value_keep = 0.25, .layers = 3, .window = 0, .least = 0, .keys = keys, .values = !keys}), 64, 64);
    feed(rig, prompt);
    REQUIRE(rig.cache.report().across_rows == 3 * three_layers.kv_heads * 32);
    const auto& head = rig.cache.layers()[1].heads[0];
    REQUIRE(head.keys.coded().live() == (keys ? 32 : 0));
    REQUIRE(head.values.coded().live() == (keys ? 0 : 32));
  }
  for (const float number : {0.0f, 2.0f}) {
    test::CacheRig rig(three_layers, recipe(XKv{.keep = 0.25, .value_keep = 0.25, .layers = 3, .window = 0, .least = 0}), 64, 64);
    const std::vector<float> rows(static_cast<std::size_t>(2 * 32 * 32), number);
    for (index_t l = 0; l < 3; ++l) {
      REQUIRE(rig.cache.append(rig.ctx, l, dense_view(rows.data(), 2, 32, 32), dense_view(rows.data(), 2, 32, 32)) == Status::ok);
      REQUIRE(rig.cache.step(rig.ctx, l) == Status::ok);
    }
    REQUIRE(rig.cache.report().across_part() == 1.0);
    for (const float x : test::stored(rig.cache, 1, 1, false)) REQUIRE(x == Approx(number).margin(4e-3));
  }
  const auto status = [](const XKv& x, auto... more) { return make_cache<Cpu>(three_layers, recipe(x, more...)).status(); };
  REQUIRE(status({}) == Status::ok);
  REQUIRE(status({.keep = 0.0}) == Status::invalid_argument);
  REQUIRE(status({.keep = 0.26}) == Status::invalid_argument);
  REQUIRE(status({.value_keep = 0.6, .layers = 2}) == Status::invalid_argument);
  REQUIRE(status({.layers = 1}) == Status::invalid_argument);
  REQUIRE(status({.layers = 1, .heads = 2}) == Status::ok);
  REQUIRE(status({.heads = 2}) == Status::invalid_argument);  // 0.1875 * 8
  REQUIRE(status({.keep = 0.05, .value_keep = 0.05, .heads = 2}) == Status::ok);
  REQUIRE(status({.keep = 0.05, .value_keep = 0.05, .heads = 5}) == Status::invalid_argument);
  REQUIRE(status({.keep = 0.05, .value_keep = 0.05, .layers = 17}) == Status::invalid_argument);
  REQUIRE(status({.tile = 0}) == Status::invalid_argument);
  REQUIRE(status({.window = -1}) == Status::invalid_argument);
  REQUIRE(status({.least = -1}) == Status::invalid_argument);
  REQUIRE(status({.sinks = -1}) == Status::invalid_argument);
  REQUIRE(status({.keys = false, .values = false}) == Status::invalid_argument);
  REQUIRE(status({}, merge::MiniCache{}) == Status::incompatible);
  REQUIRE(status({}, quant::MiKV{}) == Status::incompatible);
}
