#include <eval/heads_file.hpp>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include <engine/json_text.hpp>
#include <eval/error.hpp>
#include <kvcondense/version.hpp>

namespace eval {
namespace {

constexpr const char* format_name = "kvcondense-heads";
constexpr index_t most_layers = 65536;
constexpr std::size_t most_bytes = std::size_t{1} << 26;

struct Table {
  const char* name;
  std::vector<float> HeadsFile::*numbers;
  bool per_head;
};
struct ListTable {
  const char* name;
  HeadLists HeadsFile::*lists;
};

constexpr Table tables[] = {{"gates", &HeadsFile::gates, true},
                            {"induction", &HeadsFile::induction, true},
                            {"echo", &HeadsFile::echo, true},
                            {"shares", &HeadsFile::shares, true},
                            {"evicted", &HeadsFile::evicted, false},
                            {"variance", &HeadsFile::variance, false},
                            {"key_widths", &HeadsFile::key_widths, true},
                            {"value_widths", &HeadsFile::value_widths, true}};
constexpr ListTable list_tables[] = {
    {"key_clusters", &HeadsFile::key_clusters}, {"value_clusters", &HeadsFile::value_clusters},
    {"key_lower", &HeadsFile::key_lower},       {"key_upper", &HeadsFile::key_upper},
    {"key_levels", &HeadsFile::key_levels},     {"value_levels", &HeadsFile::value_levels}};
constexpr index_t most_numbers = 1 << 20;  ///< of one head

class Reader {
 public:
  explicit Reader(std::string name) : name_(std::move(name)) {}

  HeadsFile read(std::string_view text) {
    std::string why;
    const auto json = engine::parse_json(text, {.bytes = most_bytes, .depth = 8}, why);
    if (!json) refuse(why);
    if (!json->is_object() || !json->contains("format") || (*json)["format"] != format_name)
      refuse(std::string("not a file of head tables: its \"format\" is not \"") + format_name + "\"");
    if (!json->contains("version") || (*json)["version"] != 1)
      refuse("its \"version\" is not 1, the only one this tool knows");
    HeadsFile heads;
    heads.layers = count(*json, "layers");
    heads.kv_heads = count(*json, "kv_heads");
    bool some = false;
    for (const auto& [key, value] : json->items()) {
      if (const ListTable* table = find_lists(key); table != nullptr) {
        some = true;
        heads.*(table->lists) = lists(value, key, heads);
        continue;
      }
      const Table* table = find(key);
      if (table == nullptr) continue;
      some = true;
      heads.*(table->numbers) = table->per_head ? matrix(value, key, heads) : row(value, key, heads.layers);
    }
    if (!some) refuse("it holds no table");
    return heads;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const { throw Error(name_ + ": " + what); }

  /// Null for what is no table. A name that nobody reads would do nothing, so it is refused.
  const Table* find(const std::string& key) const {
    for (const Table& t : tables)
      if (key == t.name) return &t;
    for (const char* other : {"format", "version", "made", "layers", "kv_heads"})
      if (key == other) return nullptr;
    refuse("no table is called '" + engine::printable(key) + "'");
  }

  static const ListTable* find_lists(const std::string& key) {
    for (const ListTable& t : list_tables)
      if (key == t.name) return &t;
    return nullptr;
  }

  index_t count(const nlohmann::json& json, const char* key) const {
    if (!json.contains(key) || !json[key].is_number_unsigned() || json[key].get<std::uint64_t>() == 0 ||
        json[key].get<std::uint64_t>() > static_cast<std::uint64_t>(most_layers))
      refuse(std::string("\"") + key + "\" is not a count from 1 to " + std::to_string(most_layers));
    return json[key].get<index_t>();
  }

  std::vector<float> row(const nlohmann::json& json, const std::string& where, index_t size) const {
    if (!json.is_array() || static_cast<index_t>(json.size()) != size)
      refuse(where + " is not a list of " + std::to_string(size) + " numbers");
    std::vector<float> numbers;
    for (const auto& x : json) {
      const std::string place = where + "[" + std::to_string(numbers.size()) + "]";
      if (!x.is_number()) refuse(place + " is no number");
      const double value = x.get<double>();
      if (!std::isfinite(value) || std::abs(value) > 1e30) refuse(place + " is too large");
      numbers.push_back(static_cast<float>(value));
    }
    return numbers;
  }

  std::vector<float> matrix(const nlohmann::json& json, const std::string& where, const HeadsFile& h) const {
    if (!json.is_array() || static_cast<index_t>(json.size()) != h.layers)
      refuse(where + " is not a list of " + std::to_string(h.layers) + " layers");
    std::vector<float> numbers;
    for (std::size_t l = 0; l < json.size(); ++l) {
      const auto heads = row(json[l], where + "[" + std::to_string(l) + "]", h.kv_heads);
      numbers.insert(numbers.end(), heads.begin(), heads.end());
    }
    return numbers;
  }

  /// The first list says how long all are.
  HeadLists lists(const nlohmann::json& json, const std::string& where, const HeadsFile& h) const {
    if (!json.is_array() || static_cast<index_t>(json.size()) != h.layers)
      refuse(where + " is not a list of " + std::to_string(h.layers) + " layers");
    HeadLists all;
    index_t length = 0;
    for (std::size_t l = 0; l < json.size(); ++l) {
      const std::string layer = where + "[" + std::to_string(l) + "]";
      if (!json[l].is_array() || static_cast<index_t>(json[l].size()) != h.kv_heads)
        refuse(layer + " is not a list of " + std::to_string(h.kv_heads) + " heads");
      for (std::size_t k = 0; k < json[l].size(); ++k) {
        const std::string head = layer + "[" + std::to_string(k) + "]";
        if (length == 0) length = json[l][k].is_array() ? static_cast<index_t>(json[l][k].size()) : 0;
        if (length < 1 || length > most_numbers) refuse(head + " is not a list of 1 to " + std::to_string(most_numbers) + " numbers");
        const auto numbers = row(json[l][k], head, length);
        all.numbers.insert(all.numbers.end(), numbers.begin(), numbers.end());
      }
    }
    return all;
  }

  std::string name_;
};

}  // namespace

kvcondense::any::ModelFacts HeadsFile::add_to(kvcondense::any::ModelFacts facts) const {
  const auto per_head = [&](const std::vector<float>& t, kvcondense::HeadTable& to) {
    if (!t.empty()) to = {t.data(), layers, kv_heads};
  };
  const auto per_layer = [&](const std::vector<float>& t, kvcondense::LayerTable& to) {
    if (!t.empty()) to = {t.data(), layers};
  };
  per_head(gates, facts.gates), per_head(induction, facts.induction);
  per_head(echo, facts.echo), per_head(shares, facts.shares);
  per_layer(evicted, facts.evicted), per_layer(variance, facts.variance);
  per_head(key_widths, facts.key_widths), per_head(value_widths, facts.value_widths);
  const auto lists = [&](const HeadLists& t, kvcondense::HeadRows& to) {
    if (!t.numbers.empty())
      to = {t.numbers.data(), layers, kv_heads, static_cast<index_t>(t.numbers.size()) / (layers * kv_heads)};
  };
  lists(key_clusters, facts.key_clusters), lists(value_clusters, facts.value_clusters);
  lists(key_lower, facts.key_lower), lists(key_upper, facts.key_upper);
  lists(key_levels, facts.key_levels), lists(value_levels, facts.value_levels);
  return facts;
}

bool is_head_table(std::string_view fact) {
  return std::any_of(std::begin(tables), std::end(tables), [&](const Table& t) { return fact == t.name; }) ||
         std::any_of(std::begin(list_tables), std::end(list_tables), [&](const ListTable& t) { return fact == t.name; });
}

HeadsFile parse_heads(std::string_view text, const std::string& name) { return Reader(name).read(text); }

HeadsFile read_heads(const std::string& path, const CacheShape& shape) {
  std::string why;
  const auto text = engine::read_file(path, most_bytes, why);
  if (!text) throw Error(why);
  HeadsFile heads = parse_heads(*text, path);
  if (heads.layers != shape.layers || heads.kv_heads != shape.kv_heads)
    throw Error(path + ": made for " + std::to_string(heads.layers) + " layers of " +
                std::to_string(heads.kv_heads) + " KV heads, and this model has " +
                std::to_string(shape.layers) + " of " + std::to_string(shape.kv_heads));
  return heads;
}

std::string heads_text(const HeadsFile& heads, const nlohmann::ordered_json& made) {
  nlohmann::ordered_json j{{"format", format_name}, {"version", 1},
                           {"made", made}, {"layers", heads.layers}, {"kv_heads", heads.kv_heads}};
  for (const Table& t : tables) {
    const std::vector<float>& numbers = heads.*(t.numbers);
    if (numbers.empty()) continue;
    j[t.name] = nlohmann::ordered_json::array();
    const auto width = t.per_head ? static_cast<std::size_t>(heads.kv_heads) : numbers.size();
    for (std::size_t at = 0; at < numbers.size(); at += width) {
      const std::vector<float> row(numbers.begin() + static_cast<std::ptrdiff_t>(at),
                                   numbers.begin() + static_cast<std::ptrdiff_t>(at + width));
      if (t.per_head) j[t.name].push_back(row);
      else j[t.name] = row;
    }
  }
  for (const ListTable& t : list_tables) {
    const std::vector<float>& numbers = (heads.*(t.lists)).numbers;
    if (numbers.empty()) continue;
    const auto length = static_cast<std::ptrdiff_t>(numbers.size()) / (heads.layers * heads.kv_heads);
    auto at = numbers.begin();
    j[t.name] = nlohmann::ordered_json::array();
    for (index_t l = 0; l < heads.layers; ++l) {
      j[t.name].push_back(nlohmann::ordered_json::array());
      for (index_t h = 0; h < heads.kv_heads; ++h, at += length) j[t.name].back().push_back(std::vector<float>(at, at + length));
    }
  }
  return j.dump(1) + "\n";
}

}  // namespace eval
