// Hardware faults of a kernel (a wild pointer, an integer division by zero, a stack overflow) become errors
// of the launch instead of ending the process.  The handlers stand only while a grid runs.
#pragma once
#include <pthread.h>
#include <signal.h>
#include <string.h>

namespace emulated {

// Ends the grid; called on the signal stack, which the switch to the scheduler leaves for good.
[[noreturn]] void stop_at_fault(int signal, const void* address, bool address_known);

bool runs_kernel();  // rather than the emulator itself

class FaultHandlers {
public:
    FaultHandlers() {
        runner = pthread_self();
        stack_t stack = {};
        stack.ss_sp = signal_stack;
        stack.ss_size = sizeof signal_stack;
        sigaltstack(&stack, &previous_stack_);
        struct sigaction action = {};
        action.sa_sigaction = handle;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (int i = 0; i < count; ++i) sigaction(signals[i], &action, &previous[i]);
    }
    ~FaultHandlers() {
        for (int i = 0; i < count; ++i) sigaction(signals[i], &previous[i], nullptr);
        sigaltstack(&previous_stack_, nullptr);
    }

private:
    static constexpr int count = 3;
    static constexpr int signals[count] = {SIGSEGV, SIGBUS, SIGFPE};
    static inline char signal_stack[32 * 1024];
    static inline struct sigaction previous[count];
    static inline pthread_t runner;

    static void handle(int signal, siginfo_t* info, void*) {
        // x86 gives no address for a misaligned vector access
        if (pthread_equal(pthread_self(), runner) && runs_kernel())
            stop_at_fault(signal, info->si_addr, info->si_code != SI_KERNEL);
        for (int i = 0; i < count; ++i)  // not the kernel's fault: as before the launch, when it repeats
            if (signals[i] == signal) sigaction(signal, &previous[i], nullptr);
    }

    stack_t previous_stack_;
};

}  // namespace emulated
