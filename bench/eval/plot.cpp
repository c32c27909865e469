#include <eval/plot.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>

#include <eval/plot_labels.hpp>
#include <eval/table.hpp>

namespace eval {
namespace {

constexpr double width = 960, height = 640, font = 13;
constexpr Box frame{80, 56, width - 110, height - 130};
constexpr double zero_band = 36;  ///< below the smallest decade, for what is exactly 0

template <class... T>
std::string format(const char* how, T... values) {
  char buffer[512];
  std::snprintf(buffer, sizeof buffer, how, values...);
  return buffer;
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '&')
      out += "&amp;";
    else if (c == '"')
      out += "&quot;";
    else
      out += c >= ' ' && c <= '~' ? c : '?';
  }
  return out;
}

std::string text_at(double x, double y, const char* style, const std::string& text) {
  return format("<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, style) + escaped(text) + "</text>\n";
}

/// Log axes that hold all points: memory to the right in halvings, error upwards in decades.
struct Axes {
  double x_low, x_high;  ///< powers of two
  double y_low, y_high;  ///< powers of ten

  double x(double ratio) const {
    return frame.x + frame.width * (std::log2(ratio) - x_low) / (x_high - x_low);
  }
  double y(double error) const {
    const double usable = frame.height - zero_band;
    if (error == 0) return frame.y + frame.height - zero_band / 2;
    return frame.y + usable * (y_high - std::log10(error)) / (y_high - y_low);
  }
};

/// What a chart can show: 0, or something between these; what is no number stands with the largest.
constexpr double least_error = 1e-12, most_error = 1e3;

double error_of(const Results& results, const RecipeResult& r) {
  const double e = results.setting.has_text() ? r.text.mean_kl() : r.mean_error();
  if (e == 0) return 0;
  return std::isnan(e) ? most_error : std::clamp(e, least_error, most_error);
}

Axes make_axes(const Results& results) {
  double least = 1, most = 1, low = 0, high = 0;
  for (const RecipeResult& r : results.recipes) {
    const double ratio = std::max(r.report.ratio(), 1e-4), e = error_of(results, r);
    least = std::min(least, ratio);
    most = std::max(most, ratio);
    if (e == 0) continue;
    low = low == 0 ? e : std::min(low, e);
    high = std::max(high, e);
  }
  if (low == 0) low = high = 1e-3;
  Axes a{std::floor(std::log2(least * 0.95)), std::max(0.25, std::log2(most) + 0.25),
         std::floor(std::log10(low)), std::ceil(std::log10(high * 1.05))};
  if (a.y_high - a.y_low < 1) a.y_high = a.y_low + 1;
  return a;
}

std::string ticks(const Axes& a) {
  std::string s;
  const double bottom = frame.y + frame.height, right = frame.x + frame.width;
  for (int p = static_cast<int>(a.x_low); p <= static_cast<int>(std::floor(a.x_high)); ++p) {
    const double x = a.x(std::exp2(p));
    s += format("<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", x,
                frame.y, x, bottom);
    s += text_at(x, bottom + 20, "text-anchor=\"middle\"",
                 p < 0 ? "1/" + std::to_string(1 << -p) : std::to_string(1 << p));
  }
  for (int p = static_cast<int>(a.y_low); p <= static_cast<int>(a.y_high); ++p) {
    const double y = a.y(std::pow(10.0, p));
    s += format("<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", frame.x,
                y, right, y);
    s += text_at(frame.x - 8, y + 4, "text-anchor=\"end\"",
                 p >= -3 ? short_number(std::pow(10.0, p), 1) : format("1e%d", p));
  }
  s += text_at(frame.x - 8, a.y(0) + 4, "text-anchor=\"end\"", "0");
  return s;
}

/// What a recipe does to the cache decides shape and colour of its point.
struct Kind {
  const char* name;
  const char* colour;
  const char* shape;  ///< an SVG path around (0, 0)
};

constexpr Kind kinds[] = {
    {"keeps everything", "#222222", "M-6,0L0,-6L6,0L0,6Z"},
    {"drops tokens", "#1f5fa8", "M-5.5,0a5.5,5.5 0 1,0 11,0a5.5,5.5 0 1,0 -11,0Z"},
    {"stores fewer bits", "#c8501e", "M-5,-5H5V5H-5Z"},
    {"both", "#2a7d3b", "M0,-6.5L6.5,5L-6.5,5Z"}};

const Kind& kind_of(const RecipeResult& r) {
  return kinds[(r.drops_tokens ? 1 : 0) + (r.codes_numbers ? 2 : 0)];
}

std::string mark(const Kind& k, double x, double y) {
  return format("<path d=\"%s\" fill=\"%s\" transform=\"translate(%.1f,%.1f)\"/>\n", k.shape,
                k.colour, x, y);
}

std::string kind_legend() {
  std::string s;
  double x = frame.x;
  for (const Kind& k : kinds) {
    s += mark(k, x + 6, 38) + text_at(x + 18, 42, "", k.name);
    x += 42 + 7.2 * static_cast<double>(std::string(k.name).size());
  }
  return s;
}

/// Short labels, except where two recipes would share one.
std::vector<Label> labels_of(const Results& results, const Axes& a) {
  std::map<std::string, int> times;
  for (const RecipeResult& r : results.recipes) ++times[short_recipe(r.recipe)];
  std::vector<Label> labels;
  for (const RecipeResult& r : results.recipes) {
    const std::string brief = short_recipe(r.recipe);
    labels.push_back({times[brief] > 1 ? r.recipe : brief, a.x(std::max(r.report.ratio(), 1e-4)),
                      a.y(error_of(results, r))});
  }
  place_labels(labels, frame, font);
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
    while (!out.empty() && out.back() != '(' && out.back() != ',')
      out.pop_back();  // the field's name
    while (i + 1 < recipe.size() && recipe[i + 1] != ',' && recipe[i + 1] != ')') ++i;
    if (i + 1 < recipe.size() && recipe[i + 1] == ',' && (out.empty() || out.back() == '(')) ++i;
    while (i + 1 < recipe.size() && out.ends_with('(') && recipe[i + 1] == ' ') ++i;
    if (out.ends_with(',')) out.pop_back();
  }
  for (std::size_t at; (at = out.find("()")) != std::string::npos;) out.erase(at, 2);
  return out;
}

std::string plot_svg(const Results& results) {
  const Axes axes = make_axes(results);
  const std::vector<Label> labels = labels_of(results, axes);
  const bool text = results.setting.has_text();
  std::string s = format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.0f "
      "%.0f\" "
      "font-family=\"DejaVu Sans, Arial, sans-serif\" font-size=\"%.0f\">\n",
      width, height, width, height, font);
  s += "<desc>" + escaped(results.setting.command) + "</desc>\n";
  s += "<style>.grid{stroke:#d8d8d8;stroke-width:1}.axis{stroke:#444;fill:none}.join{stroke:#999;"
       "stroke-width:0.8}</style>\n";
  s += format("<rect width=\"%.0f\" height=\"%.0f\" fill=\"#ffffff\"/>\n", width, height);
  s += text_at(frame.x, 22, "font-size=\"15\" font-weight=\"bold\"",
               "What each recipe keeps and what it costs");
  s += kind_legend() + ticks(axes);
  s += format("<rect class=\"axis\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>\n",
              frame.x, frame.y, frame.width, frame.height);
  s += text_at(frame.x + frame.width / 2, height - 30, "text-anchor=\"middle\"",
               "memory of the cache, as a part of all keys and values in 16 bits");
  s += format("<text transform=\"translate(20,%.1f) rotate(-90)\" text-anchor=\"middle\">",
              frame.y + frame.height / 2) +
       (text ? "KL divergence from the full cache, nats" : "relative error of attention") +
       "</text>\n";
  for (const Label& l : labels)
    if (l.far)
      s += format("<line class=\"join\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", l.x,
                  l.y, std::clamp(l.x, l.box.x, l.box.x + l.box.width),
                  std::clamp(l.y, l.box.y, l.box.y + l.box.height));
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const Label& l = labels[i];
    s += mark(kind_of(results.recipes[i]), l.x, l.y);
    s += text_at(l.box.x + 2, l.box.y + font, "", l.text);
  }
  return s + "</svg>\n";
}

}  // namespace eval
