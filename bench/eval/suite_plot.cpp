#include <eval/suite_plot.hpp>

#include <algorithm>
#include <cmath>
#include <map>

#include <eval/plot.hpp>
#include <eval/printed.hpp>
#include <eval/suite_rank.hpp>
#include <eval/svg.hpp>

namespace eval {
namespace {

constexpr double row_height = 22, name_width = 330;
constexpr std::size_t most_rows = 24, most_letters = 42;

std::string name_of(const SuiteRow& row) {
  std::string name = short_recipe(row.result.recipe);
  if (row.share > 0) name += printed(" %g %%", row.share);
  return name.size() <= most_letters ? name : name.substr(0, most_letters - 3) + "...";
}

/// What several stages do together is one curve.
std::string curve_of(const SuiteRow& row) { return row.family.find('+') == std::string::npos ? row.family : "combined"; }

std::string memory_picture(const SuiteResults& results) {
  constexpr double width = 1000, height = 680;
  constexpr Box frame{80, 62, width - 110, height - 136};
  std::map<std::string, Rows> families;
  Rows all;
  std::vector<double> ratios, errors;
  for (const SuiteRow& row : results.rows) {
    if (!has_error(results, row)) continue;
    ratios.push_back(row.result.report.ratio()), errors.push_back(error_of(results, row));
    if (&row == &results.rows[0]) continue;
    families[curve_of(row)].push_back(&row), all.push_back(&row);
  }
  const LogAxes axes(frame, ratios, errors);
  Svg svg(width, height, results.has_model() ? "What memory buys: how far predictions move" : "What memory buys: the error of attention", results.setting.command);
  axes.draw(svg, "memory of the cache, as a part of all keys and values in 16 bits",
            results.has_model() ? "KL divergence from the full cache, nats" : "relative error of attention");
  svg.text(20, 48, "a point per recipe, a line along the best of each family; the nearer to the lower left the better", "class=\"soft\" font-size=\"12\"");
  const auto place = [&](const SuiteRow& r) { return std::pair(axes.x(r.result.report.ratio()), axes.y(error_of(results, r))); };
  const Loss loss = [&](const SuiteRow& r) { return error_of(results, r); };
  std::vector<Label> names;
  int colour = 0;
  double key = frame.x + 12;
  for (const auto& [family, rows] : families) {
    colour = colour % (Svg::colours - 1) + 1;
    const Rows front = front_of(rows, loss);
    std::vector<std::pair<double, double>> points;
    for (const SuiteRow* r : front) points.push_back(place(*r));
    if (points.size() > 1) svg.curve(colour, points);
    for (const SuiteRow* r : rows) {
      const bool best = std::find(front.begin(), front.end(), r) != front.end();
      const auto [x, y] = place(*r);
      svg.mark(colour, x, y, best ? 1 : 0.6, best ? 1 : 0.45);
    }
    svg.mark(colour, key, frame.y + frame.height + 64);
    svg.text(key + 12, frame.y + frame.height + 68, family);
    key += 44 + text_width(family);
  }
  if (has_error(results, results.rows[0])) {
    const auto [x, y] = place(results.rows[0]);
    svg.mark(0, x, y);
    names.push_back({"full cache", x, y});
  }
  // The best of all, as many as there is room for: the smallest, the largest and what lies between at equal steps.
  const Rows best = front_of(all, loss);
  const std::size_t labelled = std::min<std::size_t>(best.size(), 10);
  for (std::size_t i = 0; i < labelled; ++i) {
    const SuiteRow& r = *best[labelled == 1 ? 0 : i * (best.size() - 1) / (labelled - 1)];
    const auto [x, y] = place(r);
    names.push_back({short_recipe(r.result.recipe), x, y});
  }
  place_labels(names, frame, Svg::font);
  svg.labels(names);
  return svg.done();
}

/// The full cache, and of each share the recipes whose predictions moved least, no method twice, as many as fit.
Rows chosen(const SuiteResults& results) {
  Rows rows;
  if (results.rows.size() <= most_rows) {
    for (const SuiteRow& r : results.rows) rows.push_back(&r);
    return rows;
  }
  std::map<double, Rows, std::greater<>> by_share;
  for (std::size_t i = 1; i < results.rows.size(); ++i)
    if (has_error(results, results.rows[i])) by_share[results.rows[i].share].push_back(&results.rows[i]);
  rows.push_back(&results.rows[0]);
  const std::size_t each = (most_rows - 1) / std::max<std::size_t>(by_share.size(), 1);
  for (auto& [share, some] : by_share) {
    std::stable_sort(some.begin(), some.end(), [&](const SuiteRow* a, const SuiteRow* b) { return error_of(results, *a) < error_of(results, *b); });
    std::vector<std::string> seen;
    for (const SuiteRow* r : some) {
      const std::string word = r->line.substr(0, r->line.find('('));
      if (seen.size() == each || std::find(seen.begin(), seen.end(), word) != seen.end()) continue;
      seen.push_back(word), rows.push_back(r);
    }
  }
  return rows;
}

void row_names(Svg& svg, const Rows& rows, double top) {
  for (std::size_t i = 0; i < rows.size(); ++i)
    svg.text(name_width - 10, top + row_height * (static_cast<double>(i) + 0.5) + 4, name_of(*rows[i]), "text-anchor=\"end\" font-size=\"12\"");
}

constexpr const char* which_rows = "of each share of memory the recipes whose predictions moved least";

std::string depth_picture(const SuiteResults& results) {
  const Rows rows = chosen(results);
  const std::size_t depths = static_cast<std::size_t>(results.request.depths);
  const double cell_width = std::max(34.0, 150.0 / static_cast<double>(depths)), gap = 26, top = 96;
  const double panel = cell_width * static_cast<double>(depths);
  const double width = name_width + (panel + gap) * static_cast<double>(results.lengths.size()) + 10;
  const double height = top + row_height * static_cast<double>(rows.size()) + 50;
  Svg svg(width, height, "Recall by depth: values found, percent", results.setting.command);
  svg.text(20, 48, std::string("one value in a document that was condensed before the question; ") + (rows.size() < results.rows.size() ? which_rows : "all recipes"),
           "class=\"soft\" font-size=\"12\"");
  row_names(svg, rows, top);
  for (std::size_t l = 0; l < results.lengths.size(); ++l) {
    const double left = name_width + (panel + gap) * static_cast<double>(l), bottom = top + row_height * static_cast<double>(rows.size());
    svg.text(left + panel / 2, top - 26, std::to_string(results.lengths[l]) + " tokens", "text-anchor=\"middle\" font-weight=\"bold\"");
    svg.text(left, top - 8, "oldest", "class=\"soft\" font-size=\"11\"");
    svg.text(left + panel, top - 8, "newest", "class=\"soft\" font-size=\"11\" text-anchor=\"end\"");
    for (std::size_t i = 0; i < rows.size(); ++i)
      for (std::size_t d = 0; d < depths; ++d) {
        const auto& cells = rows[i]->needles.cells;  // none where the recipe could not be asked
        const Counts c = l < cells.size() ? cells[l][d] : Counts{};
        const Box b{left + cell_width * static_cast<double>(d) + 1, top + row_height * static_cast<double>(i) + 1, cell_width - 2, row_height - 2};
        if (c.asked > 0) svg.cell(b, c.share(), printed("%.0f", 100 * c.share()));
        else svg.text(b.x + b.width / 2, b.y + b.height / 2 + 4, "-", "text-anchor=\"middle\"");
      }
    svg.text(left + panel / 2, bottom + 22, "depth of the value", "class=\"soft\" font-size=\"11\" text-anchor=\"middle\"");
  }
  return svg.done();
}

/// Bars of one number, each with it at its end.
void bars(Svg& svg, const Rows& rows, Box area, int colour, const std::string& name, double (*of)(const SuiteRow&), const char* format) {
  double most = 0;
  for (const SuiteRow* r : rows) most = std::max(most, of(*r));
  svg.text(area.x, area.y - 12, name, "font-weight=\"bold\"");
  svg.line(area.x, area.y, area.x, area.y + area.height, "grid");
  const std::string kind = "c" + std::to_string(colour);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const double value = of(*rows[i]), y = area.y + row_height * static_cast<double>(i);
    const double length = most > 0 ? (area.width - 60) * value / most : 0;
    if (value > 0) svg.box({area.x, y + 4, length, row_height - 8}, i == 0 ? "c0" : kind.c_str(), 2);
    svg.text(area.x + length + 6, y + row_height / 2 + 4, value > 0 ? printed(format, value) : "-", "font-size=\"12\"");
  }
}

std::string cost_picture(const SuiteResults& results) {
  const Rows rows = chosen(results);
  const bool timed = results.rows[0].result.speed.tokens_per_second > 0;
  const double top = 92, panel = 300, gap = 30, height = top + row_height * static_cast<double>(rows.size()) + 24;
  Svg svg(name_width + panel + (timed ? gap + panel : 0) + 16, height, timed ? "What each recipe takes: memory and time" : "What each recipe takes: memory", results.setting.command);
  svg.text(20, 48, rows.size() < results.rows.size() ? which_rows : "all recipes; shorter is better", "class=\"soft\" font-size=\"12\"");
  row_names(svg, rows, top);
  const double tall = row_height * static_cast<double>(rows.size());
  bars(svg, rows, {name_width, top, panel, tall}, 1, "bytes per token of context", [](const SuiteRow& r) { return r.result.bytes_per_token(); }, "%.0f");
  if (timed)
    bars(svg, rows, {name_width + panel + gap, top, panel, tall}, 2, "milliseconds per generated token",
         [](const SuiteRow& r) { return r.result.speed.tokens_per_second > 0 ? 1000 / r.result.speed.tokens_per_second : 0; }, "%.2f");
  return svg.done();
}

}  // namespace

std::vector<Picture> suite_pictures(const SuiteResults& results) {
  std::vector<Picture> all{{"suite-memory.svg", memory_picture(results)}};
  if (!results.lengths.empty()) all.push_back({"suite-depth.svg", depth_picture(results)});
  all.push_back({"suite-cost.svg", cost_picture(results)});
  return all;
}

}  // namespace eval
