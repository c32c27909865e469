#include <eval/table.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

namespace eval {
namespace {

std::string text_of(const char* format, double value) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, format, value);
  return buffer;
}

std::string percent(double part) { return text_of("%.0f", 100 * part); }

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

std::string recall_text(const RecallSums& r) {
  std::string text;
  for (index_t b = 0; b < RecallSums::bands; ++b)
    text.append(b == 0 ? "" : "/").append(r.asked[b] == 0 ? "-" : percent(r.band(b)));
  return text;
}

std::vector<std::string> header(const Setting& s, bool timed) {
  std::vector<std::string> h{"recipe", "B/token", "of 16 bit", "slots", "attn error"};
  if (s.has_text())
    h.insert(h.end(), {"KL", "top-1 %", s.byte_tokens ? "bits/byte" : "bits/token"});
  if (!s.recall.empty()) h.emplace_back("recall %");
  if (timed) h.insert(h.end(), {"tokens/s", "of full"});
  return h;
}

std::vector<std::string> cells(const Setting& s, const RecipeResult& r, bool timed) {
  std::vector<std::string> c{r.recipe, text_of("%.0f", r.bytes_per_token()),
                             text_of("%.3f", r.report.ratio()), slots_text(r),
                             short_number(r.mean_error(), 2)};
  if (s.has_text())
    c.insert(c.end(), {short_number(r.text.mean_kl(), 2), text_of("%.1f", 100 * r.text.agreement()),
                       text_of("%.3f", r.text.mean_bits())});
  if (!s.recall.empty()) c.push_back(recall_text(r.recall));
  if (timed)
    c.insert(c.end(),
             {text_of("%.0f", r.speed.tokens_per_second), text_of("%.2fx", r.speed.of_full)});
  return c;
}

bool timed(const Results& r) {
  return !r.recipes.empty() && r.recipes[0].speed.tokens_per_second > 0;
}

}  // namespace

std::string short_number(double value, int digits) {
  if (value == 0) return "0";
  const double size = std::fabs(value);
  if (!std::isfinite(size) || size < 9.5e-5) return text_of("%.1e", value);
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

std::string heading(const Setting& s) {
  const auto number = [](index_t n) { return std::to_string(n); };
  std::string text = s.source + ": " + number(s.layers) + " layers, " + number(s.q_heads) +
                     " query heads, " + number(s.kv_heads) + " KV heads of " + number(s.head_dim) +
                     "\n";
  const std::string feeding = number(s.context) + " tokens: " + number(s.prefill) +
                              " at once, then " + number(s.context - s.prefill) + " one by one";
  if (!s.has_text()) return text + "dump of " + feeding + "\n";
  text += s.text + ": " + number(s.windows) + (s.windows == 1 ? " window of " : " windows of ") +
          feeding + "\n";
  if (!s.recall.empty())
    text += s.recall + ": " + number(s.documents) + " documents, second half one by one\n";
  return text;
}

std::string table(const Results& results) {
  std::vector<std::vector<std::string>> rows{header(results.setting, timed(results))};
  for (const RecipeResult& r : results.recipes)
    rows.push_back(cells(results.setting, r, timed(results)));
  return aligned(rows);
}

std::string legend(const Setting& s) {
  std::vector<std::vector<std::string>> rows{
      {"B/token",
       "bytes of the whole cache after the window, metadata and dead bytes included, per token "
       "seen"},
      {"of 16 bit", "the same, as a part of all keys and values in 16 bits"},
      {"slots", "stored per layer and KV head after the window: least/mean/most"},
      {"attn error",
       "|output - exact| / |exact| of attention for the single tokens, given the full cache's q, k "
       "and v"}};
  if (s.has_text()) {
    rows.push_back(
        {"KL", "mean KL divergence of next-token predictions from the full cache's, in nats"});
    rows.push_back({"top-1 %", "predictions whose most likely token is the full cache's"});
    rows.push_back({s.byte_tokens ? "bits/byte" : "bits/token",
                    "mean -log2 probability of what really follows"});
  }
  if (!s.recall.empty())
    rows.push_back({"recall %",
                    "bytes of asked values predicted, last mentioned less than 256 / 256 to 511 / "
                    "512 or more bytes ago"});
  rows.push_back(
      {"tokens/s",
       std::string(s.has_text() ? "whole model steps" : "attention of all layers alone") +
           " on one thread after the window, and the ratio in interleaved rounds"});
  std::string text;
  for (const auto& row : rows)
    text += "  " + row[0] + std::string(12 - row[0].size(), ' ') + row[1] + "\n";
  return text;
}

}  // namespace eval
