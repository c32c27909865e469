#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <eval/plot_labels.hpp>

namespace eval {

/// A picture as text: plain SVG that follows the reader's light or dark scheme. Colours are classes: "ink", "soft", "grid",
/// "axis", "join", and for what is compared "c0" to "c7", which people who see few colours tell apart; "d0" to "d7" draw lines.
class Svg {
 public:
  static constexpr double font = 13;
  static constexpr int colours = 8;

  /// `source` stands in the file, not in the picture.
  Svg(double width, double height, std::string_view title, std::string_view source);

  /// `style`: attributes ("text-anchor=\"end\"").
  void text(double x, double y, const std::string& text, const char* style = "");
  void upright(double x, double y, const std::string& text);  ///< turned, around its middle
  void line(double x1, double y1, double x2, double y2, const char* kind);
  void box(const Box& b, const char* kind, double round = 0);
  /// Of what is compared: an own shape for each colour.
  void mark(int colour, double x, double y, double size = 1, double opacity = 1);
  void curve(int colour, const std::vector<std::pair<double, double>>& points);
  /// A cell between 0 and 1 with its number in it.
  void cell(const Box& b, double value, const std::string& text);
  /// Labels that were placed, with lines to their points where they stand far off.
  void labels(const std::vector<Label>& labels, const char* style = "");

  std::string done() const { return text_ + "</svg>\n"; }

 private:
  std::string text_;
};

/// How wide letters are, about.
double text_width(std::string_view text, double font = Svg::font);

/// Log axes: memory to the right in halvings, error upwards in decades, and a band below for what is exactly 0.
class LogAxes {
 public:
  /// `ratios` and `errors` belong together; what is no number stands with the largest.
  LogAxes(const Box& frame, const std::vector<double>& ratios, const std::vector<double>& errors);

  double x(double ratio) const;
  double y(double error) const;
  /// Lines, numbers and names.
  void draw(Svg& svg, const std::string& x_name, const std::string& y_name) const;

 private:
  Box frame_;
  double x_low_, x_high_;  ///< powers of two
  double y_low_, y_high_;  ///< powers of ten
};

}  // namespace eval
