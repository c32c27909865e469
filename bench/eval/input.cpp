#include <eval/input.hpp>

#include <algorithm>
#include <charconv>

#include <engine/json_text.hpp>
#include <engine/tokenizer.hpp>
#include <eval/error.hpp>
#include <kvcondense/core/random.hpp>

namespace eval {
namespace {

constexpr std::size_t most_text_bytes = std::size_t{1} << 30;

std::string load(const std::string& path) {
  std::string why;
  auto text = engine::read_file(path, most_text_bytes, why);
  if (!text) throw Error(why);
  return *std::move(text);
}

using Tokens = std::vector<std::int32_t>;

/// One line of a file of recall documents while it is read.
class DocumentReader {
 public:
  DocumentReader(const engine::ModelConfig& config, std::string where)
      : config_(&config), where_(std::move(where)) {}

  Document read(std::string_view line) const {
    std::string why;
    const auto json = engine::parse_json(line, {.bytes = std::size_t{1} << 26, .depth = 5}, why);
    if (!json) refuse(why);
    if (!json->is_object() || json->contains("text") == json->contains("ids"))
      refuse("expected an object with either \"text\" or \"ids\"");
    const char* form = json->contains("text") ? "text" : "ids";
    if (*form == 't' && !engine::speaks_bytes(*config_))
      refuse("this model's tokens are not bytes: give the document as \"ids\"");
    Document d;
    d.tokens = tokens((*json)[form], form);
    if (!json->contains("queries") || !(*json)["queries"].is_array()) refuse("no list \"queries\"");
    std::vector<Tokens> values;
    for (const auto& q : (*json)["queries"]) read_query(q, d, values);
    return d;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const { throw Error(where_ + ": " + what); }

  /// Text or a list of ids, whichever it is.
  Tokens tokens(const nlohmann::json& json, const char* what) const {
    if (json.is_string() && engine::speaks_bytes(*config_))
      return engine::bytes_to_tokens(json.get_ref<const std::string&>());
    if (!json.is_array()) refuse(std::string(what) + " is neither text nor a list of ids");
    Tokens ids;
    for (const auto& id : json) {
      if (!id.is_number_unsigned() ||
          id.get<std::uint64_t>() >= static_cast<std::uint64_t>(config_->vocab))
        refuse(std::string(what) + " holds something other than token ids from 0 to " +
               std::to_string(config_->vocab - 1));
      ids.push_back(id.get<std::int32_t>());
    }
    return ids;
  }

  void read_query(const nlohmann::json& q, Document& d, std::vector<Tokens>& values) const {
    if (!q.is_object()) refuse("a query is no object");
    for (const char* name : {"value_at", "defined_at"})
      if (!q.contains(name) || !q[name].is_number_unsigned())
        refuse("a query lacks the count value_at or defined_at");
    if (!q.contains("value")) refuse("a query lacks its value");
    const Tokens value = tokens(q["value"], "value");
    const auto at = q["value_at"].get<std::uint64_t>(),
               defined = q["defined_at"].get<std::uint64_t>();
    const auto stands_at = [&](std::uint64_t place) {
      return place < d.tokens.size() && value.size() <= d.tokens.size() - place &&
             std::equal(value.begin(), value.end(),
                        d.tokens.begin() + static_cast<std::ptrdiff_t>(place));
    };
    if (value.empty() || defined >= at || !stands_at(at) || !stands_at(defined))
      refuse("a query names a place that does not hold its value");
    const auto here = static_cast<index_t>(at);
    index_t nearest = static_cast<index_t>(defined);
    for (std::size_t i = 0; i < values.size(); ++i)
      if (values[i] == value && d.queries[i].at < here)
        nearest = std::max(nearest, d.queries[i].at);
    d.queries.push_back({here, static_cast<index_t>(value.size()), here - nearest});
    values.push_back(value);
  }

  const engine::ModelConfig* config_;
  std::string where_;
};

}  // namespace

std::vector<Document> parse_recall(std::string_view lines, const engine::ModelConfig& config,
                                   const std::string& name) {
  std::vector<Document> documents;
  for (std::size_t number = 1; !lines.empty(); ++number) {
    const std::size_t end = std::min(lines.find('\n'), lines.size());
    const std::string_view line = lines.substr(0, end);
    lines.remove_prefix(std::min(end + 1, lines.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const DocumentReader reader(config, name + ": line " + std::to_string(number));
    documents.push_back(reader.read(line));
  }
  if (documents.empty()) throw Error(name + ": no recall documents");
  return documents;
}

std::vector<Document> read_recall(const std::string& path, const engine::ModelConfig& config) {
  return parse_recall(load(path), config, path);
}

std::vector<Document> choose_documents(std::vector<Document> all, index_t count, index_t context) {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < all.size(); ++i)
    if (static_cast<index_t>(all[i].tokens.size()) <= context) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return all[a].tokens.size() > all[b].tokens.size();
  });
  order.resize(std::min(order.size(), static_cast<std::size_t>(count)));
  std::sort(order.begin(), order.end());
  std::vector<Document> chosen;
  for (const std::size_t i : order) chosen.push_back(std::move(all[i]));
  return chosen;
}

std::vector<Document> ask_each(const std::vector<Document>& all, Ask ask, index_t question) {
  std::vector<Document> asked;
  for (const Document& d : all)
    for (const Document::Query& q : d.queries) {
      const auto half = static_cast<index_t>(d.tokens.size()) / 2;
      if (q.at - question < half || q.distance < question + q.length) continue;
      const auto end = d.tokens.begin() + static_cast<std::ptrdiff_t>(q.at + q.length);
      asked.push_back({{d.tokens.begin(), end}, {q}, ask == Ask::inside ? q.at - 1 : q.at - question});
    }
  return asked;
}

std::vector<std::int32_t> parse_ids(std::string_view text, index_t vocab, const std::string& name) {
  constexpr std::string_view between = " \t\r\n,";
  std::vector<std::int32_t> ids;
  std::size_t at = text.find_first_not_of(between);
  while (at < text.size()) {
    const char* end = text.data() + text.size();
    std::int32_t id = -1;
    const auto [stop, error] = std::from_chars(text.data() + at, end, id);
    if (error != std::errc{} || id < 0 || id >= vocab ||
        (stop != end && between.find(*stop) == std::string_view::npos))
      throw Error(name + ": at byte " + std::to_string(at) + ": expected token ids from 0 to " +
                  std::to_string(vocab - 1));
    ids.push_back(id);
    at = text.find_first_not_of(between, static_cast<std::size_t>(stop - text.data()));
  }
  return ids;
}

std::vector<std::int32_t> read_tokens(const engine::ModelConfig& config, const std::string& text,
                                      const std::string& ids) {
  if (!ids.empty()) return parse_ids(load(ids), config.vocab, ids);
  if (!engine::speaks_bytes(config))
    throw Error("this model's vocabulary has " + std::to_string(config.vocab) +
                " tokens and there is no tokenizer here: give the text as token ids, --ids FILE");
  return engine::bytes_to_tokens(load(text));
}

std::vector<index_t> window_starts(index_t tokens, index_t length, index_t count,
                                   std::uint64_t seed) {
  const index_t part = tokens / count;
  if (part < length)
    throw Error("the text has " + std::to_string(tokens) + " tokens, " + std::to_string(count) +
                " windows need " + std::to_string(count * length) +
                ": lower --windows or --context");
  std::vector<index_t> starts;
  for (index_t i = 0; i < count; ++i) {
    const auto room = static_cast<std::uint64_t>(part - length + 1);
    starts.push_back(
        i * part +
        static_cast<index_t>(kvcondense::random_bits(seed, static_cast<std::uint64_t>(i)) % room));
  }
  return starts;
}

}  // namespace eval
