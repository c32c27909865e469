#include <catch2/catch.hpp>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/object_array.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <support/memory.hpp>

using namespace kvcondense;

TEST_CASE("buffer: a refused growth keeps what was there", "[core][buffer]") {
  test::CountingMemory memory;
  {
    Buffer<int> b(memory);
    for (int i = 0; i < 100; ++i) REQUIRE(b.push_back(i) == Status::ok);
    memory.refuse_from = memory.requests;
    REQUIRE(b.reserve(1000) == Status::out_of_memory);
    REQUIRE(b.size() == 100);
    for (int i = 0; i < 100; ++i) REQUIRE(b[i] == i);
    b.erase_front(40);
    REQUIRE(b.size() == 60);
    REQUIRE(b[0] == 40);
    Buffer<int> moved = std::move(b);
    REQUIRE(moved.back() == 99);
    REQUIRE(b.empty());
    REQUIRE(memory.live_bytes == moved.bytes());
  }
  REQUIRE(memory.live_bytes == 0);
  REQUIRE(memory.wrong_releases == 0);
}

TEST_CASE("object array: objects are made once and destroyed once", "[core][object_array]") {
  static int alive = 0;
  struct Thing {
    Thing() { ++alive; }
    Thing(Thing&&) { ++alive; }
    ~Thing() { --alive; }
  };
  test::CountingMemory memory;
  {
    ObjectArray<Thing> a;
    REQUIRE(a.fill(memory, 5, [](index_t) { return Thing(); }) == Status::ok);
    REQUIRE(alive == 5);
    ObjectArray<Thing> b = std::move(a);
    REQUIRE(alive == 5);
    REQUIRE(a.size() == 0);
  }
  REQUIRE(alive == 0);
  REQUIRE(memory.live_bytes == 0);
}

TEST_CASE("scratch: pieces are aligned, disjoint and end where the memory ends", "[core][workspace]") {
  alignas(64) std::byte room[1024];
  for (std::size_t skew : {std::size_t{0}, std::size_t{1}, std::size_t{63}}) {
    Scratch s(std::span<std::byte>(room).subspan(skew));
    auto* a = s.take<float>(3);
    auto* b = s.take<double>(9);
    REQUIRE(a != nullptr);
    REQUIRE(b != nullptr);
    REQUIRE(reinterpret_cast<std::uintptr_t>(a) % 64 == 0);
    REQUIRE(reinterpret_cast<std::byte*>(b) - reinterpret_cast<std::byte*>(a) == 64);
    const std::size_t left = s.left();
    REQUIRE(s.take<std::byte>(static_cast<index_t>(left) + 1) == nullptr);
    REQUIRE(s.left() == left);
  }
  Scratch none;
  REQUIRE(none.take<float>(0) != nullptr);
  REQUIRE(none.take<float>(1) == nullptr);
}

TEST_CASE("view: strides are in elements and any dimension may be last", "[core][view]") {
  float x[24];
  for (int i = 0; i < 24; ++i) x[i] = static_cast<float>(i);
  const auto v = dense_view(x, 2, 3, 4);
  REQUIRE(v(1, 2, 3) == 23.0f);
  const TensorView<const float, 3> swapped{x, {3, 2, 4}, {4, 12, 1}};
  REQUIRE(swapped(2, 1, 0) == v(1, 2, 0));
  REQUIRE(v.size() == 24);
}

TEST_CASE("expected: a value or a reason", "[core][expected]") {
  Expected<int> good(3), bad(Status::corrupt_data);
  REQUIRE(good);
  REQUIRE(*good == 3);
  REQUIRE(good.status() == Status::ok);
  REQUIRE_FALSE(bad);
  REQUIRE(bad.status() == Status::corrupt_data);
}

TEST_CASE("byte reader: counts that no file can hold are refused, and then everything is", "[core][bytes]") {
  const std::byte data[16] = {};
  ByteReader r(data);
  std::span<const std::byte> out;
  REQUIRE_FALSE(r.take(std::uint64_t{1} << 63, 2, out));
  REQUIRE(r.failed());
  int x = 0;
  REQUIRE_FALSE(r.read(x));
  ByteReader again(data);
  REQUIRE(again.take(4, 4, out));
  REQUIRE(again.left() == 0);
  REQUIRE_FALSE(again.read(x));
}
