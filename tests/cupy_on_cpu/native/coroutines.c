// The threads of one block where they wait for each other: each is a coroutine with a stack of its own.
#define _GNU_SOURCE
#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { STACK = 65536, WARP = 32 };
typedef enum { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE } State;

typedef struct {
  char* stacks;
  void *stack_pointer[MAX_THREADS], *scheduler;
  State state[MAX_THREADS];
  uint32_t mask[MAX_THREADS];    // of the warp barrier that a thread waits at
  uint64_t shown[MAX_THREADS];  // what a thread shows to the others: a shuffle's value, a vote
  uint3 index[MAX_THREADS];
  int current, count;
  const Kernel* kernel;
  void** parameters;
} Block;

static THREAD_LOCAL Block* block;  // a pointer: thread-local memory of this kind is scarce

// ---- switching

#if !defined(__x86_64__)
#error "switch_stack is written for x86-64"
#endif
__attribute__((naked, noinline)) static void switch_stack(void** save, void* to) {
  __asm__(
      "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15; movq %rsp, (%rdi); movq %rsi, %rsp;"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}

static void leave_as(State state) {
  block->state[block->current] = state;
  switch_stack(&block->stack_pointer[block->current], block->scheduler);
}

static void start(void) {
  block->kernel->thread(block->parameters);
  leave_as(DONE);
  __builtin_unreachable();
}

static void prepare(int t) {
  // 64 * (t % 32): stacks that all begin in the same cache set would evict each other
  void** top = (void**)(block->stacks + (size_t)(t + 1) * STACK - 64 - 64 * (t % 32));
  *--top = NULL;  // aligns the stack as a call does
  *--top = (void*)start;
  top -= 6;  // the registers that switch_stack takes
  memset(top, 0, 6 * sizeof *top);
  block->stack_pointer[t] = top;
  block->state[t] = READY;
  block->index[t] = (uint3){t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
}

// ---- what a kernel calls (shim/threads.h)

int emu_lane(void) { return block->current % WARP; }
void emu_block_barrier(void) { leave_as(AT_BLOCK_BARRIER); }
void emu_warp_barrier(uint32_t mask) {
  block->mask[block->current] = mask;
  leave_as(AT_WARP_BARRIER);
}

uint64_t emu_exchange(uint32_t mask, uint64_t value, int from_lane) {
  const int me = block->current;
  block->shown[me] = value;
  emu_warp_barrier(mask);
  value = block->shown[me - me % WARP + from_lane];
  emu_warp_barrier(mask);  // nobody shows the next value before all have read this one
  return value;
}

uint32_t emu_ballot(uint32_t mask, int predicate) {
  const int me = block->current, first = me - me % WARP;
  uint32_t votes = 0;
  block->shown[me] = predicate != 0;
  emu_warp_barrier(mask);
  for (int lane = 0; lane < WARP && first + lane < block->count; lane++)
    if ((mask >> lane & 1) && block->state[first + lane] != DONE && block->shown[first + lane]) votes |= 1u << lane;
  emu_warp_barrier(mask);
  return votes;
}

int emu_block_count(int predicate) {
  int count = 0;
  block->shown[block->current] = predicate != 0;
  emu_block_barrier();
  for (int t = 0; t < block->count; t++) count += block->state[t] != DONE && block->shown[t];
  emu_block_barrier();
  return count;
}

// ---- the scheduler

static int waits_for(int t, uint32_t mask) { return block->state[t] == AT_WARP_BARRIER && block->mask[t] == mask; }

// Whether every thread that a warp barrier names has come to it, or is done.
static int complete(int first, int stop, uint32_t mask) {
  for (int t = first; t < stop; t++)
    if ((mask >> (t - first) & 1) && block->state[t] != DONE && !waits_for(t, mask)) return 0;
  return 1;
}

static int release_warp(int first, int stop) {
  int released = 0;
  for (int t = first; t < stop; t++) {
    const uint32_t mask = block->mask[t];
    if (block->state[t] != AT_WARP_BARRIER || !complete(first, stop, mask)) continue;
    for (int u = first; u < stop; u++)  // not a thread that waits with a mask it is not in
      if ((mask >> (u - first) & 1) && waits_for(u, mask)) {
        block->state[u] = READY;
        released = 1;
      }
  }
  return released;
}

static int run_ready(void) {
  int ran = 0;
  for (int i = 0; i < block->count; i++) {
    const int t = emu_reverse ? block->count - 1 - i : i;
    if (block->state[t] != READY) continue;
    block->current = t;
    threadIdx = block->index[t];
    switch_stack(&block->scheduler, block->stack_pointer[t]);
    ran = 1;
  }
  return ran;
}

int run_cooperating_block(const Kernel* kernel, void** parameters) {
  if (!block) block = calloc(1, sizeof *block);
  if (!block->stacks) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    block->stacks = mmap(NULL, (size_t)MAX_THREADS * STACK, PROT_READ | PROT_WRITE, flags, -1, 0);
  }
  block->kernel = kernel;
  block->parameters = parameters;
  block->count = blockDim.x * blockDim.y * blockDim.z;
  for (int t = 0; t < block->count; t++) prepare(t);
  for (;;) {
    int moved = run_ready(), left = 0, at_barrier = 0;
    for (int first = 0; first < block->count; first += WARP)
      moved |= release_warp(first, first + WARP < block->count ? first + WARP : block->count);
    for (int t = 0; t < block->count; t++) {
      left += block->state[t] != DONE;
      at_barrier += block->state[t] == AT_BLOCK_BARRIER;
    }
    if (!left) return 0;
    if (at_barrier == left) {
      for (int t = 0; t < block->count; t++)
        if (block->state[t] == AT_BLOCK_BARRIER) block->state[t] = READY;
    } else if (!moved) {
      fprintf(stderr, "cupy_on_cpu: the threads of a block wait at barriers that never meet\n");
      return 1;
    }
  }
}
