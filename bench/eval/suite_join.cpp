#include <eval/suite_join.hpp>

#include <algorithm>
#include <fstream>
#include <iterator>

#include <eval/error.hpp>
#include <eval/json_report.hpp>

namespace eval {
namespace {

using Json = nlohmann::ordered_json;

template <class T>
T of(const Json& j, const char* name, T otherwise = {}) {
  const auto at = j.find(name);
  return at == j.end() || at->is_null() ? otherwise : at->get<T>();
}

Counts counts_of(const Json& j) { return {j.at("asked"), j.at("right"), j.at("tokens"), j.at("tokens_right")}; }

std::vector<Counts> counts_list(const Json& j) {
  std::vector<Counts> all;
  for (const Json& c : j) all.push_back(counts_of(c));
  return all;
}

template <std::size_t N>
void fill(std::array<Counts, N>& to, const Json& j) {
  const std::vector<Counts> all = counts_list(j);
  if (all.size() != N) throw Error(std::to_string(all.size()) + " parts where there are " + std::to_string(N));
  std::copy(all.begin(), all.end(), to.begin());
}

/// What tables and pictures look at.
kvcondense::Report report_of(const Json& j) {
  kvcondense::Report r;
  r.tokens = j.at("tokens"), r.slots = j.at("slots");
  r.exact_bytes = j.at("exact_bytes"), r.coded_bytes = j.at("coded_bytes"), r.side_bytes = j.at("side_bytes");
  r.index_bytes = j.at("index_bytes"), r.fixed_bytes = j.at("fixed_bytes"), r.dead_bytes = j.at("dead_bytes");
  r.dense_bytes = j.at("dense_bytes");
  return r;
}

Setting setting_of(const Json& j) {
  Setting s;
  s.command = j.at("command"), s.source = j.at("source");
  s.text = of<std::string>(j, "text"), s.heads = of<std::string>(j, "heads");
  s.windows = of<index_t>(j, "windows"), s.seed = of<std::uint64_t>(j, "seed"), s.max_positions = of<index_t>(j, "max_positions");
  s.byte_tokens = of<bool>(j, "token_is_byte", true);
  s.layers = j.at("layers"), s.q_heads = j.at("q_heads"), s.kv_heads = j.at("kv_heads"), s.head_dim = j.at("head_dim"), s.page_slots = of<index_t>(j, "page_slots", kvcondense::CacheShape{}.page_slots);
  s.context = j.at("context"), s.prefill = j.at("prefill"), s.chunk = j.at("chunk"), s.rounds = j.at("rounds");
  return s;
}

TextSums text_of(const Json& j) {
  TextSums t;
  t.predictions = of<index_t>(j, "predictions");
  const double n = static_cast<double>(t.predictions);
  t.kl = n * of<double>(j, "kl_nats"), t.kl_most = of<double>(j, "kl_nats_most");
  t.agreements = static_cast<index_t>(n * of<double>(j, "top1_agreement") + 0.5);
  t.bits = n * of<double>(j, "bits_per_byte", of<double>(j, "bits_per_token"));
  return t;
}

SuiteRow row_of(const Json& j) {
  SuiteRow row;
  row.written = j.dump();
  row.line = j.at("line"), row.family = j.at("family");
  row.share = of<double>(j, "share_percent"), row.setting = of<std::string>(j, "setting"), row.note = of<std::string>(j, "note");
  RecipeResult& r = row.result;
  r.recipe = j.at("recipe"), r.canonical = j.at("canonical");
  r.drops_tokens = j.at("drops_tokens"), r.codes_numbers = j.at("codes_numbers");
  r.layer_error = j.at("attention_error_by_layer").get<std::vector<double>>();
  r.slots = j.at("slots_by_layer_and_head").get<std::vector<std::vector<index_t>>>();
  r.report = report_of(j.at("report"));
  r.text = text_of(j);
  if (const auto speed = j.find("speed"); speed != j.end())
    r.speed = {speed->at("tokens_per_second"), speed->at("of_full"), speed->at("spread")};
  if (const auto needles = j.find("needles"); needles != j.end())
    for (const Json& cell : needles->at("grid")) row.needles.cells.push_back(counts_list(cell.at("by_depth")));
  if (const auto life = j.find("life_cycle"); life != j.end()) {
    row.life.turns = counts_list(life->at("by_turn")), row.life.requests = counts_list(life->at("by_key"));
    row.life.tokens = life->at("tokens"), row.life.snapshot_bytes = life->at("snapshot_bytes");
  }
  if (const auto plan = j.find("long_answer"); plan != j.end()) fill(row.plan.by_quarter, plan->at("by_quarter"));
  if (const auto c = j.find("continuation"); c != j.end()) row.continuation = {c->at("texts"), c->at("tokens"), c->at("same")};
  if (const auto written = j.find("induction"); written != j.end()) fill(row.induction.by_depth, written->at("by_depth"));
  if (const auto s = j.find("seconds"); s != j.end()) row.prompt_seconds = s->at("prompt"), row.save_seconds = s->at("save"), row.load_seconds = s->at("load");
  row.failures = of<std::vector<std::string>>(j, "failures");
  return row;
}

/// What two runs have to agree about; the machine, where times are compared.
Json compared(const SuiteResults& r, bool timed) {
  Json j = to_json(r.setting);
  for (const char* other : {"command", "left_out"}) j.erase(other);
  j["heads"] = r.setting.heads;
  const SuiteRequest& q = r.request;
  j["tasks"] = {q.depths, q.needles, q.dialogues, q.keys, q.plans, q.lines, q.texts, q.continued, q.induction};
  j["lengths"] = r.lengths;
  const Json head = Json::parse(r.head);
  j["version"] = head.at("version"), j["format"] = head.at("format");
  if (timed) j["host"] = head.at("host");
  return j;
}

/// The first thing that they do not agree about; empty: they do.
std::string difference(const Json& a, const Json& b) {
  for (auto at = a.begin(); at != a.end(); ++at)
    if (const auto other = b.find(at.key()); other == b.end() || *other != at.value()) return at.key();
  for (auto at = b.begin(); at != b.end(); ++at)
    if (!a.contains(at.key())) return at.key();
  return {};
}

bool same(const SuiteRow& a, const SuiteRow& b) { return a.line == b.line && a.share == b.share && a.result.recipe == b.result.recipe; }
bool same(const LeftOut& a, const LeftOut& b) { return a.line == b.line && a.share == b.share; }

template <class T>
void add_new(std::vector<T>& all, const std::vector<T>& more) {
  for (const T& x : more)
    if (std::none_of(all.begin(), all.end(), [&](const T& y) { return same(x, y); })) all.push_back(x);
}

}  // namespace

SuiteResults read_suite(const Json& j, const std::string& name) {
  try {
    if (of<std::string>(j, "tool") != "kvcondense-eval" || j.find("suite") == j.end()) throw Error("no suite.json");
    SuiteResults r;
    r.head = Json{{"tool", j.at("tool")}, {"version", j.at("version")}, {"format", j.at("format")}, {"host", j.at("host")}}.dump();
    r.setting = setting_of(j.at("setting"));
    const Json& s = j.at("suite");
    SuiteRequest& q = r.request;
    q.shares = s.at("shares_percent").get<std::vector<double>>();
    q.depths = s.at("depths"), q.needles = s.at("needles"), q.dialogues = s.at("dialogues"), q.keys = s.at("keys"), q.plans = s.at("plans");
    q.lines = s.at("lines"), q.texts = s.at("texts"), q.continued = s.at("continued"), q.induction = s.at("induction");
    r.lengths = s.at("lengths").get<std::vector<index_t>>();
    r.seconds = j.at("seconds");
    for (const Json& row : j.at("recipes")) r.rows.push_back(row_of(row));
    for (const Json& l : j.at("left_out")) r.left_out.push_back({l.at("line"), l.at("share_percent"), l.at("why")});
    if (r.rows.empty()) throw Error("no recipe in it");
    return r;
  } catch (const nlohmann::json::exception& e) {
    throw Error(name + ": not what suite writes: " + e.what());
  } catch (const Error& e) {
    throw Error(name + ": " + e.what());
  }
}

SuiteResults join_suites(const std::vector<SuiteResults>& parts, const std::vector<std::string>& names) {
  SuiteResults all = parts.at(0);
  for (std::size_t i = 1; i < parts.size(); ++i) {
    const SuiteResults& part = parts[i];
    const bool timed = all.setting.rounds > 0 || part.setting.rounds > 0;
    if (const std::string what = difference(compared(all, timed), compared(part, timed)); !what.empty())
      throw Error(names[i] + ": of another run than " + names[0] + ": " + what + " differs");
    all.setting.command += "\n" + part.setting.command;
    for (const double share : part.request.shares)
      if (std::find(all.request.shares.begin(), all.request.shares.end(), share) == all.request.shares.end()) all.request.shares.push_back(share);
    all.seconds += part.seconds;
    add_new(all.rows, part.rows), add_new(all.left_out, part.left_out);
  }
  // A recipe that one part could not size or run and another had is not left out.
  std::erase_if(all.left_out, [&](const LeftOut& l) { return std::any_of(all.rows.begin(), all.rows.end(), [&](const SuiteRow& r) { return r.line == l.line && r.share == l.share; }); });
  return all;
}

SuiteResults join_suite_files(const std::vector<std::string>& files) {
  std::vector<SuiteResults> parts;
  for (const std::string& name : files) {
    std::ifstream file(name, std::ios::binary);
    const Json j = Json::parse(std::string(std::istreambuf_iterator<char>(file), {}), nullptr, false);
    if (!file) throw Error(name + ": cannot be read");
    if (j.is_discarded()) throw Error(name + ": not what suite writes");
    parts.push_back(read_suite(j, name));
  }
  return join_suites(parts, files);
}

}  // namespace eval
