#include <eval/jobs.hpp>

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <exception>
#include <thread>

namespace eval {

Progress::Progress(bool quiet) : quiet_(quiet), terminal_(isatty(STDERR_FILENO) == 1) {}
Progress::~Progress() { finish(); }

void Progress::done(const std::string& what) {
  const std::lock_guard lock(mutex_);
  ++done_;
  const auto now = Clock::now();
  const auto since = [&](Clock::time_point then) {
    return std::chrono::duration<double>(now - then).count();
  };
  if (quiet_ || since(started_) < 2 || since(said_) < (terminal_ ? 0.2 : 10)) return;
  said_ = now;
  shown_ = terminal_;
  const int percent = static_cast<int>(100 * done_ / std::max<index_t>(expected_, 1));
  std::fprintf(stderr, terminal_ ? "\r\033[K%3d %%  %.0f s  %.60s" : "%3d %%  %.0f s  %.60s\n",
               percent, since(started_), what.c_str());
  std::fflush(stderr);
}

void Progress::finish() {
  const std::lock_guard lock(mutex_);
  if (!shown_) return;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
  shown_ = false;
}

void run_jobs(std::vector<Job> jobs, index_t threads, Progress& progress) {
  progress.expect(static_cast<index_t>(jobs.size()));
  std::atomic<std::size_t> next{0};
  std::exception_ptr failed;
  std::mutex failing;
  const auto work = [&] {
    for (std::size_t i = next++; i < jobs.size(); i = next++) {
      try {
        jobs[i].run();
        progress.done(jobs[i].what);
      } catch (...) {
        const std::lock_guard lock(failing);
        if (!failed) failed = std::current_exception();
        next = jobs.size();
      }
    }
  };
  std::vector<std::thread> team;
  const auto size = std::min(static_cast<std::size_t>(std::max<index_t>(threads, 1)), jobs.size());
  for (std::size_t t = 1; t < size; ++t) team.emplace_back(work);
  work();
  for (std::thread& t : team) t.join();
  if (failed) std::rethrow_exception(failed);
}

index_t machine_threads() {
  return std::max<index_t>(1, static_cast<index_t>(std::thread::hardware_concurrency()));
}

}  // namespace eval
