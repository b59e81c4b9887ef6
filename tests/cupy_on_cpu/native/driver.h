// What the two halves of libcuda share: driver.c (modules, launches) and coroutines.c (threads that wait for each other).
#pragma once
#include <stdint.h>

typedef struct {
  uint32_t x, y, z;
} uint3;

// As in shim/entry.h.
typedef struct {
  void (*block)(void** parameters);
  void (*thread)(void** parameters);
  int parameters;
  const uint32_t* sizes;
  char *shared_from, *shared_to;
} Kernel;

enum { MAX_THREADS = 1024 };

#define THREAD_LOCAL __thread __attribute__((tls_model("initial-exec")))
extern THREAD_LOCAL uint3 threadIdx, blockIdx, blockDim, gridDim;
extern int emu_reverse;

// Run all threads of the block `blockIdx`; nonzero where their barriers never meet.
int run_cooperating_block(const Kernel* kernel, void** parameters);
