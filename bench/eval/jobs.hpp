#pragma once

#include <chrono>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include <kvcondense/core/config.hpp>

namespace eval {

using kvcondense::index_t;

/// One line on stderr about long work; says nothing before two seconds have passed.
class Progress {
 public:
  explicit Progress(bool quiet);
  ~Progress();

  void expect(index_t steps) { expected_ += steps; }
  void done(const std::string& what);  ///< safe from many threads
  void finish();                       ///< clears the line

 private:
  using Clock = std::chrono::steady_clock;

  bool quiet_, terminal_;
  bool shown_ = false;
  index_t expected_ = 0, done_ = 0;
  Clock::time_point started_ = Clock::now(), said_ = Clock::now();
  std::mutex mutex_;
};

struct Job {
  std::string what;
  std::function<void()> run;
};

/// Runs all jobs on `threads` threads. Jobs write to places of their own, so results do not depend
/// on their order. The first exception is thrown again when all threads have stopped.
void run_jobs(std::vector<Job> jobs, index_t threads, Progress& progress);

/// Threads that `--jobs 0` stands for.
index_t machine_threads();

}  // namespace eval
