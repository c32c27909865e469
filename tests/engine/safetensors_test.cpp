#include <unistd.h>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>

#include <catch2/catch.hpp>
#include <engine/safetensors.hpp>

using namespace engine;

namespace {

/// A header and data as a file, however wrong.
std::string make_file(const std::string& header, std::size_t data_bytes) {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header +
         std::string(data_bytes, '\1');
}

std::string entry(const char* dtype, const char* shape, const char* offsets) {
  return std::string("{\"dtype\":\"") + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

std::string good_file() {
  SafetensorsWriter w;
  const float f[] = {1.5f,
                     -2.0f,
                     std::numeric_limits<float>::quiet_NaN(),
                     std::numeric_limits<float>::infinity(),
                     0.1f,
                     65504.0f};
  const std::int32_t i[] = {-7, 8};
  const std::int64_t l[] = {std::numeric_limits<std::int64_t>::min()};
  w.metadata("by", "test");
  w.f16("half", {2, 3}, f);
  w.f32("full", {6}, f);
  w.i32("small", {2, 1}, i);
  w.f32("empty", {0, 4}, {});
  w.i64("scalar", {}, l);
  std::string why;
  auto bytes = w.bytes(why);
  REQUIRE(bytes);
  return *std::move(bytes);
}

/// What a file that was accepted must still keep to: every tensor readable, of the size it claims.
void read_everything(const SafetensorsFile& file) {
  std::string why;
  for (const TensorInfo& t : file.tensors()) {
    REQUIRE(file.find(t.name) == &t);
    if (const auto f = file.floats(t.name, why))
      REQUIRE(f->size() == static_cast<std::size_t>(t.size()));
    if (const auto i = file.integers(t.name, why))
      REQUIRE(i->size() == static_cast<std::size_t>(t.size()));
  }
}

void refused(const std::string& file, const std::string& because) {
  std::string why;
  CAPTURE(file.substr(8, 200), because);
  const auto parsed = SafetensorsFile::parse(file, why);
  REQUIRE(parsed.status() == Status::corrupt_data);
  CAPTURE(why);
  REQUIRE(why.find(because) != std::string::npos);
  REQUIRE(why.find('\n') == std::string::npos);
}

}  // namespace

TEST_CASE("safetensors: what was written comes back", "[engine][safetensors]") {
  std::string why;
  const std::string path =
      (std::filesystem::temp_directory_path() / ("kvcondense-safetensors-" + std::to_string(getpid()))).string();
  const float numbers[] = {0.5f, -3.0f};
  SafetensorsWriter w;
  w.f32("x", {2}, numbers);
  REQUIRE(w.write(path, why) == Status::ok);
  const auto disk = SafetensorsFile::read(path, why);
  std::filesystem::remove(path);
  REQUIRE(disk);
  REQUIRE(*disk->floats("x", why) == std::vector<float>{0.5f, -3.0f});

  const auto file = SafetensorsFile::parse(good_file(), why);
  REQUIRE(file);
  REQUIRE(file->metadata().at("by") == "test");
  REQUIRE(file->tensors().size() == 5);
  REQUIRE(file->find("half")->shape == std::vector<index_t>{2, 3});
  REQUIRE(file->find("scalar")->shape.empty());
  const auto full = file->floats("full", why);
  REQUIRE(full);
  REQUIRE((*full)[4] == 0.1f);
  REQUIRE(std::isnan((*full)[2]));
  REQUIRE(std::isinf((*full)[3]));
  const auto half = file->floats("half", why);
  REQUIRE(half);
  REQUIRE((*half)[1] == -2.0f);
  REQUIRE((*half)[4] == Approx(0.1f).epsilon(0x1p-11));  // half a step of 16-bit numbers
  REQUIRE(*file->integers("small", why) == std::vector<std::int64_t>{-7, 8});
  REQUIRE(file->integers("scalar", why)->front() == std::numeric_limits<std::int64_t>::min());
  REQUIRE(file->floats("empty", why)->empty());
}

TEST_CASE("safetensors: bfloat16 is read, other types only counted", "[engine][safetensors]") {
  std::string file = make_file(
      "{\"b\":" + entry("BF16", "[2]", "[0,4]") + ",\"u\":" + entry("U8", "[3]", "[4,7]") + "}", 0);
  const unsigned char data[] = {0x80, 0x3f, 0x20, 0xc0, 1, 2, 3};  // 1, -2.5, bytes
  file.append(reinterpret_cast<const char*>(data), sizeof data);
  std::string why;
  const auto parsed = SafetensorsFile::parse(file, why);
  REQUIRE(parsed);
  REQUIRE(*parsed->floats("b", why) == std::vector<float>{1.0f, -2.5f});
  REQUIRE(parsed->integers("b", why).status() == Status::not_supported);
  REQUIRE(parsed->floats("u", why).status() == Status::not_supported);
  REQUIRE(why == "tensor \"u\" is U8, not F32, F16 or BF16");
  REQUIRE(parsed->floats("missing", why).status() == Status::missing_input);
}

TEST_CASE("safetensors: a file cut at any byte is refused", "[engine][safetensors]") {
  const std::string good = good_file();
  std::string why;
  REQUIRE(SafetensorsFile::parse(good, why));
  for (std::size_t n = 0; n < good.size(); ++n) {
    CAPTURE(n);
    REQUIRE(SafetensorsFile::parse(good.substr(0, n), why).status() == Status::corrupt_data);
  }
  REQUIRE(SafetensorsFile::parse(good + '\0', why).status() == Status::corrupt_data);
}

TEST_CASE("safetensors: any flipped bit is refused or leaves a file that reads in bounds",
          "[engine][safetensors]") {
  const std::string good = good_file();
  int refusals = 0;
  for (std::size_t bit = 0; bit < good.size() * 8; ++bit) {
    CAPTURE(bit);
    std::string bad = good, why;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
    const auto parsed = SafetensorsFile::parse(bad, why);
    if (parsed) read_everything(*parsed);
    refusals += !parsed;
  }
  REQUIRE(refusals > static_cast<int>(good.size()));  // most of the header means something
}

TEST_CASE("safetensors: lengths and counts beyond the file are refused before anything is taken",
          "[engine][safetensors]") {
  for (const std::uint64_t length :
       {std::uint64_t{3}, std::uint64_t{1} << 24, (std::uint64_t{1} << 24) + 1,
        std::uint64_t{1} << 63, ~std::uint64_t{0}, ~std::uint64_t{0} - 7}) {
    CAPTURE(length);
    std::string file(reinterpret_cast<const char*>(&length), 8), why;
    REQUIRE(SafetensorsFile::parse(file + "{}", why).status() == Status::corrupt_data);
  }
  // A header that is all there, but longer than any honest one.
  refused(make_file("{}" + std::string(std::size_t{16} << 20, ' '), 0), "more than 16777216");
  const auto one = [](const char* shape, const char* offsets) {
    return make_file("{\"x\":" + entry("F32", shape, offsets) + "}", 8);
  };
  refused(one("[9223372036854775808]", "[0,8]"), "overflows");
  refused(one("[9223372036854775807]", "[0,8]"), "overflows");
  refused(one("[4611686018427387904]", "[0,8]"), "overflows");  // 2^62 * 4 wraps to 0
  refused(one("[4294967296,4294967296]", "[0,0]"), "overflows");
  refused(one("[2]", "[0,18446744073709551615]"), "outside the file");
  refused(one("[2]", "[18446744073709551608,0]"), "outside the file");
  refused(one("[2]", "[0,9]"), "outside the file");
  refused(one("[2]", "[0,99999999999999999999999]"), "not two counts");
  refused(one("[3]", "[0,8]"), "do not hold its shape");
  refused(one("[-2]", "[0,8]"), "no count");
  refused(one("[2.0]", "[0,8]"), "no count");
  refused(one("[2]", "[0]"), "not two counts");
}

TEST_CASE("safetensors: tensors that overlap, leave holes or share a name are refused",
          "[engine][safetensors]") {
  const auto two = [](const char* first, const char* second, const char* name = "b") {
    return make_file("{\"a\":" + entry("I32", "[2]", first) + ",\"" + name +
                         "\":" + entry("I32", "[2]", second) + "}",
                     16);
  };
  std::string why;
  REQUIRE(SafetensorsFile::parse(two("[0,8]", "[8,16]"), why));
  REQUIRE(SafetensorsFile::parse(two("[8,16]", "[0,8]"), why));
  refused(two("[0,8]", "[4,12]"), "expected 8");
  refused(two("[0,8]", "[0,8]"), "expected 8");
  refused(two("[4,12]", "[8,16]"), "expected 0");
  refused(make_file("{\"a\":" + entry("I32", "[2]", "[0,8]") + "}", 16), "the tensors hold 8");
  refused(two("[0,8]", "[8,16]", "a"), "stands twice");
}

TEST_CASE("safetensors: headers that are not what the format says are refused",
          "[engine][safetensors]") {
  refused(make_file("", 0), "does not start a header");
  refused(make_file(" {}", 0), "does not start a header");
  refused(make_file("[]", 0), "does not start a header");
  refused(make_file("{", 0), "not JSON");
  refused(make_file("{}x", 0), "not JSON");
  refused(make_file("{\"\xff\":1}", 0), "not JSON");
  refused(make_file("{\"a\":1e999}", 0), "not JSON");
  refused(make_file("{\"a\":1}", 0), "needs exactly");
  refused(make_file("{\"a\":{\"dtype\":\"F32\",\"shape\":[0]}}", 0), "needs exactly");
  refused(make_file("{\"a\":" + entry("F31", "[0]", "[0,0]") + "}", 0), "unknown dtype");
  refused(make_file("{\"a\":" + entry("F32", "0", "[0,0]") + "}", 0), "no list");
  refused(make_file("{\"a\\nb\":1}", 0), "a?b");
  refused(make_file("{\"__metadata__\":[]}", 0), "__metadata__");
  refused(make_file("{\"__metadata__\":{\"k\":1}}", 0), "no text");
  refused(make_file("{\"a\":" + std::string(1000000, '[') + "}", 0), "nested deeper");
  std::string why;
  REQUIRE(SafetensorsFile::parse(make_file("{}   ", 0), why));  // padding is part of the format
  REQUIRE(SafetensorsFile::read("/", why).status() == Status::io_error);
  REQUIRE(SafetensorsFile::read("/no such file", why).status() == Status::io_error);
}

TEST_CASE("safetensors: the writer refuses what no reader could take", "[engine][safetensors]") {
  const float two[] = {1, 2};
  std::string why;
  const auto status = [&](auto&& fill) {
    SafetensorsWriter w;
    fill(w);
    return w.bytes(why).status();
  };
  const auto bad = Status::invalid_argument;
  REQUIRE(status([&](SafetensorsWriter& w) { w.f32("x", {3}, two); }) == bad);
  REQUIRE(status([&](SafetensorsWriter& w) { w.f32("x", {-1}, two); }) == bad);
  REQUIRE(status([&](SafetensorsWriter& w) { w.f32("__metadata__", {2}, two); }) == bad);
  REQUIRE(status([&](SafetensorsWriter& w) { w.f32("\xff", {2}, two); }) == bad);
  REQUIRE(status([&](SafetensorsWriter& w) { w.metadata("k", "\xff"); }) == bad);
  REQUIRE(status([&](SafetensorsWriter& w) {
            w.f32("x", {2}, two);
            w.f32("x", {2}, two);
          }) == bad);
  SafetensorsWriter w;
  REQUIRE(w.write("/no such directory/x", why) == Status::io_error);
}
