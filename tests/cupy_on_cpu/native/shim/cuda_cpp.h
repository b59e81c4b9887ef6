// CUDA C++ for a C++ compiler: this header is precompiled and comes before every kernel's source.
#pragma once
#include "../addresses.h"
#include "language.h"
#include "threads.h"
#include "arithmetic.h"
#include "intrinsics.h"

#ifdef EMU_WITH_CUPY  // what CuPy puts before its own kernels: precompiled with the rest
#include <cupy/complex.cuh>
#include <cupy/carray.cuh>
#include <cupy/atomics.cuh>
#include <cupy/math_constants.h>
#include "cupy/float16.cuh"
inline unsigned short __half_as_ushort(const half& x) { return emu_bits<unsigned short>(x); }
inline half __ushort_as_half(unsigned short x) { return emu_bits<half>(x); }
#endif

#include "entry.h"
