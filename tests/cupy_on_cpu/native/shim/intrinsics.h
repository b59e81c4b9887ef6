// Functions that only CUDA has: bits, conversions, rounded and approximate arithmetic.
#pragma once

inline float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emu_bits<float>(x); }
inline int __float_as_int(float x) { return emu_bits<int>(x); }
inline double __longlong_as_double(long long x) { return emu_bits<double>(x); }
inline long long __double_as_longlong(double x) { return emu_bits<long long>(x); }
inline int __double2hiint(double x) { return (int)(__double_as_longlong(x) >> 32); }
inline int __double2loint(double x) { return (int)__double_as_longlong(x); }
inline double __hiloint2double(int high, int low) {
  return __longlong_as_double((long long)((uint64_t)(unsigned)high << 32 | (unsigned)low));
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int i = 0; i < 32; i++) result |= (x >> i & 1) << (31 - i);
  return result;
}
inline int __mulhi(int a, int b) { return (int64_t)a * b >> 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned __int128)a * b >> 64;
}
template <class T>
inline T __ldg(const T* address) { return *address; }
inline long long clock64() { return 0; }

// The compiler must not fuse what was asked to be rounded.
template <class T>
inline T emu_rounded(T x) {
  asm("" : "+x"(x));
  return x;
}
#define EMU_ROUNDED(letter, T)                                                     \
  inline T __##letter##add_rn(T a, T b) { return emu_rounded(a + b); }             \
  inline T __##letter##sub_rn(T a, T b) { return emu_rounded(a - b); }             \
  inline T __##letter##mul_rn(T a, T b) { return emu_rounded(a * b); }             \
  inline T __##letter##div_rn(T a, T b) { return emu_rounded(a / b); }             \
  inline T __##letter##rcp_rn(T a) { return emu_rounded(1 / a); }                  \
  inline T __##letter##sqrt_rn(T a) { return sqrt(a); }
EMU_ROUNDED(f, float)
EMU_ROUNDED(d, double)
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0), 1); }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return exp10f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline float __tanhf(float x) { return tanhf(x); }

// CuPy's float16.cuh brings the class and asks for four conversions.
struct half;
inline unsigned short __half_as_ushort(const half& x);
inline half __ushort_as_half(unsigned short x);
inline unsigned short __float2half_rn(float x) { return emu_bits<unsigned short>((_Float16)x); }
inline float __half2float(unsigned short x) { return (float)emu_bits<_Float16>(x); }
