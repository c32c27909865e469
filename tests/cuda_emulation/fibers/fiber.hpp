#pragma once

// Stacks and the switch between them: hand-written on x86-64, ucontext elsewhere.

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "sanitizers.hpp"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__x86_64__)
extern "C" void cuda_fibers_swap(void** save, void* to);
asm(R"(
.pushsection .text
.weak cuda_fibers_swap
.type cuda_fibers_swap,@function
cuda_fibers_swap:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
.size cuda_fibers_swap,.-cuda_fibers_swap
.popsection
)");
#endif

namespace cuda_fibers {

/// Where a stack stands while another one runs.
struct Place {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;

  /// The next switch to here calls `entry` on an empty stack that ends at `top`.
  CUDA_FIBERS_UNSEEN void start_at(void (*entry)(), char* bottom, std::size_t bytes) {
    const std::uintptr_t top = (reinterpret_cast<std::uintptr_t>(bottom) + bytes) & ~std::uintptr_t{15};
    void** slot = reinterpret_cast<void**>(top) - 2;  // the alignment a call leaves
    *slot = reinterpret_cast<void*>(entry);
    stack_pointer = slot - 6;  // six registers that the switch pops
  }
  CUDA_FIBERS_UNSEEN void switch_to(Place& next) { cuda_fibers_swap(&stack_pointer, next.stack_pointer); }
#else
  ucontext_t context{};

  void start_at(void (*entry)(), char* bottom, std::size_t bytes) {
    getcontext(&context);
    context.uc_stack.ss_sp = bottom;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void switch_to(Place& next) { swapcontext(&context, &next.context); }
#endif
};

/// Memory of a stack with a page below it that may not be touched: a kernel that recurses or has a huge
/// local array stops there.
struct StackMemory {
  char* bottom = nullptr;
  std::size_t bytes = 0;

  CUDA_FIBERS_UNSEEN bool map(std::size_t want) {
    constexpr std::size_t guard = 4096;
    void* p = mmap(nullptr, want + guard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return false;
    mprotect(p, guard, PROT_NONE);
    bottom = static_cast<char*>(p) + guard;
    bytes = want;
    return true;
  }
};

}  // namespace cuda_fibers
