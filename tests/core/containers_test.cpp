#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/object_array.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <support/byte_list.hpp>
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

TEST_CASE("buffer: room grows by doubling, exactly where asked, and goes back where it is far too large", "[core][buffer]") {
  test::CountingMemory memory;
  Buffer<int> b(memory);
  const auto capacity = [&] { return static_cast<int>(b.bytes() / sizeof(int)); };
  REQUIRE(b.push_back(0) == Status::ok);
  REQUIRE(capacity() == 8);
  REQUIRE(b.resize(9, 5) == Status::ok);
  REQUIRE(capacity() == 16);
  REQUIRE((b.back() == 5 && b[0] == 0 && b[1] == 5));
  REQUIRE(b.end() - b.begin() == 9);
  REQUIRE(std::as_const(b).end() - std::as_const(b).begin() == 9);
  const long asked = memory.requests;
  REQUIRE(b.reserve(16) == Status::ok);
  REQUIRE(memory.requests == asked);
  REQUIRE(b.reserve(17, true) == Status::ok);
  REQUIRE(capacity() == 17);
  REQUIRE(b.reserve(40) == Status::ok);
  REQUIRE(capacity() == 40);
  const auto kept = [&] { return b.size() == 9 && b[0] == 0 && b[8] == 5; };
  b.give_back(10);  // four times too large is not too much
  REQUIRE(capacity() == 40);
  REQUIRE(b.reserve(41, true) == Status::ok);
  memory.refuse_from = memory.requests;
  b.give_back(10), b.fit();
  REQUIRE((capacity() == 41 && kept()));
  memory.refuse_from = -1;
  b.give_back(10);
  REQUIRE((capacity() == 20 && kept()));
  b.give_back(0);  // never below twice what is there
  REQUIRE(capacity() == 20);
  REQUIRE(b.reserve(100, true) == Status::ok);
  b.give_back(0);
  REQUIRE((capacity() == 18 && kept()));
  b.fit();
  REQUIRE((capacity() == 9 && kept()));
  const long fitted = memory.requests;
  b.fit();
  REQUIRE(memory.requests == fitted);
  b.erase_front(0);
  REQUIRE(kept());
  b.erase_front(9);
  REQUIRE(b.empty());
  REQUIRE(memory.live_bytes == b.bytes());
  Buffer<int> other(memory);
  REQUIRE(other.resize(3, 7) == Status::ok);
  b = std::move(other);
  REQUIRE((b.size() == 3 && b[2] == 7));
  REQUIRE(memory.live_bytes == b.bytes());
  b.free();
  REQUIRE(memory.live_bytes == 0);
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
  memory.refuse_from = memory.requests;
  ObjectArray<Thing> refused, other;
  REQUIRE(refused.fill(memory, 5, [](index_t) { return Thing(); }) == Status::out_of_memory);
  REQUIRE((refused.size() == 0 && alive == 0));
  memory.refuse_from = -1;
  REQUIRE(refused.fill(memory, 5, [](index_t) { return Thing(); }) == Status::ok);
  REQUIRE(other.fill(memory, 2, [](index_t) { return Thing(); }) == Status::ok);
  other = std::move(refused);
  REQUIRE((other.size() == 5 && alive == 5));
  REQUIRE(std::as_const(other).end() - std::as_const(other).begin() == 5);
}

TEST_CASE("buffer: elements that find no room are refused, and nothing is copied from nothing", "[core][buffer]") {
  test::CountingMemory memory;
  Buffer<int> b(memory), empty(memory);
  REQUIRE(b.resize(8, 1) == Status::ok);
  memory.refuse_from = memory.requests;
  REQUIRE(b.resize(9, 2) == Status::out_of_memory);
  REQUIRE(b.push_back(2) == Status::out_of_memory);
  REQUIRE((b.size() == 8 && b.back() == 1));
  REQUIRE(empty.copy_from(b) == Status::out_of_memory);
  REQUIRE(b.copy_from(empty) == Status::ok);
  REQUIRE(b.empty());
}

TEST_CASE("workspace: grows, keeps what is enough, stays where growth is refused", "[core][workspace]") {
  test::CountingMemory memory;
  {
    Workspace w;
    REQUIRE(w.reserve(100, memory) == Status::ok);
    const std::byte* at = w.bytes().data();
    REQUIRE(w.reserve(60, memory) == Status::ok);
    REQUIRE((w.bytes().data() == at && w.bytes().size() == 100));
    memory.refuse_from = memory.requests;
    REQUIRE(w.reserve(200, memory) == Status::out_of_memory);
    REQUIRE((w.bytes().data() == at && w.bytes().size() == 100));
    memory.refuse_from = -1;
    REQUIRE(w.reserve(200, memory) == Status::ok);
    REQUIRE((w.bytes().size() == 200 && memory.live_bytes == 200));
    Workspace moved = std::move(w), other;
    REQUIRE(w.bytes().empty());
    REQUIRE(other.reserve(50, memory) == Status::ok);
    other = std::move(moved);
    REQUIRE((other.bytes().size() == 200 && memory.live_bytes == 200));
  }
  REQUIRE((memory.live_bytes == 0 && memory.wrong_releases == 0));
}

TEST_CASE("scratch: what the host writes is a piece of its own where words run elsewhere", "[core][workspace]") {
  alignas(64) std::byte words[256], host[128];
  Scratch apart(words, host);
  const auto in = [](const void* p, std::span<const std::byte> room) { return p >= room.data() && p < room.data() + room.size(); };
  REQUIRE(in(apart.take_steering<float>(3), host));
  REQUIRE(in(apart.take<float>(3), words));
  REQUIRE(apart.rest().size() == 192);
  Scratch left = apart.for_host();
  REQUIRE(left.left() == 64);
  REQUIRE(in(left.take<float>(16), host));
  REQUIRE(apart.take_steering<float>(17) == nullptr);
  Scratch one(words);
  REQUIRE(in(one.take_steering<float>(3), words));
  REQUIRE(one.for_host().left() == one.left());
  REQUIRE(Scratch::bytes_for<float>(-1) == 0);
  REQUIRE(Scratch(std::span(words).subspan(1, 30)).left() == 0);  // too little to begin at a multiple of 64
}

TEST_CASE("status: every value says its own name", "[core][status]") {
  const std::pair<Status, const char*> names[] = {
      {Status::ok, "ok"}, {Status::shape_mismatch, "shape_mismatch"}, {Status::invalid_argument, "invalid_argument"},
      {Status::out_of_range, "out_of_range"}, {Status::out_of_memory, "out_of_memory"}, {Status::workspace_too_small, "workspace_too_small"},
      {Status::missing_input, "missing_input"}, {Status::not_supported, "not_supported"}, {Status::incompatible, "incompatible"},
      {Status::corrupt_data, "corrupt_data"}, {Status::io_error, "io_error"}, {Status::order_violation, "order_violation"},
      {Status::no_device, "no_device"}, {Status::device_error, "device_error"}, {static_cast<Status>(200), "unknown"}};
  for (const auto& [status, name] : names) REQUIRE(std::string(to_string(status)) == name);
}

TEST_CASE("shape: every number that is out of range is refused alone", "[core][shape]") {
  const CacheShape good{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .value_dim = 32};
  REQUIRE(validate(good) == Status::ok);
  REQUIRE((good.values() == 32 && good.group() == 3 && CacheShape{}.values() == 64));
  const auto bad = [&](auto member, auto value) {
    CacheShape s = good;
    s.*member = value;
    return validate(s) == Status::invalid_argument;
  };
  for (const index_t n : {index_t{0}, index_t{-1}, index_t{65537}}) {
    REQUIRE(bad(&CacheShape::layers, n));
    REQUIRE(bad(&CacheShape::page_slots, n));
    REQUIRE(bad(&CacheShape::q_heads, 2 * n));
  }
  for (const index_t n : {0, -2, 4, 12}) REQUIRE(bad(&CacheShape::kv_heads, index_t{n}));
  for (const index_t n : {0, -1, 257}) REQUIRE(bad(&CacheShape::head_dim, index_t{n}));
  for (const index_t n : {-1, 257}) REQUIRE(bad(&CacheShape::value_dim, index_t{n}));
  for (const float x : {-1.0f, 1e30f, std::numeric_limits<float>::quiet_NaN()}) REQUIRE(bad(&CacheShape::softmax_scale, x));
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

TEST_CASE("byte writer: little-endian values as they are, summed up, nothing after a failure", "[core][bytes]") {
  test::ByteList list;
  ByteWriter w(list);
  w.put(std::uint32_t{0x04030201});
  w.put(std::uint8_t{5});
  REQUIRE(list.bytes == std::vector<std::byte>{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}, std::byte{5}});
  Checksum sum;
  sum.add(list.bytes);
  REQUIRE(w.checksum() == sum.value());
  REQUIRE(w.checksum() != Checksum().value());
  list.room = 8;
  w.put(std::uint32_t{1});
  REQUIRE(w.status() == Status::io_error);
  w.put(std::uint8_t{1});  // would have room
  w.fail(Status::out_of_memory);
  REQUIRE(w.status() == Status::io_error);
  REQUIRE(list.bytes.size() == 5);
  ByteWriter v(list);
  v.fail(Status::out_of_memory);
  v.put(std::uint8_t{1});
  REQUIRE(v.status() == Status::out_of_memory);
  REQUIRE(list.bytes.size() == 5);
}

TEST_CASE("byte reader: a value that is not all there fails, and then every read does", "[core][bytes]") {
  const std::byte data[6] = {std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}, std::byte{5}, std::byte{6}};
  ByteReader r(data);
  std::uint32_t four = 0;
  std::uint8_t one = 0;
  REQUIRE(r.read(four));
  REQUIRE(four == 0x04030201);
  REQUIRE(r.left() == 2);
  REQUIRE_FALSE(r.read(four));
  REQUIRE(r.failed());
  REQUIRE_FALSE(r.read(one));
  std::span<const std::byte> out;
  REQUIRE_FALSE(r.take(1, 1, out));
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
  REQUIRE(again.take(std::uint64_t{1} << 40, 0, out));  // any number of things without a size
  REQUIRE(out.empty());
  REQUIRE_FALSE(again.read(x));
}
