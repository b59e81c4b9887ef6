// The keywords and built-in variables of CUDA C++.
#pragma once
// C's own headers, not <cmath>: it would double the precompiled header, and loading that is most of a compilation.
#define _GLIBCXX_INCLUDE_NEXT_C_HEADERS
#include <math.h>
#include <stdlib.h>
#undef _GLIBCXX_INCLUDE_NEXT_C_HEADERS
#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cstddef>
#include <initializer_list>
#include <limits>
#include <type_traits>
#include <utility>

#undef __noinline__
#define __device__
#define __host__
#define __global__ static  // so that a kernel is inlined into the loop over its threads
#define __constant__
#define __managed__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
// A section of their own: the driver fills it with rubbish before each block.
#define __shared__ static __attribute__((section("emu_shared")))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

// Of driver.c. "initial-exec" reads them without a call, and is allowed since they are few.
#define EMU_THREAD_LOCAL extern "C" __thread __attribute__((tls_model("initial-exec")))
EMU_THREAD_LOCAL uint3 threadIdx, blockIdx, blockDim, gridDim;
EMU_THREAD_LOCAL char* emu_dynamic_shared;
extern "C" int emu_reverse;
static const int warpSize = 32;

template <class To, class From>
inline To emu_bits(const From& x) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To result;
  memcpy(&result, &x, sizeof result);
  return result;
}
