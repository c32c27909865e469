#include <eval/host.hpp>

#include <fstream>

namespace eval {
namespace {

/// From the "model name" of Linux; other systems do without.
std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "an unnamed processor";
}

/// gcc gives its number alone, clang names itself.
std::string compiler_name() {
  const std::string version = __VERSION__;
  return version[0] >= '0' && version[0] <= '9' ? "gcc " + version : version;
}

#ifdef __OPTIMIZE__
constexpr bool is_optimized = true;
#else
constexpr bool is_optimized = false;
#endif

}  // namespace

Host this_host() { return {processor_name(), compiler_name(), is_optimized}; }

std::string host_line() {
  const Host h = this_host();
  return h.processor + ", " + h.compiler +
         (h.optimized ? "" : ", NOT OPTIMIZED: these times mean nothing");
}

}  // namespace eval
