// The switch between stacks on x86-64 (see context.h).
#include "context.h"

#ifndef EMULATED_UCONTEXT
asm(R"(
    .text
    .p2align 4
    .hidden emulated_switch_stack
    .globl emulated_switch_stack
    .type emulated_switch_stack, @function
emulated_switch_stack:
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
    .size emulated_switch_stack, .-emulated_switch_stack
)");
#endif
