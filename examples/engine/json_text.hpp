#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include <kvcondense/core/expected.hpp>
#include <nlohmann/json.hpp>

namespace engine {

using kvcondense::Expected;
using kvcondense::Status;

/// What a text from outside may look like before it becomes objects in memory.
struct JsonLimits {
  std::size_t bytes = std::size_t{1} << 20;
  int depth = 16;
};

/// Parses a text that nobody vouches for, without exceptions. Too long, too deep, a key twice in
/// one object or no JSON at all is `corrupt_data`, and `why` says what and at which byte.
Expected<nlohmann::json> parse_json(std::string_view text, JsonLimits limits, std::string& why);

/// Text from outside inside a message: one line, printable, no longer than a line should be.
std::string printable(std::string_view text);

/// The bytes of a regular file, as text. `io_error` when it cannot be read or exceeds `max_bytes`.
Expected<std::string> read_file(const std::string& path, std::size_t max_bytes, std::string& why);

}  // namespace engine
