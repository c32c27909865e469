#pragma once

#include <cstddef>
#include <span>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/workspace.hpp>

namespace kvcondense {

/// The caller's threads. The library starts none of its own.
///
/// `run(tasks, body, state)` calls `body(state, task, worker)` once for every task in [0, tasks) and
/// returns when all are done; `worker` is in [0, workers()) and no two tasks with the same worker
/// run at the same time.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual index_t workers() const noexcept = 0;
  virtual void run(index_t tasks, void (*body)(void*, index_t task, index_t worker), void* state) noexcept = 0;
};

/// Scratch memory and threads for calls on the CPU. Cheap to copy; borrowed things outlive the call.
template <>
class Context<Cpu> {
 public:
  Context() = default;
  explicit Context(std::span<std::byte> workspace, Executor* executor = nullptr)
      : workspace_(workspace), executor_(executor) {}

  /// The same threads with other scratch memory.
  Context with_workspace(std::span<std::byte> workspace) const { return Context(workspace, executor_); }
  std::span<std::byte> workspace() const { return workspace_; }
  /// Words are done when they return; other backends' are not.
  Status wait() const { return Status::ok; }
  index_t workers() const { return executor_ == nullptr ? 1 : executor_->workers(); }

  /// Calls body(task, worker) for every task, on the executor's threads or in order on this one.
  template <class F>
  void parallel(index_t tasks, F&& body) const {
    if (executor_ == nullptr || tasks < 2) {
      for (index_t t = 0; t < tasks; ++t) body(t, index_t{0});
      return;
    }
    executor_->run(
        tasks, [](void* state, index_t task, index_t worker) { (*static_cast<F*>(state))(task, worker); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  std::span<std::byte> workspace_{};
  Executor* executor_ = nullptr;
};

}  // namespace kvcondense
