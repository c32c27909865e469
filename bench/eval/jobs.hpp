#pragma once

#include <chrono>
#include <cstdio>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include <kvcondense/core/config.hpp>

namespace eval {

using kvcondense::index_t;

/// Says how many tokens of its share a job has done since it last said so.
using Tick = std::function<void(double tokens)>;

/// One line about long work, which is counted in tokens: says nothing for two seconds, then keeps a
/// line of a terminal up to date, or adds a line to a log every five seconds.
class Progress {
 public:
  using Seconds = std::chrono::duration<double>;

  explicit Progress(bool quiet, std::FILE* to = stderr, Seconds silence = Seconds(2));
  ~Progress();

  /// All that will come, before the first part of it is done: so the percentage never falls.
  void expect(double tokens) { expected_ += tokens; }
  void done(double tokens, const std::string& what);  ///< safe from many threads
  double part() const { return expected_ > 0 ? done_ / expected_ : 0; }

 private:
  using Clock = std::chrono::steady_clock;

  std::FILE* to_;
  bool quiet_, terminal_;
  bool shown_ = false;
  double expected_ = 0, done_ = 0;
  Seconds silence_;
  Clock::time_point started_ = Clock::now(), said_ = Clock::now();
  std::mutex mutex_;
};

struct Job {
  std::string what;
  double tokens;  ///< its share of the expected work; what `run` does not tick is ticked at its end
  std::function<void(const Tick&)> run;
};

/// Runs all jobs on `threads` threads. Jobs write to places of their own, so results do not depend
/// on their order. The first exception is thrown again when all threads have stopped.
void run_jobs(std::vector<Job> jobs, index_t threads, Progress& progress);

/// Threads that `--jobs` stands for; 0: one per processor.
index_t threads_for(index_t jobs);

}  // namespace eval
