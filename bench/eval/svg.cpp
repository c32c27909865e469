#include <eval/svg.hpp>

#include <algorithm>
#include <cmath>

#include <eval/printed.hpp>
#include <eval/table.hpp>

namespace eval {
namespace {

constexpr double zero_band = 36;  ///< below the smallest decade
/// What a chart can show: 0, or something between these.
constexpr double least_error = 1e-12, most_error = 1e3, least_ratio = 1e-4;

std::string escaped(std::string_view text) {
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

/// Shapes around (0, 0), one for each colour.
constexpr const char* shapes[Svg::colours] = {"M-6,0L0,-6L6,0L0,6Z",
                                              "M-5.5,0a5.5,5.5 0 1,0 11,0a5.5,5.5 0 1,0 -11,0Z",
                                              "M-5,-5H5V5H-5Z",
                                              "M0,-6.5L6.5,5L-6.5,5Z",
                                              "M0,6.5L6.5,-5L-6.5,-5Z",
                                              "M-2,-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
                                              "M-6,-4L-4,-6L0,-2L4,-6L6,-4L2,0L6,4L4,6L0,2L-4,6L-6,4L-2,0Z",
                                              "M-7,-3H7V3H-7Z"};

constexpr const char* light[Svg::colours] = {"#222222", "#1f5fa8", "#c8501e", "#2a7d3b", "#8a4fa3", "#8a6a00", "#0e7c86", "#b0306a"};
constexpr const char* dark[Svg::colours] = {"#f0f0f0", "#74b4f5", "#ff9b6a", "#6fd08c", "#d7a1ee", "#e6c35a", "#6ed6de", "#ff8fbf"};
constexpr const char* dashes[Svg::colours] = {"", "", "7,3", "2,3", "9,3,2,3", "12,4", "4,4", "14,3,3,3"};

std::string scheme(const char* const* colours, const char* ground, const char* ink, const char* soft, const char* grid) {
  std::string s = printed(".ground{fill:%s}.ink{fill:%s}.soft{fill:%s}.grid{stroke:%s;stroke-width:1}.axis{stroke:%s;fill:none}.join{stroke:%s;stroke-width:0.8}", ground, ink,
                         soft, grid, soft, soft);
  for (int c = 0; c < Svg::colours; ++c)
    s += printed(".c%d{fill:%s}.d%d{stroke:%s;stroke-width:2;fill:none;stroke-dasharray:%s}", c, colours[c], c, colours[c], *dashes[c] ? dashes[c] : "none");
  return s;
}

}  // namespace

double text_width(std::string_view text, double font) { return font * 0.58 * static_cast<double>(text.size()); }

Svg::Svg(double width, double height, std::string_view title, std::string_view source) {
  text_ = printed(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.0f %.0f\" "
      "font-family=\"DejaVu Sans, Arial, sans-serif\" font-size=\"%.0f\" role=\"img\">\n",
      width, height, width, height, font);
  text_ += "<title>" + escaped(title) + "</title>\n<desc>" + escaped(source) + "</desc>\n";
  text_ += "<style>text{fill:#222}" + scheme(light, "#ffffff", "#222222", "#5c5c5c", "#dcdcdc") + "\n@media (prefers-color-scheme:dark){text{fill:#eee}" +
           scheme(dark, "#15171b", "#eeeeee", "#a5a5a5", "#3a3d44") + "}\ntext.on{fill:#fff}text.off{fill:#222}</style>\n";
  box({0, 0, width, height}, "ground");
  text(20, 26, std::string(title), "font-size=\"16\" font-weight=\"bold\"");
}

void Svg::text(double x, double y, const std::string& what, const char* style) {
  text_ += printed("<text x=\"%.1f\" y=\"%.1f\"%s%s>", x, y, *style ? " " : "", style) + escaped(what) + "</text>\n";
}

void Svg::upright(double x, double y, const std::string& what) {
  text_ += printed("<text transform=\"translate(%.1f,%.1f) rotate(-90)\" text-anchor=\"middle\">", x, y) + escaped(what) + "</text>\n";
}

void Svg::line(double x1, double y1, double x2, double y2, const char* kind) {
  text_ += printed("<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", kind, x1, y1, x2, y2);
}

void Svg::box(const Box& b, const char* kind, double round) {
  text_ += printed("<rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"", kind, b.x, b.y, b.width, b.height) +
           (round > 0 ? printed(" rx=\"%.1f\"", round) : std::string()) + "/>\n";
}

void Svg::mark(int colour, double x, double y, double size, double opacity) {
  text_ += printed("<path class=\"c%d\" d=\"%s\" transform=\"translate(%.1f,%.1f)", colour, shapes[colour], x, y) +
           (size != 1 ? printed(" scale(%.2f)", size) : std::string()) + "\"" + (opacity < 1 ? printed(" opacity=\"%.2f\"", opacity) : std::string()) + "/>\n";
}

void Svg::curve(int colour, const std::vector<std::pair<double, double>>& points) {
  text_ += printed("<polyline class=\"d%d\" points=\"", colour);
  for (const auto& [x, y] : points) text_ += printed("%.1f,%.1f ", x, y);
  text_ += "\"/>\n";
}

void Svg::cell(const Box& b, double value, const std::string& what) {
  // One hue from pale to deep: order is seen without colours too.
  const double v = std::clamp(std::isnan(value) ? 0.0 : value, 0.0, 1.0);
  const auto mix = [&](double pale, double deep) { return static_cast<int>(std::lround(pale + (deep - pale) * v)); };
  text_ += printed("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"#%02x%02x%02x\"/>\n", b.x, b.y, b.width, b.height, mix(242, 12), mix(238, 74),
                  mix(228, 130));
  text(b.x + b.width / 2, b.y + b.height / 2 + 4, what, v > 0.55 ? "class=\"on\" font-size=\"11\" text-anchor=\"middle\"" : "class=\"off\" font-size=\"11\" text-anchor=\"middle\"");
}

void Svg::labels(const std::vector<Label>& labels, const char* style) {
  for (const Label& l : labels)
    if (l.far) line(l.x, l.y, std::clamp(l.x, l.box.x, l.box.x + l.box.width), std::clamp(l.y, l.box.y, l.box.y + l.box.height), "join");
  for (const Label& l : labels) text(l.box.x + 2, l.box.y + font, l.text, style);
}

LogAxes::LogAxes(const Box& frame, const std::vector<double>& ratios, const std::vector<double>& errors) : frame_(frame) {
  double least = 1, most = 1, low = 0, high = 0;
  for (const double given : ratios) {
    const double ratio = std::max(given, least_ratio);
    least = std::min(least, ratio), most = std::max(most, ratio);
  }
  for (const double given : errors) {
    if (given == 0) continue;
    const double e = std::isnan(given) ? most_error : std::clamp(given, least_error, most_error);
    low = low == 0 ? e : std::min(low, e), high = std::max(high, e);
  }
  if (low == 0) low = high = 1e-3;
  x_low_ = std::floor(std::log2(least * 0.95)), x_high_ = std::max(0.25, std::log2(most) + 0.25);
  y_low_ = std::floor(std::log10(low)), y_high_ = std::ceil(std::log10(high * 1.05));
  if (y_high_ - y_low_ < 1) y_high_ = y_low_ + 1;
}

double LogAxes::x(double ratio) const { return frame_.x + frame_.width * (std::log2(std::max(ratio, least_ratio)) - x_low_) / (x_high_ - x_low_); }

double LogAxes::y(double error) const {
  const double usable = frame_.height - zero_band;
  if (error == 0) return frame_.y + frame_.height - zero_band / 2;
  const double shown = std::isnan(error) ? most_error : std::clamp(error, least_error, most_error);
  return frame_.y + usable * (y_high_ - std::log10(shown)) / (y_high_ - y_low_);
}

void LogAxes::draw(Svg& svg, const std::string& x_name, const std::string& y_name) const {
  const double bottom = frame_.y + frame_.height, right = frame_.x + frame_.width;
  for (int p = static_cast<int>(x_low_); p <= static_cast<int>(std::floor(x_high_)); ++p) {
    const double at = x(std::exp2(p));
    svg.line(at, frame_.y, at, bottom, "grid");
    svg.text(at, bottom + 20, p < 0 ? "1/" + std::to_string(1 << -p) : std::to_string(1 << p), "text-anchor=\"middle\"");
  }
  for (int p = static_cast<int>(y_low_); p <= static_cast<int>(y_high_); ++p) {
    const double at = y(std::pow(10.0, p));
    svg.line(frame_.x, at, right, at, "grid");
    svg.text(frame_.x - 8, at + 4, p >= -3 ? short_number(std::pow(10.0, p), 1) : printed("1e%d", p), "text-anchor=\"end\"");
  }
  svg.text(frame_.x - 8, y(0) + 4, "0", "text-anchor=\"end\"");
  svg.box(frame_, "axis");
  svg.text(frame_.x + frame_.width / 2, bottom + 44, x_name, "text-anchor=\"middle\"");
  svg.upright(20, frame_.y + frame_.height / 2, y_name);
}

}  // namespace eval
