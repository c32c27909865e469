#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/storage/alisa_placement.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using storage::AlisaPhases;
using storage::AlisaPlace;
using storage::AlisaPlacement;
using storage::AlisaStep;
using storage::AlisaTimes;

namespace {

/// A place per token, moved step by step as the phases say, and nothing else remembered.
struct Naive {
  std::vector<AlisaPlace> place;

  index_t count(AlisaPlace p) const { return std::count(place.begin(), place.end(), p); }
  /// Moves tokens from the oldest on until as many as asked for are off the device; returns how many of them stay on the host.
  index_t step(const AlisaPlacement& plan, index_t j) {
    const index_t n = plan.prompt + j, k = std::min(n, std::max<index_t>(1, static_cast<index_t>(std::nearbyint(static_cast<double>(n) * plan.ratio / 2))));
    place.resize(static_cast<std::size_t>(n + 1), AlisaPlace::device);
    if (j < plan.phases.p1) return 0;
    const auto wanted = static_cast<index_t>(std::floor(plan.phases.alpha * static_cast<double>(n) + 1e-9));
    std::vector<index_t> moved;
    for (index_t t = 0; t < n - k; ++t) {
      const index_t off = n + 1 - count(AlisaPlace::device);
      if (off >= wanted && count(AlisaPlace::device) <= plan.slots) break;
      auto& p = place[static_cast<std::size_t>(t)];
      if (p == AlisaPlace::device) p = AlisaPlace::host, moved.push_back(t);
    }
    if (j >= plan.phases.p2) {
      const index_t gone = static_cast<index_t>(std::floor(plan.phases.beta * static_cast<double>(n + 1 - count(AlisaPlace::device)) + 1e-9));
      for (index_t t = 0; count(AlisaPlace::deleted) < gone; ++t) place[static_cast<std::size_t>(t)] = AlisaPlace::deleted;
    }
    return std::count_if(moved.begin(), moved.end(), [&](index_t t) { return place[static_cast<std::size_t>(t)] == AlisaPlace::host; });
  }
};

AlisaPlacement some(std::mt19937& random) {
  const auto upto = [&](index_t n) { return static_cast<index_t>(random() % static_cast<unsigned>(n + 1)); };
  AlisaPlacement p{.prompt = upto(20), .steps = 1 + upto(30), .ratio = 0.05 * static_cast<double>(1 + upto(19))};
  p.phases = {upto(p.steps), 0, 0.1 * static_cast<double>(upto(10)), 0.1 * static_cast<double>(upto(10))};
  p.phases.p2 = p.phases.p1 + upto(10);
  p.slots = std::max(p.near(p.steps - 1) + 1, p.phases.p1 == 0 ? 0 : p.prompt + std::min(p.phases.p1, p.steps)) + upto(6);
  return p;
}

constexpr double parts[] = {0.0, 0.25, 0.5, 0.75, 1.0};

}  // namespace

TEST_CASE("alisa placement: bytes of the worked case, and of what lies on the host", "[storage][alisa_placement]") {
  const auto o = test::load_oracle("eviction.json", "alisa_swa").at("kv_bytes_check");
  const storage::AlisaBytes bytes{.batch = o.at("b"), .layers = o.at("l"), .channels = o.at("h")};
  CHECK(bytes.device_token() * o.at("tokens").get<index_t>() == o.at("bytes").get<index_t>());
  CHECK(2 * bytes.host_token() == bytes.device_token());
  CHECK(bytes.parameters() == 2 * bytes.device_token());  // of every channel two numbers
  const storage::AlisaBytes odd{.batch = 1, .layers = 1, .channels = 1, .host_bits = 3};
  CHECK(odd.host_token() == 1);
}

TEST_CASE("alisa placement: tokens move as one by one, the window never, and each is in one place", "[storage][alisa_placement]") {
  std::mt19937 random(3);
  index_t seen[3] = {0, 0, 0};
  for (int round = 0; round < 300; ++round) {
    const AlisaPlacement plan = some(random);
    CAPTURE(plan.prompt, plan.steps, plan.slots, plan.ratio, plan.phases.p1, plan.phases.p2, plan.phases.alpha, plan.phases.beta);
    REQUIRE(plan.validate() == Status::ok);
    Naive naive;
    storage::AlisaPlaces before{};
    for (index_t j = 0; j < plan.steps; ++j) {
      const index_t stored = naive.step(plan, j);
      const auto p = plan.places(j);
      REQUIRE(p);
      REQUIRE(p->tokens == plan.prompt + j + 1);
      for (index_t t = 0; t < p->tokens; ++t) {
        REQUIRE(p->of(t) == naive.place[static_cast<std::size_t>(t)]);
        ++seen[static_cast<int>(p->of(t))];
      }
      REQUIRE(p->on_device() + p->on_host() + p->deleted == p->tokens);
      REQUIRE(p->on_device() == naive.count(AlisaPlace::device));
      REQUIRE(p->on_device() <= plan.slots);
      for (index_t t = p->tokens - 1 - plan.near(j); t < p->tokens; ++t) REQUIRE(p->of(t) == AlisaPlace::device);
      REQUIRE((p->hosted >= before.hosted && p->deleted >= before.deleted));  // nothing comes back
      if (j < plan.phases.p1) REQUIRE(p->hosted == 0);
      if (j < plan.phases.p2) REQUIRE(p->deleted == 0);
      for (index_t t = 0; t + 1 < p->hosted; ++t) REQUIRE(p->of(t) >= p->of(t + 1));  // the oldest of the host's are those that are deleted
      REQUIRE(plan.cost(j, {})->stored == stored);
      before = *p;
    }
  }
  for (const index_t n : seen) CHECK(n > 1000);
}

TEST_CASE("alisa placement: a set costs what its tokens do where they lie", "[storage][alisa_placement]") {
  const AlisaPlacement plan{.prompt = 20, .steps = 10, .slots = 30, .ratio = 0.4, .bytes = {.batch = 2, .layers = 3, .channels = 8}, .phases = {2, 4, 0.5, 0.5}};
  REQUIRE(plan.validate() == Status::ok);
  const std::vector<index_t> chosen{0, 3, 7, 12, 20, 21, 22, 23};
  const auto first = plan.cost(1, std::vector<index_t>{0, 3, 20}), second = plan.cost(2, std::vector<index_t>{0, 3, 21}), third = plan.cost(4, chosen);
  REQUIRE((first && second && third));
  CHECK((first->loaded == 0 && first->recomputed == 0 && first->stored == 0 && first->read == 4));
  CHECK((second->loaded == 2 && second->recomputed == 0 && second->stored == 11));  // half of 22
  CHECK(second->store_bytes == 11 * 2.0 * 2 * 3 * 8);
  CHECK((third->places.hosted == 12 && third->places.deleted == 6));
  CHECK((third->recomputed == 2 && third->loaded == 1));  // 0 and 3; 7
  CHECK(third->load_bytes == 2.0 * 2 * 3 * 8);
  CHECK((plan.cost(3, {})->stored == 0 && third->stored == 1));  // half of 23, half of 24
  CHECK(plan.cost(1, std::vector<index_t>{21}).status() == Status::out_of_range);  // a step's own is no choice
  CHECK(plan.cost(1, std::vector<index_t>{-1}).status() == Status::out_of_range);
  CHECK(plan.cost(10, {}).status() == Status::out_of_range);
  CHECK(plan.places(-1).status() == Status::out_of_range);
}

TEST_CASE("alisa placement: means are those of sets drawn at random", "[storage][alisa_placement]") {
  const AlisaPlacement plan{.prompt = 60, .steps = 9, .slots = 64, .ratio = 0.3, .phases = {1, 3, 0.5, 0.4}};
  REQUIRE(plan.validate() == Status::ok);
  std::mt19937 random(4);
  for (const index_t j : {0, 2, 8}) {
    const AlisaStep want = plan.expected(j);
    double loaded = 0, recomputed = 0;
    constexpr int draws = 4000;
    const index_t all = plan.prompt + j - plan.near(j);
    std::vector<index_t> tokens(static_cast<std::size_t>(all));
    for (int i = 0; i < draws; ++i) {
      for (index_t t = 0; t < all; ++t) tokens[static_cast<std::size_t>(t)] = t;
      std::shuffle(tokens.begin(), tokens.end(), random);
      std::vector<index_t> set(tokens.begin(), tokens.begin() + plan.far(j));
      for (index_t t = all; t < plan.prompt + j; ++t) set.push_back(t);
      const auto s = plan.cost(j, set);
      REQUIRE(s);
      REQUIRE(s->read == want.read);
      loaded += s->loaded / draws, recomputed += s->recomputed / draws;
    }
    CHECK(want.loaded == Approx(loaded).margin(0.1));
    CHECK(want.recomputed == Approx(recomputed).margin(0.1));
  }
  // Who looks at the newest only needs nothing of the others.
  const AlisaStep newest = plan.expected(8, [](double part) { return part < 1.0 ? 0.0 : 1.0; });
  CHECK((newest.loaded == 0 && newest.recomputed == 0));
}

TEST_CASE("alisa placement: the search finds what trying all finds", "[storage][alisa_placement]") {
  std::mt19937 random(9);
  index_t phases[3] = {0, 0, 0};
  for (int round = 0; round < 120; ++round) {
    AlisaPlacement plan = some(random);
    plan.steps = std::min<index_t>(plan.steps, 9);
    const auto rate = [&](double most) { return most * static_cast<double>(random() % 1000) / 1000.0; };
    // A host that is read slowly, memory that is read faster the less of it is used, arithmetic that costs per token and per batch.
    const double load = rate(3.0), store = rate(2.0), again = rate(4.0), batch = rate(2.0), crowded = rate(0.3);
    const auto model = [&](const AlisaStep& s) {
      AlisaTimes t;
      t.compute = 0.1 * s.read + crowded * static_cast<double>(s.places.on_device()) * static_cast<double>(s.step % 3);
      t.memory = load * s.load_bytes + store * s.store_bytes + 0.02 * static_cast<double>(s.places.on_host() * s.places.on_host());
      t.recompute = s.recomputed > 0 ? batch + again * s.recomputed : 0.0;
      return t;
    };
    const auto picks = [&](double part) { return round % 2 == 0 ? part : part * part; };
    AlisaPlacement::Found best;
    for (const double alpha : parts)
      for (const double beta : parts)
        for (index_t p1 = 0; p1 <= plan.steps; ++p1)
          for (index_t p2 = p1; p2 <= plan.steps; ++p2) {
            AlisaPlacement tried = plan;
            tried.phases = {p1, p2, alpha, beta};
            if (tried.validate() != Status::ok) continue;
            if (const double t = tried.seconds(model, picks); t < best.seconds) best = {tried.phases, t};
          }
    const auto found = plan.search(parts, parts, model, picks);
    REQUIRE(found);
    AlisaPlacement chosen = plan;
    chosen.phases = found->phases;
    REQUIRE(chosen.validate() == Status::ok);
    REQUIRE(found->seconds == best.seconds);
    REQUIRE(chosen.seconds(model, picks) == found->seconds);
    phases[0] += found->phases.p1 > 0, phases[1] += found->phases.p2 > found->phases.p1, phases[2] += found->phases.p2 < plan.steps;
  }
  for (const index_t n : phases) CHECK(n > 10);
}

TEST_CASE("alisa placement: where nothing costs anything tokens stay, and where loading does they are made again", "[storage][alisa_placement]") {
  const AlisaPlacement roomy{.prompt = 10, .steps = 5, .slots = 15};
  const auto free = roomy.search(parts, parts, [](const AlisaStep&) { return AlisaTimes{}; });
  REQUIRE(free);
  CHECK(free->phases.p1 == 5);
  const AlisaPlacement tight{.prompt = 10, .steps = 5, .slots = 8, .ratio = 0.5};
  const auto slow_link = tight.search(parts, parts, [](const AlisaStep& s) { return AlisaTimes{.memory = s.load_bytes + s.store_bytes, .recompute = s.recomputed}; });
  REQUIRE(slow_link);
  CHECK((slow_link->phases.p2 == 0 && slow_link->phases.beta == 1.0));
  const auto slow_math = tight.search(parts, parts, [](const AlisaStep& s) { return AlisaTimes{.memory = s.load_bytes, .recompute = 1e3 * s.recomputed}; });
  REQUIRE(slow_math);
  AlisaPlacement plan = tight;
  plan.phases = slow_math->phases;
  for (index_t j = 0; j < 5; ++j) CHECK(plan.places(j)->deleted == 0);
}

TEST_CASE("alisa placement: plans that are none are refused", "[storage][alisa_placement]") {
  const AlisaPlacement good{.prompt = 10, .steps = 5, .slots = 15, .phases = {2, 3, 0.5, 0.5}};
  REQUIRE(good.validate() == Status::ok);
  REQUIRE(AlisaPlacement{}.validate() == Status::ok);
  const auto refused = [&](auto&& change, Status status) {
    AlisaPlacement bad = good;
    change(bad);
    CHECK(bad.validate() == status);
  };
  constexpr Status invalid = Status::invalid_argument;
  refused([](auto& p) { p.ratio = 0.0; }, invalid), refused([](auto& p) { p.ratio = 1.1; }, invalid), refused([](auto& p) { p.ratio = NAN; }, invalid);
  refused([](auto& p) { p.prompt = -1; }, invalid), refused([](auto& p) { p.steps = -1; }, invalid), refused([](auto& p) { p.slots = index_t{1} << 40; }, invalid);
  refused([](auto& p) { p.phases.p1 = -1; }, invalid), refused([](auto& p) { p.phases.p2 = 1; }, invalid);
  refused([](auto& p) { p.phases.alpha = 1.1; }, invalid), refused([](auto& p) { p.phases.beta = -0.1; }, invalid), refused([](auto& p) { p.phases.beta = NAN; }, invalid);
  refused([](auto& p) { p.bytes.batch = 0; }, invalid), refused([](auto& p) { p.bytes.host_bits = 17; }, invalid), refused([](auto& p) { p.bytes.layers = p.bytes.channels = index_t{1} << 30; }, invalid);
  refused([](auto& p) { p.slots = 11; }, Status::out_of_memory);                 // phase I has twelve
  refused([](auto& p) { p.phases.p1 = 0, p.slots = 1; }, Status::out_of_memory);  // one near, and the step's own
  const auto nothing = [](const AlisaStep&) { return AlisaTimes{}; };
  CHECK(good.search({}, parts, nothing).status() == invalid);
  CHECK(good.search(parts, {}, nothing).status() == invalid);
  constexpr double wrong[] = {2.0};
  CHECK(good.search(parts, wrong, nothing).status() == invalid);
}
