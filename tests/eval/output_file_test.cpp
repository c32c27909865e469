#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include <eval/error.hpp>
#include <eval/output_file.hpp>

#include "dump_files.hpp"

using namespace eval;
using eval::test::TempFile;
namespace fs = std::filesystem;

namespace {

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

TEST_CASE("output file: an older one stays until the new one is whole", "[eval][output]") {
  const TempFile file("older");
  std::ofstream(file.path()) << "older";
  {
    const OutputFile out(file.path());
    REQUIRE(out.wanted());
    REQUIRE(content(file.path()) == "older");
  }
  REQUIRE(content(file.path()) == "older");  // work that failed wrote nothing
  OutputFile(file.path()).write("newer");
  REQUIRE(content(file.path()) == "newer");
}

TEST_CASE("output file: one that was never written is not there", "[eval][output]") {
  const TempFile file("never");
  const OutputFile out(file.path());
  REQUIRE_FALSE(fs::exists(file.path()));
  REQUIRE_FALSE(fs::exists(file.path() + ".partial"));
}

TEST_CASE("output file: a link stays a link", "[eval][output]") {
  const TempFile file("target"), link("link");
  std::ofstream(file.path()) << "older";
  fs::create_symlink(file.path(), link.path());
  OutputFile(link.path()).write("newer");
  REQUIRE(fs::is_symlink(link.path()));
  REQUIRE(content(file.path()) == "newer");
}

TEST_CASE("output file: a path that cannot be is refused at once", "[eval][output]") {
  const std::string folder = fs::temp_directory_path().string();
  REQUIRE_THROWS_WITH(OutputFile(folder), folder + ": is a directory");
  REQUIRE_THROWS_WITH(OutputFile("/no/such/folder/f"), "/no/such/folder/f: cannot be written");
  REQUIRE_FALSE(OutputFile("").wanted());
}

TEST_CASE("output file: a device is written as it stands", "[eval][output]") {
  REQUIRE_NOTHROW(OutputFile("/dev/null").write("bytes"));
  REQUIRE_FALSE(fs::is_regular_file("/dev/null"));
  if (!fs::exists("/dev/full")) return;  // only Linux has it
  REQUIRE_THROWS_WITH(OutputFile("/dev/full").write("bytes"), "/dev/full: cannot be written");
}
