#include <algorithm>
#include <catch2/catch.hpp>
#include <deque>
#include <kvcondense/storage/flash_window.hpp>
#include <random>
#include <set>
#include <support/oracle.hpp>
#include <vector>

using namespace kvcondense;
using storage::FlashWindow;

namespace {

std::vector<index_t> sorted(std::span<const index_t> x) {
  std::vector<index_t> v(x.begin(), x.end());
  std::sort(v.begin(), v.end());
  return v;
}

}  // namespace

TEST_CASE("flash window: the worked steps", "[storage][flash_window]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "flash_windowing");
  auto made = FlashWindow::make(8, o.at("window").get<index_t>());
  REQUIRE(made);
  FlashWindow w = std::move(*made);
  for (std::size_t t = 0; t < o.at("log").size(); ++t) {
    const auto& log = o.at("log")[t];
    REQUIRE(w.step(o.at("active")[t].get<std::vector<index_t>>()) == Status::ok);
    CHECK(sorted(w.loaded()) == log.at("load").get<std::vector<index_t>>());
    CHECK(sorted(w.dropped()) == log.at("delete").get<std::vector<index_t>>());
    CHECK(sorted(w.items()) == log.at("resident").get<std::vector<index_t>>());
  }
  CHECK(w.loaded_so_far() == o.at("total_loaded").get<index_t>());

  auto one = FlashWindow::make(8, 1);
  REQUIRE(one);
  index_t without = 0;
  for (const auto& active : o.at("active")) {
    REQUIRE(one->step(active.get<std::vector<index_t>>()) == Status::ok);
    without += static_cast<index_t>(active.size());
  }
  CHECK(without == o.at("total_without_window").get<index_t>());
  CHECK(one->loaded_so_far() > w.loaded_so_far());
}

TEST_CASE("flash window: the buffer follows the union of the last steps, dense, through moves", "[storage][flash_window]") {
  std::mt19937 random(5);
  for (const index_t window : {1, 2, 5}) {
    constexpr index_t items = 30;
    auto made = FlashWindow::make(items, window);
    REQUIRE(made);
    FlashWindow w = std::move(*made);
    std::deque<std::vector<index_t>> last;
    std::vector<index_t> buffer;  // what an engine would hold, by place
    for (int step = 0; step < 400; ++step) {
      std::vector<index_t> active;
      for (index_t i = 0; i < items; ++i)
        if (random() % 8 == 0) active.push_back(i);
      std::shuffle(active.begin(), active.end(), random);
      REQUIRE(w.step(active) == Status::ok);
      last.push_back(active);
      if (static_cast<index_t>(last.size()) > window) last.pop_front();
      std::set<index_t> want;
      for (const auto& a : last) want.insert(a.begin(), a.end());
      CHECK(sorted(w.items()) == std::vector<index_t>(want.begin(), want.end()));
      for (const auto& m : w.moves()) buffer[static_cast<std::size_t>(m.to)] = buffer[static_cast<std::size_t>(m.from)];
      buffer.resize(static_cast<std::size_t>(w.resident()), -1);
      for (const index_t item : w.loaded()) buffer[static_cast<std::size_t>(w.place(item))] = item;
      REQUIRE(std::equal(buffer.begin(), buffer.end(), w.items().begin(), w.items().end()));
    }
  }
}

TEST_CASE("flash window: a bad step changes nothing", "[storage][flash_window]") {
  auto made = FlashWindow::make(4, 2);
  REQUIRE(made);
  FlashWindow w = std::move(*made);
  using Items = std::vector<index_t>;
  REQUIRE(w.step(Items{0, 1}) == Status::ok);
  CHECK(w.step(Items{4}) == Status::out_of_range);
  CHECK(w.step(Items{-1}) == Status::out_of_range);
  CHECK(w.step(Items{2, 3, 2}) == Status::invalid_argument);
  CHECK(sorted(w.items()) == Items{0, 1});
  REQUIRE(w.step(Items{2, 3}) == Status::ok);
  CHECK(sorted(w.items()) == Items{0, 1, 2, 3});
  REQUIRE(w.step(Items{}) == Status::ok);
  CHECK(sorted(w.items()) == Items{2, 3});
  CHECK(sorted(w.dropped()) == Items{0, 1});
  CHECK(FlashWindow::make(0, 1).status() == Status::invalid_argument);
  CHECK(FlashWindow::make(1, 0).status() == Status::invalid_argument);
}
