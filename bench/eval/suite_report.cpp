#include <eval/suite_report.hpp>

#include <eval/host.hpp>
#include <eval/json_report.hpp>
#include <eval/printed.hpp>
#include <eval/suite_rank.hpp>
#include <eval/table.hpp>

namespace eval {
namespace {

using nlohmann::ordered_json;

ordered_json to_json(const Counts& c) { return {{"asked", c.asked}, {"right", c.right}, {"tokens", c.tokens}, {"tokens_right", c.tokens_right}}; }

template <class List>
ordered_json list_json(const List& list) {
  ordered_json all = ordered_json::array();
  for (const Counts& c : list) all.push_back(to_json(c));
  return all;
}

ordered_json needles_json(const SuiteResults& results, const SuiteRow& row) {
  ordered_json grid = ordered_json::array();
  for (std::size_t l = 0; l < row.needles.cells.size(); ++l)
    grid.push_back({{"length", results.lengths[l]}, {"by_depth", list_json(row.needles.cells[l])}});
  ordered_json j = to_json(row.needles.all());
  j["grid"] = grid;
  return j;
}

ordered_json row_json(const SuiteResults& results, const SuiteRow& row) {
  if (!row.written.empty()) return ordered_json::parse(row.written);
  ordered_json j{{"line", row.line}, {"family", row.family}};
  if (row.share > 0) j["share_percent"] = row.share, j["setting"] = row.setting;
  if (!row.note.empty()) j["note"] = row.note;
  j.update(eval::to_json(results.setting, row.result));
  if (!row.needles.cells.empty()) j["needles"] = needles_json(results, row);
  if (!row.life.requests.empty())
    j["life_cycle"] = {{"multi_turn", to_json(row.life.of_turns())},
                       {"by_turn", list_json(row.life.turns)},
                       {"multi_request", to_json(row.life.of_requests())},
                       {"by_key", list_json(row.life.requests)},
                       {"tokens", row.life.tokens},
                       {"snapshot_bytes", row.life.snapshot_bytes}};
  if (row.plan.all().asked > 0) {
    j["long_answer"] = to_json(row.plan.all());
    j["long_answer"]["by_quarter"] = list_json(row.plan.by_quarter);
  }
  if (row.continuation.texts > 0)
    j["continuation"] = {{"texts", row.continuation.texts}, {"tokens", row.continuation.tokens}, {"same", row.continuation.same}};
  if (row.induction.all().asked > 0) {
    j["induction"] = to_json(row.induction.all());
    j["induction"]["by_depth"] = list_json(row.induction.by_depth);
  }
  if (has_recall(row)) j["found"] = recall_of(row);
  if (row.prompt_seconds > 0) j["seconds"] = {{"prompt", row.prompt_seconds}, {"save", row.save_seconds}, {"load", row.load_seconds}};
  if (!row.failures.empty()) j["failures"] = row.failures;
  return j;
}

std::string percent(const Counts& c) { return c.asked == 0 ? "-" : printed("%.0f", 100 * c.share()); }

std::string cell(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '|' ? std::string("\\|") : std::string(1, c);
  return out;
}

/// "100/88/40": of the list's groups, `parts` of them, each the sum of its neighbours.
template <class List>
std::string percents(const List& list, std::size_t parts) {
  std::string text;
  parts = std::min(parts, list.size());
  for (std::size_t p = 0; p < parts; ++p) {
    Counts sum;
    for (std::size_t i = p * list.size() / parts; i < (p + 1) * list.size() / parts; ++i) sum.add(list[i]);
    text += (p == 0 ? "" : "/") + percent(sum);
  }
  return text.empty() ? "-" : text;
}

using Cells = std::vector<std::string>;

std::string line_of(const Cells& cells) {
  std::string s = "|";
  for (const std::string& c : cells) s += " " + cell(c) + " |";
  return s + "\n";
}

/// The first column to the left, all others to the right.
std::string rule_of(std::size_t columns) {
  std::string s = "|---|";
  for (std::size_t i = 1; i < columns; ++i) s += "---:|";
  return s + "\n";
}

Cells head_of(const SuiteResults& results) {
  Cells h{"recipe", "share %", "B/token", "of 16 bit", "attn error"};
  if (results.has_model()) h.insert(h.end(), {"KL", "top-1 %", results.setting.byte_tokens ? "bits/byte" : "bits/token"});
  const SuiteRow& full = results.rows[0];
  if (!full.needles.cells.empty()) h.insert(h.end(), {"needles %", "longest, by depth %"});
  if (!full.life.requests.empty()) h.insert(h.end(), {"keys, by request %", "by turn %"});
  if (full.plan.all().asked > 0) h.push_back("plan %");
  if (full.continuation.texts > 0) h.push_back("same text %");
  if (full.induction.all().asked > 0) h.push_back("written model %");
  if (has_recall(full)) h.push_back("found %");
  if (full.result.speed.tokens_per_second > 0) h.push_back("speed of full");
  return h;
}

Cells cells_of(const SuiteResults& results, const SuiteRow& row) {
  const RecipeResult& r = row.result;
  Cells c{row.result.recipe == "full cache" ? r.recipe : "`" + r.recipe + "`", row.share > 0 ? printed("%g", row.share) : std::string(),
          printed("%.0f", r.bytes_per_token()), printed("%.3f", r.report.ratio()), r.layer_error.empty() ? "-" : short_number(r.mean_error(), 2)};
  const bool text = r.text.predictions > 0;
  if (results.has_model())
    c.insert(c.end(), {text ? short_number(r.text.mean_kl(), 2) : "-", text ? printed("%.1f", 100 * r.text.agreement()) : "-",
                       text ? printed("%.3f", r.text.mean_bits()) : "-"});
  const SuiteRow& full = results.rows[0];
  if (!full.needles.cells.empty()) c.insert(c.end(), {percent(row.needles.all()), row.needles.cells.empty() ? "-" : percents(row.needles.cells.back(), 5)});
  if (!full.life.requests.empty()) c.insert(c.end(), {percent(row.life.of_requests()), percent(row.life.of_turns())});
  if (full.plan.all().asked > 0) c.push_back(percent(row.plan.all()));
  if (full.continuation.texts > 0) c.push_back(row.continuation.texts == 0 ? "-" : printed("%.0f", 100 * row.continuation.share()));
  if (full.induction.all().asked > 0) c.push_back(percent(row.induction.all()));
  if (has_recall(full)) c.push_back(has_recall(row) ? printed("%.0f", 100 * recall_of(row)) : "-");
  if (full.result.speed.tokens_per_second > 0) c.push_back(r.speed.of_full > 0 ? printed("%.2f", r.speed.of_full) : "-");
  return c;
}

ordered_json head_of_file(const SuiteResults& results) { return results.head.empty() ? report_head() : ordered_json::parse(results.head); }

std::string host_of(const SuiteResults& results) {
  if (results.head.empty()) return host_line();
  const ordered_json host = ordered_json::parse(results.head).at("host");
  return host.at("processor").get<std::string>() + ", " + host.at("compiler").get<std::string>() + (host.at("optimized").get<bool>() ? "" : ", not optimized");
}

std::string legend_of(const SuiteResults& results) {
  const SuiteRow& full = results.rows[0];
  std::string s = "* `B/token`, `of 16 bit`: bytes of the whole cache at the end of the first window, per token; the same, as a part of all keys and values in 16 bits.\n"
                  "* `attn error`: |output - exact| / |exact| of attention given the full cache's q, k and v, mean of the layers.\n";
  if (results.has_model()) s += "* `KL`, `top-1 %`, `bits/byte`: predictions of the text after single tokens, against those of the full cache; `-log2` of what really follows.\n";
  const auto n = [](index_t x) { return std::to_string(x); };
  if (!full.needles.cells.empty()) {
    std::string lengths;
    for (const index_t l : results.lengths) lengths += (lengths.empty() ? "" : ", ") + n(l);
    s += "* `needles %`: one value of four digits in a document of " + lengths + " tokens, at " + n(results.request.depths) + " depths, " + n(results.request.needles) +
         " documents each; asked when the document was condensed. Then those of the longest, the value's depth from the oldest part to the newest.\n";
  }
  if (!full.life.requests.empty())
    s += "* `keys, by request %`: " + n(results.request.keys) + " values in each of " + n(results.request.dialogues) +
         " documents, each asked of a snapshot of the condensed document. `by turn %`: the same, asked in turn of one cache that goes on.\n";
  if (full.plan.all().asked > 0) s += "* `plan %`: lines of a long answer whose value is right, where every line begins with a name and what the model says stays.\n";
  if (full.continuation.texts > 0) s += "* `same text %`: of " + n(results.request.continued) + " most likely tokens in turn, those before the first that the full cache would not have said.\n";
  if (full.induction.all().asked > 0) s += "* `written model %`: of 128 keys, those that a model of two written layers answers, which knows only what its cache holds.\n";
  if (has_recall(full)) s += "* `found %`: the mean of needles, keys by request and by turn, and plan.\n";
  if (full.result.speed.tokens_per_second > 0) s += "* `speed of full`: single tokens in the time of the full cache, this library's own; timed on one thread of " + host_of(results) + ".\n";
  return s;
}

std::string table_of(const SuiteResults& results, const Rows& rows) {
  const Cells head = head_of(results);
  std::string text = line_of(head) + rule_of(head.size());
  for (const SuiteRow* row : rows) text += line_of(cells_of(results, *row));
  return text;
}

/// The best for their bytes, by what predictions lose and by what is found.
std::string fronts_of(const SuiteResults& results) {
  Rows judged, asked;
  for (std::size_t i = 1; i < results.rows.size(); ++i) {
    const SuiteRow& row = results.rows[i];
    if (!was_asked_all(results, row)) continue;
    if (has_error(results, row)) judged.push_back(&row);
    if (has_recall(row)) asked.push_back(&row);
  }
  std::string text;
  const Rows nearest = front_of(judged, [&](const SuiteRow& r) { return error_of(results, r); });
  const Rows finders = front_of(asked, [](const SuiteRow& r) { return -recall_of(r); });
  const char* error = results.has_model() ? "predictions move" : "attention errs";
  if (nearest.size() > 1) text += std::string("## The least that ") + error + " for so many bytes\n\n" + table_of(results, nearest) + "\n";
  if (finders.size() > 1) text += "## The most that is found for so many bytes\n\n" + table_of(results, finders) + "\n";
  return text.empty() ? text : text + "## All\n\n";
}

}  // namespace

ordered_json suite_json(const SuiteResults& results) {
  ordered_json j = head_of_file(results);
  j["setting"] = eval::to_json(results.setting);
  const SuiteRequest& r = results.request;
  j["suite"] = {{"shares_percent", r.shares}, {"lengths", results.lengths}, {"depths", r.depths}, {"needles", r.needles}, {"dialogues", r.dialogues}, {"keys", r.keys},
                {"plans", r.plans}, {"lines", r.lines}, {"texts", r.texts}, {"continued", r.continued}, {"induction", r.induction}};
  j["seconds"] = results.seconds;
  j["recipes"] = ordered_json::array();
  for (const SuiteRow& row : results.rows) j["recipes"].push_back(row_json(results, row));
  j["left_out"] = ordered_json::array();
  for (const LeftOut& l : results.left_out) j["left_out"].push_back({{"line", l.line}, {"share_percent", l.share}, {"why", l.why}});
  return j;
}

std::string suite_markdown(const SuiteResults& results, const std::vector<std::string>& pictures) {
  const Setting& s = results.setting;
  const auto n = [](index_t x) { return std::to_string(x); };
  std::string commands = s.command;  // a line each, where runs were joined
  for (std::size_t at = 0; (at = commands.find('\n', at)) != std::string::npos; at += 4) commands.replace(at, 1, "`\n\n`");
  std::string text = "# What recipes keep and what they cost\n\n`" + commands + "`\n\n" + s.source + ": " + n(s.layers) + " layers, " + n(s.q_heads) +
                     " query heads, " + n(s.kv_heads) + " KV heads of " + n(s.head_dim) + ", pages of " + n(s.page_slots) + " slots. ";
  text += results.has_model() ? s.text + ": " + n(s.windows) + " windows of " + n(s.context) + " tokens" : "A dump of " + n(s.context) + " tokens";
  text += ", " + n(s.prefill) + " at once, then one by one.\n\n";
  for (const std::string& p : pictures) text += "![" + p.substr(0, p.find('.')) + "](" + p + ")\n";
  if (!pictures.empty()) text += "\n";
  text += fronts_of(results);
  Rows all;
  for (const SuiteRow& row : results.rows) all.push_back(&row);
  text += table_of(results, all);
  text += "\n" + legend_of(results);
  std::string notes;
  for (const SuiteRow& row : results.rows) {
    for (const std::string& f : row.failures) notes += line_of({"`" + row.result.recipe + "`", row.share > 0 ? printed("%g", row.share) : "", f});
    if (!row.note.empty()) notes += line_of({"`" + row.line + "`", printed("%g", row.share), row.note});
  }
  for (const LeftOut& l : results.left_out) notes += line_of({"`" + l.line + "`", l.share > 0 ? printed("%g", l.share) : "", l.why});
  if (!notes.empty()) text += "\n## What did not run, or not as asked\n\n| recipe | share % | why |\n|---|---:|---|\n" + notes;
  return text;
}

}  // namespace eval
