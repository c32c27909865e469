#pragma once

// What the sanitizers want to know about stacks that change under them. Without a sanitizer nothing is left.

#include <cstddef>

#if defined(__has_feature)
#define CUDA_FIBERS_FEATURE(x) __has_feature(x)
#else
#define CUDA_FIBERS_FEATURE(x) 0
#endif
#if defined(__SANITIZE_THREAD__) || CUDA_FIBERS_FEATURE(thread_sanitizer)
#define CUDA_FIBERS_TSAN 1
#endif
#if defined(__SANITIZE_ADDRESS__) || CUDA_FIBERS_FEATURE(address_sanitizer)
#define CUDA_FIBERS_ASAN 1
#endif

#if defined(CUDA_FIBERS_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(CUDA_FIBERS_TSAN)
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void* __tsan_get_current_fiber();
void __tsan_acquire(void* at);
void __tsan_release(void* at);
}
/// The scheduler itself is one thread whatever TSan thinks: its own state must not be looked at.
#define CUDA_FIBERS_UNSEEN __attribute__((no_sanitize("thread"), noinline))
#else
#define CUDA_FIBERS_UNSEEN
#endif

namespace cuda_fibers {

/// Bytes of a thread's stack: frames that are watched, and not optimized, are several times as large.
#if defined(CUDA_FIBERS_ASAN) || defined(CUDA_FIBERS_TSAN)
inline constexpr unsigned stack_bytes = 256 * 1024;
#else
inline constexpr unsigned stack_bytes = 64 * 1024;
#endif

/// Happens-before, for TSan: what came before `release(at)` is visible after `acquire(at)`.
inline void order_release([[maybe_unused]] void* at) {
#if defined(CUDA_FIBERS_TSAN)
  __tsan_release(at);
#endif
}
inline void order_acquire([[maybe_unused]] void* at) {
#if defined(CUDA_FIBERS_TSAN)
  __tsan_acquire(at);
#endif
}

/// A stack as the sanitizers know it.
struct SanitizerStack {
  void* thread = nullptr;       ///< TSan's
  void* fake_stack = nullptr;   ///< ASan's
  const void* bottom = nullptr;
  std::size_t bytes = 0;

  CUDA_FIBERS_UNSEEN void create() {
#if defined(CUDA_FIBERS_TSAN)
    thread = __tsan_create_fiber(0);
#endif
  }
  CUDA_FIBERS_UNSEEN void adopt_running() {
#if defined(CUDA_FIBERS_TSAN)
    thread = __tsan_get_current_fiber();
#endif
  }
  /// Before the switch to `next`. A stack that is `done` will not be returned to in this life.
  CUDA_FIBERS_UNSEEN void leave_for([[maybe_unused]] const SanitizerStack& next, [[maybe_unused]] bool done) {
#if defined(CUDA_FIBERS_ASAN)
    __sanitizer_start_switch_fiber(done ? nullptr : &fake_stack, next.bottom, next.bytes);
#endif
#if defined(CUDA_FIBERS_TSAN)
    __tsan_switch_to_fiber(next.thread, 1);  // 1: the switch orders nothing
#endif
  }
  /// First thing on this stack after a switch. `from` is null, or learns where the other stack lies.
  CUDA_FIBERS_UNSEEN void arrived([[maybe_unused]] SanitizerStack* from) {
#if defined(CUDA_FIBERS_ASAN)
    __sanitizer_finish_switch_fiber(fake_stack, from == nullptr ? nullptr : &from->bottom,
                                    from == nullptr ? nullptr : &from->bytes);
#endif
  }
};

}  // namespace cuda_fibers
