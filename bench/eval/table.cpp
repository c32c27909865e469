#include <eval/table.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <span>

#include <eval/host.hpp>
#include <eval/printed.hpp>

namespace eval {
namespace {

std::string slots_text(const RecipeResult& r) {
  index_t least = -1, most = 0, sum = 0, heads = 0;
  for (const auto& layer : r.slots)
    for (const index_t s : layer) {
      least = least < 0 ? s : std::min(least, s);
      most = std::max(most, s);
      sum += s;
      ++heads;
    }
  if (heads == 0) return "-";
  if (least == most) return std::to_string(most);
  return std::to_string(least) + "/" + std::to_string(sum / heads) + "/" + std::to_string(most);
}

/// "95/-/40": percentages, - where nothing was asked.
std::string percents(std::span<const index_t> right, std::span<const index_t> asked) {
  std::string text;
  for (std::size_t i = 0; i < asked.size(); ++i)
    text.append(i == 0 ? "" : "/")
        .append(asked[i] == 0 ? "-"
                              : printed("%.0f", 100 * static_cast<double>(right[i]) /
                                                    static_cast<double>(asked[i])));
  return text;
}

/// What differs between tables besides their setting.
struct Columns {
  bool reads = false;  ///< some recipe reads a part
  bool timed = false;
};

std::vector<std::string> header(const Setting& s, Columns columns) {
  std::vector<std::string> h{"recipe", "B/token", "of 16 bit", "slots", "attn error"};
  if (columns.reads) h.insert(h.end(), {"read %", "mass %"});
  if (s.has_text())
    h.insert(h.end(), {"KL", "top-1 %", s.byte_tokens ? "bits/byte" : "bits/token"});
  if (!s.recall.empty()) h.insert(h.end(), {"recall %", "by depth %"});
  if (columns.timed) h.insert(h.end(), {"tokens/s", "of full"});
  return h;
}

std::vector<std::string> cells(const Setting& s, const RecipeResult& r, Columns columns) {
  std::vector<std::string> c{r.recipe, printed("%.0f", r.bytes_per_token()),
                             printed("%.3f", r.report.ratio()), slots_text(r),
                             r.layer_error.empty() ? "-" : short_number(r.mean_error(), 2)};
  const auto share = [&](double x) { return r.reads.rows == 0 ? std::string("-") : printed("%.1f", 100 * x); };
  if (columns.reads) c.insert(c.end(), {share(r.reads.slot_share()), share(r.reads.mass_share())});
  if (s.has_text())
    c.insert(c.end(), {short_number(r.text.mean_kl(), 2), printed("%.1f", 100 * r.text.agreement()),
                       printed("%.3f", r.text.mean_bits())});
  if (!s.recall.empty()) {
    c.push_back(percents(r.recall.right, r.recall.asked));
    c.push_back(percents(r.recall.deep_right, r.recall.deep_asked));
  }
  if (columns.timed)
    c.insert(c.end(),
             {printed("%.0f", r.speed.tokens_per_second),
              printed("%.2fx", r.speed.of_full) + printed(" +-%.0f%%", 50 * r.speed.spread)});
  return c;
}

bool timed(const Results& r) {
  return !r.recipes.empty() && r.recipes[0].speed.tokens_per_second > 0;
}
bool reads(const Results& r) {
  return std::any_of(r.recipes.begin(), r.recipes.end(), [](const RecipeResult& x) { return x.reads.rows > 0; });
}

}  // namespace

std::string short_number(double value, int digits) {
  if (value == 0) return "0";
  const double size = std::fabs(value);
  if (!std::isfinite(size) || size < 9.5e-5) return printed("%.1e", value);
  const int places = std::max(0, digits - 1 - static_cast<int>(std::floor(std::log10(size))));
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, "%.*f", places, value);
  return buffer;
}

namespace {

std::string align(const std::vector<std::vector<std::string>>& rows, std::size_t left) {
  std::vector<std::size_t> width;
  for (const auto& row : rows) {
    width.resize(std::max(width.size(), row.size()), 0);
    for (std::size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string pad(width[i] - row[i].size(), ' ');
      line += (i == 0 ? "" : "  ") + (i < left ? row[i] + pad : pad + row[i]);
    }
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

}  // namespace

std::string aligned(const std::vector<std::vector<std::string>>& rows) { return align(rows, 1); }
std::string aligned_left(const std::vector<std::vector<std::string>>& rows) {
  return align(rows, rows.empty() ? 0 : rows[0].size());
}

namespace {

std::string recall_text(const Setting& s) {
  const std::string plural = s.documents == 1 ? "" : "s";
  switch (s.ask) {
    case Ask::stream: break;
    case Ask::inside: return " question" + plural + " of " + std::to_string(s.question) + " tokens, at once with all that is before";
    case Ask::later:
      return " question" + plural + " of " + std::to_string(s.question) + " tokens, one by one behind all that is before";
  }
  return " document" + plural + ", second half one by one";
}

}  // namespace

std::string heading(const Results& results) {
  const Setting& s = results.setting;
  const auto number = [](index_t n) { return std::to_string(n); };
  std::string text = s.source + ": " + number(s.layers) + " layers, " + number(s.q_heads) +
                     " query heads, " + number(s.kv_heads) + " KV heads of " + number(s.head_dim) +
                     "\n";
  const std::string behind = s.last_pass > 0 ? ", " + number(s.last_pass) + " behind them" : "";
  const std::string feeding = number(s.context) + " tokens: " + number(s.prefill - s.last_pass) +
                              " at once" + behind + ", then " + number(s.context - s.prefill) + " one by one";
  if (!s.has_text())
    text += "dump of " + feeding + "\n";
  else
    text += s.text + ": " + number(s.windows) + (s.windows == 1 ? " window of " : " windows of ") +
            feeding + "\n";
  if (!s.recall.empty())
    text += s.recall + ": " + number(s.documents) + recall_text(s) + "\n";
  if (timed(results)) text += "timed on one thread of " + host_line() + "\n";
  if (s.max_positions > 0 && s.context > s.max_positions)
    text += "note: the model was made for " + number(s.max_positions) +
            " tokens; what it says beyond them means little\n";
  for (std::size_t i = 0; i < s.left_out.size(); ++i)
    text += (i == 0 ? "note: left out, they do not fit; as --recipe each says why: " : ", ") +
            s.left_out[i] + (i + 1 == s.left_out.size() ? "\n" : "");
  return text;
}

std::string table(const Results& results) {
  const Columns columns{reads(results), timed(results)};
  std::vector<std::vector<std::string>> rows{header(results.setting, columns)};
  for (const RecipeResult& r : results.recipes)
    rows.push_back(cells(results.setting, r, columns));
  return aligned(rows);
}

std::string legend(const Results& results) {
  const Setting& s = results.setting;
  const std::string window = s.windows > 1 ? "the first window" : "the window";
  std::vector<std::vector<std::string>> rows{
      {"B/token", "bytes of the whole cache after " + window +
                      ", metadata and dead bytes included, per token seen"},
      {"of 16 bit", "the same, as a part of all keys and values in 16 bits"},
      {"slots", "stored per layer and KV head at the same moment: least/mean/most"},
      {"attn error",
       "|output - exact| / |exact| of attention, mean of the layers, for the single "
       "tokens of " +
           window + ", given the full cache's q, k and v"}};
  if (reads(results)) {
    rows.push_back({"read %", "of all tokens so far, those that a query head read, in the mean of the same tokens; - where a recipe reads all it has"});
    rows.push_back({"mass %", "of the full cache's attention, what falls on them"});
  }
  if (s.has_text()) {
    rows.push_back({"KL",
                    "mean KL divergence of the predictions after single tokens from the full "
                    "cache's, in nats"});
    rows.push_back({"top-1 %", "of them, those whose most likely token is the full cache's"});
    rows.push_back({s.byte_tokens ? "bits/byte" : "bits/token",
                    "mean -log2 probability of what really follows"});
  }
  if (!s.recall.empty()) {
    const std::string near = std::to_string(RecallSums::band_end[0]),
                      far = std::to_string(RecallSums::band_end[1]);
    rows.push_back({"recall %", "tokens of asked values predicted, last mentioned less than " +
                                    near + " / less than " + far + " / " + far +
                                    " or more tokens ago"});
    rows.push_back({"by depth %",
                    "the same, mentioned in the first / second / third / last quarter of what was "
                    "read by then"});
  }
  if (timed(results))
    rows.push_back(
        {"tokens/s",
         std::string(s.has_text() ? "whole model steps" : "attention of all layers alone") +
             " after the window, and the ratio to the full cache in interleaved rounds: the middle "
             "+- half of what lies between the quartiles"});
  for (auto& row : rows) row[0] = "  " + row[0];
  return aligned_left(rows);
}

}  // namespace eval
