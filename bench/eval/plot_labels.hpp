#pragma once

#include <string>
#include <vector>

namespace eval {

struct Box {
  double x = 0, y = 0, width = 0, height = 0;
};

/// One point of a chart and where its label went.
struct Label {
  std::string text;
  double x = 0, y = 0;  ///< the point
  Box box{};            ///< the label
  bool far = false;     ///< so far from the point that a line should join them
};

/// Places the labels near their points, off other labels and points, inside `frame`. In order:
/// earlier labels keep their place.
void place_labels(std::vector<Label>& labels, const Box& frame, double font_size);

}  // namespace eval
