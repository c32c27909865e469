#include <stateful/program.hpp>

#include <array>
#include <sstream>

#include <kvcondense/any/any_recipe.hpp>
#include <kvcondense/any/builtin.hpp>
#include <kvcondense/any/recipe_text.hpp>
#include <support/catalogue.hpp>
#include <support/model_facts.hpp>

namespace kvcondense::test {
namespace {

/// Shapes that differ in what code looks at: the ratio of heads, odd ones among them, sizes of values, pages, types.
const std::array<CacheShape, 5> shapes = {{
    {.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16},
    {.layers = 1, .q_heads = 7, .kv_heads = 1, .head_dim = 64, .page_slots = 64},
    {.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 32, .value_dim = 64, .page_slots = 32},
    {.layers = 2, .q_heads = 16, .kv_heads = 1, .head_dim = 32, .dtype = DType::bf16, .page_slots = 16},
    {.layers = 3, .q_heads = 5, .kv_heads = 1, .head_dim = 96, .page_slots = 64},
}};

const any::ModelFacts& facts(std::size_t shape) {
  static const std::array<RandomModel, shapes.size()> models = {RandomModel(shapes[0]), RandomModel(shapes[1]), RandomModel(shapes[2]),
                                                                RandomModel(shapes[3]), RandomModel(shapes[4])};
  return models[shape].facts();
}

std::vector<const any::Entry*> words(Stage room, bool wrappers) {
  std::vector<const any::Entry*> list;
  for (const any::Entry* e : any::builtin().entries())
    if (e->room == room && (e->wraps && room != Stage::quant) == wrappers && settings.count(std::string(e->word)) > 0) list.push_back(e);
  return list;
}

bool runs(const Program& p) {
  const any::ParseResult parsed = any::parse(p.recipe(), facts(p.shape));
  return parsed && make_cache<Cpu>(shapes[p.shape], parsed->stages).status() == Status::ok;
}

Program draw_recipe(std::mt19937& random) {
  const auto one_of = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random); };
  const auto chance = [&](int percent) { return one_of(100) < static_cast<std::size_t>(percent); };
  Program p;
  p.shape = one_of(shapes.size());
  p.seed = static_cast<std::uint32_t>(random());
  p.most_error = shapes[p.shape].dtype == DType::bf16 ? 0.02 : 0.004;
  const auto add = [&](Stage room) {
    const auto list = words(room, false);
    const Setting& setting = settings.at(std::string(list[one_of(list.size())]->word));
    p.stages.push_back(setting.text);
    p.most_error = std::max(p.most_error, 2 * setting.most_error);
    p.attend_error = std::max(p.attend_error, setting.attend_error);
  };
  if (chance(80)) {
    add(Stage::evict);
    const auto list = words(Stage::evict, true);
    if (chance(30)) {
      std::string text = settings.at(std::string(list[one_of(list.size())]->word)).text;
      p.stages.back() = text.replace(text.find("POLICY"), 6, p.stages.back());
    }
  }
  if (chance(25)) add(Stage::merge);
  if (chance(20)) add(Stage::lowrank), p.most_error = std::max(p.most_error, 20.0);
  if (chance(60)) add(Stage::quant);
  if (chance(40)) add(Stage::position);
  if (chance(30)) add(Stage::retrieve);
  return p;
}

}  // namespace

std::string Program::recipe() const {
  std::string text;
  for (const std::string& stage : stages) text += (text.empty() ? "" : " + ") + stage;
  return text.empty() ? "keep_all" : text;
}

Program random_program(std::mt19937& random) {
  Program p = draw_recipe(random);
  while (!runs(p)) p = draw_recipe(random);
  const int calls = std::uniform_int_distribution<int>(8, 48)(random);
  for (int i = 0; i < calls; ++i) p.calls.push_back(Call::random(random));
  return p;
}

std::optional<std::string> broken(const Program& p) {
  if (!runs(p)) return std::nullopt;
  const any::ParseResult parsed = any::parse(p.recipe(), facts(p.shape));
  std::optional<CacheModel<any::AnyRecipe>> model;
  try {
    model.emplace(shapes[p.shape], parsed->stages, p.seed, p.most_error, p.attend_error);
    for (const Call& call : p.calls) run(*model, call);
  } catch (const Broken& b) {
    return std::string(b.what()) + "\n  after" + (model ? model->calls() : " nothing");
  }
  return std::nullopt;
}

std::string described(const Program& p) {
  const CacheShape& s = shapes[p.shape];
  std::ostringstream out;
  out << "  recipe " << p.recipe() << "\n  " << s.layers << " layers, heads " << s.q_heads << "/" << s.kv_heads << " of " << s.head_dim
      << ", numbers from " << p.seed << ", calls";
  for (const Call& c : p.calls) out << " {" << int{c.kind} << "," << c.a << "," << c.b << "}";
  return out.str();
}

}  // namespace kvcondense::test
