#include <catch2/catch.hpp>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>

#include <eval/jobs.hpp>
#include <eval/speed.hpp>

using namespace eval;

namespace {

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using Log = std::unique_ptr<std::FILE, Close>;

std::string content(std::FILE* file) {
  std::string text;
  std::rewind(file);
  for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) text += static_cast<char>(c);
  return text;
}

}  // namespace

TEST_CASE("jobs: all run, and progress reaches the whole whatever they tick", "[eval][jobs]") {
  const index_t threads = GENERATE(1, 4);
  Progress progress(true);
  progress.expect(100);
  std::vector<int> ran(10, 0);
  std::vector<Job> jobs;
  for (std::size_t i = 0; i < ran.size(); ++i)
    jobs.push_back({"job", 10, [&ran, i](const Tick& tick) {
                      ++ran[i];
                      for (std::size_t n = 0; n < i; ++n) tick(1);
                    }});
  run_jobs(std::move(jobs), threads, progress);
  REQUIRE(ran == std::vector<int>(10, 1));
  REQUIRE(progress.part() == Approx(1.0));
}

TEST_CASE("jobs: the first failure is thrown, later jobs do not start", "[eval][jobs]") {
  Progress progress(true);
  int ran = 0;
  std::vector<Job> jobs{{"bad", 1, [](const Tick&) { throw std::runtime_error("no"); }},
                        {"later", 1, [&](const Tick&) { ++ran; }}};
  REQUIRE_THROWS_WITH(run_jobs(std::move(jobs), 1, progress), "no");
  REQUIRE(ran == 0);
}

TEST_CASE("progress: a log gets whole lines, a quiet one nothing", "[eval][jobs]") {
  const bool quiet = GENERATE(false, true);
  const Log log(std::tmpfile());
  REQUIRE(log != nullptr);
  {
    Progress progress(quiet, log.get(), Progress::Seconds(0));
    progress.expect(8);
    progress.done(2, "first");
    progress.done(6, "second");
  }
  const std::string text = content(log.get());
  if (quiet) {
    REQUIRE(text.empty());
    return;
  }
  REQUIRE(text.starts_with(" 25 %  0 s, 0 s left  first\n"));
  REQUIRE(text.ends_with("100 %  0 s, 0 s left  second\n"));
  REQUIRE(text.find('\r') == std::string::npos);
}

TEST_CASE("progress: short work says nothing", "[eval][jobs]") {
  const Log log(std::tmpfile());
  REQUIRE(log != nullptr);
  {
    Progress progress(false, log.get());
    progress.expect(1);
    progress.done(1, "all");
  }
  REQUIRE(content(log.get()).empty());
}

TEST_CASE("speed: recipes take turns, every token once and in order", "[eval][speed]") {
  std::vector<std::string> turns;
  std::vector<index_t> tokens[2];
  std::vector<Step> steps;
  for (std::size_t i = 0; i < 2; ++i)
    steps.push_back([&, i](index_t t) {
      tokens[i].push_back(t);
      if (turns.empty() || turns.back() != std::to_string(i)) turns.push_back(std::to_string(i));
    });
  Progress progress(true);
  progress.expect(2 * 4 * 5);
  const auto speeds = measure_speed(steps, 3, 5, progress);
  REQUIRE(turns == std::vector<std::string>{"0", "1", "0", "1", "0", "1", "0", "1"});
  for (const auto& seen : tokens) {
    REQUIRE(seen.size() == 20);  // three rounds after one that warms up
    for (std::size_t t = 0; t < seen.size(); ++t) REQUIRE(seen[t] == static_cast<index_t>(t));
  }
  REQUIRE(speeds.size() == 2);
  REQUIRE(speeds[0].of_full == 1.0);
  REQUIRE(speeds[0].spread == 0.0);
  REQUIRE(progress.part() == Approx(1.0));
  REQUIRE(measure_speed(steps, 0, 5, progress)[1].tokens_per_second == 0.0);
}
