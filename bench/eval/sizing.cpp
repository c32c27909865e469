#include <eval/sizing.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include <engine/json_text.hpp>
#include <eval/error.hpp>
#include <eval/recipes.hpp>

namespace eval {
namespace {

/// Nearer to its target than this a setting is near enough: a token of a budget of 200.
constexpr double near_enough = 0.005;

bool whole(std::string_view text, index_t& value) {
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && stop == text.data() + text.size();
}

/// "{tokens/2-4}" for a number of tokens; false: no such expression.
bool evaluated(std::string_view expression, index_t tokens, index_t context, std::string& out) {
  if (expression == "part") {
    char buffer[32];
    std::snprintf(buffer, sizeof buffer, "%.6f", static_cast<double>(tokens) / static_cast<double>(context));
    out = buffer;
    return true;
  }
  constexpr std::string_view name = "tokens";
  if (!expression.starts_with(name)) return false;
  index_t value = tokens;
  for (std::size_t at = name.size(); at < expression.size();) {
    const char sign = expression[at++];
    const std::size_t end = std::min(expression.find_first_of("+-*/", at), expression.size());
    index_t by = 0;
    if (!whole(expression.substr(at, end - at), by) || by < 0 || by > (1 << 28) || (sign == '/' && by == 0)) return false;
    if (sign == '+') value += by;
    else if (sign == '-') value -= by;
    else if (sign == '*') value *= by;
    else if (sign == '/') value /= by;
    else return false;
    at = end;
  }
  out = std::to_string(std::max<index_t>(value, 0));
  return true;
}

/// "{2|4|8}" or "{8..64:8}"; empty: no list.
std::vector<std::string> listed(const std::string& inside) {
  std::vector<std::string> all;
  if (const std::size_t dots = inside.find(".."); dots != std::string::npos) {
    const std::size_t colon = inside.find(':', dots);
    index_t first = 0, last = 0, by = 1;
    const std::string_view view = inside;
    if (!whole(view.substr(0, dots), first) || !whole(view.substr(dots + 2, std::min(colon, inside.size()) - dots - 2), last)) return {};
    if (colon != std::string::npos && !whole(view.substr(colon + 1), by)) return {};
    if (by < 1 || first > last || (last - first) / by > 4096) return {};
    for (index_t i = first; i <= last; i += by) all.push_back(std::to_string(i));
    return all;
  }
  if (inside.find('|') == std::string::npos) return {};
  for (std::size_t at = 0; at <= inside.size();) {
    const std::size_t end = std::min(inside.find('|', at), inside.size());
    all.push_back(inside.substr(at, end - at));
    at = end + 1;
  }
  return all;
}

std::string number(double x) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, x < 100 ? "%.1f" : "%.0f", x);
  return buffer;
}

}  // namespace

double bytes_at_end(const RecipeSpec& recipe, const Stage& stage, const ModelTask* task, const std::vector<std::vector<float>>& logits) {
  const auto per_token = [](const Session& session) {
    const kvcondense::Report r = session.cache().report();
    return static_cast<double>(r.bytes()) / static_cast<double>(r.tokens);
  };
  TextSums ignored;
  if (!replays(recipe)) return per_token(*run_window(*task, recipe, 0, logits[0], ignored, [](double) {}));
  Session session = make_session(recipe, stage.recording().shape);
  (void)Replay(stage.rows_for(recipe), session, stage.raw()).run(stage.feeding(), [](double) {});
  return per_token(session);
}

Sizer::Sizer(std::string text, index_t context, MeasureBytes measure)
    : text_(std::move(text)), context_(context), measure_(std::move(measure)) {
  const auto wrong = [&](std::string_view hole, const char* why) {
    throw Error("recipe '" + engine::printable(text_) + "': hole '" + engine::printable(hole) + "': " + why);
  };
  for (std::size_t at = 0; (at = text_.find('{', at)) != std::string::npos;) {
    const std::size_t end = text_.find('}', at);
    if (end == std::string::npos) wrong(text_.substr(at), "no '}' ends it");
    Hole hole{at, end + 1, {}, {}};
    const std::string inside = text_.substr(at + 1, end - at - 1);
    std::string ignored;
    if (evaluated(inside, 1, context_, ignored)) hole.expression = inside;
    else hole.list = listed(inside);
    if (hole.expression.empty() && hole.list.empty()) wrong(text_.substr(at, end + 1 - at), "expected {tokens}, {tokens/2-4}, {part}, {2|4|8} or {8..64:8}");
    const index_t settings = hole.list.empty() ? context_ : static_cast<index_t>(hole.list.size());
    if (!holes_.empty() && (settings != count_ || hole.list.empty() != holes_[0].list.empty()))
      wrong(text_.substr(at, end + 1 - at), "all holes of a recipe are one setting: all of tokens, or lists equally long");
    count_ = settings;
    holes_.push_back(std::move(hole));
    at = end;
  }
  if (holes_.empty()) wrong("", "there is none");
}

std::string Sizer::filled(index_t setting) const {
  std::string out;
  std::size_t at = 0;
  for (const Hole& h : holes_) {
    out.append(text_, at, h.begin - at);
    std::string value;
    if (h.list.empty()) (void)evaluated(h.expression, setting + 1, context_, value);
    else value = h.list[static_cast<std::size_t>(setting)];
    out += value;
    at = h.end;
  }
  return out + text_.substr(at);
}

std::string Sizer::named(index_t setting) const {
  return holes_[0].list.empty() ? "tokens = " + std::to_string(setting + 1) : std::to_string(setting + 1) + " of " + std::to_string(count_);
}

double Sizer::bytes(index_t setting) {
  const auto known = measured_.find(setting);
  if (known != measured_.end()) return known->second;
  double found = -1;
  try {
    found = measure_(filled(setting));
  } catch (const Error& e) {
    refusal_ = e.what();
  }
  return measured_[setting] = found;
}

SizedRecipe Sizer::fit(double target) {
  // A list may begin with the largest cache. Pages make caches of about one size differ a little either way.
  const double first = bytes(0), last = bytes(count_ - 1);
  const bool falls = first > 1.02 * last && last >= 0;
  const auto place = [&](index_t i) { return falls ? count_ - 1 - i : i; };
  const auto made = [&](index_t i) { return SizedRecipe{filled(place(i)), named(place(i)), bytes(place(i)), true, {}}; };
  index_t low = 0, high = count_ - 1;  // low fits or is refused, high does not fit
  const double most = bytes(place(high));
  if (most < 0) throw Error(refusal_ + " (" + named(place(high)) + ")");
  if (most <= target) {
    SizedRecipe all = made(high);
    all.reached = most >= target * (1 - near_enough);
    if (!all.reached) all.note = "its largest setting (" + all.setting + ") takes " + number(most) + " bytes per token of " + number(target);
    return all;
  }
  bool bisect = false;
  while (high - low > 1) {
    const double below = bytes(place(low)), above = bytes(place(high));
    if (below >= target * (1 - near_enough) && below <= target) return made(low);
    index_t middle = low + (high - low) / 2;
    if (below >= 0 && below < target && above > below && !bisect) {
      const double part = (target - below) / (above - below);
      middle = std::clamp(low + static_cast<index_t>(std::floor(part * static_cast<double>(high - low))), low + 1, high - 1);
    }
    const index_t width = high - low;
    (bytes(place(middle)) <= target ? low : high) = middle;
    bisect = 2 * (high - low) > width && !bisect;  // memory grows in pages: a line between the ends may creep
  }
  const double least = bytes(place(low));
  if (least >= 0 && least <= target) return made(low);
  // Either nothing fits, or what would fit is refused.
  const index_t smallest = least < 0 ? high : low;
  SizedRecipe out = made(smallest);
  out.reached = false;
  out.note = "its smallest setting (" + out.setting + ") takes " + number(out.bytes_per_token) + " bytes per token of " + number(target);
  return out;
}

}  // namespace eval
