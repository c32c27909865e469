#include <engine/json_text.hpp>

#include <filesystem>
#include <fstream>
#include <set>
#include <system_error>
#include <vector>

namespace engine {
namespace {

using nlohmann::json;

/// Sees every token before an object is built from it: depth and repeated keys cannot be told from
/// the finished object (a later key silently replaces an earlier one).
struct Gate {
  using number_integer_t = json::number_integer_t;
  using number_unsigned_t = json::number_unsigned_t;
  using number_float_t = json::number_float_t;
  using string_t = json::string_t;
  using binary_t = json::binary_t;

  int max_depth;
  std::string& why;
  std::vector<std::set<std::string>> keys{};

  bool null() { return true; }
  bool boolean(bool) { return true; }
  bool number_integer(number_integer_t) { return true; }
  bool number_unsigned(number_unsigned_t) { return true; }
  bool number_float(number_float_t, const string_t&) { return true; }
  bool string(string_t&) { return true; }
  bool binary(binary_t&) { return true; }
  bool start_object(std::size_t) { return enter(); }
  bool start_array(std::size_t) { return enter(); }
  bool end_object() { return keys.pop_back(), true; }
  bool end_array() { return keys.pop_back(), true; }

  bool key(string_t& name) {
    if (keys.back().insert(name).second) return true;
    why = "the key \"" + printable(name) + "\" stands twice in one object";
    return false;
  }

  bool parse_error(std::size_t position, const std::string&, const json::exception& e) {
    why = "not JSON at byte " + std::to_string(position) + ": " + printable(e.what());
    return false;
  }

 private:
  bool enter() {
    keys.emplace_back();
    if (static_cast<int>(keys.size()) <= max_depth) return true;
    why = "nested deeper than " + std::to_string(max_depth) + " levels";
    return false;
  }
};

}  // namespace

std::string printable(std::string_view text) {
  constexpr std::size_t longest = 120;
  std::string out(text.substr(0, longest));
  for (char& c : out)
    if (c < ' ' || c > '~') c = '?';
  return text.size() > longest ? out + "..." : out;
}

Expected<json> parse_json(std::string_view text, JsonLimits limits, std::string& why) {
  if (text.size() > limits.bytes) {
    why = "JSON of " + std::to_string(text.size()) + " bytes, more than " +
          std::to_string(limits.bytes);
    return Status::corrupt_data;
  }
  Gate gate{limits.depth, why};
  if (!json::sax_parse(text.begin(), text.end(), &gate)) return Status::corrupt_data;
  json value = json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) {
    why = "not JSON";
    return Status::corrupt_data;
  }
  return value;
}

Expected<std::string> read_file(const std::string& path, std::size_t max_bytes, std::string& why) {
  std::error_code error;
  // Opening a directory succeeds on some systems, with an absurd size.
  if (!std::filesystem::is_regular_file(path, error)) {
    why = path + ": no such file";
    return Status::io_error;
  }
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (error || size > max_bytes) {
    why = path +
          (error ? ": cannot be read" : ": larger than " + std::to_string(max_bytes) + " bytes");
    return Status::io_error;
  }
  std::string bytes(static_cast<std::size_t>(size), '\0');
  std::ifstream in(path, std::ios::binary);
  if (!in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) {
    why = path + ": cannot be read";
    return Status::io_error;
  }
  return bytes;
}

}  // namespace engine
