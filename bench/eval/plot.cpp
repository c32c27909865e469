#include <eval/plot.hpp>

#include <map>

#include <eval/svg.hpp>

namespace eval {
namespace {

constexpr double width = 960, height = 640;
constexpr Box frame{80, 56, width - 110, height - 130};

double error_of(const Results& results, const RecipeResult& r) { return results.setting.has_text() ? r.text.mean_kl() : r.mean_error(); }

/// What a recipe does to the cache decides shape and colour of its point.
constexpr const char* kinds[] = {"keeps everything", "drops tokens", "stores fewer bits", "both"};

int kind_of(const RecipeResult& r) { return (r.drops_tokens ? 1 : 0) + (r.codes_numbers ? 2 : 0); }

/// Short labels, except where two recipes would share one.
std::vector<Label> labels_of(const Results& results, const LogAxes& axes) {
  std::map<std::string, int> times;
  for (const RecipeResult& r : results.recipes) ++times[short_recipe(r.recipe)];
  std::vector<Label> labels;
  for (const RecipeResult& r : results.recipes) {
    const std::string brief = short_recipe(r.recipe);
    labels.push_back({times[brief] > 1 ? r.recipe : brief, axes.x(r.report.ratio()), axes.y(error_of(results, r))});
  }
  place_labels(labels, frame, Svg::font);
  return labels;
}

}  // namespace

std::string short_recipe(const std::string& recipe) {
  std::string out;
  for (std::size_t i = 0; i < recipe.size(); ++i) {
    if (recipe[i] != '=') {
      out += recipe[i];
      continue;
    }
    std::string field;
    while (!out.empty() && out.back() != '(' && out.back() != ',') field.insert(field.begin(), out.back()), out.pop_back();
    if (field.starts_with(' ')) field.erase(0, 1), out += out.ends_with(',') ? " " : "";
    if (field == "bits" || field == "format") continue;  // its value says which one it is
    if (out.ends_with(' ')) out.pop_back();
    while (i + 1 < recipe.size() && recipe[i + 1] != ',' && recipe[i + 1] != ')') ++i;
    if (i + 1 < recipe.size() && recipe[i + 1] == ',' && (out.empty() || out.back() == '(')) ++i;
    while (i + 1 < recipe.size() && out.ends_with('(') && recipe[i + 1] == ' ') ++i;
    if (out.ends_with(',')) out.pop_back();
  }
  for (std::size_t at; (at = out.find("()")) != std::string::npos;) out.erase(at, 2);
  return out;
}

std::string plot_svg(const Results& results) {
  std::vector<double> ratios, errors;
  for (const RecipeResult& r : results.recipes) ratios.push_back(r.report.ratio()), errors.push_back(error_of(results, r));
  const LogAxes axes(frame, ratios, errors);
  const std::vector<Label> labels = labels_of(results, axes);
  Svg svg(width, height, "What each recipe keeps and what it costs", results.setting.command);
  double x = frame.x;
  for (int k = 0; k < 4; ++k) {
    svg.mark(k, x + 6, 42);
    svg.text(x + 18, 46, kinds[k]);
    x += 42 + text_width(kinds[k]);
  }
  axes.draw(svg, "memory of the cache, as a part of all keys and values in 16 bits",
            results.setting.has_text() ? "KL divergence from the full cache, nats" : "relative error of attention");
  for (std::size_t i = 0; i < labels.size(); ++i) svg.mark(kind_of(results.recipes[i]), labels[i].x, labels[i].y);
  svg.labels(labels);
  return svg.done();
}

}  // namespace eval
