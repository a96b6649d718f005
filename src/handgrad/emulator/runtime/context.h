// Switching between stacks: a hand-written x86-64 switch (about 10 ns), POSIX ucontext elsewhere (about six
// times slower; also chosen by -DEMULATED_UCONTEXT, so that it can be tested on x86-64).
#pragma once
#include <stddef.h>

#if !defined(__x86_64__) && !defined(EMULATED_UCONTEXT)
#define EMULATED_UCONTEXT
#endif

#ifdef EMULATED_UCONTEXT
#include <ucontext.h>

namespace emulated {

struct Context {
    ucontext_t saved;
};

inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context.saved);
    context.saved.uc_stack.ss_sp = stack;
    context.saved.uc_stack.ss_size = bytes;
    context.saved.uc_link = nullptr;  // entry never returns
    makecontext(&context.saved, entry, 0);
}

inline void switch_context(Context& from, Context& to) { swapcontext(&from.saved, &to.saved); }

}  // namespace emulated

#else

// Saves the callee-saved registers on the running stack, stores that stack pointer, and resumes the other.
extern "C" void emulated_switch_stack(void** save, void* resume);

namespace emulated {

struct Context {
    void* stack_pointer;
};

inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    // Six registers to pop, then `ret` to entry; the slot above is entry's return address: none.
    constexpr int registers = 6;
    void** top = reinterpret_cast<void**>(stack + bytes) - 2;
    top[1] = nullptr;
    top[0] = reinterpret_cast<void*>(entry);
    for (int i = 1; i <= registers; ++i) top[-i] = nullptr;
    context.stack_pointer = top - registers;
}

inline void switch_context(Context& from, Context& to) {
    emulated_switch_stack(&from.stack_pointer, to.stack_pointer);
}

}  // namespace emulated
#endif
