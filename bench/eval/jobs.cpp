#include <eval/jobs.hpp>

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <system_error>
#include <thread>

namespace eval {

Progress::Progress(bool quiet, std::FILE* to, Seconds silence)
    : to_(to), quiet_(quiet), terminal_(isatty(fileno(to)) == 1), silence_(silence) {}

Progress::~Progress() {
  if (!shown_) return;
  std::fputs("\r\033[K", to_);  // leaves the terminal as it was
  std::fflush(to_);
}

void Progress::done(double tokens, const std::string& what) {
  const std::lock_guard lock(mutex_);
  done_ += tokens;
  const auto now = Clock::now();
  const Seconds between = silence_ * (terminal_ ? 0.1 : 2.5), spent = now - started_;
  if (quiet_ || spent < silence_ || now - said_ < between) return;
  said_ = now;
  shown_ = terminal_;
  const double left = part() > 0 ? spent.count() * (1 - part()) / part() : 0;
  std::fprintf(to_,
               terminal_ ? "\r\033[K%3.0f %%  %.0f s, %.0f s left  %.60s"
                         : "%3.0f %%  %.0f s, %.0f s left  %.60s\n",
               std::floor(100 * part()), spent.count(), left, what.c_str());
  std::fflush(to_);
}

void run_jobs(std::vector<Job> jobs, index_t threads, Progress& progress) {
  std::atomic<std::size_t> next{0};
  std::exception_ptr failed;
  std::mutex failing;
  const auto work = [&] {
    for (std::size_t i = next++; i < jobs.size(); i = next++) {
      try {
        double left = jobs[i].tokens;
        jobs[i].run([&](double tokens) {
          left -= tokens;
          progress.done(tokens, jobs[i].what);
        });
        progress.done(left, jobs[i].what);
      } catch (...) {
        const std::lock_guard lock(failing);
        if (!failed) failed = std::current_exception();
        next = jobs.size();
      }
    }
  };
  std::vector<std::thread> team;
  const auto size = std::min(static_cast<std::size_t>(std::max<index_t>(threads, 1)), jobs.size());
  try {
    for (std::size_t t = 1; t < size; ++t) team.emplace_back(work);
  } catch (const std::system_error&) {
    // The machine has no more threads to give; those that run, and this one, do all the work.
  }
  work();
  for (std::thread& t : team) t.join();
  if (failed) std::rethrow_exception(failed);
}

index_t threads_for(index_t jobs) {
  return jobs > 0 ? jobs : std::max<index_t>(1, static_cast<index_t>(std::thread::hardware_concurrency()));
}

}  // namespace eval
