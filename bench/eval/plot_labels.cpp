#include <eval/plot_labels.hpp>

#include <algorithm>
#include <cmath>

namespace eval {
namespace {

constexpr double point_radius = 7;

double overlap(const Box& a, const Box& b) {
  const double w = std::min(a.x + a.width, b.x + b.width) - std::max(a.x, b.x);
  const double h = std::min(a.y + a.height, b.y + b.height) - std::max(a.y, b.y);
  return w > 0 && h > 0 ? w * h : 0;
}

Box around(double x, double y, double r) { return {x - r, y - r, 2 * r, 2 * r}; }

/// Where a label of this size stands when its near edge is `distance` from the point, at `angle`.
Box beside(const Label& l, double width, double height, double angle, double distance) {
  const double dx = std::cos(angle), dy = std::sin(angle);
  const double x = l.x + dx * distance, y = l.y + dy * distance;
  // The side of the box that faces the point follows the angle: left edge to the right of it, and
  // so on.
  return {x - width * (1 - dx) / 2, y - height * (1 - dy) / 2, width, height};
}

}  // namespace

void place_labels(std::vector<Label>& labels, const Box& frame, double font_size) {
  for (std::size_t i = 0; i < labels.size(); ++i) {
    Label& l = labels[i];
    const double width = font_size * 0.58 * static_cast<double>(l.text.size()) + 4;
    double least = -1;
    for (const double distance : {10.0, 18.0, 30.0, 46.0, 66.0, 90.0}) {
      for (int turn = 0; turn < 16; ++turn) {
        const double angle = turn * std::acos(-1.0) / 8;
        const Box box = beside(l, width, font_size * 1.25, angle, distance);
        double cost = distance + (turn == 0 ? 0 : 2);
        cost += 4 * (box.width * box.height - overlap(box, frame));
        for (std::size_t j = 0; j < labels.size(); ++j) {
          if (j < i) cost += 4 * overlap(box, labels[j].box);
          cost += 4 * overlap(box, around(labels[j].x, labels[j].y, point_radius));
        }
        if (least < 0 || cost < least) {
          least = cost;
          l.box = box;
          l.far = distance > 12;
        }
      }
    }
  }
}

}  // namespace eval
