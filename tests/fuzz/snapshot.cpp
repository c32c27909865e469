#include <fuzz/fuzz.hpp>

#include <array>
#include <memory>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/any/recipe_text.hpp>
#include <kvcondense/cpu.hpp>
#include <support/byte_list.hpp>
#include <support/cache_model.hpp>
#include <support/model_facts.hpp>

namespace kvcondense::fuzz {
namespace {

// First byte: the recipe and whether the checksum is mended. The rest: a file.
constexpr std::array recipes = {"h2o(heavy=6, recent=6) + kivi(bits=2, group_size=8, residual_window=8)",
                                "ada(snapkv(tokens=12, window=4)) + group_int(bits=4, group_size=16) + rerotate",
                                "keep_all + quest(page=4, tokens=8)",
                                "h2o(heavy=6, recent=6) + d2o",
                                "compensate(sink_window(sinks=2, recent=6)) + pca(keep=50%, value_keep=50%, window=4)",
                                "rkv(tokens=12, window=4, slack=4) + zipcache(salient=50%, block=8)"};
const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16};

using Model = test::CacheModel<any::AnyRecipe>;

/// `empty`: what it held before the first token.
std::unique_ptr<Model> filled(std::size_t recipe, index_t tokens, std::size_t* empty = nullptr) {
  static const test::RandomModel model(shape);
  const any::ParseResult parsed = any::parse(recipes[recipe], model.facts());
  REQUIRE(static_cast<bool>(parsed));
  auto m = std::make_unique<Model>(shape, parsed->stages, 3, 100.0, 1.0);
  if (empty != nullptr) *empty = m->memory().live_bytes;
  m->forward(tokens), m->forward(1);
  return m;
}

Input saved(const Cache<Cpu, any::AnyRecipe>& cache) {
  test::ByteList file;
  REQUIRE(save(cache, file) == Status::ok);
  return file.bytes;
}

void run(Bytes bytes) {
  if (bytes.empty()) return;
  const auto choice = static_cast<std::size_t>(bytes[0]);
  Input file(bytes.begin() + 1, bytes.end());
  if (choice % 2 == 1 && file.size() >= 8) {
    Checksum sum;
    sum.add(std::span(file).first(file.size() - 8));
    const std::uint64_t s = sum.value();
    std::memcpy(file.data() + file.size() - 8, &s, 8);
  }
  std::size_t empty = 0;
  const auto own = filled(choice / 2 % recipes.size(), 20, &empty);
  Model& m = *own;
  const Input before = saved(m.cache());
  m.memory().peak_bytes = m.memory().live_bytes;
  const std::size_t held = m.memory().live_bytes;
  const Status status = load(m.cache(), file);
  REQUIRE(m.memory().peak_bytes - held < empty + 16 * file.size() + 16384);  // an empty cache, and no more than the file can justify
  if (status != Status::ok) {
    REQUIRE((status == Status::corrupt_data || status == Status::incompatible));
    REQUIRE(saved(m.cache()) == before);
    REQUIRE(m.memory().live_bytes == held);
    return;
  }
  // What was taken can be used.
  REQUIRE(m.cache().report().bytes() == m.memory().live_bytes);
  Workspace work;
  REQUIRE(work.reserve(m.cache().workspace_bytes(4096, 8)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  std::mt19937 random(5);
  const test::Tokens t(shape, 1, random);
  std::vector<float> out(static_cast<std::size_t>(shape.q_heads * shape.head_dim));
  for (index_t l = 0; l < shape.layers; ++l) {
    const test::StepData data(shape, m.cache().pending(l) + 1, random);
    static_cast<void>(m.cache().forward(ctx, l, t.queries(shape), t.keys(shape), t.values(shape),
                                        dense_view(out.data(), shape.q_heads, 1, shape.head_dim), {}, Phase::automatic, data.inputs()));
  }
  static_cast<void>(saved(m.cache()));
  static_cast<void>(m.cache().truncate(m.cache().length() / 2));
}

std::vector<Input> seeds() {
  std::vector<Input> list;
  for (std::size_t r = 0; r < recipes.size(); ++r)
    for (const std::size_t mend : {0u, 1u}) {
      Input one{static_cast<std::byte>(2 * r + mend)};
      const Input file = saved(filled(r, r % 2 == 0 ? 9 : 17)->cache());
      one.insert(one.end(), file.begin(), file.end());
      list.push_back(one);
    }
  return list;
}

}  // namespace

const Target snapshot{"snapshot", run, seeds};

}  // namespace kvcondense::fuzz
