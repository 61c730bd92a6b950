// A function that can be left in the middle and entered again: one thread of a simulated block.
#pragma once
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdlib>
#include <functional>
#include <utility>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

#ifdef __x86_64__
// Saves what a call must keep on the stack, leaves the stack's top in *from, and goes on at `to`.
extern "C" void simt_switch(void** from, void* to);
asm(R"(
.text
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");
#endif

class Fibre {
 public:
  static constexpr std::size_t kStack = 1 << 16;

  Fibre() = default;
  Fibre(Fibre&& other) noexcept : stack_(std::exchange(other.stack_, nullptr)) {}
  ~Fibre() {
    if (stack_) munmap(stack_, kStack);
  }

  // Readies `body`, to run at the next `enter`.
  void start(std::function<void()> body) {
    body_ = std::move(body);
    if (!stack_) {
      stack_ = static_cast<char*>(
          mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      if (stack_ == MAP_FAILED) std::abort();
    }
#ifdef __x86_64__
    void** top = reinterpret_cast<void**>(stack_ + kStack) - 1;  // aligned as at a function's start
    *--top = reinterpret_cast<void*>(&first);
    top_ = top - 6;
    for (int i = 0; i < 6; ++i) static_cast<void**>(top_)[i] = nullptr;
#else
    getcontext(&inside_);
    inside_.uc_stack.ss_sp = stack_;
    inside_.uc_stack.ss_size = kStack;
    inside_.uc_link = nullptr;
    makecontext(&inside_, &first, 0);
#endif
  }

  // Runs the body until it leaves or ends.
  void enter() {
    entered() = this;
#ifdef __SANITIZE_ADDRESS__
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack_, kStack);
#endif
    swap_in();
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  // Called inside the body: goes back to where it was entered.
  void leave() { leave(false); }

 private:
  static Fibre*& entered() {
    static Fibre* fibre = nullptr;
    return fibre;
  }

  static void first() {
    Fibre* self = entered();
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &self->outer_stack_, &self->outer_size_);
#endif
    self->body_();
    self->leave(true);
    std::abort();  // an ended body is not entered again
  }

  void leave(bool ended) {
#ifdef __SANITIZE_ADDRESS__
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(ended ? nullptr : &fake, outer_stack_, outer_size_);
#else
    (void)ended;
#endif
    swap_out();
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake, &outer_stack_, &outer_size_);
#endif
  }

#ifdef __x86_64__
  void swap_in() { simt_switch(&outer_, top_); }
  void swap_out() { simt_switch(&top_, outer_); }
  void *top_ = nullptr, *outer_ = nullptr;
#else
  void swap_in() { swapcontext(&outside_, &inside_); }
  void swap_out() { swapcontext(&inside_, &outside_); }
  ucontext_t inside_, outside_;
#endif
  char* stack_ = nullptr;
  std::function<void()> body_;
#ifdef __SANITIZE_ADDRESS__
  const void* outer_stack_ = nullptr;
  std::size_t outer_size_ = 0;
#endif
};

}  // namespace simt
