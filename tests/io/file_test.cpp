#include <filesystem>
#include <fstream>
#include <string>

#include <catch2/catch.hpp>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/io/file.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
namespace fs = std::filesystem;

namespace {

struct Folder {
  fs::path path = fs::temp_directory_path() / ("kvcondense_file_test_" + std::to_string(std::random_device{}()));
  Folder() { fs::create_directory(path); }
  ~Folder() { fs::remove_all(path); }
  std::size_t files() const { return static_cast<std::size_t>(std::distance(fs::directory_iterator(path), {})); }
};

/// Cuts a file when it is asked for memory: what another program does between a question for its size and the reading.
struct CutsFile final : MemoryResource<Cpu> {
  test::CountingMemory heap;
  fs::path path;
  std::uintmax_t left = 0;
  void* allocate(std::size_t bytes, std::size_t align) noexcept override {
    std::error_code failed;
    fs::resize_file(path, left, failed);
    return failed ? nullptr : heap.allocate(bytes, align);
  }
  void release(void* p, std::size_t bytes, std::size_t align) noexcept override { heap.release(p, bytes, align); }
};

std::span<const std::byte> bytes_of(const std::string& s) { return std::as_bytes(std::span(s)); }

}  // namespace

TEST_CASE("file: a cache goes to a file and back", "[io][file]") {
  const Folder folder;
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 16};
  const auto r = recipe(evict::H2O{.heavy = 20, .recent = 20}, quant::Kivi<4>{.group_size = 8, .residual_window = 16});
  test::CacheRig rig(shape, r, 128, 100), other(shape, r, 128, 100);
  std::mt19937 random(6);
  const test::Tokens t(shape, 100, random);
  std::vector<float> out(t.q.size());
  for (index_t l = 0; l < 2; ++l)
    REQUIRE(rig.cache.forward(rig.ctx, l, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), 4, 100, 16)) ==
            Status::ok);
  {
    io::FileSink file(folder.path / "a.kvc");
    REQUIRE(save(rig.cache, file) == Status::ok);
    REQUIRE_FALSE(fs::exists(folder.path / "a.kvc"));
    REQUIRE(file.finish() == Status::ok);
  }
  REQUIRE(folder.files() == 1);
  test::CountingMemory memory;
  auto bytes = io::read_file(folder.path / "a.kvc", 1 << 20, memory);
  REQUIRE(bytes.status() == Status::ok);
  REQUIRE(memory.requests == 1);
  REQUIRE(load(other.cache, bytes->span()) == Status::ok);
  REQUIRE(other.cache.report().slots == rig.cache.report().slots);
  // Loading from the half of it changes nothing.
  REQUIRE(load(other.cache, bytes->span().first(bytes->span().size() / 2)) == Status::corrupt_data);
  REQUIRE(other.cache.length() == 100);
}

TEST_CASE("file: an abandoned or failed file leaves the older one", "[io][file]") {
  const Folder folder;
  const fs::path path = folder.path / "a";
  {
    io::FileSink first(path);
    REQUIRE(first.write(bytes_of("old")));
    REQUIRE(first.finish() == Status::ok);
    REQUIRE(first.finish() == Status::io_error);  // once only
    REQUIRE_FALSE(first.write(bytes_of("late")));
  }
  {
    io::FileSink second(path);
    REQUIRE(second.write(bytes_of("new and longer")));
  }
  REQUIRE(folder.files() == 1);
  const auto kept = io::read_file(path);
  REQUIRE(kept.status() == Status::ok);
  REQUIRE(kept->size() == 3);
  // A folder that is in the way of the name: the renaming fails, and the partial file goes.
  fs::create_directories(folder.path / "b" / "c");
  io::FileSink third(folder.path / "b");
  REQUIRE(third.write(bytes_of("x")));
  REQUIRE(third.finish() == Status::io_error);
  REQUIRE(folder.files() == 2);
}

TEST_CASE("file: what cannot be opened, read or held is refused", "[io][file]") {
  const Folder folder;
  io::FileSink nowhere(folder.path / "no" / "such" / "place");
  REQUIRE_FALSE(nowhere.write(bytes_of("x")));
  REQUIRE(nowhere.finish() == Status::io_error);
  REQUIRE(io::read_file(folder.path / "none").status() == Status::io_error);
  REQUIRE(io::read_file(folder.path).status() == Status::io_error);
  const fs::path path = folder.path / "ten";
  std::ofstream(path) << "0123456789";
  test::CountingMemory memory;
  REQUIRE(io::read_file(path, 9, memory).status() == Status::out_of_range);
  REQUIRE(memory.requests == 0);
  memory.refuse_from = 0;
  REQUIRE(io::read_file(path, 10, memory).status() == Status::out_of_memory);
  std::ofstream(folder.path / "empty");
  const auto empty = io::read_file(folder.path / "empty");
  REQUIRE(empty.status() == Status::ok);
  REQUIRE(empty->empty());
}

TEST_CASE("file: a file that gives fewer bytes than it said, by any number, is an io_error", "[io][file]") {
  const Folder folder;
  const std::string text(300, 'x');
  for (std::size_t left = 0; left <= text.size(); ++left) {
    CutsFile memory;
    memory.path = folder.path / "a", memory.left = left;
    std::ofstream(memory.path) << text;
    {
      const auto bytes = io::read_file(memory.path, 1 << 20, memory);
      REQUIRE(bytes.status() == (left < text.size() ? Status::io_error : Status::ok));
    }
    REQUIRE(memory.heap.live_bytes == 0);
  }
}

TEST_CASE("file: a full disk shows as io_error", "[io][file]") {
  if (!fs::exists("/dev/full")) return;
  const Folder folder;
  fs::create_symlink("/dev/full", folder.path / "full.partial");
  io::FileSink sink(folder.path / "full");
  (void)sink.write(bytes_of("a few bytes stay in the buffer until the file is closed"));
  REQUIRE(sink.finish() == Status::io_error);
  REQUIRE(folder.files() == 0);
}
